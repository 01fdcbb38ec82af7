"""Posteriors of sbi that solve an ODE: flow matching (FMPE) and score models (NPSE)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Independent, Normal

from ..modules.vector_fields import Standardize
from .contract import Adapter, batch_times
from .flows import AdaptedFlow


def from_sbi(posterior: Any) -> AdaptedFlow:
    """Return the density of an FMPE or NPSE posterior of sbi, to be made fast for any observation.

    The contract: an estimator with ``ode_fn(input, condition, times)``, ``t_min``, ``t_max``, ``mean_base``,
    ``std_base`` and ``input_shape``; it runs from ``t_max``, the base, to ``t_min``.

    Parameters
    ----------
    posterior : object
        A posterior, with that estimator as ``vector_field_estimator`` and a ``prior``; or the estimator alone. It is
        copied and frozen.

    Returns
    -------
    AdaptedFlow
        With the condition "condition": ``fit(theta, x)`` on the simulations that sbi was trained on, then
        ``sample(n, x_o)`` and ``log_prob(theta, x_o)``, where x_o has shape (1, ...). With a prior, samples outside its
        support are drawn again, as sbi does.

    Raises
    ------
    TypeError
        If there is no such estimator.

    Notes
    -----
    A score model is nearly singular at ``t_min``. Fit it with more steps (``n_steps=8``); ``fit`` warns where errors
    are not small beside the spread of one observation's samples.

    Examples
    --------
    >>> import torch
    >>> from sklearn_hyper.adapters import from_sbi
    >>> class Estimator(torch.nn.Module):  # stands for sbi's FlowMatchingEstimator
    ...     t_min, t_max, input_shape = 0.0, 1.0, torch.Size([2])
    ...     mean_base, std_base = torch.zeros(1, 2), torch.ones(1, 2)
    ...
    ...     def forward(self, input, condition, time):
    ...         return input - condition
    ...
    ...     def ode_fn(self, input, condition, times):
    ...         return self(input, condition, times)
    >>> fast = from_sbi(Estimator())
    >>> fast.condition, fast.sampling().t_span
    ('condition', (1.0, 0.0))
    """
    estimator = next((found for found in _estimators(posterior) if callable(getattr(found, "ode_fn", None))), None)
    if estimator is None:
        raise TypeError(
            f"posterior must be one of FMPE or NPSE, with a vector_field_estimator that has an ode_fn, got "
            f"{type(posterior).__name__}. Posteriors of NPE sample a discrete flow, and those of NLE and NRE run MCMC: "
            "they solve no ODE."
        )
    width = int(torch.Size(estimator.input_shape).numel())
    if len(estimator.input_shape) != 1:
        raise TypeError(f"the estimator's input_shape must be (d,), got {tuple(estimator.input_shape)}.")
    loc, scale = (getattr(estimator, name).detach().reshape(-1).expand(width).clone().cpu() for name in _BASE)
    support = getattr(getattr(posterior, "prior", None), "support", None)
    return AdaptedFlow(
        SbiField(estimator, conditions=["condition"]), n_features=width,
        t_span=(float(estimator.t_max), float(estimator.t_min)),
        base_distribution=Independent(Normal(loc, scale), 1), scaler=_scaler(estimator, width),
        accepts=None if support is None else Within(support),
    )  # fmt: skip


_BASE = ("mean_base", "std_base")


def _estimators(posterior: Any) -> list[Any]:
    """Return where the estimator may be: in the posterior, in its potential, or what was passed itself."""
    potential = getattr(posterior, "potential_fn", None)
    return [posterior, *(getattr(held, "vector_field_estimator", None) for held in (posterior, potential))]


def _scaler(estimator: Any, width: int) -> Standardize | None:
    """Return the affine map to the estimator's own coordinates, where it has such."""
    if not getattr(estimator, "compose_enabled", False):
        return None
    shift = estimator.from_z(estimator.mean_base.new_zeros(width)).detach().reshape(-1)
    scale = estimator.from_z(estimator.mean_base.new_ones(width)).detach().reshape(-1) - shift
    return Standardize(shift.clone(), scale.clone())


class Within:
    """Which rows lie in a prior's support.

    Parameters
    ----------
    support : torch.distributions.constraints.Constraint
    """

    def __init__(self, support: Any):
        self.support = support

    def __call__(self, x: Tensor) -> Tensor:
        inside = self.support.check(x)
        return inside if inside.ndim == 1 else inside.flatten(1).all(dim=1)


class SbiField(Adapter):
    """The probability-flow field of an estimator, for the observation of each row."""

    def velocity(self, t: Tensor, z: Tensor, *, condition: Tensor) -> Tensor:  # type: ignore[override]
        return self.model.ode_fn(input=z, condition=condition, times=batch_times(t, z))
