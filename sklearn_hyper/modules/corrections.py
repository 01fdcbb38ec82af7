"""Corrections g: the specs a user sets, the nets they build, and the wrapper that scales and bounds any of them.

Contract of a correction: ``forward(eps, s, z, stages, x=None) -> tensor like z`` with eps a signed Python float, s a 0-d
tensor and stages a list of tensors like z. It must stay O(1) as eps -> 0, or the base solver's order is lost.
One that has to know which base solver the stages come from also offers ``for_solver(solver) -> correction``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..numerics.base_solvers import BaseSolver
from ..numerics.residuals import Residual
from .serialization import DeviceFreeModule
from .solver_binding import bind_solver, leading_error, make_view, stage_spacings

_ACTIVATIONS = {"silu": nn.SiLU, "tanh": nn.Tanh, "softplus": nn.Softplus, "prelu": nn.PReLU}


def flatten_samples(t: Tensor) -> Tensor:
    """(batch, ...) to (batch, n); a state may have no axis but the batch's."""
    return t.reshape(t.shape[0], -1)


class _Spec:
    """scikit-learn's parameter protocol, so that ``correction__hidden`` is searchable and clone works."""

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Parameters by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]

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
        if self.activation not in _ACTIVATIONS:  # type: ignore[attr-defined]
            raise ValueError(
                f"{type(self).__name__}.activation must be one of {sorted(_ACTIVATIONS)}, got {self.activation!r}."  # type: ignore[attr-defined]
            )


@dataclass
class MLPCorrection(_Spec):
    """A fully connected correction for vector states (other shapes are flattened).

    Parameters
    ----------
    hidden : int, optional
        Width of the hidden layers. None: the widest that keeps MAC_g within the budget (a tenth of MAC_f), 1 to 64;
        32 where the field has no MACs to compare with.
    depth : int, default 2
        Number of hidden layers.
    activation : {"silu", "tanh", "softplus", "prelu"}, default "silu"
    gate : bool, default True
        Whether the net also emits bounded, state-dependent weights on the stages it reads: a matrix a stage for states of
        up to four dimensions, one number a stage above that.
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

    hidden: int | None = None
    depth: int = 2
    activation: str = "silu"
    gate: bool = True
    tableaus: Sequence[Any] | None = None

    def build(self, sample: Residual, x: Tensor | None = None, max_macs: float = math.nan) -> nn.Module:
        """Build the net for states, stages and inputs like those of ``sample``."""
        self._check()
        d = sample.z[0].numel()
        d_in = d * (1 + len(sample.stages)) + (0 if x is None else x[0].numel())
        gate = _gate_width(d) * len(sample.stages) if self.gate else 0
        product = gate if d <= _MATRIX_GATE else 0
        hidden = self.hidden or _widest(
            max_macs, 32, lambda h: h * (d_in + d + gate) + (self.depth - 1) * h * h + product
        )  # fmt: skip
        return _MLPNet(
            d_in,
            hidden,
            d + gate,
            d,
            self.depth,
            _ACTIVATIONS[self.activation],
            reads_tableau=self.tableaus is not None,
        )


@dataclass
class ConvCorrection(_Spec):
    """A convolutional correction for image states (channels, height, width).

    Parameters
    ----------
    hidden : int, optional
        Channels of the hidden layers. None: the widest that keeps MAC_g within the budget (a tenth of MAC_f), 1 to 64;
        16 where the field has no MACs to compare with.
    depth : int, default 1
        Number of hidden layers.
    kernel_size : int, default 3
        Odd.
    activation : {"silu", "tanh", "softplus", "prelu"}, default "silu"
    gate : bool, default True
        Whether the net also emits bounded, state-dependent weights (one a position) on the stages it reads.
    tableaus : list of str and ButcherTableau, optional
        Fit over these base solvers too; see :class:`MLPCorrection`.

    Examples
    --------
    >>> from sklearn_hyper import ConvCorrection
    >>> ConvCorrection(hidden=8).hidden
    8
    """

    hidden: int | None = None
    depth: int = 1
    kernel_size: int = 3
    activation: str = "silu"
    gate: bool = True
    tableaus: Sequence[Any] | None = None

    def build(self, sample: Residual, x: Tensor | None = None, max_macs: float = math.nan) -> nn.Module:
        """Build the net for states, stages and inputs like those of ``sample``."""
        self._check()
        if sample.z.ndim != 4:
            raise ValueError(f"ConvCorrection needs states of shape (c, h, w), got {tuple(sample.z.shape[1:])}.")
        if self.kernel_size % 2 != 1:
            raise ValueError(f"ConvCorrection.kernel_size must be odd, got {self.kernel_size}.")
        c, area, k2 = sample.z.shape[1], sample.z[0, 0].numel(), self.kernel_size**2
        c_in = c * (1 + len(sample.stages)) + (0 if x is None else _image_channels(x, sample.z))
        c_out = c + (len(sample.stages) if self.gate else 0)
        hidden = self.hidden or _widest(
            max_macs, 16, lambda h: area * k2 * (h * (c_in + c_out) + (self.depth - 1) * h * h)
        )  # fmt: skip
        return _ConvNet(
            c_in, hidden, c_out, c, self.depth, self.kernel_size, _ACTIVATIONS[self.activation],
            reads_tableau=self.tableaus is not None,
        )  # fmt: skip


_GATE_BOUND = 4.0
_MATRIX_GATE = 4
"""Up to this many dimensions the gate is a matrix a stage, above it one number."""


def _gate_width(d: int) -> int:
    return d * d if d <= _MATRIX_GATE else 1


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


class _CorrectionNet(nn.Module):
    """Shared by both nets: scaled features in, raw output and gate out. Starts at zero.

    Features are z, the first stage, and for every further stage the difference quotient (r_i - r_1) / (c_i eps), which
    stays O(1) as eps -> 0 and tells the net the derivative of f along the step, whatever c_i is; then x where the field
    has one. s and eps are the same for a whole batch, so they enter as a bias of the first layer.

    Fitted over a family, the net reads the base solver's leading error too: as another bias, and as a gain on what the
    last layer reads, since R is linear in it as eps -> 0.
    """

    shift: Tensor
    scale: Tensor
    time_range: Tensor
    first: nn.Linear | nn.Conv2d
    last: nn.Linear | nn.Conv2d
    middle: nn.Sequential

    def __init__(self, n_in: int, hidden: int, n_state: int, reads_tableau: bool):
        super().__init__()
        self.n_state = n_state
        self.eps_max = 1.0
        # Of the base solver that the net is bound to. Bound to none, quotients are (r_i - r_1) / eps.
        self.spacings: tuple[float, ...] = ()
        self.leading_error = (0.0, 0.0)
        self.error_ranges = [(-1.0, 1.0), (-1.0, 1.0)]
        self.error_bias = nn.Parameter(torch.zeros(2, hidden)) if reads_tableau else None
        self.error_gain = nn.Parameter(torch.zeros(2, hidden)) if reads_tableau else None
        self.s_weight = nn.Parameter(torch.zeros(hidden))
        self.eps_weight = nn.Parameter(torch.zeros(hidden))
        self.register_buffer("shift", torch.zeros(n_in))
        self.register_buffer("scale", torch.ones(n_in))
        self.register_buffer("time_range", torch.tensor([0.0, 1.0]))

    def _start_at_zero(self) -> None:
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)  # type: ignore[arg-type]

    def _features(self, eps: float, z: Tensor, stages: Sequence[Tensor], x: Tensor | None) -> list[Tensor]:
        first, *others = stages
        spacings = self.spacings or [1.0] * len(others)
        parts = [z, first, *((stage - first) / (c * eps) for stage, c in zip(others, spacings, strict=True))]
        return parts if x is None else [*parts, x]

    def for_solver(self, solver: BaseSolver) -> _CorrectionNet:
        """This net bound to a base solver: a view that shares its weights, or itself where it is bound to it already."""
        spacings = stage_spacings(solver)
        error = self.leading_error if self.error_bias is None else self._scaled_error(solver)
        if (spacings, error) == (self.spacings, self.leading_error):
            return self
        view = make_view(self)
        view.spacings, view.leading_error = spacings, error
        return view

    def _scaled_error(self, solver: BaseSolver) -> tuple[float, float]:
        """The base solver's leading error, from -1 to 1 over the fitted family."""
        one, other = (
            (2 * error - low - high) / (high - low or 1.0)
            for error, (low, high) in zip(leading_error(solver), self.error_ranges, strict=True)
        )
        return one, other

    def covers(self, solver: BaseSolver) -> bool:
        """Whether a base solver lies within the fitted family, if the net has been fitted over one."""
        slack = 1e-6
        return self.error_bias is None or all(
            low - slack <= error <= high + slack
            for error, (low, high) in zip(leading_error(solver), self.error_ranges, strict=True)
        )

    def set_scales(
        self,
        residuals: Sequence[Residual],
        x: Tensor | None,
        t_span: tuple[float, float],
        solvers: Sequence[BaseSolver] = (),
    ) -> None:
        """Take the scaling of the inputs from a sample of residuals, and from the base solver of each."""
        if self.error_bias is not None and solvers:
            self.error_ranges = [
                (min(errors), max(errors)) for errors in zip(*map(leading_error, solvers), strict=True)
            ]
        nets = [self.for_solver(solver) for solver in solvers] or [self] * len(residuals)
        # A few steps' features tell the scales; those of all would double the memory of the set.
        few = list(zip(nets, residuals, strict=True))[:: max(1, len(residuals) // 8)]
        batches = [self._join(net._features(r.eps, r.z, r.stages, x)) for net, r in few]
        stacked = torch.cat(batches)
        axes = [0, *range(2, stacked.ndim)]
        self.shift.copy_(stacked.mean(dim=axes))
        deviation = stacked.std(dim=axes, unbiased=False)
        self.scale.copy_(1 / torch.where(deviation > 1e-6, deviation, torch.ones_like(deviation)))
        self.eps_max = max(abs(r.eps) for r in residuals)
        middle, half = (t_span[0] + t_span[1]) / 2, abs(t_span[1] - t_span[0]) / 2
        self.time_range.copy_(torch.tensor([middle, 1 / half]))

    def _first_bias(self, eps: float, s: Tensor) -> Tensor:
        middle, per_half = self.time_range.unbind()
        bias = torch.add(self.first.bias, self.eps_weight, alpha=eps / self.eps_max)  # type: ignore[arg-type]
        bias = torch.addcmul(bias, self.s_weight, (s - middle) * per_half)
        return bias if self.error_bias is None else bias + self._read_error(self.error_bias)

    def _read_error(self, weight: Tensor) -> Tensor:
        one, other = self.leading_error
        return one * weight[0] + other * weight[1]

    def _hidden(self, first: Tensor) -> Tensor:
        """What the last layer reads."""
        h = self.middle(first)
        if self.error_gain is None:
            return h
        gain = 1 + self._read_error(self.error_gain)
        return h * gain.reshape(-1, *[1] * (h.ndim - 2))

    def _join(self, parts: Sequence[Tensor]) -> Tensor:
        raise NotImplementedError

    def _combine(self, out: Tensor, h: Tensor) -> Tensor:
        """Split the last layer's output into correction and gate; weigh the (scaled) stages by the gate."""
        n = self.n_state
        g = out[:, :n]
        if out.shape[1] == n:
            return g
        if out.ndim == 2 and n <= _MATRIX_GATE:
            # R is (f_t + J f) / 2 to leading order: a matrix that depends on the state, times the first stage.
            m = (out.shape[1] - n) // n
            weights = _GATE_BOUND * torch.tanh(out[:, n:] / _GATE_BOUND)
            return g + (weights.view(-1, n, m) @ h[:, n : n + m].unsqueeze(2)).squeeze(2)
        for i in range(n, out.shape[1]):
            stage = h[:, n * (i - n + 1) : n * (i - n + 2)]
            g = torch.addcmul(g, torch.tanh(out[:, i : i + 1]), stage)
        return g


class _MLPNet(_CorrectionNet):
    def __init__(
        self,
        d_in: int,
        hidden: int,
        d_out: int,
        d_state: int,
        depth: int,
        activation: type[nn.Module],
        *,
        reads_tableau: bool,
    ):
        super().__init__(d_in, hidden, d_state, reads_tableau)
        self.first = nn.Linear(d_in, hidden)
        middle = [part for _ in range(depth - 1) for part in (nn.Linear(hidden, hidden), activation())]
        self.middle = nn.Sequential(activation(), *middle)
        self.last = nn.Linear(hidden, d_out)
        self._start_at_zero()

    def _join(self, parts: Sequence[Tensor]) -> Tensor:
        return torch.cat([flatten_samples(part) for part in parts], dim=1)

    def forward(self, eps: float, s: Tensor, z: Tensor, stages: Sequence[Tensor], x: Tensor | None = None) -> Tensor:
        h = (self._join(self._features(eps, z, stages, x)) - self.shift) * self.scale
        out = self.last(self._hidden(functional.linear(h, self.first.weight, self._first_bias(eps, s))))
        return self._combine(out, h).reshape(z.shape)


class _ConvNet(_CorrectionNet):
    def __init__(
        self,
        c_in: int,
        hidden: int,
        c_out: int,
        c_state: int,
        depth: int,
        kernel_size: int,
        activation: type[nn.Module],
        *,
        reads_tableau: bool,
    ):
        super().__init__(c_in, hidden, c_state, reads_tableau)
        self.first = nn.Conv2d(c_in, hidden, kernel_size, padding="same")

        def conv(n_out: int) -> nn.Conv2d:
            return nn.Conv2d(hidden, n_out, kernel_size, padding="same")

        middle = [part for _ in range(depth - 1) for part in (conv(hidden), activation())]
        self.middle = nn.Sequential(activation(), *middle)
        self.last = conv(c_out)
        self._start_at_zero()

    def _join(self, parts: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(parts), dim=1)

    def forward(self, eps: float, s: Tensor, z: Tensor, stages: Sequence[Tensor], x: Tensor | None = None) -> Tensor:
        h = self._join(self._features(eps, z, stages, x))
        h = (h - self.shift[:, None, None]) * self.scale[:, None, None]
        first = functional.conv2d(h, self.first.weight, self._first_bias(eps, s), padding="same")
        return self._combine(self.last(self._hidden(first)), h)


class BoundedCorrection(DeviceFreeModule):
    r"""Scales a correction to the targets' units and caps its share of a step.

    The per-sample norm of the step's correction is capped:

    .. math::

        \|\epsilon^{p+1} g\| \le c\,|\epsilon| \max\big(\max_i \|r_i\|,\; \rho\big)

    so that a few states unlike the fitted ones cannot throw a whole batch off. For eps -> 0 the cap on g itself grows
    like :math:`|\epsilon|^{-p}`: it is inactive there and the order p survives.

    Parameters
    ----------
    net : nn.Module
        A correction of the contract ``forward(eps, s, z, stages, x=None)``.
    order : int
        p of the base solver.
    output_scale : Tensor
        RMS of the targets per feature or channel, broadcastable to z; the net's output is multiplied by it, never shifted.
    cap : float
        c, from the fitted data.
    floor : float
        rho, for f may vanish where the residual does not.

    Examples
    --------
    >>> import torch
    >>> from sklearn_hyper.modules import BoundedCorrection
    >>> class Wild(torch.nn.Module):
    ...     def forward(self, eps, s, z, stages, x=None):
    ...         return 1e6 * torch.ones_like(z)
    >>> g = BoundedCorrection(Wild(), order=1, output_scale=torch.ones(2), cap=0.5, floor=0.0)
    >>> r = torch.tensor([[3.0, 4.0]])
    >>> step = 0.1**2 * g(0.1, torch.tensor(0.0), torch.zeros(1, 2), [r])
    >>> round(step.norm().item(), 4)  # 0.5 * 0.1 * ||r||
    0.25
    """

    output_scale: Tensor

    def __init__(self, net: nn.Module, *, order: int, output_scale: Tensor, cap: float, floor: float):
        super().__init__()
        self.net = net
        self.order = order
        self.cap = float(cap)
        self.floor = float(floor)
        self.register_buffer("output_scale", output_scale)

    def for_solver(self, solver: BaseSolver) -> BoundedCorrection:
        """This correction as it runs with a base solver: itself, or a view that shares all weights."""
        net = bind_solver(self.net, solver)
        if net is self.net:
            return self
        view = make_view(self)
        view._modules = {**self._modules, "net": net}
        return view

    def covers(self, solver: BaseSolver) -> bool:
        """False where the net has been fitted over a family of base solvers and this one lies outside it."""
        return not hasattr(self.net, "covers") or self.net.covers(solver)  # type: ignore[operator]

    def forward(self, eps: float, s: Tensor, z: Tensor, stages: Sequence[Tensor], x: Tensor | None = None) -> Tensor:
        """g, scaled and capped."""
        g = self.net(eps, s, z, stages, x) * self.output_scale
        largest = largest_stage_norm(stages)
        limit = largest.clamp(min=self.floor) * (self.cap * abs(eps) ** -self.order)
        norm = torch.linalg.vector_norm(flatten_samples(g), dim=1)
        # Exactly 1 where the cap is inactive; the clamp keeps 0 / 0 out where limit and norm are both zero.
        share = limit / torch.maximum(limit, norm).clamp(min=torch.finfo(norm.dtype).tiny)
        return g * share.reshape(-1, *[1] * (z.ndim - 1))


def largest_stage_norm(stages: Sequence[Tensor]) -> Tensor:
    """max_i ||r_i|| of every sample."""
    norms = [torch.linalg.vector_norm(flatten_samples(stage), dim=1) for stage in stages]
    largest = norms[0]
    for norm in norms[1:]:
        largest = torch.maximum(largest, norm)
    return largest


def fit_bounded_correction(net: nn.Module, residuals: Sequence[Residual]) -> BoundedCorrection:
    """Wrap a net with the scale, cap and floor that a sample of residuals asks for.

    The cap is twice the largest share that the true residual takes of a step on the fitted data; the floor a tenth
    of the training RMS of the stages' norms.
    """
    targets = torch.cat([r.target for r in residuals])
    axes = [0, *range(2, targets.ndim)]
    scale = targets.pow(2).mean(dim=axes, keepdim=True).sqrt()[0]
    norms = torch.cat([largest_stage_norm(r.stages) for r in residuals])
    floor = 0.1 * norms.pow(2).mean().sqrt()
    shares = [
        abs(r.eps) ** r.order
        * torch.linalg.vector_norm(flatten_samples(r.target), dim=1)
        / largest_stage_norm(r.stages).clamp(min=float(floor) or 1.0)
        for r in residuals
    ]
    cap = 2 * torch.cat(shares).max()
    # Both are zero only where f is: then the correction has nothing to correct and stays at zero.
    return BoundedCorrection(
        net, order=residuals[0].order, output_scale=scale, cap=float(cap) or 1.0, floor=float(floor) or 1.0
    )
