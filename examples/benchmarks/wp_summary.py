"""What the cells of work_precision.py say: ratios of errors at equal cost, tables and the picture."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from _results import spread
from wp_cells import BUDGETS, GENERALIST_STEPS, ONCE, PUBLISHED
from wp_checks import check_hyperheun

RIVALS: dict[str, Callable[[str, str], bool]] = {
    "best classical": lambda solver, row: solver == "classical",
    "reference (i)": lambda solver, row: solver.startswith("reference (i) ") and row.startswith("one eps") and "shared" not in row,
    "(i) refitted at K": lambda solver, row: solver.startswith("reference (i) ") and row == "own",
    "(i) refitted, f shared": lambda solver, row: solver.startswith("reference (i) ") and row == "own, f shared",
    "reference (ii)": lambda solver, row: solver == "reference (ii) K=1" and row == "own, f shared",
    "(ii) refitted at K": lambda solver, row: solver.startswith("reference (ii) K") and row == "own, f shared",
    "(ii), true counts": lambda solver, row: solver.startswith("reference (ii) K") and row == "own",
    "(i), published budget": lambda solver, row: solver == "reference (i), published budget" and "shared" not in row,
    "(ii), published budget": lambda solver, row: solver == "reference (ii), published budget" and row == "K=1, f shared",
    "BNS": lambda solver, row: solver.startswith("BNS"),
    "time grid": lambda solver, row: solver.startswith("time grid"),
    "flow map, size of g": lambda solver, row: solver == "flow map, size of g",
    "flow map, size of f": lambda solver, row: solver == "flow map, size of f",
    "torchdyn HyperEuler": lambda solver, row: solver.startswith("torchdyn"),
    "dopri5 (torchdiffeq)": lambda solver, row: solver == "dopri5",
    "torchode": lambda solver, row: solver == "torchode",
}  # fmt: skip
"""Rivals and their rows. Recipe (ii) is counted as published, two evaluations a step; its code makes four: "true counts"."""
ERRORS = {
    "median": ("test", "median"),
    "p99": ("test", "p99"),
    "max": ("test", "max"),
    "outside": ("outside", "median"),
}
_SLACK = 1e-6
_BASE_ROWS = tuple(f"ab2 K={k}" for k in GENERALIST_STEPS)


def error_of(row: dict[str, Any], kind: str = "median", part: str | None = None) -> float:
    """An error of a row; inf where it diverged (null in the file), or fell back to its base."""
    where, statistic = ERRORS[kind]
    value = row[part or where][statistic]
    return math.inf if value is None or row.get("fallback") else value


def read_rows(cells: dict[str, Any]) -> list[dict[str, Any]]:
    """All rows of all cells, with problem, solver, seed, and cost in evaluations of f."""
    rows = []
    for name, cell in cells.items():
        problem, _, rest = name.partition(" | ")
        if "rows" not in cell:
            continue
        solver, _, seed = rest.partition(" | seed ")
        for label, row in cell["rows"].items():
            macs_f = cell["macs_f"]
            rows.append({
                **row, "problem": problem, "family": cell["family"], "solver": solver, "label": label,
                "seed": int(seed) if seed else None, "fallback": cell.get("fallback", False), "has_macs": macs_f is not None,
                "cost": row["nfe"] if macs_f is None else row["macs"] / macs_f,
                "fit_cpu_seconds": cell.get("fit_cpu_seconds"),
            })  # fmt: skip
    return rows


def ours_at(rows: Iterable[dict[str, Any]], budget: int, seed: int) -> dict[str, Any] | None:
    """Our default of so many evaluations, fitted for them."""
    name = f"ours default {budget} NFE"
    return next((row for row in rows if row["solver"] == name and row["own"] and row["seed"] == seed), None)


def compare(rows: list[dict[str, Any]], budget: int, seed: int) -> dict[str, Any] | None:
    """Errors of the rivals over ours on one problem at one budget; rivals are chosen by the test error that is compared.

    A rival may cost what ours does, rounded up to whole evaluations of f. Below 1: ours lost. 0: ours diverged or fell back.
    """
    ours = ours_at(rows, budget, seed)
    if ours is None:
        return None
    limit = math.ceil(ours["cost"] - _SLACK) + _SLACK
    found: dict[str, Any] = {
        "ours": {"solver": ours["solver"], "seed": seed, "cost": ours["cost"], "fallback": ours["fallback"],
                 "fit_cpu_seconds": ours["fit_cpu_seconds"], **{kind: error_of(ours, kind) for kind in ERRORS}}
    }  # fmt: skip
    for rival, belongs in RIVALS.items():
        allowed = [
            row for row in rows
            if belongs(row["solver"], row["label"]) and row["cost"] <= limit and _same_seed(row, seed)
        ]  # fmt: skip
        if not allowed:
            continue
        best = min(allowed, key=error_of)
        found[rival] = {
            "which": best["label"] if best["label"] != "own" else best["solver"],
            **{kind: _ratio(min(error_of(row, kind) for row in allowed), error_of(ours, kind)) for kind in ERRORS},
        }
    return found


def _same_seed(row: dict[str, Any], seed: int) -> bool:
    """Whether a rival's row belongs to a seed; where rivals have a single one, it serves all of ours."""
    alone = row["family"] == "images" or row["solver"] in PUBLISHED or row["solver"].startswith(ONCE)
    return row["seed"] in (None, 0 if alone else seed)


def _ratio(rival: float, own: float) -> float:
    """rival / own; 0 where ours diverged, inf where only the rival did."""
    if math.isinf(own):
        return 0.0
    return rival / max(own, 1e-300)


def summarise(cells: dict[str, Any], seeds: int) -> dict[str, Any]:
    """Ratios by problem and over problems, what the generalist does, and how the checks came out."""
    rows = read_rows(cells)
    problems = list(dict.fromkeys(row["problem"] for row in rows))
    summary: dict[str, Any] = {"problems": {}, "over problems": {}}
    for problem in problems:
        own = [row for row in rows if row["problem"] == problem]
        summary["problems"][problem] = {
            f"{budget} NFE": [found for seed in range(seeds) if (found := compare(own, budget, seed))] for budget in BUDGETS
        }  # fmt: skip
    for budget in BUDGETS:
        table = {}
        for rival in RIVALS:
            for kind in ERRORS:
                ratios = [
                    statistics.median(known)
                    for found in summary["problems"].values()
                    if (known := [one[rival][kind] for one in found[f"{budget} NFE"] if rival in one])
                ]
                if ratios:
                    table.setdefault(rival, {})[kind] = spread(ratios) | {
                        "problems": len(ratios), "lost": sum(ratio <= 1 for ratio in ratios),
                    }  # fmt: skip
        summary["over problems"][f"{budget} NFE"] = table
    summary["ours by setting"] = _settings(rows, summary)
    summary["generalist"] = _generalist(rows)
    summary["fallbacks"] = sorted({
        f"{row['problem']} | {row['solver']} | seed {row['seed']}" for row in rows if row["fallback"]
    })  # fmt: skip
    summary["diverged"] = {name: cell["diverged"] for name, cell in cells.items() if "diverged" in cell}
    summary["checks"] = {
        name: cell for name, cell in cells.items() if name.startswith("check ")
    } | check_hyperheun(cells)  # fmt: skip
    summary["fit_cpu_seconds"] = _fit_seconds(rows)
    return summary


def _settings(rows: list[dict[str, Any]], summary: dict[str, Any]) -> dict[str, Any]:
    """Each of our settings: its error over that of the one chosen on validation rows, and how often it was that one."""
    chosen = {
        (problem, budget, one["ours"]["seed"]): one["ours"]
        for problem, found in summary["problems"].items()
        for budget in BUDGETS
        for one in found[f"{budget} NFE"]
    }
    table: dict[str, Any] = {}
    for row in rows:
        best = chosen.get((row["problem"], row["nfe"], row["seed"]))
        if best and row["solver"].startswith("ours ") and row["solver"] != "ours generalist" and row["own"]:
            entry = table.setdefault(row["solver"], {"ratios": [], "chosen": 0})
            entry["ratios"].append(_ratio(error_of(row), best["median"]))
            entry["chosen"] += row["solver"] == best["solver"]
    return {name: spread(entry["ratios"]) | {"chosen": entry["chosen"]} for name, entry in table.items()}


def _generalist(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Errors of one net at K = 1 to 16, whether they fall with K, and where they are not below Euler's."""
    found: dict[str, Any] = {}
    # Its base solver: ab2, whose first step is Euler's.
    base = {(row["problem"], row["K"]): error_of(row) for row in rows if row["label"] in ("euler K=1", *_BASE_ROWS)}
    own = [row for row in rows if row["solver"] == "ours generalist"]
    for problem, seed in dict.fromkeys((row["problem"], row["seed"]) for row in own):
        known = {row["K"]: error_of(row) for row in own if (row["problem"], row["seed"]) == (problem, seed)}
        errors = [known[k] for k in GENERALIST_STEPS if k in known]
        found[f"{problem} | seed {seed}"] = {
            "errors": errors,
            "monotone": all(after < before for before, after in itertools.pairwise(errors)),
            "not_below_base": [k for k, error in known.items() if error >= base.get((problem, k), math.inf)],
        }
    return found


def _fit_seconds(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """CPU seconds of fits, by family of problems."""
    table: dict[str, Any] = {}
    for row in rows:
        if row["fit_cpu_seconds"] is not None and "published" not in row["solver"]:
            who = "ours" if row["solver"].startswith("ours ") else "rivals"
            table.setdefault(row["family"], {}).setdefault(who, []).append(row["fit_cpu_seconds"])
    return {family: {who: spread(values) for who, values in found.items()} for family, found in table.items()}


# ---------------------------------------------------------------------- tables
def print_tables(summary: dict[str, Any]) -> None:
    """Errors by problem, ratios by problem and over problems."""
    for budget in BUDGETS:
        key = f"{budget} NFE"
        print(f"\n{key}: our error, and each rival's over it (medians over seeds; below 1 we lost)")
        names = [rival for rival in RIVALS if rival in summary["over problems"][key]]
        print(f"{'problem':<28}{'ours':>9}{'cost':>6}" + "".join(f"{name[:22]:>24}" for name in names))
        for problem, found in summary["problems"].items():
            seeds = found[key]
            if not seeds:
                continue
            own = statistics.median(one["ours"]["median"] for one in seeds)
            cost = statistics.median(one["ours"]["cost"] for one in seeds)
            cells = [[one[name]["median"] for one in seeds if name in one] for name in names]
            print(
                f"{problem:<28}{own:>9.1e}{cost:>6.2f}"
                + "".join(f"{_number(statistics.median(c)) if c else '-':>24}" for c in cells)
            )
        for kind in ERRORS:
            found = [summary["over problems"][key][name][kind] for name in names]
            print(
                f"{'median over problems, ' + kind:<43}"
                + "".join(
                    f"{_number(f['median']) + ' [' + _number(f['min']) + ', ' + _number(f['max']) + ']':>24}" for f in found
                )
            )  # fmt: skip
        lost = [summary["over problems"][key][name]["median"] for name in names]
        print(
            f"{'problems lost (median error)':<43}"
            + "".join(f"{one['lost']:>19} of{one['problems']:>2}" for one in lost)
        )
    print("\nour settings: error over that of the one chosen on validation rows (median [min, max]), times chosen")
    for name, found in summary["ours by setting"].items():
        print(
            f"{name:<28}{_number(found['median'])} [{_number(found['min'])}, {_number(found['max'])}]  {found['chosen']}"
        )
    print("\ngeneralist, K = " + ", ".join(str(k) for k in GENERALIST_STEPS))
    for name, found in summary["generalist"].items():
        worse = f", not below its base at K={found['not_below_base']}" if found["not_below_base"] else ""
        errors = "  ".join(f"{error:.1e}" for error in found["errors"])
        print(f"{name:<38}{errors}  {'monotone' if found['monotone'] else 'NOT monotone'}{worse}")
    for name, found in summary["checks"].items():
        print(f"{name}: {found['error']:.2e}, published {found['published']:.2e}, ratio {found['ratio']:.2f}")
    print(f"fell back to the base: {summary['fallbacks'] or 'none'}; diverged: {list(summary['diverged']) or 'none'}")
    for family, found in summary["fit_cpu_seconds"].items():
        print(f"CPU seconds a fit, {family}: " + ", ".join(f"{who} {s['median']:.1f}" for who, s in found.items()))


def _number(value: float) -> str:
    return "inf" if math.isinf(value) else f"{value:.3g}"


# ---------------------------------------------------------------------- picture
LINES: dict[str, tuple[Callable[[dict], bool], dict[str, Any]]] = {
    "best classical": (lambda r: r["solver"] == "classical", {"color": "0.45", "marker": "."}),
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
        lambda r: r["solver"].startswith("ours ") and r["solver"] != "ours generalist" and r["own"],
        {"color": "tab:red", "marker": "o", "linewidth": 2.5, "zorder": 5}),
    "ours, one net for all K": (
        lambda r: r["solver"] == "ours generalist", {"color": "tab:red", "marker": "o", "linestyle": ":", "zorder": 4}),
}  # fmt: skip


def draw(rows: list[dict[str, Any]], path: str | Path) -> None:
    """Median relative error against evaluations of f, and against MACs; a column of panels a family of problems."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    families = list(dict.fromkeys(row["family"] for row in rows))
    figure, axes = plt.subplots(
        2, len(families), figsize=(3.4 * len(families) + 1, 6.4), sharey="col", squeeze=False, layout="constrained"
    )
    for column, family in enumerate(families):
        own = [row for row in rows if row["family"] == family]
        for axis, x in ((axes[0, column], "nfe"), (axes[1, column], "cost")):
            if x == "cost" and not own[0]["has_macs"]:
                axis.text(0.5, 0.5, "f has no MACs:\nequal evaluations only", ha="center", transform=axis.transAxes)
                axis.set_axis_off()
                continue
            for name, (belongs, style) in LINES.items():
                points = _line([row for row in own if belongs(row)], x)
                if name == "best classical":
                    points = [(cost, min(e for c, e in points if c <= cost)) for cost, _ in points]
                if points and not (name == "flow map" and x == "nfe"):
                    axis.plot(*zip(*points, strict=True), label=name, **{"markersize": 4, "linewidth": 1} | style)
            axis.set(xscale="log", yscale="log", xlabel="evaluations of f" if x == "nfe" else "MACs / MACs of f")
            axis.set_xticks([1, 2, 4, 8, 16, 32, 64], labels=["1", "2", "4", "8", "16", "32", "64"], minor=False)
            axis.set_xticks([], minor=True)
            axis.set_xlim(0.8 if x == "nfe" else 0.07, 70)
            axis.grid(alpha=0.3)
        axes[0, column].set_title(family)
    axes[0, 0].set_ylabel("median relative error")
    axes[1, 0].set_ylabel("median relative error")
    handles = {
        label: handle for axis in axes.flat for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside right upper", fontsize=8)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _line(rows: list[dict[str, Any]], x: str) -> list[tuple[float, float]]:
    """Points of the best solver at every number of evaluations, a geometric mean over problems (and seeds' median)."""
    by_nfe: dict[Any, dict[str, dict[Any, tuple[float, float]]]] = {}
    for row in rows:
        # Adaptive solvers make other numbers on every problem: they are drawn by tolerance.
        key = row["label"] if row["solver"] == "dopri5" else row["nfe"] or row["solver"]
        best = by_nfe.setdefault(key, {}).setdefault(row["problem"], {})
        error = error_of(row)
        if row["seed"] not in best or error < best[row["seed"]][1]:
            best[row["seed"]] = (row[x], error)
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
