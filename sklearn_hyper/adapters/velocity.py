"""Velocity models: flow matching, rectified flow, stochastic interpolants."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from ..modules.neural_ode import NeuralODE
from .contract import Adapter, batch_times, fixed_for, split_condition, tensor_of

ORDERS, TIMES = ("tx", "xt", "keywords"), ("batch", "scalar")


def from_velocity(
    model: Callable[..., Any],
    *,
    order: str = "tx",
    t: str = "batch",
    names: tuple[str | None, str] = ("x", "t"),
    t_span: tuple[float, float] = (0.0, 1.0),
    time_scale: float = 1.0,
    condition: Sequence[str] | str | Mapping[str, Any] | None = None,
) -> NeuralODE:
    """Return the Neural ODE of a velocity model, from noise to data.

    Parameters
    ----------
    model : nn.Module or callable
        Returns the velocity of states x at times t: a tensor, a tuple that begins with it, or an object whose
        ``sample`` it is. It is copied and frozen.
    order : {"tx", "xt", "keywords"}, default "tx"
        How it is called: ``model(t, x)`` as in torchcfm, ``model(x, t)``, or ``model(x=x, t=t)`` as in flow_matching.
    t : {"batch", "scalar"}, default "batch"
        Times as one a row, of shape (n,), or as one 0-d tensor.
    names : pair of str, default ("x", "t")
        Names of state and time for ``order="keywords"``. With None the state goes first, without a name:
        ``names=(None, "times")`` calls ``model(x, times=t)``.
    t_span : pair of float, default (0.0, 1.0)
        From noise to data. Models with the noise at time 1 take (1.0, 0.0).
    time_scale : float, default 1.0
        What the model's time is multiplied by: 1000 where it takes timesteps.
    condition : str, sequence of str, or mapping, optional
        Keyword arguments of the model, labels for example: names of what each solve passes as ``condition={...}``, one
        value a row; or a dict of values that are fixed, the same for all rows.

    Returns
    -------
    NeuralODE
        In eval mode. Pass it to an estimator. Its ``vector_field`` is an :class:`Adapter`.

    Raises
    ------
    ValueError
        If ``order``, ``t`` or ``time_scale`` is wrong, or ``names`` is given for another order than "keywords".
    TypeError
        As :class:`Adapter`.

    Examples
    --------
    >>> import torch
    >>> from sklearn_hyper import HypersolverRegressor
    >>> from sklearn_hyper.adapters import from_velocity
    >>> class Velocity(torch.nn.Module):  # any model that takes the state first, and a time for each row
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.net = torch.nn.Sequential(torch.nn.Linear(3, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2))
    ...
    ...     def forward(self, x, t):
    ...         return self.net(torch.cat([x, t[:, None]], dim=1))
    >>> ode = from_velocity(Velocity(), order="xt")
    >>> noise = torch.randn(100, 2)
    >>> fast = HypersolverRegressor(ode, n_steps=2, max_epochs=5, random_state=0).fit(noise)
    >>> fast.predict(noise).shape
    (100, 2)
    """
    _check_call(order, t, names, time_scale)
    free, fixed = split_condition(condition)
    field = VelocityField(
        model, order=order, t=t, names=names, time_scale=float(time_scale), conditions=free, fixed=fixed
    )
    return NeuralODE(field, t_span=t_span).eval()


def _check_call(order: str, t: str, names: Any, time_scale: Any) -> None:
    if order not in ORDERS:
        raise ValueError(f"order must be one of {ORDERS}, got {order!r}.")
    if t not in TIMES:
        raise ValueError(f"t must be one of {TIMES}, got {t!r}.")
    if order != "keywords" and tuple(names) != ("x", "t"):
        raise ValueError(f"names={names!r} with order={order!r}, which passes no names; pass order='keywords'.")
    if order == "keywords" and not (isinstance(names, (tuple, list)) and len(names) == 2 and isinstance(names[1], str)):
        raise ValueError(f"names must be a pair, of state and of time, such as ('x', 't'), got {names!r}.")
    if not (isinstance(time_scale, Real) and math.isfinite(time_scale) and time_scale):
        raise ValueError(f"time_scale must be a finite number other than 0, got {time_scale!r}.")


class VelocityField(Adapter):
    """A velocity model as a field. See :func:`from_velocity` for the parameters."""

    def __init__(
        self,
        model: Callable[..., Any],
        *,
        order: str,
        t: str,
        names: tuple[str | None, str],
        time_scale: float,
        conditions: Sequence[str],
        fixed: Mapping[str, Any],
    ):
        super().__init__(model, conditions=conditions)
        self.order, self.t, self.time_scale = order, t, time_scale
        self.names: tuple[str | None, str] = (names[0], names[1])
        self.fixed = dict(fixed)

    def velocity(self, t: Tensor, z: Tensor, **condition: Any) -> Tensor:  # type: ignore[override]
        given = {**condition, **{name: fixed_for(value, z) for name, value in self.fixed.items()}}
        try:
            output = self._call(self.order, self.t, t, z, given)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a model may raise anything
            works = self._spelling_that_works(t, z, given)
            if works is None:
                raise
            text = " ".join(str(error).split())
            raise TypeError(
                f"the model fails with order={self.order!r} and t={self.t!r} of from_velocity ({type(error).__name__}: "
                f"{text}); pass order={works[0]!r}, t={works[1]!r}, with which it runs."
            ) from error
        return tensor_of(output)

    def _call(self, order: str, times: str, t: Tensor, z: Tensor, given: Mapping[str, Any]) -> Any:
        time = t if self.time_scale == 1 else t * self.time_scale
        time = batch_times(time, z) if times == "batch" else time.to(z.dtype)
        if order == "tx":
            return self.model(time, z, **given)
        if order == "xt":
            return self.model(z, time, **given)
        of_state, of_time = self.names
        named: dict[str, Any] = {of_time: time, **given}
        return self.model(z, **named) if of_state is None else self.model(**named, **{of_state: z})

    def _spelling_that_works(self, t: Tensor, z: Tensor, given: Mapping[str, Any]) -> tuple[str, str] | None:
        """Return another order and form of t with which the model returns a tensor like z."""
        for order, times in itertools.product(ORDERS, TIMES):
            try:
                if tensor_of(self._call(order, times, t, z, given)).shape == z.shape:
                    return order, times
            except Exception:  # a model may raise anything
                continue
        return None

    def extra_repr(self) -> str:
        return f"order={self.order!r}, t={self.t!r}, conditions={list(self.conditions)}, fixed={sorted(self.fixed)}"
