"""A continuous normalizing flow: one field, and a Neural ODE for each direction."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..numerics.times import check_t_span, time_tensor
from ..numerics.units import feature_sizes
from .divergence import AppendLogDensity, LogDensityField
from .hypersolved_ode import SolvedODE
from .neural_ode import NeuralODE, VectorFieldError
from .seeding import own_generator, seeded
from .serialization import DeviceFreeModule
from .user_code import find_hidden_modules
from .vector_fields import Rescale, Standardize

_FAR, _MEASURED_DRAWS = 1e4, 512


class Flow(DeviceFreeModule):
    r"""An invertible map from a base distribution to data: the solution of :math:`\dot z = f(t, z)` at :math:`t_1`.

    .. math::

        \log p(x) = \log p_0(z(t_0)) - \int_{t_0}^{t_1} \operatorname{tr} \frac{\partial f}{\partial z}\, dt
        - \sum_i \log \sigma_i, \qquad z(t_1) = (x - \mu) / \sigma

    Parameters
    ----------
    vector_field : nn.Module or callable
        ``f(t, z)`` on states of shape (batch, d). Keyword arguments are a condition: the map and its density are
        conditional then, and solves take it.
    n_features : int
        d.
    t_span : pair of float, default (0.0, 1.0)
        From base to data. Sampling runs forward, densities run in reverse.
    scaler : Standardize, optional
        mu and sigma. If missing, the field's coordinates are those of the data.
    base_distribution : torch.distributions.Distribution, optional
        p_0, over vectors of width d. It computes on the CPU, in its own dtype. If missing: the standard normal.

    Attributes
    ----------
    data_size, base_size : tuple of float or None
        Sizes of the initial states by feature, for solves that start from data and from base samples. See
        ``state_size`` of :class:`NeuralODE`. They are 1 for scaled data and for a standard normal. Without a scaler,
        ``data_size`` is None until the caller sets it.
    """

    data_size: tuple[float, ...] | None = None
    base_size: tuple[float, ...] | None = None
    _base_dtype: torch.dtype | None = None

    def __init__(
        self,
        vector_field: Callable[..., Tensor],
        *,
        n_features: int,
        t_span: tuple[float, float] = (0.0, 1.0),
        scaler: Standardize | None = None,
        base_distribution: Any = None,
    ):
        super().__init__()
        self.vector_field = vector_field
        hidden = find_hidden_modules({"vector_field": vector_field})
        if hidden:
            self.reached = nn.ModuleList(hidden)  # as in NeuralODE
        self.n_features = int(n_features)
        self.t_span = check_t_span(t_span)
        self.scaler = scaler
        self.base_distribution = base_distribution
        ones = (1.0,) * self.n_features
        self.data_size = None if scaler is None else ones
        self.base_size = ones
        if base_distribution is not None:
            with seeded(0, "cpu"):
                draws = base_distribution.sample((_MEASURED_DRAWS,))
            self._base_dtype = draws.dtype
            self.base_size = tuple(feature_sizes(draws).flatten().tolist())

    @property
    def dtype(self) -> torch.dtype | None:
        """The floating dtype of the field's tensors, or None if it has none."""
        return NeuralODE(self.vector_field).dtype

    @property
    def log_scale(self) -> float:
        """Sum of log sigma_i: the scaler's log-determinant, subtracted from log densities."""
        return 0.0 if self.scaler is None else float(self.scaler.scale.double().log().sum())

    def sampling(self) -> NeuralODE:
        """Return the Neural ODE from base to data, which predicts x from z(t_0)."""
        back = None if self.scaler is None else Rescale(nn.Identity(), self.scaler.scale, self.scaler.shift)
        return NeuralODE(self.vector_field, output_map=back, t_span=self.t_span, state_size=self.base_size)

    def density(self, *, hutchinson: bool = False, penalties: bool = False) -> NeuralODE:
        """Return the Neural ODE from data to base. Its terminal state is (z(t_0), ∫ tr from t_0 to t_1).

        :meth:`log_prob` turns that state into log densities. With ``hutchinson=True`` the input holds x and then the
        noise, 2 d features in all.
        """
        scaler = nn.Identity() if self.scaler is None else self.scaler
        n_zeros = 3 if penalties else 1
        ode = NeuralODE(
            LogDensityField(self.vector_field, hutchinson=hutchinson, penalties=penalties),
            input_map=AppendLogDensity(self.n_features, scaler, n_zeros=n_zeros),
            t_span=self.t_span[::-1],
            data_controlled=hutchinson,
            state_size=None if self.data_size is None else (*self.data_size, *[1.0] * n_zeros),
        )
        ode.n_unitless = n_zeros
        return ode

    def log_prob(self, state: Tensor) -> Tensor:
        """Return log densities of data, from the terminal states of :meth:`density`."""
        d = self.n_features
        return self.base_log_prob(state[:, :d]) - state[:, d] - self.log_scale

    def base_log_prob(self, z: Tensor) -> Tensor:
        """Return the log density of the base distribution, differentiable in z."""
        return _base_log_prob(z, self.base_distribution, self._base_dtype)

    def sample_base(self, n_samples: int, dtype: torch.dtype, generator: torch.Generator | None = None) -> Tensor:
        """Draw from the base distribution on the CPU. Without a generator, torch's global one is used."""
        if self.base_distribution is None:
            return torch.randn(n_samples, self.n_features, dtype=dtype, generator=generator)
        if generator is None:
            return self.base_distribution.sample((n_samples,)).to(dtype)
        # Distributions take no generator, so seed the global one from it.
        with seeded(int(torch.randint(2**31, (), generator=generator)), "cpu"):
            return self.base_distribution.sample((n_samples,)).to(dtype)


class LogDensity(DeviceFreeModule):
    """Log densities of a flow, by a fast solver of its density direction.

    Parameters
    ----------
    solver : HypersolvedODE or FoldedODE
        Solves ``flow.density()``. The first can be trained, the second is faster.
    flow : Flow
    """

    n_features: int
    log_scale: float
    base_distribution: Any
    _base_dtype: torch.dtype | None

    def __init__(self, solver: SolvedODE, flow: Flow | LogDensity):
        super().__init__()
        self.solver = solver
        # Do not keep the flow: its field is part of the solver already, and would be registered twice.
        self.n_features, self.log_scale = flow.n_features, flow.log_scale
        self.base_distribution, self._base_dtype = flow.base_distribution, flow._base_dtype

    def forward(self, x: Tensor, condition: Mapping[str, Any] | None = None) -> Tensor:
        """Return the log density of every row, in nats; given its condition, if the flow takes one."""
        state, d = self.solver.terminal_state(x, condition), self.n_features
        return _base_log_prob(state[:, :d], self.base_distribution, self._base_dtype) - state[:, d] - self.log_scale

    def base_state(self, x: Tensor, condition: Mapping[str, Any] | None = None) -> Tensor:
        """Return z(t_0) of every row."""
        return self.solver.terminal_state(x, condition)[:, : self.n_features]

    def fold(self) -> LogDensity:
        """Return the faster module for inference; see ``HypersolvedODE.fold``."""
        folded = LogDensity(self.solver.fold(), self)
        folded.training = self.training  # train() would also change the modes of the shared modules
        return folded


def _base_log_prob(z: Tensor, base_distribution: Any, dtype: torch.dtype | None) -> Tensor:
    if base_distribution is None:
        return -0.5 * (z.pow(2).sum(dim=1) + z.shape[1] * math.log(2 * math.pi))
    # Distributions are not modules: they do not move or change dtype with this one.
    return base_distribution.log_prob(z.to("cpu", dtype)).to(z)


def check_base_distribution(flow: Flow) -> None:
    """Draw two base samples and their log densities. Refuse a base distribution that does not suit the flow."""
    d, base = flow.n_features, flow.base_distribution
    if base is None:
        return
    if tuple(base.event_shape) != (d,) or tuple(base.batch_shape):
        raise ValueError(
            f"base_distribution must be over vectors of {d} features (event_shape ({d},), no batch_shape), got "
            f"batch_shape {tuple(base.batch_shape)} and event_shape {tuple(base.event_shape)}; wrap independent "
            "marginals in torch.distributions.Independent(..., 1)."
        )
    sizes = flow.base_size or (1.0,) * d
    far = (
        _FAR * torch.tensor([sizes, sizes], dtype=flow._base_dtype) * torch.tensor([[-1.0], [1.0]]).to(flow._base_dtype)
    )
    if not base.support.check(far).all():
        raise ValueError(
            f"base_distribution must have a density everywhere, got {base} with the support {base.support}: a flow's "
            "base states may lie anywhere."
        )
    with seeded(0, "cpu"):
        base.log_prob(base.sample((2,)))


def check_divergence(flow: Flow, x: Tensor, condition: Mapping[str, Any] | None = None) -> None:
    """Evaluate the density's dynamics at a few rows of data, and at as many base draws at the other end of the span.

    ``condition`` holds what the field takes beside these rows.

    Raises
    ------
    VectorFieldError
        If the divergence is unknown or not finite.
    """
    data = x if flow.scaler is None else flow.scaler(x)
    base = flow.sample_base(len(x), data.dtype, own_generator(0)).to(data)
    # One backward pass is enough: an entry of the Jacobian that is not finite shows in its product with ones.
    field = LogDensityField(flow.vector_field, hutchinson=True)
    with torch.no_grad():
        for end, z, where in zip(flow.t_span, (base, data), ("base samples", "rows of X"), strict=True):
            state = torch.cat([z, z.new_zeros(len(z), 1)], dim=1)
            t = time_tensor(end, state, flow.t_span)
            if not torch.isfinite(field(t, state, torch.ones_like(z), **condition or {})).all():
                raise VectorFieldError(
                    f"vector_field or its divergence is not finite at t={end:g} on some of {len(z)} {where}: a density "
                    "needs a field that is differentiable wherever data and base lie."
                )
