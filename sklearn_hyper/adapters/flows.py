"""A density of another library: both directions of its flow made fast, for any condition."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Transform, constraints

from ..hypersolvers import FitSettings, FittedHypersolver, Task, fit_hypersolver
from ..hypersolvers.choose import auto_name, choose_correction
from ..hypersolvers.prepare import prepare_neural_ode
from ..modules.copies import frozen_copy
from ..modules.field_probes import PROBED_ROWS
from ..modules.flow import Flow
from ..modules.neural_ode import NeuralODE
from ..modules.seeding import own_generator
from ..modules.vector_fields import Standardize
from .contract import Adapter

_BASE_STATES, _EPOCH_STATES = 8000, 2000
_DRAWS = 100
"""Rounds of drawing again what lies outside the support."""


class AdaptedFlow:
    """A trained flow of another library, with fast samples and fast log densities for any condition.

    Made by :func:`from_zuko` and :func:`from_sbi`. One fit serves all conditions like those that it is given.

    Parameters
    ----------
    field : Adapter
        The flow's field, with at most one condition.
    n_features : int
        Number of features.
    t_span : pair of float
        From base to data.
    base_distribution : torch.distributions.Distribution, optional
        Over vectors of ``n_features``. If missing: the standard normal.
    scaler : Standardize, optional
        From data to the field's coordinates.
    accepts : callable, optional
        ``accepts(x)`` returns which rows lie in the support. Samples outside are drawn again, and log densities there
        are -inf.

    Attributes
    ----------
    sampler_, density_ : FittedHypersolver
        The two directions, after ``fit``.

    Examples
    --------
    >>> import torch
    >>> from sklearn_hyper.adapters import AdaptedFlow, Adapter
    >>> class Spread(Adapter):  # stretches the standard normal by e ** condition
    ...     def velocity(self, t, z, *, condition):
    ...         return condition * z
    >>> field = Spread(torch.nn.Identity(), conditions=["condition"])
    >>> flow = AdaptedFlow(field, n_features=2, t_span=(0.0, 1.0))
    >>> c = torch.rand(300, 1)
    >>> x = torch.randn(300, 2) * c.exp()
    >>> fast = flow.fit(x, c, n_steps=2, base_solver="heun", max_epochs=20, random_state=0)
    >>> fast.sample(5, torch.tensor([[0.5]])).shape
    torch.Size([5, 2])
    >>> fast.log_prob(x, c).shape
    torch.Size([300])
    """

    sampler_: FittedHypersolver
    density_: FittedHypersolver

    def __init__(
        self,
        field: Adapter,
        *,
        n_features: int,
        t_span: tuple[float, float],
        base_distribution: Any = None,
        scaler: Standardize | None = None,
        accepts: Callable[[Tensor], Tensor] | None = None,
    ):
        if len(field.conditions) > 1:
            raise ValueError(f"field has the conditions {field.conditions}; a flow takes at most one, so join them.")
        self.field, self.accepts = field, accepts
        self.flow = Flow(
            field, n_features=n_features, t_span=t_span, base_distribution=base_distribution, scaler=scaler
        ).eval()

    @property
    def condition(self) -> str | None:
        """Name of the condition, or None."""
        return self.field.conditions[0] if self.field.conditions else None

    def sampling(self) -> NeuralODE:
        """Return the Neural ODE from base to data, for an estimator or a solve of your own."""
        return self.flow.sampling().eval()

    def density(self) -> NeuralODE:
        """Return the Neural ODE from data to (base, integral of the trace)."""
        return self.flow.density().eval()

    # ------------------------------------------------------------------ fit
    def fit(
        self, x: Tensor, condition: Tensor | None = None, *, n_steps: int = 4, random_state: int | None = None,
        **settings: Any,
    ) -> AdaptedFlow:  # fmt: skip
        """Fit a correction for each direction.

        Parameters
        ----------
        x : Tensor of shape (n, n_features)
            Data. Those that the flow was trained on will do: no new simulations are needed.
        condition : Tensor of shape (n, ...), optional
            What x was observed with, for a conditional flow: contexts of zuko, x of sbi.
        n_steps : int, default 4
            K.
        random_state : int, optional
            Seed.
        **settings : optional
            Other parameters of :class:`~sklearn_hyper.hypersolvers.FitSettings`.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If a shape is wrong, or the condition is missing.
        VectorFieldError, ReferenceSolveError
            As :meth:`HypersolverDensity.fit`.

        Warns
        -----
        RuntimeWarning
            If a direction falls back to its base solver, or ends with large errors.
        """
        x = self._check_rows(x)
        given = self._of_rows(condition, len(x), "fit")
        options = FitSettings(n_steps=n_steps, random_state=random_state, **settings)
        generator = own_generator(0 if random_state is None else random_state)
        base = self.flow.sample_base(_BASE_STATES, x.dtype, generator)
        drawn = torch.randint(len(x), (_BASE_STATES,), generator=generator)
        of_base = {name: value[drawn] for name, value in given.items()}
        self.sampler_ = _fit(self.sampling(), base, of_base, options, self.flow.n_features, _EPOCH_STATES)
        self.density_ = _fit(self.density(), x, given, options, self.flow.n_features)
        return self

    # ------------------------------------------------------------------ inference
    def sample(
        self, n_samples: int, condition: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw samples.

        Parameters
        ----------
        n_samples : int
        condition : Tensor, optional
            One for all samples, of shape (1, ...), or one a sample.
        generator : torch.Generator, optional
            Of the base draws. If missing: torch's global one.

        Returns
        -------
        Tensor of shape (n_samples, n_features)

        Raises
        ------
        RuntimeError
            If hardly any sample lies in the support.
        """
        solver = self._fitted("sampler_")
        given = self._of_rows(condition, n_samples, "sample")
        dtype = solver.neural_ode.dtype or torch.get_default_dtype()
        found = solver.predict(self.flow.sample_base(n_samples, dtype, generator), given)
        if self.accepts is None:
            return found
        for _ in range(_DRAWS):
            outside = (~self.accepts(found)).nonzero().ravel()
            if not len(outside):
                return found
            again = {name: value[outside] for name, value in given.items()}
            found[outside] = solver.predict(self.flow.sample_base(len(outside), dtype, generator), again)
        raise RuntimeError(
            f"{len(outside)} of {n_samples} samples lie outside the support after {_DRAWS} draws each: the flow leaks "
            "nearly all its mass for this condition. Draw from .sampling() to look at it."
        )

    def log_prob(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the log density of every row, in nats; -inf outside the support.

        Parameters
        ----------
        x : Tensor of shape (n, n_features)
        condition : Tensor, optional
            One for all rows, of shape (1, ...), or one a row.

        Returns
        -------
        Tensor of shape (n,)
        """
        solver, x = self._fitted("density_"), self._check_rows(x)
        found = self.flow.log_prob(solver.solve(x, self._of_rows(condition, len(x), "log_prob")))
        return found if self.accepts is None else found.masked_fill(~self.accepts(x), -torch.inf)

    @property
    def transform(self) -> FastTransform:
        """A module that makes torch transforms of data to base, ``transform(condition)``: zuko's ``flow.transform``."""
        self._fitted("density_")
        return FastTransform(self)

    # ------------------------------------------------------------------ checks
    def _fitted(self, name: str) -> FittedHypersolver:
        if name not in vars(self):
            raise ValueError("this AdaptedFlow is not fitted; call fit(x, condition) first.")
        return vars(self)[name]

    def _check_rows(self, x: Tensor) -> Tensor:
        if not isinstance(x, Tensor) or x.ndim != 2 or x.shape[1] != self.flow.n_features:
            shape = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"x must be a tensor of shape (n, {self.flow.n_features}), got {shape}.")
        return x.detach()

    def _of_rows(self, condition: Tensor | None, n_rows: int, where: str) -> dict[str, Tensor]:
        name = self.condition
        if (condition is None) != (name is None):
            what = "this flow has none; leave it out" if name is None else "pass one for all rows, or one a row"
            raise ValueError(f"condition={'None' if condition is None else '...'} in {where}: {what}.")
        if condition is None or name is None:
            return {}
        condition = torch.as_tensor(condition).detach()
        if condition.ndim == 0 or len(condition) not in (1, n_rows):
            raise ValueError(
                f"condition has shape {tuple(condition.shape)} in {where} for {n_rows} rows: its first axis must have "
                f"1 entry, for all rows, or {n_rows}; write condition[None] of a single one."
            )
        return {name: condition.expand(n_rows, *condition.shape[1:])}


def _fit(
    ode: NeuralODE, x: Tensor, condition: dict[str, Tensor], settings: FitSettings, n_features: int,
    epoch_rows: int | None = None,
) -> FittedHypersolver:  # fmt: skip
    ode = frozen_copy(ode)
    few = Task(ode, x, condition).rows(slice(0, PROBED_ROWS))
    z = prepare_neural_ode(ode, few.x, settings, condition=few.condition)
    settings = replace(settings, correction=choose_correction(settings, [few.rows(slice(0, len(z)))], z))
    # "auto" stands for one method in both directions, though the density's state is larger.
    settings = replace(settings, base_solver=auto_name(settings, n_features))
    fitted = fit_hypersolver(Task(ode, x, condition, epoch_rows=epoch_rows), settings, copy=False)
    for problem in fitted.problems:
        warnings.warn(problem, RuntimeWarning, stacklevel=3)
    return fitted


# ---------------------------------------------------------------------- torch transforms
class FastTransform(nn.Module):
    """Makes fast torch transforms from data to base, one for each condition.

    Parameters
    ----------
    fast : AdaptedFlow
        A fitted one.
    """

    def __init__(self, fast: AdaptedFlow):
        super().__init__()
        self.towards_data, self.towards_base = fast.sampler_.module, fast.density_.module
        self.condition, self.n_features = fast.condition, fast.flow.n_features

    def forward(self, condition: Tensor | None = None) -> Transform:
        """Return the transform for a condition, of shape (..., context)."""
        return _HypersolvedTransform(self, condition)


class _HypersolvedTransform(Transform):
    """A transform that hypersolves: from data to base, with its log-determinant, and back."""

    domain, codomain, bijective = constraints.real_vector, constraints.real_vector, True

    def __init__(self, made_by: FastTransform, condition: Tensor | None):
        super().__init__()
        self.made_by, self.condition = made_by, condition

    def _solve(self, module: Any, x: Tensor) -> Tensor:
        given = {}
        if self.condition is not None:
            c = self.condition
            given = {self.made_by.condition: c.expand(*x.shape[:-1], c.shape[-1]).reshape(-1, c.shape[-1])}
        states = module.terminal_state(x.reshape(-1, x.shape[-1]), given)
        return states.reshape(*x.shape[:-1], states.shape[-1])

    def _call(self, x: Tensor) -> Tensor:
        return self.call_and_ladj(x)[0]

    def _inverse(self, y: Tensor) -> Tensor:
        return self._solve(self.made_by.towards_data, y)

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the base states of data, and the log-determinants: one solve for both."""
        states, d = self._solve(self.made_by.towards_base, x), self.made_by.n_features
        return states[..., :d], -states[..., d]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return self.call_and_ladj(x)[1]
