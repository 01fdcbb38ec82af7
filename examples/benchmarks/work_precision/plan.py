"""Which contenders meet on which problem, and on how many seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from . import contenders as kinds
from .cells import Trial
from .contenders import BUDGETS, Contender, Ours
from .problems import Problem

ALTERNATIVES = ("euler", "ab2", "nonstationary")
"""Our base solvers of one evaluation a step, with a net."""
GENERALIST = Ours(4, fit_n_steps=(1, 16))
PUBLISHED = {"moons flow_matching": kinds.PublishedRecipe("i"), "moons likelihood": kinds.PublishedRecipe("ii")}
"""Where a recipe's published figures, or its published use, can be compared with."""


def contenders_of(problem: Problem) -> list[Contender]:
    """Contenders of a problem, ours first."""
    published = PUBLISHED.get(problem.name)
    if not problem.takes_nets:
        return [
            *map(Ours, (1, *BUDGETS)), kinds.Classical(), kinds.Dopri5(), kinds.Torchode(), *map(kinds.BNS, BUDGETS),
            *_from_f(problem),
        ]  # fmt: skip
    return [
        *map(Ours, (1, *BUDGETS)),
        *_alternatives(problem),
        GENERALIST,
        kinds.Classical(), kinds.Dopri5(), kinds.Torchode(),
        *(kinds.Recipe("i", n_steps) for n_steps in (1, *BUDGETS)),
        *(kinds.Recipe("ii", n_steps) for n_steps in (1, 2, 4)),
        *map(kinds.BNS, BUDGETS),
        *(kinds.TimeGrid(n) for n in BUDGETS if problem.compared),
        kinds.FlowMap("g"), kinds.FlowMap("f"),
        *(kinds.Torchdyn(n_steps) for n_steps in BUDGETS if problem.compared),
        *([published] if published else []),
        *(kinds.PaperSized(n_steps) for n_steps in (1, 2, 4) if problem.has_macs),
        *_from_f(problem),
    ]  # fmt: skip


def _from_f(problem: Problem) -> list[Contender]:
    """Rivals that need weights or hidden layers of f."""
    if not problem.has_macs:
        return []
    scalars = [kinds.ScalarPredictor(budget // 2) for budget in BUDGETS if problem.takes_row_times]
    return [*map(kinds.FineTuned, (1, *BUDGETS)), *scalars]


def _alternatives(problem: Problem) -> list[Ours]:
    """Ours with another base solver than the default."""
    # Where f has weights, the default changes them, and every named base solver has a net beside f.
    default = None if problem.has_macs else "ab2"
    others = [base for base in ALTERNATIVES if base != default] if problem.compared else []
    return [Ours(n_steps, base) for base in others for n_steps in BUDGETS]


def trials(problems: Sequence[Problem], n_seeds: int, is_wanted: Callable[[Contender], bool]) -> Iterator[Trial]:
    """Every wanted trial, seeds outermost: a partial run tells something."""
    for seed in range(n_seeds):
        for problem in problems:
            for contender in filter(is_wanted, contenders_of(problem)):
                if seed == 0 or not measured_once(problem, contender):
                    yield Trial(problem, contender, seed if contender.seeded else None)


def measured_once(problem: Problem, contender: Contender) -> bool:
    """Whether one seed is all there is: of what needs none, and of what would take too long."""
    if not contender.seeded or contender.once or problem.once:
        return True
    return problem.of_images and not isinstance(contender, Ours)
