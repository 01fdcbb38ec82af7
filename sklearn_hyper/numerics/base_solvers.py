"""Base steps: what psi of eq. 2 is, and how a name, a tableau or an order selects one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, pairwise, repeat
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeGuard

from torch import Tensor
from torch.compiler import is_compiling

from .multistep import adams_bashforth_weights
from .tableaus import TABLEAUS, ButcherTableau

Field: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""A vector field as a base step calls it: f(t, z), x already bound."""

NONSTATIONARY = "nonstationary"
"""Names a base solver that a fit learns."""

CANONICAL = {1: "euler", 2: "midpoint", 3: "rk3", 4: "rk4"}
"""The base solver that ``base_solver="auto"`` stands for, by order."""

DEFAULT = "ab2"
"""The base solver that ``base_solver="auto"`` stands for without an order: one evaluation of f a step, the first Euler's."""


class BaseStep(NamedTuple):
    """What one base step hands to the loop."""

    psi: Tensor
    """The update direction: z + eps * psi is the base solver's step."""
    stages: list[Tensor]
    """Evaluations of f made in this step, then those remembered, newest first: what the correction reads."""
    order: int
    """The order of *this* step; a multistep method's start-up steps may have a lower one."""
    history: tuple[Any, ...]
    """Carried to the next step; empty for one-step methods."""


class BaseSolver(Protocol):
    """A fixed-step method as the loop in :mod:`.solve` sees it.

    One of your own may also be a :class:`MultistepSolver`, an :class:`OwnMeshSolver`, or have ``stage_offsets(n_stages)`` as
    :class:`RungeKutta` and :class:`AdamsBashforth` have: where the stages lie that a correction reads, in units of eps.
    """

    @property
    def name(self) -> str: ...
    @property
    def order(self) -> int: ...
    @property
    def n_stages(self) -> int:
        """Stages that a correction reads in a step (fewer in a start-up step)."""
        ...

    def nodes(self, s: float, eps: float) -> list[float]:
        """Times at which a step from s evaluates f, the first being s itself (start-up steps apart)."""
        ...

    def step(self, f: Field, times: Sequence[Tensor], z: Tensor, eps: float, history: tuple[Any, ...]) -> BaseStep:
        """Evaluate f at ``times`` (the nodes, as 0-d tensors) and return the step."""
        ...

    def count_evaluations(self, n_steps: int) -> int:
        """Evaluations of f in n_steps steps."""
        ...


class MultistepSolver(BaseSolver, Protocol):
    """A method that remembers earlier steps, and whose first steps are another's."""

    @property
    def starters(self) -> tuple[BaseSolver, ...]:
        """The method of each start-up step."""
        ...

    def remember(self, history: Any, eps: float, stage: Tensor) -> tuple[Any, ...]:
        """The history after a step of size eps from a point where f is ``stage``."""
        ...


class OwnMeshSolver(BaseSolver, Protocol):
    """A method that is made for one number of steps, on a mesh of its own."""

    @property
    def n_steps(self) -> int:
        """The K that it is made for."""
        ...

    def mesh(self, t_span: Any) -> tuple[float, ...]:
        """Its mesh on a span: the same shares of every span."""
        ...


def owns_mesh(solver: BaseSolver) -> TypeGuard[OwnMeshSolver]:
    """Whether a solver takes the steps of its own mesh alone."""
    return hasattr(solver, "mesh")


def is_multistep(solver: BaseSolver) -> TypeGuard[MultistepSolver]:
    """Whether a solver has start-up steps."""
    return hasattr(solver, "starters")


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
        return BaseStep(weighted_sum(self.tableau.b, stages), stages, self.order, history)

    def count_evaluations(self, n_steps: int) -> int:
        return self.n_stages * n_steps

    def stage_offsets(self, n_stages: int | None = None) -> tuple[float, ...]:
        """Where the stages lie, measured from s in units of eps: c."""
        return self.tableau.c


Past: TypeAlias = tuple[()] | tuple[tuple[float, ...], tuple[Tensor, ...]]
"""What a multistep method remembers, newest first: the sizes of the last steps, and f at their starts."""


@dataclass(frozen=True)
class AdamsBashforth:
    r"""Explicit multistep method: one evaluation of f a step, and the last p - 1 remembered.

    :math:`\psi = \sum_j b_j f(s_{k-j}, z_{k-j})` with the weights of the mesh as it is, uniform or not (on a uniform one
    3/2, -1/2 for p = 2, and so on; see :func:`~sklearn_hyper.numerics.multistep.adams_bashforth_weights`).

    The first p - 1 steps are those of the canonical Runge-Kutta method of order p - 1 (euler, midpoint, rk3). Their local
    error is of order p, and there are never more of them, so the order of a solve is p. A start-up step hands out its own
    order and its own stages, of which there are always fewer than p.

    Parameters
    ----------
    order : int, 2 to 4
        p.

    References
    ----------
    Hairer, Norsett, Wanner (1993), *Solving Ordinary Differential Equations I*, sections III.1 and III.5.

    Examples
    --------
    >>> from sklearn_hyper.numerics import AdamsBashforth
    >>> solver = AdamsBashforth(3)
    >>> solver.name, solver.count_evaluations(10)  # two midpoint steps, then eight of one evaluation
    ('ab3', 12)
    """

    order: int

    def __post_init__(self) -> None:
        if isinstance(self.order, bool) or self.order not in (2, 3, 4):
            raise ValueError(f"AdamsBashforth order must be 2, 3 or 4, got {self.order!r}; order 1 is 'euler'.")

    @property
    def name(self) -> str:
        return f"ab{self.order}"

    @property
    def n_stages(self) -> int:
        """f here and at the p - 1 mesh points before."""
        return self.order

    @property
    def starter(self) -> RungeKutta:
        """The method of the start-up steps."""
        return RungeKutta(TABLEAUS[CANONICAL[self.order - 1]])

    @property
    def starters(self) -> tuple[RungeKutta, ...]:
        """The method of each start-up step."""
        return (self.starter,) * (self.order - 1)

    def nodes(self, s: float, eps: float) -> list[float]:
        return [s]

    def step(self, f: Field, times: Sequence[Tensor], z: Tensor, eps: float, history: tuple[Any, ...]) -> BaseStep:
        sizes, remembered = history or ((), ())
        if len(sizes) < self.order - 1:
            psi, stages, order, _ = self.starter.step(f, times, z, eps, ())
        else:
            stages, order = [f(times[0], z), *remembered], self.order
            # A compiler folds the weights into its graph, and warns of caches.
            weights = (_weights if is_compiling() else _cached_weights)(eps, sizes)
            psi = weighted_sum(weights, stages)
        return BaseStep(psi, stages, order, self.remember(history, eps, stages[0]))

    def remember(self, history: Past, eps: float, stage: Tensor) -> Past:
        """The history after a step of size eps from a point where f is ``stage``."""
        sizes, stages = history or ((), ())
        kept = self.order - 2
        return (eps, *sizes[:kept]), (stage, *stages[:kept])

    def count_evaluations(self, n_steps: int) -> int:
        n_startup = min(n_steps, self.order - 1)
        return n_startup * self.starter.n_stages + n_steps - n_startup

    def stage_offsets(self, n_stages: int | None = None) -> tuple[float, ...]:
        """Where the stages lie on a uniform mesh, measured from s in units of eps.

        0, -1, -2, ...; in a start-up step, which hands out fewer than p stages, c of its own method.
        """
        if n_stages is not None and n_stages < self.order:
            return self.starter.stage_offsets()
        return tuple(-float(k) for k in range(self.order))


def _weights(eps: float, sizes: tuple[float, ...]) -> tuple[float, ...]:
    """Weights of a step of size eps after steps of these sizes, newest first."""
    return adams_bashforth_weights([-sum(sizes[:k]) / eps for k in range(len(sizes) + 1)])


# A mesh has few different steps, and computing the weights of one takes as long as evaluating a small field.
_cached_weights = lru_cache(maxsize=4096)(_weights)


MULTISTEP: dict[str, AdamsBashforth] = {solver.name: solver for solver in map(AdamsBashforth, (2, 3, 4))}


def startup_methods(solver: BaseSolver) -> tuple[BaseSolver, ...]:
    """The method of each start-up step, in order; none for a one-step method."""
    return solver.starters if is_multistep(solver) else ()


def mesh_nodes(solver: BaseSolver, grid: Sequence[float], n_past: int = 0) -> list[list[float]]:
    """Times at which every step along a mesh evaluates f, the first steps after ``n_past`` known ones."""
    methods = chain(startup_methods(solver)[n_past:], repeat(solver))
    return [method.nodes(s, after - s) for method, (s, after) in zip(methods, pairwise(grid), strict=False)]


def weighted_sum(weights: Sequence[float], tensors: Sequence[Tensor]) -> Tensor:
    """Sum of tensors by weights, in as few operations as it takes; at least one weight is not zero."""
    terms = [(weight, tensor) for weight, tensor in zip(weights, tensors, strict=True) if weight]
    weight, total = terms[0]
    if weight != 1:
        total = total * weight
    for weight, tensor in terms[1:]:
        total = total.add(tensor, alpha=weight)
    return total


_NAMES = (*sorted(TABLEAUS), *MULTISTEP)


def resolve_base_solver(base_solver: Any = "auto", order: int | None = None) -> BaseSolver:
    """Turn what a user may pass as ``base_solver`` and ``order`` into a base solver.

    Parameters
    ----------
    base_solver : str, ButcherTableau or base solver
        ``"auto"`` is the canonical method of ``order``: euler, midpoint, rk3, rk4 for 1 to 4; without one, ``"ab2"``.
        ``"ab2"``, ``"ab3"`` and ``"ab4"`` are :class:`AdamsBashforth`, the other names tableaus.
    order : int, optional
        Chooses with ``"auto"``; otherwise it must agree with the method.

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
        base_solver = DEFAULT if base_solver == "auto" and order is None else base_solver
        solver: BaseSolver = MULTISTEP.get(base_solver) or RungeKutta(_named_tableau(base_solver, order))
    elif isinstance(base_solver, ButcherTableau):
        solver = RungeKutta(base_solver)
    elif all(hasattr(base_solver, name) for name in ("step", "nodes", "order", "n_stages", "count_evaluations")):
        solver = base_solver
    else:
        raise TypeError(
            f"base_solver must be a name ({', '.join(_NAMES)}, auto) or a ButcherTableau, "
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
        if order not in CANONICAL:
            raise ValueError(
                f"base_solver='auto' knows orders {sorted(CANONICAL)}, got order={order}; pass a ButcherTableau instead."
            )
        name = CANONICAL[order]
    if name == NONSTATIONARY:
        raise ValueError(
            f"base_solver={NONSTATIONARY!r} is learned by an estimator's fit; here pass its base_solver_, or a Nonstationary."
        )
    if name not in TABLEAUS:
        raise ValueError(
            f"base_solver={name!r} is unknown; valid names are {', '.join(_NAMES)}, 'auto' and, for estimators, "
            f"{NONSTATIONARY!r}; or pass a ButcherTableau (alpha_family(0.7), say)."
        )
    return TABLEAUS[name]
