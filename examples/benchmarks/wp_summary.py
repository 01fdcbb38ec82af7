"""What the cells of work_precision.py say: ratios of errors at equal cost."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterable
from typing import Any

from _results import spread
from wp_checks import check_hyperheun
from wp_names import ALTERNATIVES, BUDGETS, GENERALIST_STEPS, ONCE, PUBLISHED, WITHOUT_MACS

RIVALS: dict[str, Callable[[str, str], bool]] = {
    "best classical": lambda solver, row: solver == "classical",
    "reference (i)": lambda solver, row: solver.startswith("reference (i) ") and row.startswith("one eps") and "shared" not in row,
    "reference (i), f shared": lambda solver, row: solver.startswith("reference (i) ") and row.startswith("one eps") and "shared" in row,
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
TRAINED = (
    *(f"ours default {budget} NFE" for budget in BUDGETS), "reference (i)", "reference (ii)", "BNS", "time grid", "flow map", "torchdyn",
)  # fmt: skip
_SLACK = 1e-4
"""Of equal cost, in evaluations of f: a solver's own products of single numbers are counted too."""
_BASE_ROWS = tuple(f"ab2 K={k}" for k in GENERALIST_STEPS)


def error_of(row: dict[str, Any], kind: str = "median") -> float:
    """An error of a row; inf where it diverged (null in the file), or fell back to its base."""
    where, statistic = ERRORS[kind]
    value = row[where][statistic]
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
        # A flow map costs what it costs; a solver that is there for fewer evaluations alone is not compared.
        least = 0 if rival.startswith("flow map") else budget
        allowed = [
            row for row in rows
            if belongs(row["solver"], row["label"]) and row["cost"] <= limit and _same_seed(row, seed)
        ]  # fmt: skip
        allowed = allowed if any(row["nfe"] >= least for row in allowed) else []
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
                ratios = {
                    problem: statistics.median(known)
                    for problem, found in summary["problems"].items()
                    if (known := [one[rival][kind] for one in found[f"{budget} NFE"] if rival in one])
                }
                if ratios:
                    with_macs = [ratio for problem, ratio in ratios.items() if problem not in WITHOUT_MACS]
                    table.setdefault(rival, {})[kind] = spread(ratios.values()) | {
                        "problems": len(ratios), "lost": sum(ratio <= 1 for ratio in ratios.values()),
                        "with_macs": statistics.median(with_macs) if with_macs else None,
                    }  # fmt: skip
        summary["over problems"][f"{budget} NFE"] = table
    summary["ours by setting"] = _settings(rows)
    summary["generalist"] = _generalist(rows)
    summary["milliseconds"] = {
        name.partition(" | ")[0]: cell["ms"] for name, cell in cells.items() if name.endswith("| milliseconds")
    }
    summary["at our milliseconds"] = _at_our_milliseconds(summary["milliseconds"], rows)
    summary["exported"] = {
        name.partition(" | ")[0]: cell["exported"] for name, cell in cells.items() if "exported" in cell
    }
    summary["at our milliseconds, exported"] = _at_our_milliseconds(summary["exported"], rows)
    summary["worst cases"] = _worst_cases(cells)
    summary["our_fits"] = sum(" | ours " in name for name in cells)
    summary["fallbacks"] = sorted({
        f"{row['problem']} | {row['solver']} | seed {row['seed']}" for row in rows if row["fallback"]
    })  # fmt: skip
    summary["diverged"] = {name: cell["diverged"] for name, cell in cells.items() if "diverged" in cell}
    summary["checks"] = {
        name: cell for name, cell in cells.items() if name.startswith("check ")
    } | check_hyperheun(cells)  # fmt: skip
    summary["fit_cpu_seconds"] = _fit_seconds(cells)
    summary["cpu_seconds"] = sum(cell.get("cpu_seconds", 0) for cell in cells.values())
    summary["adaptive"] = _adaptive(rows)
    return summary


def _at_our_milliseconds(ms: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """By problem, batch and budget: the classical method that is best in no more time than our default takes, and the ratio."""
    found: dict[str, Any] = {}
    for problem, batches in ms.items():
        own = [row for row in rows if row["problem"] == problem]
        classical = {row["label"]: error_of(row) for row in own if row["solver"] == "classical"}
        for batch, times in batches.items():
            for budget in BUDGETS:
                ours, limit = ours_at(own, budget, 0), times.get(f"ours default {budget} NFE")
                within = [name for name in classical if limit is not None and times.get(name, math.inf) <= limit]
                if ours and within:
                    best = min(within, key=classical.__getitem__)
                    found.setdefault(problem, {}).setdefault(batch, {})[f"{budget} NFE"] = {
                        "which": best, "ratio": _ratio(classical[best], error_of(ours)), "has_macs": ours["has_macs"],
                    }  # fmt: skip
    return found


def _worst_cases(cells: dict[str, Any]) -> dict[str, Any]:
    """Largest errors of our default over its base solver's, on test rows (what a fit guards on others) and outside."""
    table: dict[str, Any] = {}
    for budget in BUDGETS:
        for part in ("test", "outside"):
            ratios = {
                name.partition(" | ")[0] + name.rpartition(" | ")[2].removeprefix("seed"): _ratio(
                    *(math.inf if row[part]["max"] is None else row[part]["max"] for row in (own, cell["base"]))
                )
                for name, cell in cells.items()
                if f" | ours default {budget} NFE" in name and "base" in cell
                for own in [next(row for row in cell["rows"].values() if row["own"])]
            }
            if ratios:
                table[f"{budget} NFE, {part}"] = spread(ratios.values()) | {
                    "fits": len(ratios), "above": [name for name, ratio in ratios.items() if ratio > 1],
                }  # fmt: skip
    return table


def _settings(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Each of our other base solvers: its error over the default's at equal evaluations, and where it is the better one."""
    default = {
        (row["problem"], row["seed"], row["nfe"]): error_of(row)
        for row in rows
        if row["solver"].startswith("ours default") and row["own"]
    }
    table: dict[str, dict[str, float]] = {}
    for row in rows:
        solver, key = row["solver"], (row["problem"], row["seed"], row["nfe"])
        if solver.startswith(tuple(f"ours {base} " for base in ALTERNATIVES)) and row["own"] and key in default:
            table.setdefault(solver, {})[row["problem"]] = _ratio(error_of(row), default[key])
    return {
        name: spread(ratios.values()) | {
            "problems": len(ratios), "better": sum(ratio < 1 for ratio in ratios.values()),
            "better on": [problem for problem, ratio in ratios.items() if ratio < 1],
        }
        for name, ratios in table.items()
    }  # fmt: skip


def _generalist(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Errors of one net at K = 1 to 16, whether they fall with K, and where they are not below its base solver's."""
    found: dict[str, Any] = {}
    # Its base solver: ab2, whose first step is Euler's.
    base = {(row["problem"], row["K"]): error_of(row) for row in rows if row["label"] in ("euler K=1", *_BASE_ROWS)}
    own = [row for row in rows if row["solver"] == "ours generalist"]
    for problem, seed in dict.fromkeys((row["problem"], row["seed"]) for row in own):
        known = {row["K"]: error_of(row) for row in own if (row["problem"], row["seed"]) == (problem, seed)}
        errors = [known[k] for k in GENERALIST_STEPS if k in known]
        found[f"{problem}, seed {seed}"] = {
            "errors": errors,
            "monotone": all(after < before for before, after in itertools.pairwise(errors)),
            "not_below_base": [k for k, error in known.items() if error >= base.get((problem, k), math.inf)],
        }
    return found


def _adaptive(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Adaptive solvers by tolerance: evaluations and median error, medians over problems."""
    table: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row["solver"] in ("dopri5", "torchode"):
            table.setdefault(row["label"], []).append(row)
    return {
        name: {
            "nfe": statistics.median(row["nfe"] for row in found),
            "error": statistics.median(map(error_of, found)),
            "problems": len(found),
        }
        for name, found in table.items()
    }


def _fit_seconds(cells: dict[str, Any]) -> dict[str, Any]:
    """CPU seconds of fits, by family of problems: of our default at every budget, and of each trained rival."""
    table: dict[str, Any] = {}
    for name, cell in cells.items():
        solver = name.split(" | ")[1] if " | " in name else ""
        kind = next((kind for kind in TRAINED if solver.startswith(kind)), None)
        if kind and cell.get("fit_cpu_seconds") is not None and "published" not in solver:
            table.setdefault(cell["family"], {}).setdefault(kind, []).append(cell["fit_cpu_seconds"])
    return {family: {kind: spread(values) for kind, values in found.items()} for family, found in table.items()}
