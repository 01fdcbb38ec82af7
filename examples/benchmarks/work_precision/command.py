"""The command: options, the cells that are missing in worker processes, and what is written."""

from __future__ import annotations

import argparse
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from _results import Results, parser
from joblib import Parallel, delayed

from . import cells as cell_lines
from .cells import Cell, Check, Outcome, Timing, Trial
from .checks import CHECKS, run_check
from .contenders import OF_OTHER_PACKAGES, Contender, Torchode
from .picture import draw
from .place import Place
from .plan import trials
from .problems import PROBLEMS, Problem
from .summary import summarise
from .tables import tables
from .timing import time_solvers
from .trials import run_trial

QUICK_PROBLEMS = ("van_der_pol", "moons flow_matching")
QUICK_SOLVERS = (
    "ours default 2 NFE", "ours default 4 NFE", "classical", "dopri5", "torchode", "reference (i) K=1", "reference (i) K=2",
    "reference (ii) K=1", "BNS 2 NFE", "BNS 4 NFE", "time grid 4 NFE", "flow map", "torchdyn K=2", "milliseconds",
)  # fmt: skip
QUICK_SHARE = 0.25
"""--quick measures some of the same cells, with a quarter of the rivals' seconds: to see it run, not to compare."""
SUMMARY_EVERY = 20


def read_options(description: str | None) -> argparse.Namespace:
    """The command line; --quick stands for other options."""
    options = parser(description, "work_precision.json")
    names = list(PROBLEMS)
    options.add_argument("--problems", nargs="+", default=names, choices=[*names, "none"])
    options.add_argument(
        "--solvers",
        nargs="+",
        default=[""],
        help='beginnings of solver names: "ours", "BNS", "milliseconds", "check", ...',
    )
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--jobs", type=int, default=1, help="worker processes of one thread each")
    options.add_argument(
        "--rivals-python", help="interpreter that has torchode and torchdyn; without it they are not run"
    )
    options.add_argument("--data", help="folder of mnist.npz; default SKLEARN_HYPER_DATA, OpenML")
    options.add_argument("--quick", action="store_true", help="two problems, few solvers, short training: minutes")
    options.add_argument("--summary", action="store_true", help="measure nothing: tables and picture of what there is")
    arguments = options.parse_args()
    if arguments.quick:
        arguments.seeds, arguments.problems, arguments.solvers = 1, QUICK_PROBLEMS, QUICK_SOLVERS
        if arguments.out == options.get_default("out"):
            arguments.out = str(Path(arguments.out).with_name("work_precision_quick.json"))
    arguments.problems = [PROBLEMS[name] for name in arguments.problems if name != "none"]
    return arguments


def measure(cell: Cell, place: Place) -> tuple[Cell, Any]:
    """A cell's outcome, for a worker; what goes wrong comes back as text, so that the other cells are measured."""
    try:
        if isinstance(cell, Trial):
            return cell, run_trial(cell, place)
        return cell, run_check(cell, place.share) if isinstance(cell, Check) else time_solvers(cell, place)
    except Exception:
        return cell, traceback.format_exc()


def prepare(problems: Sequence[Problem], place: Place, jobs: int) -> None:
    """Train what the problems need and solve their references, once, before workers share them."""
    groups: dict[str, list[Problem]] = {}
    for problem in problems:
        groups.setdefault(problem.group, []).append(problem)
    Parallel(n_jobs=jobs, batch_size=1)(delayed(_prepare_group)(group, place) for group in groups.values())


def _prepare_group(problems: Sequence[Problem], place: Place) -> None:
    torch.set_num_threads(1)
    for problem in problems:
        place.load(problem)


def run(results: Results, wanted: Sequence[Cell], place: Place, jobs: int, n_seeds: int) -> list[str]:
    """Measure what is missing, in worker processes; the parent writes. Returns the labels of cells that failed."""
    missing = [cell for cell in wanted if cell not in results.cells]
    failed = []
    found = Parallel(n_jobs=jobs, return_as="generator_unordered", batch_size=1, pre_dispatch="n_jobs")(
        delayed(measure)(cell, place) for cell in missing
    )
    for i, (cell, outcome) in enumerate(found, start=1):
        if isinstance(outcome, str):
            failed.append(cell.label)
            print(f"[{i}/{len(missing)}] {cell.label} FAILED\n{outcome}", flush=True)
            continue
        results.cells[cell] = outcome
        if i % SUMMARY_EVERY == 0:
            results.write(summarise(results.cells, n_seeds))
        else:
            results.write_raw()
        print(f"[{i}/{len(missing)}] {cell.label}: {_describe(outcome)}", flush=True)
    return failed


def _describe(outcome: Any) -> str:
    """A line for the log."""
    if not isinstance(outcome, Outcome):
        return f"{outcome['cpu_seconds']:.1f} CPU s"
    first = next(iter(outcome.rows), None)
    error = f"median {first.test.median}, nfe {first.nfe}, " if first else ""
    return f"{error}{outcome.facts['cpu_seconds']:.1f} CPU s" + (", FELL BACK" if outcome.facts.get("fallback") else "")


def measure_all(arguments: argparse.Namespace, results: Results, place: Place) -> list[str]:
    """All cells that the options ask for and that are not there. Returns the labels of those that failed."""

    def is_asked_for(label: str) -> bool:
        return label.startswith(tuple(arguments.solvers))

    def is_wanted(contender: Contender) -> bool:
        runs_here = arguments.rivals_python or not isinstance(contender, OF_OTHER_PACKAGES)
        return bool(runs_here) and is_asked_for(contender.label)

    prepare(arguments.problems, place, arguments.jobs)
    wanted: list[Cell] = list(trials(arguments.problems, arguments.seeds, is_wanted))
    if not arguments.quick and is_asked_for(Check.kind):
        wanted = [*CHECKS, *wanted]
    failed = run(results, wanted, place, arguments.jobs, arguments.seeds)
    if is_asked_for(Timing.kind):  # last and alone
        timings = [Timing(problem) for problem in arguments.problems if problem.timed]
        failed += run(results, timings, place, 1, arguments.seeds)
    return failed


def write_pages(results: Results, n_seeds: int) -> None:
    """The summary, its tables and the picture."""
    results.write(summarise(results.cells, n_seeds))
    text = tables(results.summary)
    print(text)
    results.path.with_suffix(".md").write_text(text)
    if results.summary["picture"]:
        draw(results.summary["picture"], results.path.with_suffix(".png"))


def _seeds_of(cells: Iterable[Cell]) -> int:
    """How many seeds there are cells of."""
    return 1 + max((cell.seed or 0 for cell in cells if isinstance(cell, Trial)), default=0)


def main(description: str | None) -> None:
    """Measure and write."""
    arguments = read_options(description)
    torch.set_num_threads(1)
    share = QUICK_SHARE if arguments.quick else 1.0
    place = Place(arguments.cache, arguments.data, arguments.rivals_python, share)
    command = "python examples/benchmarks/work_precision --rivals-python PATH --data FOLDER"
    results = Results(
        arguments.out, command, fresh=arguments.fresh, measuring=not arguments.summary, cells_as=cell_lines
    )
    failed = []
    if not arguments.summary:
        failed = measure_all(arguments, results, place)
        # What gives all cells again, not only those of this run.
        extent = "--quick" if arguments.quick else f"--seeds {_seeds_of(results.cells)}"
        results.made_with["command"] = f"{command} {extent}"
    write_pages(results, arguments.seeds)
    if not any(isinstance(cell, Trial) and isinstance(cell.contender, Torchode) for cell in results.cells):
        print("torchode, torchdyn: not run (pass --rivals-python)")
    if failed:
        raise SystemExit(f"{len(failed)} cells failed: {', '.join(failed)}. The same command tries them again.")
