"""The picture: error against cost, a panel a family of problems."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .comparing import RIVALS, Result
from .contenders import BNS, Classical, Dopri5, FlowMap, Ours
from .plan import GENERALIST

Point = tuple[float, float]

COLUMNS = 3
STYLES: dict[str, dict[str, Any]] = {
    "best classical": {"color": "0.3", "marker": "."},
    "dopri5": {"color": "0.7", "marker": "."},
    "reference (i), one step size": {"color": "tab:brown", "marker": "s"},
    "reference (i), refitted at K": {"color": "tab:orange", "marker": "s"},
    "reference (ii), refitted at K": {"color": "tab:purple", "marker": "v"},
    "BNS": {"color": "tab:green", "marker": "^"},
    "flow map": {"color": "k", "marker": "x", "linestyle": ""},
    "ours": {"color": "tab:red", "marker": "o", "linewidth": 2.5, "zorder": 5},
    "ours, one net for all K": {"color": "tab:red", "marker": "o", "linestyle": ":", "zorder": 4},
}


def _of_rival(name: str) -> Callable[[Result], bool]:
    return lambda result: RIVALS[name](result.contender, result.run)


_BELONGS: dict[str, Callable[[Result], bool]] = {
    "best classical": lambda result: isinstance(result.contender, Classical),
    "dopri5": lambda result: isinstance(result.contender, Dopri5),
    "reference (i), one step size": _of_rival("reference (i)"),
    "reference (i), refitted at K": _of_rival("(i) refitted at K"),
    "reference (ii), refitted at K": _of_rival("(ii) refitted at K"),
    "BNS": lambda result: isinstance(result.contender, BNS),
    "flow map": lambda result: isinstance(result.contender, FlowMap),
    "ours": lambda result: isinstance(result.contender, Ours) and result.contender.is_default and result.is_own,
    "ours, one net for all K": lambda result: result.contender == GENERALIST,
}


def lines(results: list[Result]) -> dict[str, Any]:
    """By family of problems: the unit of cost, and by line its points, cost and error."""
    families: dict[str, list[Result]] = {}
    for result in results:
        families.setdefault(result.problem.family, []).append(result)
    found = {}
    for family, own in families.items():
        points = {name: _points([result for result in own if belongs(result)]) for name, belongs in _BELONGS.items()}
        points["best classical"] = _lower_envelope(points["best classical"])
        unit = "MACs / MACs of f" if own[0].outcome.macs_f is not None else "evaluations of f"
        found[family] = {"unit": unit, "lines": {name: known for name, known in points.items() if known}}
    return found


def _points(results: list[Result]) -> list[Point]:
    """The best run at every number of evaluations: a geometric mean over problems of medians over seeds."""
    by_evaluations: dict[Any, dict[str, dict[Any, Point]]] = {}
    for result in results:
        # Adaptive solvers make other numbers on every problem: they are drawn by tolerance. Flow maps make none.
        key = result.run.tolerance or result.row.nfe or result.contender
        best = by_evaluations.setdefault(key, {}).setdefault(result.problem.name, {})
        seed, error = result.trial.seed, result.error()
        if seed not in best or error < best[seed][1]:
            best[seed] = (result.cost, error)
    most = max((len(problems) for problems in by_evaluations.values()), default=0)
    points = []
    for problems in by_evaluations.values():
        if len(problems) < most:
            continue
        costs, errors = (
            [statistics.median(point[i] for point in seeds.values()) for seeds in problems.values()] for i in (0, 1)
        )
        if all(math.isfinite(error) and error > 0 for error in errors):
            points.append((statistics.fmean(costs), statistics.geometric_mean(errors)))
    return sorted(points)


def _lower_envelope(points: list[Point]) -> list[Point]:
    """The smallest error at no more than each cost."""
    return [(cost, min(e for c, e in points if c <= cost)) for cost, _ in points]


def draw(families: dict[str, Any], path: str | Path) -> None:
    """Draw what :func:`lines` has found, and save it."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    n_rows = -(-len(families) // COLUMNS)
    figure, axes = plt.subplots(n_rows, COLUMNS, figsize=(11, 3.2 * n_rows + 0.6), squeeze=False, layout="constrained")
    for axis in axes.flat[len(families) :]:
        axis.set_axis_off()
    handles: dict[str, Any] = {}
    for axis, (family, found) in zip(axes.flat, families.items(), strict=False):
        for name, points in found["lines"].items():
            style = {"markersize": 4, "linewidth": 1} | STYLES[name]
            (handles[name],) = axis.plot(*zip(*points, strict=True), label=name, **style)
        axis.set(xscale="log", yscale="log", xlabel=found["unit"], ylabel="median relative error", title=family)
        axis.set(xlim=(0.07, 70))
        ticks = [0.1, 1, 2, 4, 8, 16, 32, 64]
        axis.set_xticks(ticks, labels=[f"{tick:g}" for tick in ticks], minor=False)
        axis.set_xticks([], minor=True)
        axis.grid(alpha=0.3)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=5, fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)
