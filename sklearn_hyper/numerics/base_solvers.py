"""Base steps: what psi of eq. 2 is, and how a name, a tableau or an order selects one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeAlias

from torch import Tensor

from .tableaus import TABLEAUS, ButcherTableau

Field: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""A vector field as a base step calls it: f(t, z), x already bound."""

CANONICAL = {1: "euler", 2: "midpoint", 3: "rk3", 4: "rk4"}
"""The base solver that ``base_solver="auto"`` stands for, by order."""


class BaseStep(NamedTuple):
    """What one base step hands to the loop."""

    psi: Tensor
    """The update direction: z + eps * psi is the base solver's step."""
    stages: list[Tensor]
    """Evaluations of f made in (or remembered by) this step, for the correction to read."""
    order: int
    """The order of *this* step; a multistep method's start-up steps may have a lower one."""
    history: tuple[Any, ...]
    """Carried to the next step; empty for one-step methods."""


class BaseSolver(Protocol):
    """A fixed-step method as the loop in :mod:`.solve` sees it."""

    @property
    def name(self) -> str: ...
    @property
    def order(self) -> int: ...
    @property
    def n_stages(self) -> int: ...

    def nodes(self, s: float, eps: float) -> list[float]:
        """Times at which a step from s evaluates f, the first being s itself."""
        ...

    def step(self, f: Field, times: Sequence[Tensor], z: Tensor, eps: float, history: tuple[Any, ...]) -> BaseStep:
        """Evaluate f at ``times`` (the nodes, as 0-d tensors) and return the step."""
        ...

    def count_evaluations(self, n_steps: int) -> int:
        """Evaluations of f in n_steps steps."""
        ...


@dataclass(frozen=True)
class RungeKutta:
    r"""Explicit Runge-Kutta step from a tableau (paper, eq. 3).

    :math:`r_i = f(s_k + c_i \epsilon, z_k + \epsilon \sum_j a_{ij} r_j)` and
    :math:`\psi = \sum_i b_i r_i`; f is called once a stage.

    Parameters
    ----------
    tableau : ButcherTableau
    """

    tableau: ButcherTableau

    @property
    def name(self) -> str:
        return self.tableau.name

    @property
    def order(self) -> int:
        return self.tableau.order

    @property
    def n_stages(self) -> int:
        return self.tableau.n_stages

    def nodes(self, s: float, eps: float) -> list[float]:
        return [s + c * eps for c in self.tableau.c]

    def step(self, f: Field, times: Sequence[Tensor], z: Tensor, eps: float, history: tuple[Any, ...]) -> BaseStep:
        stages: list[Tensor] = []
        for time, row in zip(times, self.tableau.a, strict=True):
            state = z
            for weight, stage in zip(row, stages, strict=False):
                if weight:
                    state = state.add(stage, alpha=eps * weight)
            stages.append(f(time, state))
        return BaseStep(_weighted_sum(self.tableau.b, stages), stages, self.order, history)

    def count_evaluations(self, n_steps: int) -> int:
        return self.n_stages * n_steps


def _weighted_sum(weights: Sequence[float], tensors: Sequence[Tensor]) -> Tensor:
    terms = [(weight, tensor) for weight, tensor in zip(weights, tensors, strict=True) if weight]
    weight, total = terms[0]
    if weight != 1:
        total = total * weight
    for weight, tensor in terms[1:]:
        total = total.add(tensor, alpha=weight)
    return total


def resolve_base_solver(base_solver: Any = "auto", order: int | None = None) -> BaseSolver:
    """Turn what a user may pass as ``base_solver`` and ``order`` into a base solver.

    Parameters
    ----------
    base_solver : str, ButcherTableau or base solver
        ``"auto"`` is the canonical method of ``order``: euler, midpoint, rk3, rk4 for 1 to 4.
    order : int, optional
        Needed only with ``"auto"`` (1 where missing); otherwise it must agree with the method.

    Returns
    -------
    BaseSolver

    Raises
    ------
    ValueError
        If the name is unknown, or ``order`` contradicts the method.
    TypeError
        If ``base_solver`` is none of the accepted kinds.

    Examples
    --------
    >>> from sklearn_hyper.numerics import resolve_base_solver
    >>> resolve_base_solver("auto", order=2).name
    'midpoint'
    """
    if order is not None and (isinstance(order, bool) or order not in range(1, 6)):
        raise ValueError(f"order must be None or an integer from 1 to 5, got {order!r}.")
    if isinstance(base_solver, str):
        solver: BaseSolver = RungeKutta(_named_tableau(base_solver, order))
    elif isinstance(base_solver, ButcherTableau):
        solver = RungeKutta(base_solver)
    elif all(hasattr(base_solver, name) for name in ("step", "nodes", "order", "n_stages", "count_evaluations")):
        solver = base_solver
    else:
        raise TypeError(
            f"base_solver must be a name ({', '.join(TABLEAUS)}, auto) or a ButcherTableau, "
            f"got {type(base_solver).__name__}."
        )
    if order is not None and order != solver.order:
        raise ValueError(
            f"order={order} contradicts base_solver={solver.name!r}, which has order {solver.order}; "
            "leave order=None, or search over a list of dicts, one per solver."
        )
    return solver


def _named_tableau(name: str, order: int | None) -> ButcherTableau:
    if name == "auto":
        wanted = 1 if order is None else order
        if wanted not in CANONICAL:
            raise ValueError(
                f"base_solver='auto' knows orders {sorted(CANONICAL)}, got order={order}; pass a ButcherTableau instead."
            )
        name = CANONICAL[wanted]
    if name not in TABLEAUS:
        raise ValueError(
            f"base_solver={name!r} is unknown; valid names are {', '.join(sorted(TABLEAUS))} and 'auto', "
            "or pass a ButcherTableau (alpha_family(0.7), say)."
        )
    return TABLEAUS[name]
