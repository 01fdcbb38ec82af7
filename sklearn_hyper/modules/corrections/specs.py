"""Settings of a correction g: specs with scikit-learn's parameter protocol, which build the nets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor, nn

from ...numerics.methods import Method, RungeKutta, resolve_base_solver
from .building import CorrectionSpec, NetInputs, OwnModule, is_positive_integer
from .layers import CorrectionLayout
from .nets import ConvCorrectionNet, MLPCorrectionNet

MATRIX_GATE = 4
"""Largest dimension of states for which the gate is a matrix per stage. Above it, the gate is one number per stage."""
_GATE_SHARE = 0.5
"""Smallest share of the width that a matrix gate has to leave, within the same budget of MACs."""
_ACTIVATIONS = {"silu": nn.SiLU, "tanh": nn.Tanh, "softplus": nn.Softplus, "prelu": nn.PReLU}


@dataclass
class _GatedSpec(CorrectionSpec):
    """Settings that both specs have in common."""

    hidden: int | None = None
    depth: int = 3
    activation: str = "silu"
    gate: bool = True
    tableaus: Sequence[Any] | None = None

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Parameters by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def method_family(self, method: Method) -> list[Method]:
        """Return the base method, then those of ``tableaus``."""
        if self.tableaus is None:
            return [method]
        name = f"{type(self).__name__}.tableaus"
        if not isinstance(self.tableaus, (list, tuple)) or not self.tableaus:
            raise ValueError(f"{name} must be None or a list of names and ButcherTableaus, got {self.tableaus!r}.")
        family = [method]
        for tableau in self.tableaus:
            member = _resolve_member(tableau, method, name)
            if member not in family:
                family.append(member)
        for member in family:
            if not isinstance(member, RungeKutta):
                raise ValueError(
                    f"base_solver {member.name!r} has no Butcher tableau, and a correction fitted over tableaus needs "
                    "to know it; pass a ButcherTableau, or fit with tableaus=None."
                )
        return family

    def _check(self) -> None:
        for name in ("hidden", "depth"):
            value = getattr(self, name)
            if not (value is None and name == "hidden") and not is_positive_integer(value):
                raise ValueError(f"{type(self).__name__}.{name} must be an integer >= 1, got {value!r}.")
        if self.activation not in _ACTIVATIONS:
            raise ValueError(
                f"{type(self).__name__}.activation must be one of {sorted(_ACTIVATIONS)}, got {self.activation!r}."
            )

    def _layout(self, inputs: NetInputs, n_state: int, n_input: int, **sizes: Any) -> CorrectionLayout:
        return layout_of(
            inputs, n_state, n_input, type(self).__name__,
            depth=self.depth, activation=_ACTIVATIONS[self.activation],
            reads_tableau=self.tableaus is not None, **sizes,
        )  # fmt: skip


def layout_of(inputs: NetInputs, n_state: int, n_input: int, name: str, **sizes: Any) -> CorrectionLayout:
    """Return the layout of a net that reads the stages of the method's later steps. ``name`` is the spec's."""
    main = inputs.main_kind
    longest = max(kind.n_stages for kind in inputs.kinds)
    if longest > main.n_stages:
        raise ValueError(
            f"{name} reads at most the {main.n_stages} stages of the base solver's later steps, and a start-up step "
            f"has {longest}; start the method with fewer stages, or pass a CorrectionNet of your own."
        )
    return CorrectionLayout(
        state_shape=tuple(inputs.z.shape[1:]),
        n_state=n_state,
        n_stages=main.n_stages,
        n_input=n_input,
        other_families=tuple(kind.family for kind in inputs.kinds if kind.family != main.family),
        **sizes,
    )


def _resolve_member(tableau: Any, method: Method, name: str) -> Method:
    try:
        member = resolve_base_solver(tableau)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} holds {tableau!r}: {error}") from error
    if member.main_kind.family != method.main_kind.family:
        raise ValueError(
            f"{name} holds {member.name!r} (order {member.order}, {member.n_stages} stages), but base_solver is "
            f"{method.name!r} (order {method.order}, {method.n_stages} stages); a correction covers base solvers of "
            "one order and number of stages."
        )
    return member


@dataclass
class MLPCorrection(_GatedSpec):
    """A fully connected correction for vector states (other shapes are flattened).

    All its weights are linear in s and eps. A batch shares these, so this costs no product per sample.

    Parameters
    ----------
    hidden : int, optional
        Width of the hidden layers. None: the largest width from 1 to 64 that keeps MAC_g within the budget (a tenth of
        MAC_f), or 32 if the field has no MACs.
    depth : int, default 3
        Number of hidden layers.
    activation : {"silu", "tanh", "softplus", "prelu"}, default "silu"
    gate : bool, default True
        Whether the net also returns bounded, state-dependent weights of the stages. For states of up to four dimensions
        they are a matrix per stage if the budget of MACs allows it. Otherwise they are one number per stage.
    tableaus : list of str and ButcherTableau, optional
        Fit over these base solvers too. All must have the order and number of stages of the fitted one. The net then
        reads which one it runs with, so that ``with_solver`` can switch to any of them, or to one in between.

    Examples
    --------
    >>> from sklearn_hyper import MLPCorrection, alpha_family
    >>> MLPCorrection(hidden=16).set_params(depth=1).get_params()
    {'hidden': 16, 'depth': 1, 'activation': 'silu', 'gate': True, 'tableaus': None}
    >>> family = MLPCorrection(tableaus=[alpha_family(0.1), "midpoint", "heun"])
    """

    def build(self, inputs: NetInputs) -> nn.Module:
        """Build the net for states, stages and inputs of these sizes."""
        self._check()
        n, n_stages = inputs.z[0].numel(), inputs.main_kind.n_stages
        n_input = 0 if inputs.x is None else inputs.x[0].numel()
        n_in = n * (1 + n_stages) + n_input

        def width(n_gate: int, product: int = 0) -> int:
            n_out = n + n_gate * n_stages
            return self.hidden or _widest(
                inputs.max_macs, 32, lambda h: h * (n_in + n_out) + (self.depth - 1) * h * h + product
            )  # fmt: skip

        n_gate, has_matrix_gate = int(self.gate), False
        hidden = width(n_gate)
        if self.gate and n <= MATRIX_GATE:
            # The last argument is the cost of the matrix gate in the folded net: spreading every stage, and adding up.
            narrower = width(n * n, n**3 * n_stages * (1 + n_stages))
            if narrower >= _GATE_SHARE * hidden:
                n_gate, has_matrix_gate, hidden = n * n, True, narrower
        sizes = {"n_gate": n_gate, "has_matrix_gate": has_matrix_gate, "hidden": hidden}
        return MLPCorrectionNet.build(self._layout(inputs, n, n_input, **sizes))


@dataclass
class ConvCorrection(_GatedSpec):
    """A convolutional correction for image states (channels, height, width).

    All its weights are linear in s and eps, as in :class:`MLPCorrection`.

    Parameters
    ----------
    hidden : int, optional
        Channels of the hidden layers. None: the largest number from 1 to 64 that keeps MAC_g within the budget (a tenth
        of MAC_f), or 16 if the field has no MACs.
    depth : int, default 1
        Number of hidden layers.
    activation : {"silu", "tanh", "softplus", "prelu"}, default "silu"
    gate : bool, default True
        Whether the net also returns bounded, state-dependent weights of the stages, one per stage and position.
    tableaus : list of str and ButcherTableau, optional
        Fit over these base solvers too; see :class:`MLPCorrection`.
    kernel_size : int, default 3
        Must be odd.

    Examples
    --------
    >>> from sklearn_hyper import ConvCorrection
    >>> ConvCorrection(hidden=8).hidden
    8
    """

    depth: int = 1
    kernel_size: int = 3

    def build(self, inputs: NetInputs) -> nn.Module:
        """Build the net for states, stages and inputs of these sizes."""
        self._check()
        if self.kernel_size % 2 != 1:
            raise ValueError(f"ConvCorrection.kernel_size must be odd, got {self.kernel_size}.")
        c, n_input = image_channels(inputs, "ConvCorrection")
        n_stages, area, k2 = inputs.main_kind.n_stages, inputs.z[0, 0].numel(), self.kernel_size**2
        n_in, n_out = c * (1 + n_stages) + n_input, c + n_stages * self.gate
        hidden = self.hidden or _widest(
            inputs.max_macs, 16, lambda h: area * k2 * (h * (n_in + n_out) + (self.depth - 1) * h * h)
        )  # fmt: skip
        sizes = {"n_gate": int(self.gate), "has_matrix_gate": False, "hidden": hidden}
        return ConvCorrectionNet.build(self._layout(inputs, c, n_input, **sizes), self.kernel_size)


def image_channels(inputs: NetInputs, name: str) -> tuple[int, int]:
    """Return the channels of states and of x (0 without x); refuse what is no image. ``name`` is the spec's."""
    z, x = inputs.z, inputs.x
    if z.ndim != 4:
        raise ValueError(f"{name} needs states of shape (c, h, w), got {tuple(z.shape[1:])}.")
    if x is None:
        return z.shape[1], 0
    if x.ndim != 4 or x.shape[2:] != z.shape[2:]:
        raise ValueError(
            f"{name} reads the input x beside the state, so x must be an image of the state's height and width "
            f"{tuple(z.shape[2:])}, got x of shape {tuple(x.shape[1:])}; pass a correction module of your own."
        )
    return z.shape[1], int(x.shape[1])


def _widest(max_macs: float, default: int, macs: Any) -> int:
    if math.isnan(max_macs):
        return default
    return max((h for h in range(1, 65) if macs(h) <= max_macs), default=1)


def resolve_spec(correction: Any, z: Tensor) -> CorrectionSpec:
    """Return the spec that a user's ``correction`` means, where "auto" is a net beside the field.

    ========================  ==========================================================
    ``correction``            spec
    ========================  ==========================================================
    "auto", states (c, h, w)  :class:`ConvCorrection`
    "auto", other states      :class:`MLPCorrection`
    a spec                    itself
    an ``nn.Module``          one that builds a copy of the module
    ========================  ==========================================================
    """
    if isinstance(correction, str):
        return ConvCorrection() if z.ndim == 4 else MLPCorrection()
    return correction if isinstance(correction, CorrectionSpec) else OwnModule(correction)
