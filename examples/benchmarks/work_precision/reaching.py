"""What it costs to reach an error: read off every solver's front of cost and error, without rounding up."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from .comparing import RIVALS, Result
from .contenders import Ours

TARGETS = (1e-1, 1e-2, 1e-3)
OURS = "ours, default"
SOLVERS = (
    "best classical", "(i) refitted at K", "(ii) refitted at K", "BNS", "flow map, size of f", "fine-tuned f (SFD)",
    "dopri5 (torchdiffeq)",
)  # fmt: skip
"""Rivals whose fronts are read."""

Cost = Callable[[Result], float | None]


def cost_to_reach(points: Iterable[tuple[float, float]], target: float) -> float:
    """Cost at which the front of (cost, error) points comes down to an error; inf if none does.

    Between two points of the front both logarithms are interpolated. The cheapest point stands for all errors above its
    own: nothing is extrapolated.
    """
    front: list[tuple[float, float]] = []
    for cost, error in sorted(points):
        if math.isfinite(error) and (not front or error < front[-1][1]):
            front.append((cost, error))
    for i, (cost, error) in enumerate(front):
        if error <= target:
            if i == 0:
                return cost
            before_cost, before = front[i - 1]
            share = math.log(before / target) / math.log(before / max(error, 1e-300))
            return before_cost * (cost / before_cost) ** share
    return math.inf


def reach(by_problem: dict[str, list[Result]], cost_of: Cost) -> dict[str, dict[str, Any]]:
    """By target and solver: how many problems it reaches it on, its median cost there, and its median cost over ours.

    Parameters
    ----------
    by_problem : dict
        Results by problem; where a solver has several seeds, its fronts' median counts.
    cost_of : callable
        ``cost_of(result)`` is what a solve costs; None leaves the result out.
    """
    fronts = {problem: _costs(results, cost_of) for problem, results in by_problem.items()}
    table: dict[str, dict[str, Any]] = {}
    for target in TARGETS:
        for name in (OURS, *SOLVERS):
            costs = {problem: found[name][target] for problem, found in fronts.items() if name in found}
            reached = {problem: cost for problem, cost in costs.items() if math.isfinite(cost)}
            ours = {problem: fronts[problem].get(OURS, {}).get(target, math.inf) for problem in reached}
            ratios = [cost / ours[problem] for problem, cost in reached.items() if math.isfinite(ours[problem])]
            if costs:
                table.setdefault(f"{target:g}", {})[name] = {
                    "problems": len(costs), "reached": len(reached),
                    "cost": statistics.median(reached.values()) if reached else None,
                    "over ours": statistics.median(ratios) if ratios else None,
                    "cheaper than ours": sum(value < 1 for value in ratios),
                }  # fmt: skip
    return table


def _costs(results: Sequence[Result], cost_of: Cost) -> dict[str, dict[float, float]]:
    """By solver and target, the cost to reach it on one problem."""
    found = {}
    for name in (OURS, *SOLVERS):
        of_seed: dict[int | None, list[tuple[float, float]]] = {}
        for result in results:
            cost = cost_of(result) if _belongs(name, result) else None
            if cost is not None:
                of_seed.setdefault(result.trial.seed, []).append((cost, result.error()))
        if of_seed:
            found[name] = {
                target: statistics.median(cost_to_reach(points, target) for points in of_seed.values())
                for target in TARGETS
            }
    return found


def _belongs(name: str, result: Result) -> bool:
    if name == OURS:
        return isinstance(result.contender, Ours) and result.contender.is_default and result.is_own
    return RIVALS[name](result.contender, result.run)
