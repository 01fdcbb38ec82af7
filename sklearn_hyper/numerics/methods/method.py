"""The contract of a fixed-step method, on which the stepping loop and corrections rely."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor

from ..times import uniform_grid

Field: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""A vector field as a step calls it: f(t, z), with its other inputs already bound."""


@dataclass(frozen=True)
class StepKind:
    """What all steps of one kind have in common, independent of their time and size.

    A one-step method has one kind. A multistep method has further kinds for its start-up steps. Order, stages and
    scales differ between kinds, so corrections look them up by kind.

    Parameters
    ----------
    order : int
        p of such a step: its local error is of order p + 1.
    nodes : tuple of float
        The times at which the step evaluates f, once each. Measured from the step's start in units of its size.
    offsets : tuple of float
        The times of the stages that a correction reads, in the same units. The first is 0: f at the step's start.
    leading_error : pair of float, optional
        Weights of the two terms of the method's leading error, if it has a tableau. See :func:`leading_error`.

    Examples
    --------
    >>> from sklearn_hyper.numerics import resolve_base_solver
    >>> ab2 = resolve_base_solver("ab2")
    >>> [(kind.order, kind.nodes, kind.offsets) for kind in ab2.kinds]  # Euler's step, then two stages
    [(1, (0.0,), (0.0,)), (2, (0.0,), (0.0, -1.0))]
    """

    order: int
    nodes: tuple[float, ...]
    offsets: tuple[float, ...]
    leading_error: tuple[float, float] | None = None
    # Computed once, because training reads them in every step.
    family: tuple[int, int] = field(init=False, repr=False, compare=False)
    """Order and number of stages. A correction fitted for one kind also runs with the other kinds of its family."""
    spacings: tuple[float, ...] = field(init=False, repr=False, compare=False)
    """Distances of the later stages from the first, in units of eps: divisors of difference quotients.

    1 for a stage that lies at the start of the step too, where the distance is zero.
    """

    def __post_init__(self) -> None:
        object.__setattr__(self, "family", (self.order, self.n_stages))
        object.__setattr__(self, "spacings", tuple(offset or 1.0 for offset in self.offsets[1:]))

    @property
    def n_stages(self) -> int:
        """Number of stages that a correction reads."""
        return len(self.offsets)


class StepPlan(NamedTuple):
    """A step before it is taken: all that does not depend on the state."""

    k: int
    """Index of the step in the solve, from 0."""
    s: Any
    """Start time: a float, or a 0-d tensor while the mesh is being learned."""
    eps: Any
    """Signed size: a float, or a 0-d tensor likewise."""
    kind: StepKind

    def times(self) -> list[Any]:
        """Return the times at which the step evaluates f."""
        return [self.s + node * self.eps for node in self.kind.nodes]

    @property
    def evaluates_start(self) -> bool:
        """Whether the first evaluation is at the step's start."""
        return self.kind.nodes[0] == 0


class Step(NamedTuple):
    """The result of one step of a method."""

    direction: Tensor
    """psi of eq. 2: z + eps * psi is the state after the step."""
    stages: list[Tensor]
    """f at the offsets of the step's kind. The correction reads them."""
    state: tuple[Any, ...]
    """What the method remembers for the next step. Only the method looks inside."""
    error: Tensor | None = None
    """Estimate of the local error, shaped like z, if the method has one."""


class Method(ABC):
    """A fixed-step method, which takes one step at a time. :mod:`sklearn_hyper.numerics.stepping` runs the whole solve.

    Subclass this to add your own method, and pass an instance as ``base_solver``. Set :attr:`name` and :attr:`order`,
    and write :meth:`kind` and :meth:`step`. Everything else has defaults that suit a one-step method on any mesh.

    Examples
    --------
    Euler's method:

    >>> import torch
    >>> from sklearn_hyper.numerics import Method, Step, StepKind, hypersolve
    >>> class Euler(Method):
    ...     name, order = "my euler", 1
    ...     def kind(self, index):
    ...         return StepKind(order=1, nodes=(0.0,), offsets=(0.0,))
    ...     def step(self, f, times, z, eps, state):
    ...         r = f(times[0], z)
    ...         return Step(direction=r, stages=[r], state=state)
    >>> hypersolve(lambda t, z: -z, torch.ones(1, 1), (0.0, 1.0), 2, Euler())
    tensor([[0.2500]])
    """

    name: str
    """Shown in reports and errors."""
    order: int
    """p of a whole solve."""

    @abstractmethod
    def kind(self, index: int) -> StepKind:
        """Return the kind of step number ``index`` of a solve, counted from 0."""

    @abstractmethod
    def step(self, f: Field, times: Sequence[Tensor], z: Tensor, eps: Any, state: tuple[Any, ...]) -> Step:
        """Take a step of size eps from z.

        Parameters
        ----------
        f : callable
            f(t, z).
        times : sequence of 0-d Tensor
            The times of the kind's nodes. The step evaluates f once at each.
        z : Tensor of shape (batch, ...)
        eps : float
            Signed step size. A 0-d tensor while the mesh is being learned.
        state : tuple
            ``Step.state`` of the previous step, () at the start of a solve.
        """

    memory = 0
    """Number of earlier steps that a step may read. From step ``memory`` on, all steps are of one kind."""
    n_steps: int | None = None
    """The only number of steps that the method is made for, on its own mesh. None: any number, on any mesh."""
    is_learning = False
    """Whether the coefficients are parameters that a training changes, so that no mesh may be kept."""
    follows_trajectory = True
    """Whether the states between the ends of a solve approximate the trajectory as well as the last one does."""

    def remember(self, state: tuple[Any, ...], eps: float, stage: Tensor) -> tuple[Any, ...]:
        """Return the state that a step of size eps would leave, from a point where f is ``stage``.

        Residuals along a reference rebuild a method's past with it, without taking the steps.
        """
        return state

    def arrive(self, state: tuple[Any, ...], stage: Tensor) -> tuple[Any, ...]:
        """Return the state as the previous step would leave it if it had evaluated f at its end, giving ``stage``.

        Only called for methods whose main kind has no node at its start.
        """
        return state

    error_order: int | None = None
    """Power of eps that estimates of local errors go with. None: the method makes none."""
    ends_at_next_start = False
    """Whether the last stage of a step is f at its end, where the next one starts."""

    def estimate_error(self, step: Step, eps: float) -> Tensor | None:
        """Return an estimate of a step's local error, shaped like z, or None. Set :attr:`error_order` beside it."""
        return step.error

    def mesh(self, t_span: Any, n_steps: int) -> tuple[float, ...]:
        """Return the mesh of a solve in ``n_steps`` steps: equal steps, unless the method has its own mesh."""
        return uniform_grid(t_span, n_steps)

    def check_mesh(self, mesh: Sequence[float]) -> None:  # noqa: B027 - any mesh will do
        """Refuse a mesh, or the first steps of one, that the method is not made for."""

    @property
    def kinds(self) -> tuple[StepKind, ...]:
        """All kinds of the method's steps, in the order of their first steps."""
        return tuple(dict.fromkeys(self.kind(index) for index in range(self.memory + 1)))

    @property
    def main_kind(self) -> StepKind:
        """The kind of all steps after the first few."""
        return self.kind(self.memory)

    @property
    def n_stages(self) -> int:
        """Number of stages that a correction reads in a step of the main kind."""
        return self.main_kind.n_stages

    @property
    def n_startup(self) -> int:
        """Number of steps before the first of the main kind."""
        return next(index for index in range(self.memory + 1) if self.kind(index) == self.main_kind)

    def count_evaluations(self, n_steps: int) -> int:
        """Return the number of evaluations of f in ``n_steps`` steps."""
        n_first = min(n_steps, self.memory)
        first = sum(len(self.kind(index).nodes) for index in range(n_first))
        return first + (n_steps - n_first) * len(self.main_kind.nodes)
