"""The summary as Markdown tables: printed, and included by the docs' page on benchmarks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from .comparing import RIVALS
from .contenders import BUDGETS, GENERALIST_STEPS, Ours
from .summary import SHOWN, TIMED, budget_name


def tables(summary: dict[str, Any]) -> str:
    """All tables, each under its heading."""
    parts = [
        ("Over problems", over_problems(summary)),
        *((f"By problem: {budget} evaluations of f", by_problem(summary, budget)) for budget in BUDGETS),
        ("Cost to reach an error", cost_to_reach(summary["cost to reach"], "evaluations of f")),
        ("Milliseconds to reach an error", milliseconds_to_reach(summary)),
        ("Largest errors", worst_cases(summary)),
        ("Our settings", settings(summary)),
        ("One net for all numbers of steps", generalist(summary)),
        ("Adaptive solvers", adaptive(summary)),
        ("CPU seconds of a fit", fit_seconds(summary)),
        ("Milliseconds", milliseconds(summary)),
        ("Best classical solver in our milliseconds", at_our_milliseconds(summary)),
        ("As ONNX files: best classical solver in our milliseconds", exported(summary)),
        ("Checks of the re-implemented rivals", checks(summary)),
    ]
    return "\n".join(f"## {title}\n\n{text}\n" for title, text in parts) + f"\n{remarks(summary)}\n"


def over_problems(summary: dict[str, Any]) -> str:
    """Ratios of errors over problems: median and range; how many problems were lost."""
    head = ["rival", *(f"{kind}, {budget}" for budget in BUDGETS for kind in ("median error", "lost"))]
    head += [f"{kind}, {BUDGETS[1]}" for kind in ("p99", "max", "outside")]
    rows = []
    for rival in RIVALS:
        row, known = [rival], False
        for budget in BUDGETS:
            found = summary["over problems"].get(budget_name(budget), {}).get(rival)
            known |= found is not None
            row += (
                [spread_of(found["median"]), f"{found['median']['lost']} of {found['median']['problems']}"]
                if found
                else ["-", "-"]
            )
        middle = summary["over problems"].get(budget_name(BUDGETS[1]), {}).get(rival)
        row += [number(middle[kind]["median"]) if middle else "-" for kind in ("p99", "max", "outside")]
        if known:
            rows.append(row)
    return table(head, rows)


def by_problem(summary: dict[str, Any], budget: int) -> str:
    """Our error, and some rivals' over it."""
    rows = []
    for problem, budgets in summary["problems"].items():
        found = budgets.get(budget_name(budget))
        if found:
            own = [number(found["ours"][what]) for what in ("median", "p99", "cost")]
            rivals = [number(found[name]) if name in found else "-" for name in SHOWN]
            rows.append([problem, found["seeds"], *own, *rivals])
    return table(["problem", "seeds", "our median error", "our p99", "cost / f", *SHOWN], rows)


def cost_to_reach(found: dict[str, Any], unit: str) -> str:
    """What solvers cost where they come down to an error, interpolated on their fronts."""
    rows = [
        [target, name, f"{one['reached']} of {one['problems']}", number(_or_nan(one["cost"])),
         number(_or_nan(one["over ours"])), one["cheaper than ours"]]
        for target, solvers in found.items()
        for name, one in solvers.items()
    ]  # fmt: skip
    return table(
        ["error", "solver", "problems that reach it", f"{unit}, median", "over ours", "cheaper than ours"], rows
    )


def milliseconds_to_reach(summary: dict[str, Any]) -> str:
    """The same in milliseconds, by batch."""
    found = summary["milliseconds to reach"]
    parts = [f"Batch of {batch}:\n\n{cost_to_reach(one, 'milliseconds')}" for batch, one in found.items() if one]
    return "\n\n".join(parts) or "Not timed in this run."


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def worst_cases(summary: dict[str, Any]) -> str:
    """The largest error beside the base solver's: below 1 the correction has made no row worse than the worst one."""
    rows = [
        [name, found["fits"], spread_of(found), ", ".join(found["above"]) or "none"]
        for name, found in summary["worst cases"].items()
    ]
    return table(["evaluations, rows", "fits", "our largest error over our base solver's", "above 1"], rows)


def settings(summary: dict[str, Any]) -> str:
    """Other base solvers of ours beside the default."""
    rows = [
        [name, spread_of(found), f"{found['better']} of {found['problems']}", ", ".join(found["better on"]) or "-"]
        for name, found in summary["ours by setting"].items()
    ]
    return table(["setting", "error over the default's", "better", "on"], rows)


def generalist(summary: dict[str, Any]) -> str:
    """Errors by K, and whether they fall with K and lie below the base solver's."""
    rows = [
        [name, *map(number, found["errors"]), "yes" if found["monotone"] else "NO",
         ", ".join(f"K={k}" for k in found["not_below_base"]) or "none"]
        for name, found in summary["generalist"].items()
    ]  # fmt: skip
    return table(["problem", *(f"K={k}" for k in GENERALIST_STEPS), "monotone", "not below its base at"], rows)


def adaptive(summary: dict[str, Any]) -> str:
    """What dopri5 (torchdiffeq) and torchode's solvers need for which error."""
    rows = [
        [name, found["problems"], f"{found['nfe']:.0f}", number(found["error"])]
        for name, found in summary["adaptive"].items()
    ]
    return table(["solver and tolerance", "problems", "evaluations, median", "median error, median"], rows)


def fit_seconds(summary: dict[str, Any]) -> str:
    """Medians and ranges."""
    kinds = list(dict.fromkeys(kind for found in summary["fit_cpu_seconds"].values() for kind in found))
    rows = []
    for kind in kinds:
        found = [family.get(kind) for family in summary["fit_cpu_seconds"].values()]
        rows.append(
            [kind, *(f"{one['median']:.0f} ({one['min']:.0f} to {one['max']:.0f})" if one else "-" for one in found)]
        )
    return table(["fit", *summary["fit_cpu_seconds"]], rows)


def milliseconds(summary: dict[str, Any]) -> str:
    """Ours beside dopri5 and the base solver, where timed."""
    rows = [
        [problem, batch, *(number(ms.get(name, math.nan)) for name in TIMED.values())]
        for problem, batches in summary["milliseconds"].items()
        for batch, ms in batches.items()
    ]
    return table(["problem", "batch", *TIMED], rows) if rows else "Not timed in this run."


def at_our_milliseconds(summary: dict[str, Any], key: str = "at our milliseconds") -> str:
    """Error of the best classical solver that takes no longer than ours, over ours; below 1 it wins."""
    rows = [
        [problem, batch, *(_within(found.get(budget_name(budget))) for budget in BUDGETS)]
        for problem, batches in summary[key].items()
        for batch, found in batches.items()
    ]
    return (
        table(["problem", "batch", *(f"ours, {budget}" for budget in BUDGETS)], rows)
        if rows
        else "Not timed in this run."
    )


def _within(found: dict[str, Any] | None) -> str:
    return f"{number(found['ratio'])} ({found['which']})" if found else "-"


def exported(summary: dict[str, Any]) -> str:
    """The same for ONNX files, and what ours take."""
    if not summary["exported"]:
        return "Not timed in this run."
    rows = [
        [problem, batch, *(number(times.get(Ours(budget).label, math.nan)) for budget in BUDGETS)]
        for problem, batches in summary["exported"].items()
        for batch, times in batches.items()
    ]
    taken = table(["problem", "batch", *(f"ours, {budget}: milliseconds" for budget in BUDGETS)], rows)
    return f"{at_our_milliseconds(summary, 'at our milliseconds, exported')}\n\n{taken}"


def checks(summary: dict[str, Any]) -> str:
    """Re-implemented rivals beside their published figures."""
    rows = [
        [name.removeprefix("check "), f"{found['error']:.2g}", f"{found['published']:.2g}", number(found["ratio"])]
        for name, found in summary["checks"].items()
    ]
    return table(["check", "error", "published", "ratio"], rows)


def remarks(summary: dict[str, Any]) -> str:
    """Which fits fell back or diverged."""
    return (
        f"Our fits that fell back to their base solver: {len(summary['fallbacks'])} of {summary['our_fits']}"
        f"{' (' + ', '.join(summary['fallbacks']) + ')' if summary['fallbacks'] else ''}. "
        f"Cells that diverged: {', '.join(summary['diverged']) or 'none'}. CPU seconds of all cells: "
        f"{summary['cpu_seconds']:,.0f}."
    )


def table(head: Sequence[Any], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table."""
    return "\n".join(_lines([head, ["---"] * len(head), *rows]))


def _lines(rows: Iterable[Sequence[Any]]) -> Iterator[str]:
    for row in rows:
        yield "| " + " | ".join(map(str, row)) + " |"


def spread_of(found: dict[str, float]) -> str:
    """Median and range."""
    return f"{number(found['median'])} ({number(found['min'])} to {number(found['max'])})"


def number(value: float | None) -> str:
    """Two digits, all those before the point below a thousand."""
    if value is None or math.isinf(value):
        return "inf"
    if math.isnan(value):
        return "-"
    return f"{value:.2g}" if value < 10 or value >= 1000 else f"{value:.0f}"
