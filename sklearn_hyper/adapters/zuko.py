"""Continuous normalizing flows of zuko, also inside sbi and lampe."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn
from torch.distributions import Independent, Normal

from .contract import Adapter
from .flows import AdaptedFlow


def from_zuko(flow: nn.Module, n_features: int | None = None) -> AdaptedFlow:
    """Return the density of a trained CNF of zuko, to be made fast.

    The contract: ``flow.transform.f(t, x, c)`` is the field, ``flow.transform.times`` has the times of data and of
    base, and ``flow.base(None)`` is a diagonal normal distribution.

    Parameters
    ----------
    flow : nn.Module
        ``zuko.flows.CNF``. It is copied and frozen; its own ``sample`` and ``log_prob`` go on as they are.
    n_features : int, optional
        If missing: the width of its base distribution.

    Returns
    -------
    AdaptedFlow
        With the condition "c" if the flow takes a context. Its ``transform``, put in the place of ``flow.transform``
        after a fit, makes ``flow(c).sample`` and ``flow(c).log_prob`` fast.

    Raises
    ------
    TypeError
        If ``flow`` has no such field or base, as flows of discrete layers have not.

    Examples
    --------
    >>> import torch
    >>> from sklearn_hyper.adapters import from_zuko
    >>> class Transform(torch.nn.Module):  # stands for the transform of zuko.flows.CNF
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.ode = torch.nn.Linear(2, 2)
    ...         self.times = torch.tensor([0.0, 1.0])
    ...
    ...     def f(self, t, x, c=None):
    ...         return self.ode(x)
    ...
    ...     def forward(self, c=None):
    ...         raise NotImplementedError
    >>> class CNF(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.transform = Transform()
    ...
    ...     def base(self, c):
    ...         return torch.distributions.Independent(torch.distributions.Normal(torch.zeros(2), torch.ones(2)), 1)
    >>> from_zuko(CNF()).sampling().t_span  # data lie at time 0
    (1.0, 0.0)
    """
    transform = getattr(flow, "transform", None)
    if not (callable(getattr(transform, "f", None)) and hasattr(transform, "times")):
        raise TypeError(
            f"flow must be a CNF of zuko, whose transform has a field f(t, x, c) and times, got {type(flow).__name__} "
            f"with a {type(transform).__name__}. Flows of discrete layers solve no ODE; of a flow with further "
            "transforms, pass the CNF alone."
        )
    base: Any = flow.base(None)  # type: ignore[operator]
    if not (isinstance(base, Independent) and isinstance(base.base_dist, Normal)):
        raise TypeError(f"flow.base must be a diagonal normal distribution, the same for all contexts, got {base}.")
    width = base.event_shape[0] if n_features is None else n_features
    loc, scale = (value.detach().clone() for value in (base.base_dist.loc, base.base_dist.scale))
    data, end = (float(time) for time in transform.times)  # type: ignore[union-attr]
    field = ZukoField(cast(Any, transform), conditions=["c"] if _takes_context(transform, width) else [])
    return AdaptedFlow(
        field, n_features=width, t_span=(end, data), base_distribution=Independent(Normal(loc, scale), 1)
    )


def _takes_context(transform: Any, width: int) -> bool:
    """Return whether the field needs a context: whether it fails without one."""
    example = next(iter(transform.parameters()))
    x = example.new_zeros(1, width)
    try:
        transform.f(example.new_zeros(()), x)
    except Exception:  # a shape, in whatever words
        return True
    return False


class ZukoField(Adapter):
    """The field of a free-form Jacobian transform."""

    def velocity(self, t: Tensor, z: Tensor, c: Tensor | None = None) -> Tensor:  # type: ignore[override]
        t = t.to(z.dtype)
        return self.model.f(t, z) if c is None else self.model.f(t, z, c)
