"""What a user sets of a correction g: specs with scikit-learn's parameter protocol, which build the nets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from numbers import Integral
from typing import Any

from torch import Tensor, nn

from ..numerics.residuals import Residual
from .correction_nets import ConvCorrectionNet, CorrectionLayout, CorrectionNet, MLPCorrectionNet, wants_matrix_gate

_GATE_SHARE = 0.5
"""Of the width, what a gate that is a matrix has to leave within the budget of MACs."""
_ACTIVATIONS = {"silu": nn.SiLU, "tanh": nn.Tanh, "softplus": nn.Softplus, "prelu": nn.PReLU}


@dataclass
class _Spec:
    """What both kinds have in common: parameters, and scikit-learn's protocol, so that ``correction__hidden`` is searchable."""

    hidden: int | None = None
    depth: int = 3
    activation: str = "silu"
    gate: bool = True
    tableaus: Sequence[Any] | None = None

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Parameters by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def set_params(self, **params: Any) -> _Spec:
        """Set parameters by name."""
        valid = self.get_params()
        for name, value in params.items():
            if name not in valid:
                raise ValueError(f"{type(self).__name__} has no parameter {name!r}; valid ones are {sorted(valid)}.")
            setattr(self, name, value)
        return self

    def _check(self) -> None:
        for name in ("hidden", "depth"):
            value = getattr(self, name)
            if not (value is None and name == "hidden") and (not isinstance(value, Integral) or value < 1):
                raise ValueError(f"{type(self).__name__}.{name} must be an integer >= 1, got {value!r}.")
        if self.activation not in _ACTIVATIONS:
            raise ValueError(
                f"{type(self).__name__}.activation must be one of {sorted(_ACTIVATIONS)}, got {self.activation!r}."
            )

    def _layout(
        self,
        sample: Residual,
        n_state: int,
        n_input: int,
        n_gate: int,
        has_matrix_gate: bool,
        hidden: int,
        reads_startup: bool,
    ) -> CorrectionLayout:
        return CorrectionLayout(
            state_shape=tuple(sample.z.shape[1:]),
            n_state=n_state,
            n_stages=len(sample.stages),
            n_input=n_input,
            n_gate=n_gate,
            has_matrix_gate=has_matrix_gate,
            hidden=hidden,
            depth=self.depth,
            activation=_ACTIVATIONS[self.activation],
            reads_tableau=self.tableaus is not None,
            reads_startup=reads_startup,
        )


@dataclass
class MLPCorrection(_Spec):
    """A fully connected correction for vector states (other shapes are flattened).

    All its weights are linear in s and eps, which a batch shares: that costs no product a sample.

    Parameters
    ----------
    hidden : int, optional
        Width of the hidden layers. None: the widest that keeps MAC_g within the budget (a tenth of MAC_f), 1 to 64;
        32 where the field has no MACs to compare with.
    depth : int, default 3
        Number of hidden layers.
    activation : {"silu", "tanh", "softplus", "prelu"}, default "silu"
    gate : bool, default True
        Whether the net also emits bounded, state-dependent weights on the stages it reads: a matrix a stage for states of
        up to four dimensions where the budget of MACs lets it, else one number a stage.
    tableaus : list of str and ButcherTableau, optional
        Fit over these base solvers too, all of the fitted one's order and number of stages. The net is then told which one
        it runs with, so that ``with_solver`` can swap one of them, or one between them, for another.

    Examples
    --------
    >>> from sklearn_hyper import MLPCorrection, alpha_family
    >>> MLPCorrection(hidden=16).set_params(depth=1).get_params()
    {'hidden': 16, 'depth': 1, 'activation': 'silu', 'gate': True, 'tableaus': None}
    >>> family = MLPCorrection(tableaus=[alpha_family(0.1), "midpoint", "heun"])
    """

    def build(
        self, sample: Residual, x: Tensor | None = None, max_macs: float = math.nan, reads_startup: bool = False
    ) -> CorrectionNet:
        """Build the net for states, stages and inputs like those of ``sample``; with start-up steps of their own or not."""
        self._check()
        n, n_stages = sample.z[0].numel(), len(sample.stages)
        n_input = 0 if x is None else x[0].numel()
        n_in = n * (1 + n_stages) + n_input

        def width(n_gate: int, product: int = 0) -> int:
            n_out = n + n_gate * n_stages
            return self.hidden or _widest(
                max_macs, 32, lambda h: h * (n_in + n_out) + (self.depth - 1) * h * h + product
            )  # fmt: skip

        n_gate, matrix_gate = int(self.gate), False
        hidden = width(n_gate)
        if self.gate and wants_matrix_gate(n):
            # What the folded net's matrix gate costs, see folded_nets: spreading every stage, and adding up.
            narrower = width(n * n, n**3 * n_stages * (1 + n_stages))
            if narrower >= _GATE_SHARE * hidden:
                n_gate, matrix_gate, hidden = n * n, True, narrower
        return MLPCorrectionNet(self._layout(sample, n, n_input, n_gate, matrix_gate, hidden, reads_startup))


@dataclass
class ConvCorrection(_Spec):
    """A convolutional correction for image states (channels, height, width).

    All its weights are linear in s and eps, as those of :class:`MLPCorrection` are.

    Parameters
    ----------
    hidden : int, optional
        Channels of the hidden layers. None: the widest that keeps MAC_g within the budget (a tenth of MAC_f), 1 to 64;
        16 where the field has no MACs to compare with.
    depth : int, default 1
        Number of hidden layers.
    activation : {"silu", "tanh", "softplus", "prelu"}, default "silu"
    gate : bool, default True
        Whether the net also emits bounded, state-dependent weights (one a position) on the stages it reads.
    tableaus : list of str and ButcherTableau, optional
        Fit over these base solvers too; see :class:`MLPCorrection`.
    kernel_size : int, default 3
        Odd.

    Examples
    --------
    >>> from sklearn_hyper import ConvCorrection
    >>> ConvCorrection(hidden=8).hidden
    8
    """

    depth: int = 1
    kernel_size: int = 3

    def build(
        self, sample: Residual, x: Tensor | None = None, max_macs: float = math.nan, reads_startup: bool = False
    ) -> CorrectionNet:
        """Build the net for states, stages and inputs like those of ``sample``; with start-up steps of their own or not."""
        self._check()
        if sample.z.ndim != 4:
            raise ValueError(f"ConvCorrection needs states of shape (c, h, w), got {tuple(sample.z.shape[1:])}.")
        if self.kernel_size % 2 != 1:
            raise ValueError(f"ConvCorrection.kernel_size must be odd, got {self.kernel_size}.")
        c, area, k2 = sample.z.shape[1], sample.z[0, 0].numel(), self.kernel_size**2
        n_input = 0 if x is None else _image_channels(x, sample.z)
        n_in, n_out = c * (1 + len(sample.stages)) + n_input, c + len(sample.stages) * self.gate
        hidden = self.hidden or _widest(
            max_macs, 16, lambda h: area * k2 * (h * (n_in + n_out) + (self.depth - 1) * h * h)
        )  # fmt: skip
        layout = self._layout(sample, c, n_input, int(self.gate), False, hidden, reads_startup)
        return ConvCorrectionNet(layout, self.kernel_size)


def _image_channels(x: Tensor, z: Tensor) -> int:
    if x.ndim != 4 or x.shape[2:] != z.shape[2:]:
        raise ValueError(
            f"ConvCorrection reads the input x beside the state, so x must be an image of the state's height and width "
            f"{tuple(z.shape[2:])}, got x of shape {tuple(x.shape[1:])}; pass a correction module of your own."
        )
    return int(x.shape[1])


def _widest(max_macs: float, default: int, macs: Any) -> int:
    if math.isnan(max_macs):
        return default
    return max((h for h in range(1, 65) if macs(h) <= max_macs), default=1)


def auto_correction(state: Tensor) -> _Spec:
    """The spec that ``correction="auto"`` stands for: convolutions for image states, otherwise an MLP."""
    return ConvCorrection() if state.ndim == 4 else MLPCorrection()
