"""Errors of rivals over ours on one problem, at equal cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from . import contenders as kinds
from .cells import Outcome, Trial
from .contenders import Contender, Ours
from .problems import Problem
from .runs import Row, Run

ERRORS = {
    "median": ("test", "median"),
    "p99": ("test", "p99"),
    "max": ("test", "max"),
    "outside": ("outside", "median"),
}
_SLACK = 1e-4
"""Of equal cost, in evaluations of f: a solver's own products of single numbers are counted too."""


@dataclass(frozen=True)
class Result:
    """A row with the trial that it is of."""

    trial: Trial
    outcome: Outcome
    row: Row

    @property
    def problem(self) -> Problem:
        return self.trial.problem

    @property
    def contender(self) -> Contender:
        return self.trial.contender

    @property
    def run(self) -> Run:
        return self.row.run

    @property
    def cost(self) -> float:
        """In evaluations of f."""
        return self.outcome.cost(self.row)

    @property
    def is_own(self) -> bool:
        """Of ours: at a number of steps that it was fitted for."""
        return isinstance(self.contender, Ours) and self.contender.is_own(self.run)

    def error(self, kind: str = "median") -> float:
        """inf where it diverged, or fell back to its base."""
        part, statistic = ERRORS[kind]
        return math.inf if self.outcome.facts.get("fallback") else getattr(self.row, part)[statistic]


def results_of(cells: dict[Any, Any]) -> list[Result]:
    """All rows of all trials."""
    return [
        Result(cell, outcome, row) for cell, outcome in cells.items() if isinstance(cell, Trial) for row in outcome.rows
    ]


Belongs = Callable[[Contender, Run], bool]


def _any(kind: type[Contender]) -> Belongs:
    return lambda contender, run: isinstance(contender, kind)


def recipe(name: str, *, refitted: bool, shares_f: bool, most_steps: float = math.inf) -> Belongs:
    """Rows of a recipe: trained for the number of steps it is run with or not, and whether f is counted as shared."""
    return lambda contender, run: (
        isinstance(contender, kinds.Recipe)
        and contender.recipe == name
        and contender.n_steps <= most_steps
        and (run.refitted, run.shares_f) == (refitted, shares_f)
    )


RIVALS: dict[str, Belongs] = {
    "best classical": _any(kinds.Classical),
    "reference (i)": recipe("i", refitted=False, shares_f=False),
    "reference (i), f shared": recipe("i", refitted=False, shares_f=True),
    "(i) refitted at K": recipe("i", refitted=True, shares_f=False),
    "(i) refitted, f shared": recipe("i", refitted=True, shares_f=True),
    "reference (ii)": recipe("ii", refitted=True, shares_f=True, most_steps=1),
    "(ii) refitted at K": recipe("ii", refitted=True, shares_f=True),
    "(ii), true counts": recipe("ii", refitted=True, shares_f=False),
    "(i), published budget": lambda contender, run: contender == kinds.PublishedRecipe("i") and not run.shares_f,
    "(ii), published budget": lambda contender, run: (
        contender == kinds.PublishedRecipe("ii") and run == Run(n_steps=1, shares_f=True)
    ),
    "BNS": _any(kinds.BNS),
    "time grid": _any(kinds.TimeGrid),
    "flow map, size of g": lambda contender, run: contender == kinds.FlowMap("g"),
    "flow map, size of f": lambda contender, run: contender == kinds.FlowMap("f"),
    "torchdyn HyperEuler": _any(kinds.Torchdyn),
    "paper-sized g": _any(kinds.PaperSized),
    "fine-tuned f (SFD)": _any(kinds.FineTuned),
    "AMED": _any(kinds.ScalarPredictor),
    "dopri5 (torchdiffeq)": _any(kinds.Dopri5),
    "torchode": _any(kinds.Torchode),
}
"""Rivals and their rows. Recipe (ii) is counted as published, two evaluations a step; its code makes four: "true counts"."""
_COST_WHAT_THEY_COST = ("flow map, size of g", "flow map, size of f", "paper-sized g")


def ours_at(results: Iterable[Result], budget: int, seed: int) -> Result | None:
    """Our default of so many evaluations, fitted for them."""
    return next(
        (found for found in results if found.contender == Ours(budget) and found.is_own and found.trial.seed == seed),
        None,
    )


def compare(results: list[Result], budget: int, seed: int) -> dict[str, dict[str, Any]] | None:
    """Ours, and errors of the rivals over ours, on one problem at one budget; None without ours.

    A rival may cost a tenth more than ours, rounded up to whole evaluations of f: nets beside f are compared at equal
    evaluations then, though ours has none. Of a rival's rows the one that is best by the test error that is compared
    counts. Below 1: ours lost. 0: ours diverged or fell back.
    """
    ours = ours_at(results, budget, seed)
    if ours is None:
        return None
    limit = 1.1 * math.ceil(ours.cost - _SLACK) + _SLACK
    compared: dict[str, Any] = {"ours": {"cost": ours.cost, **{kind: ours.error(kind) for kind in ERRORS}}}
    for rival, belongs in RIVALS.items():
        allowed = [
            found for found in results
            if belongs(found.contender, found.run) and found.cost <= limit and _serves(found, seed)
        ]  # fmt: skip
        # A solver that is there for fewer evaluations alone is not compared.
        least = 0 if rival in _COST_WHAT_THEY_COST else budget
        if any(found.row.nfe >= least for found in allowed):
            compared[rival] = {
                kind: ratio(min(found.error(kind) for found in allowed), ours.error(kind)) for kind in ERRORS
            }
    return compared


def _serves(rival: Result, seed: int) -> bool:
    """Whether a rival's row belongs to a seed; where rivals have a single one, it serves all of ours."""
    alone = rival.problem.of_images or rival.contender.once
    return rival.trial.seed in (None, 0 if alone else seed)


def ratio(rival: float, own: float) -> float:
    """rival / own; 0 where ours diverged, inf where only the rival did."""
    if math.isinf(own):
        return 0.0
    return rival / max(own, 1e-300)
