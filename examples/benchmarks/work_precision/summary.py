"""What the cells say: everything that the tables and the picture show, and no more."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable
from functools import partial
from typing import Any

from _results import spread

from .cells import Cell, Check, Outcome, Timing, Trial
from .comparing import ERRORS, RIVALS, Result, compare, ours_at, ratio, results_of
from .contenders import (
    BNS,
    BUDGETS,
    GENERALIST_STEPS,
    Classical,
    Dopri5,
    FlowMap,
    Ours,
    PublishedRecipe,
    Recipe,
    Torchode,
)
from .picture import lines
from .plan import GENERALIST
from .problems import PROBLEMS
from .reaching import reach
from .runs import Run

SHOWN = (
    "best classical", "reference (i)", "(i) refitted at K", "(ii) refitted at K", "BNS", "flow map, size of f",
    "fine-tuned f (SFD)",
)  # fmt: skip
"""Rivals that are shown problem by problem."""
TIMED = {
    **{f"ours, {budget}": Ours(budget).label for budget in BUDGETS},
    **{f"ab2, {budget}": Run("ab2", budget).label for budget in BUDGETS},
    "rk4, 4": Run("rk4", 1).label,
    "rk4, 8": Run("rk4", 2).label,
    "dopri5 1e-3": Run("dopri5", tolerance=1e-3).label,
    "dopri5 1e-5": Run("dopri5", tolerance=1e-5).label,
    "torchode dopri5 1e-5": Torchode().run_label(Run("dopri5", tolerance=1e-5)),
    "flow map, size of f": FlowMap("f").label,
}
"""Columns of the table of milliseconds, and their solvers."""
HYPERHEUN = 0.004
"""Published: median relative error of recipe (ii) on an FFJORD field of the moons, K = 1."""

Cells = dict[Cell, Any]


def budget_name(budget: int) -> str:
    """Key of what is about so many evaluations of f."""
    return f"{budget} NFE"


def summarise(cells: Cells, n_seeds: int) -> dict[str, Any]:
    """Ratios by problem and over problems, what the generalist does, times, and how the checks came out."""
    results = results_of(cells)
    by_problem: dict[str, list[Result]] = {}
    for result in results:
        by_problem.setdefault(result.problem.name, []).append(result)
    compared = {
        problem: {
            budget: [found for seed in range(n_seeds) if (found := compare(own, budget, seed))] for budget in BUDGETS
        }
        for problem, own in by_problem.items()
    }
    timings = {cell.problem.name: times for cell, times in cells.items() if isinstance(cell, Timing)}
    exported = {problem: times["exported"] for problem, times in timings.items() if "exported" in times}
    milliseconds = {problem: times["ms"] for problem, times in timings.items()}
    trials = {cell: outcome for cell, outcome in cells.items() if isinstance(cell, Trial)}
    ours = [cell for cell in trials if isinstance(cell.contender, Ours)]
    return {
        "problems": {problem: _by_budget(found) for problem, found in compared.items()},
        "over problems": {budget_name(budget): _over_problems(compared, budget) for budget in BUDGETS},
        "cost to reach": reach(by_problem, lambda result: result.cost),
        "milliseconds to reach": _milliseconds_to_reach(milliseconds, by_problem),
        "ours by setting": _settings(results),
        "generalist": _generalist(results),
        "milliseconds": _columns(milliseconds, TIMED.values()),
        "at our milliseconds": _at_our_milliseconds(milliseconds, by_problem),
        "exported": _columns(exported, [Ours(budget).label for budget in BUDGETS]),
        "at our milliseconds, exported": _at_our_milliseconds(exported, by_problem),
        "worst cases": _worst_cases(trials),
        "our_fits": len(ours),
        "fallbacks": sorted(cell.label for cell in ours if trials[cell].facts.get("fallback")),
        "diverged": {cell.label: found.facts["diverged"] for cell, found in trials.items() if "diverged" in found.facts},
        "checks": {cell.label: found for cell, found in cells.items() if isinstance(cell, Check)} | _check_recipe(trials),
        "fit_cpu_seconds": _fit_seconds(trials),
        "cpu_seconds": sum(map(_cpu_seconds, cells.values())),
        "adaptive": _adaptive(results),
        "picture": lines(results),
    }  # fmt: skip


def _cpu_seconds(outcome: Any) -> float:
    return (outcome.facts if isinstance(outcome, Outcome) else outcome)["cpu_seconds"]


def _by_budget(compared: dict[int, list[dict[str, Any]]]) -> dict[str, Any]:
    """Medians over seeds, of ours and of the rivals that are shown."""
    found = {}
    for budget, seeds in compared.items():
        if not seeds:
            continue
        ours = {what: statistics.median(seed["ours"][what] for seed in seeds) for what in ("median", "p99", "cost")}
        rivals = {name: [seed[name]["median"] for seed in seeds if name in seed] for name in SHOWN}
        found[budget_name(budget)] = {
            "seeds": len(seeds), "ours": ours,
            **{name: statistics.median(ratios) for name, ratios in rivals.items() if ratios},
        }  # fmt: skip
    return found


def _over_problems(compared: dict[str, dict[int, list[dict[str, Any]]]], budget: int) -> dict[str, Any]:
    """By rival and kind of error: median ratio and range over problems, and how many problems were lost."""
    table: dict[str, Any] = {}
    for rival, kind in itertools.product(RIVALS, ERRORS):
        ratios = {
            problem: statistics.median(known)
            for problem, found in compared.items()
            if (known := [seed[rival][kind] for seed in found[budget] if rival in seed])
        }
        if ratios:
            with_macs = [value for problem, value in ratios.items() if PROBLEMS[problem].has_macs]
            table.setdefault(rival, {})[kind] = spread(ratios.values()) | {
                "problems": len(ratios), "lost": sum(value <= 1 for value in ratios.values()),
                "with_macs": statistics.median(with_macs) if with_macs else None,
            }  # fmt: skip
    return table


def _columns(times: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """By problem and batch, the milliseconds of some."""
    names = list(names)
    return {
        problem: {batch: {name: ms[name] for name in names if name in ms} for batch, ms in batches.items()}
        for problem, batches in times.items()
    }


def _milliseconds_to_reach(times: dict[str, Any], by_problem: dict[str, list[Result]]) -> dict[str, Any]:
    """By batch: what solvers take to reach an error, on the problems that are timed."""

    def cost_at(batch: str, result: Result) -> float | None:
        ms = times[result.problem.name].get(batch, {})
        contender = result.contender
        name = (
            contender.label if isinstance(contender, (Ours, FlowMap, BNS, Recipe)) else contender.run_label(result.run)
        )
        return ms.get(name)

    timed = {problem: by_problem[problem] for problem in times if problem in by_problem}
    batches = dict.fromkeys(batch for found in times.values() for batch in found)
    return {batch: reach(timed, partial(cost_at, batch)) for batch in batches}


def _at_our_milliseconds(times: dict[str, Any], by_problem: dict[str, list[Result]]) -> dict[str, Any]:
    """By problem, batch and budget: the classical method that is best in no more time than our default takes, and the ratio."""
    found: dict[str, Any] = {}
    for problem, batches in times.items():
        own = by_problem.get(problem, [])
        classical = {result.run.label: result.error() for result in own if isinstance(result.contender, Classical)}
        for (batch, ms), budget in itertools.product(batches.items(), BUDGETS):
            ours, limit = ours_at(own, budget, 0), ms.get(Ours(budget).label, -math.inf)
            within = [name for name in classical if ms.get(name, math.inf) <= limit]
            if ours and within:
                best = min(within, key=classical.__getitem__)
                found.setdefault(problem, {}).setdefault(batch, {})[budget_name(budget)] = {
                    "which": best,
                    "ratio": ratio(classical[best], ours.error()),
                }
    return found


def _worst_cases(trials: dict[Trial, Outcome]) -> dict[str, Any]:
    """Largest errors of our default over its base solver's, on test rows (what a fit guards on others) and outside."""
    table: dict[str, Any] = {}
    for budget, part in itertools.product(BUDGETS, ("test", "outside")):
        ratios = {}
        for trial, outcome in trials.items():
            if trial.contender == Ours(budget) and outcome.base is not None:
                own = next(row for row in outcome.rows if trial.contender.is_own(row.run))
                name = f"{trial.problem.name} {trial.seed}"
                ratios[name] = ratio(*(getattr(row, part)["max"] for row in (own, outcome.base)))
        if ratios:
            table[f"{budget_name(budget)}, {part}"] = spread(ratios.values()) | {
                "fits": len(ratios), "above": [name for name, value in ratios.items() if value > 1],
            }  # fmt: skip
    return table


def _settings(results: list[Result]) -> dict[str, Any]:
    """Each of our other base solvers: its error over the default's at equal evaluations, and where it is the better one."""
    own = [result for result in results if result.is_own]
    defaults = {
        (result.problem, result.trial.seed, result.row.nfe): result.error()
        for result in own
        if result.contender.is_default
    }
    table: dict[str, dict[str, float]] = {}
    for result in own:
        default = defaults.get((result.problem, result.trial.seed, result.row.nfe))
        if default is not None and not result.contender.is_default and not result.contender.is_generalist:
            ratios = table.setdefault(result.contender.label, {})
            ratios[result.problem.name] = ratio(result.error(), default)
    return {
        name: spread(ratios.values()) | {
            "problems": len(ratios), "better": sum(value < 1 for value in ratios.values()),
            "better on": [problem for problem, value in ratios.items() if value < 1],
        }
        for name, ratios in table.items()
    }  # fmt: skip


def _generalist(results: list[Result]) -> dict[str, Any]:
    """Errors of one net at K = 1 to 16, whether they fall with K, and where they are not below its base solver's."""
    # Its base solver is ab2, whose first step is Euler's.
    runs = (Run("euler", 1), *(Run("ab2", n_steps) for n_steps in GENERALIST_STEPS))
    base = {(result.problem, result.run.n_steps): result.error() for result in results if result.run in runs}
    found: dict[str, Any] = {}
    own = [result for result in results if result.contender == GENERALIST]
    for trial in dict.fromkeys(result.trial for result in own):
        known = {result.run.n_steps: result.error() for result in own if result.trial == trial}
        errors = [known[k] for k in GENERALIST_STEPS if k in known]
        found[f"{trial.problem.name}, seed {trial.seed}"] = {
            "errors": errors,
            "monotone": all(after < before for before, after in itertools.pairwise(errors)),
            "not_below_base": [k for k, error in known.items() if error >= base.get((trial.problem, k), math.inf)],
        }
    return found


def _adaptive(results: list[Result]) -> dict[str, Any]:
    """Adaptive solvers by tolerance: evaluations and median error, medians over problems."""
    table: dict[str, list[Result]] = {}
    for result in results:
        if isinstance(result.contender, (Dopri5, Torchode)):
            table.setdefault(result.contender.run_label(result.run), []).append(result)
    return {
        name: {
            "nfe": statistics.median(result.row.nfe for result in found),
            "error": statistics.median(result.error() for result in found),
            "problems": len(found),
        }
        for name, found in table.items()
    }


def _fit_seconds(trials: dict[Trial, Outcome]) -> dict[str, Any]:
    """CPU seconds of fits, by family of problems: of our default at every budget, and of each trained rival."""
    table: dict[str, Any] = {}
    for trial, outcome in trials.items():
        kind, seconds = trial.contender.fit_kind, outcome.facts.get("fit_cpu_seconds")
        if kind and seconds is not None:
            table.setdefault(trial.problem.family, {}).setdefault(kind, []).append(seconds)
    return {family: {kind: spread(values) for kind, values in found.items()} for family, found in table.items()}


def _check_recipe(trials: dict[Trial, Outcome]) -> dict[str, Any]:
    """Recipe (ii) at its published budget beside its published figure, once it is there."""
    outcome = trials.get(Trial(PROBLEMS["moons likelihood"], PublishedRecipe("ii"), 0))
    if outcome is None:
        return {}
    error = next(row for row in outcome.rows if row.run == Run(n_steps=1)).test["median"]
    compared = {"error": error, "published": HYPERHEUN, "ratio": error / HYPERHEUN}
    return {"check reference (ii) on moons likelihood": compared | {"cpu_seconds": outcome.facts["fit_cpu_seconds"]}}
