"""The picture of work_precision.py: error against cost, a column of panels a family of problems."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from wp_summary import RIVALS, error_of

LINES: dict[str, tuple[Callable[[dict], bool], dict[str, Any]]] = {
    "best classical": (lambda r: r["solver"] == "classical", {"color": "0.3", "marker": "."}),
    "dopri5": (lambda r: r["solver"] == "dopri5", {"color": "0.7", "marker": "."}),
    "reference (i), one step size": (
        lambda r: RIVALS["reference (i)"](r["solver"], r["label"]), {"color": "tab:brown", "marker": "s"}),
    "reference (i), refitted at K": (
        lambda r: RIVALS["(i) refitted at K"](r["solver"], r["label"]), {"color": "tab:orange", "marker": "s"}),
    "reference (ii), refitted at K": (
        lambda r: RIVALS["(ii) refitted at K"](r["solver"], r["label"]), {"color": "tab:purple", "marker": "v"}),
    "BNS": (lambda r: r["solver"].startswith("BNS"), {"color": "tab:green", "marker": "^"}),
    "flow map": (lambda r: r["solver"].startswith("flow map"), {"color": "k", "marker": "x", "linestyle": ""}),
    "ours": (
        lambda r: r["solver"].startswith("ours default") and r["own"],
        {"color": "tab:red", "marker": "o", "linewidth": 2.5, "zorder": 5}),
    "ours, one net for all K": (
        lambda r: r["solver"] == "ours generalist", {"color": "tab:red", "marker": "o", "linestyle": ":", "zorder": 4}),
}  # fmt: skip


COLUMNS = 3


def draw(rows: list[dict[str, Any]], path: str | Path) -> None:
    """Median relative error against cost: MACs in units of one evaluation of f, or evaluations where f has no MACs."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    families = list(dict.fromkeys(row["family"] for row in rows))
    n_rows = -(-len(families) // COLUMNS)
    figure, axes = plt.subplots(n_rows, COLUMNS, figsize=(11, 3.2 * n_rows + 0.6), squeeze=False, layout="constrained")
    for axis in axes.flat[len(families) :]:
        axis.set_axis_off()
    for axis, family in zip(axes.flat, families, strict=False):
        own = [row for row in rows if row["family"] == family]
        for name, (belongs, style) in LINES.items():
            points = _line([row for row in own if belongs(row)])
            if name == "best classical":
                points = [(cost, min(e for c, e in points if c <= cost)) for cost, _ in points]
            if points:
                axis.plot(*zip(*points, strict=True), label=name, **{"markersize": 4, "linewidth": 1} | style)
        unit = "MACs / MACs of f" if own[0]["has_macs"] else "evaluations of f"
        axis.set(xscale="log", yscale="log", xlabel=unit, ylabel="median relative error", title=family, xlim=(0.07, 70))
        axis.set_xticks(
            [0.1, 1, 2, 4, 8, 16, 32, 64], labels=["0.1", "1", "2", "4", "8", "16", "32", "64"], minor=False
        )
        axis.set_xticks([], minor=True)
        axis.grid(alpha=0.3)
    handles = {
        label: handle for axis in axes.flat for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=5, fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _line(rows: list[dict[str, Any]]) -> list[tuple[float, float]]:
    """Points of the best solver at every number of evaluations, a geometric mean over problems (and seeds' median)."""
    by_nfe: dict[Any, dict[str, dict[Any, tuple[float, float]]]] = {}
    for row in rows:
        # Adaptive solvers make other numbers on every problem: they are drawn by tolerance.
        key = row["label"] if row["solver"] == "dopri5" else row["nfe"] or row["solver"]
        best = by_nfe.setdefault(key, {}).setdefault(row["problem"], {})
        error = error_of(row)
        if row["seed"] not in best or error < best[row["seed"]][1]:
            best[row["seed"]] = (row["cost"], error)
    most = max((len(problems) for problems in by_nfe.values()), default=0)
    points = []
    for problems in by_nfe.values():
        if len(problems) < most:
            continue
        errors = [statistics.median(error for _, error in seeds.values()) for seeds in problems.values()]
        costs = [statistics.median(cost for cost, _ in seeds.values()) for seeds in problems.values()]
        if all(math.isfinite(error) and error > 0 for error in errors):
            points.append((statistics.fmean(costs), statistics.geometric_mean(errors)))
    return sorted(points)
