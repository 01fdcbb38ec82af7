"""What a fixed-step method is, whatever its family: the contract that the stepping loop and corrections rely on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor

from ..times import uniform_grid

Field: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""A vector field as a step calls it: f(t, z), its inputs already bound."""


@dataclass(frozen=True)
class StepKind:
    """What all steps of one kind have in common, wherever and however long they are.

    A one-step method has one kind. A multistep method has another for each sort of start-up step. Corrections know
    steps by their kind: order, stages and scales differ between kinds.

    Parameters
    ----------
    order : int
        p of such a step: its local error is of order p + 1.
    nodes : tuple of float
        Where the step evaluates f, measured from its start in units of its size. One evaluation a node.
    offsets : tuple of float
        Where the stages lie that a correction reads, in the same units. The first is 0: f at the start of the step.
    leading_error : pair of float, optional
        How the method weighs the two terms of its leading error, where it has a tableau.

    Examples
    --------
    >>> from sklearn_hyper.numerics import resolve_base_solver
    >>> ab2 = resolve_base_solver("ab2")
    >>> [(kind.order, kind.nodes, kind.offsets) for kind in ab2.kinds]  # Euler's step first, then two stages, one remembered
    [(1, (0.0,), (0.0,)), (2, (0.0,), (0.0, -1.0))]
    """

    order: int
    nodes: tuple[float, ...]
    offsets: tuple[float, ...]
    leading_error: tuple[float, float] | None = None
    # Derived once: training asks for them in every step.
    family: tuple[int, int] = field(init=False, repr=False, compare=False)
    """Order and number of stages. A correction fitted for one kind runs with every other kind of its family."""
    spacings: tuple[float, ...] = field(init=False, repr=False, compare=False)
    """What differences between later stages and the first are divided by, in units of eps.

    1 where a stage lies at the start of the step too: there is no distance to divide by.
    """

    def __post_init__(self) -> None:
        object.__setattr__(self, "family", (self.order, self.n_stages))
        object.__setattr__(self, "spacings", tuple(offset or 1.0 for offset in self.offsets[1:]))

    @property
    def n_stages(self) -> int:
        """Stages that a correction reads."""
        return len(self.offsets)


class StepPlan(NamedTuple):
    """A step before it is taken: all that is known whatever the state."""

    k: int
    """How many steps of the solve come before."""
    s: Any
    """Where it starts: a float (a 0-d tensor where the mesh is being learned)."""
    eps: Any
    """How long it is, signed: a float, or a 0-d tensor likewise."""
    kind: StepKind

    def times(self) -> list[Any]:
        """When it evaluates f."""
        return [self.s + node * self.eps for node in self.kind.nodes]

    @property
    def evaluates_start(self) -> bool:
        """Whether its first evaluation is at its start."""
        return self.kind.nodes[0] == 0


class Step(NamedTuple):
    """What a method makes of one step."""

    direction: Tensor
    """psi of eq. 2: z + eps * psi is the method's step."""
    stages: list[Tensor]
    """f at the offsets of the step's kind: what the correction reads."""
    state: tuple[Any, ...]
    """What the method remembers for the next step. Only the method looks inside."""
    error: Tensor | None = None
    """An estimate of the local error, like z, where the method has one."""


class Method(ABC):
    """A fixed-step method: one step of it. Where steps go is the business of :mod:`sklearn_hyper.numerics.stepping`.

    Subclass this to bring a method of your own, and pass an instance as ``base_solver``. Say its :attr:`name` and
    :attr:`order`, and write :meth:`kind` and :meth:`step`. All else has defaults, which are those of a one-step method
    that takes any mesh.

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
        """Kind of the step that comes after ``index`` others."""

    @abstractmethod
    def step(self, f: Field, times: Sequence[Tensor], z: Tensor, eps: Any, state: tuple[Any, ...]) -> Step:
        """Take a step of size eps from z.

        Parameters
        ----------
        f : callable
            f(t, z).
        times : sequence of 0-d Tensor
            The times of the kind's nodes: f is evaluated at each once.
        z : Tensor of shape (batch, ...)
        eps : float
            Signed. A 0-d tensor where the mesh is being learned.
        state : tuple
            What the step before has left, () at the start of a solve.
        """

    memory = 0
    """Steps that a later one may look back on. From step ``memory`` on, all are of one kind."""
    n_steps: int | None = None
    """The only number of steps that the method is made for, on a mesh of its own. None: any number, on any mesh."""
    follows_trajectory = True
    """Whether states between the ends of a solve approximate the trajectory as its end does."""

    def remember(self, state: tuple[Any, ...], eps: float, stage: Tensor) -> tuple[Any, ...]:
        """What a step of size eps leaves behind, from a point where f is ``stage``: how a past is rebuilt."""
        return state

    def arrive(self, state: tuple[Any, ...], stage: Tensor) -> tuple[Any, ...]:
        """What the last step leaves behind that has already evaluated f where the next one starts: ``stage``.

        Asked only of methods whose main kind has no node at its start.
        """
        return state

    def mesh(self, t_span: Any, n_steps: int) -> tuple[float, ...]:
        """The mesh of a solve in so many steps: equal ones, or the method's own."""
        return uniform_grid(t_span, n_steps)

    def check_mesh(self, mesh: Sequence[float]) -> None:  # noqa: B027 - any mesh will do
        """Refuse a mesh (or the first steps of one) that the method is not made for."""

    @property
    def kinds(self) -> tuple[StepKind, ...]:
        """The kinds of its steps, each once, in the order in which they first come up."""
        return tuple(dict.fromkeys(self.kind(index) for index in range(self.memory + 1)))

    @property
    def main_kind(self) -> StepKind:
        """The kind of every step but the first few."""
        return self.kind(self.memory)

    @property
    def n_stages(self) -> int:
        """Stages that a correction reads, but in the first few steps."""
        return self.main_kind.n_stages

    @property
    def n_startup(self) -> int:
        """Steps before the first of the main kind."""
        return next(index for index in range(self.memory + 1) if self.kind(index) == self.main_kind)

    def count_evaluations(self, n_steps: int) -> int:
        """Evaluations of f in so many steps."""
        n_first = min(n_steps, self.memory)
        first = sum(len(self.kind(index).nodes) for index in range(n_first))
        return first + (n_steps - n_first) * len(self.main_kind.nodes)
