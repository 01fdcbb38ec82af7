"""Work-precision of hypersolvers and of everything else that solves a fixed field: problems x solvers x cost.

    python examples/benchmarks/work_precision.py [--jobs 2] [--seeds 3] [--rivals-python PATH] [--data FOLDER] [--quick]

Problems (wp_problems.py): sampling fields of six two-dimensional densities, by flow matching and by maximum likelihood
(FFJORD), a 13-dimensional tabular flow, the digits and MNIST classifiers, a controlled pendulum, Van der Pol's oscillator,
the same under a force and a forced linear one (these have no MACs: compared at equal evaluations of f). Solvers (wp_names.py): ours; classical
one-step and multistep methods; dopri5 over tolerances, by torchdiffeq and by torchode, and its tsit5; the reference recipes
(i) and (ii) and torchdyn's HyperEuler (wp_recipes.py); BNS, learned time grids and flow maps (wp_rivals.py).

Errors are relative L2 errors of terminal states against dopri5 in float64 at 1e-8, on test rows that nothing was fitted or
chosen on, and on rows beyond the fitted range. Costs are evaluations of f (counted), MACs, CPU seconds of the fit and, in
cells of their own that run last and alone ("milliseconds"), wall-clock at batch 1, 256 and 4096. A trained rival gets the
rows that ours are fitted on, their reference trajectories free of charge (recipe (i), as published, solves dopri5 anew at
every iteration: so do the cells of its published budget) and the CPU seconds of wp_problems.py; what every fit took stands
in a table. Convolutional problems have one seed for rivals, MNIST one for all, ONCE of wp_names.py names who has one everywhere; time grids, torchdyn and our other base solvers run on COMPARED. In
comparisons ours is the default, of a rival's variants the one that is best on test rows counts; a rival may use our MACs rounded up
to whole evaluations of f.

torchode and torchdyn live in an environment of their own, whose interpreter is --rivals-python:

    python -m venv PEERS; PEERS/bin/pip install -e . torchode torchdyn

Every cell is kept in the JSON, so that a stopped run goes on (--fresh measures all anew: after a change of budgets, or of the library); seeds are the outer loop, so a partial one tells something.
Models of flows and classifiers come from --cache, or are trained first (about half an hour with --jobs 2).
"""

from __future__ import annotations

import argparse
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from _results import Results, finite, parser
from joblib import Parallel, delayed
from wp_cells import run_cell
from wp_checks import check_names, run_check
from wp_measure import Place
from wp_names import ONCE, PUBLISHED, TIMED, is_seeded, solver_names
from wp_picture import draw
from wp_problems import IMAGE_ROWS, load_problem, problem_names
from wp_summary import read_rows, summarise
from wp_tables import tables

QUICK = {
    "problems": ("van_der_pol", "moons flow_matching"),
    "solvers": (
        "ours default 2 NFE", "ours default 4 NFE", "classical", "dopri5", "torchode", "reference (i) K=1", "reference (i) K=2",
        "reference (ii) K=1", "BNS 2 NFE", "BNS 4 NFE", "time grid 4 NFE", "flow map", "torchdyn K=2", "milliseconds",
    ),
    "share": 0.25,
}  # fmt: skip
"""A subset of the same cells, with a quarter of the rivals' seconds: to see it run, not to compare."""
SUMMARY_EVERY = 20


def cell_names(arguments: argparse.Namespace) -> Iterator[tuple[str, str, int]]:
    """(problem, solver, seed) of every wanted cell, seeds outermost."""
    for seed in range(arguments.seeds):
        for problem in arguments.problems:
            for solver in solver_names(problem):
                if not any(solver.startswith(start) for start in arguments.solvers):
                    continue
                of_images = problem in IMAGE_ROWS and not solver.startswith("ours")
                once = (
                    not is_seeded(solver)
                    or solver in PUBLISHED
                    or solver.startswith(ONCE)
                    or of_images
                    or problem == "mnist"
                )
                if seed and once:
                    continue
                if solver.startswith(("torchode", "torchdyn")) and not arguments.rivals_python:
                    continue
                yield problem, solver, seed


def label(problem: str, solver: str, seed: int) -> str:
    """The name of a cell."""
    return f"{problem} | {solver}" + (f" | seed {seed}" if is_seeded(solver) else "")


def measure(problem: str, solver: str, seed: int, place: Place) -> tuple[str, dict[str, Any]]:
    """A cell by name, for a worker; what goes wrong comes back as text, so that the other cells are measured."""
    name = label(problem, solver, seed) if problem != "check" else f"check {solver}"
    try:
        if problem == "check":
            return name, run_check(solver, place.share)
        loaded = load_problem(problem, place.cache, place.data, place.share)
        value = run_cell(problem, solver, seed, place)
        return name, {"family": loaded.family, "macs_f": loaded.macs_f, **value}
    except Exception:
        return name, {"failed": traceback.format_exc()}


def prepare(problems: list[str], place: Place, jobs: int) -> None:
    """Train what the problems need and solve their references, once, before workers share them."""
    # The likelihood's field of a density starts from its flow-matching field, so the two stay in one process.
    groups: dict[str, list[str]] = {}
    for problem in problems:
        groups.setdefault(problem.split()[0], []).append(problem)
    Parallel(n_jobs=jobs, batch_size=1)(delayed(_prepare_group)(group, place) for group in groups.values())


def _prepare_group(problems: list[str], place: Place) -> None:
    torch.set_num_threads(1)
    for problem in problems:
        load_problem(problem, place.cache, place.data, place.share)


def run(results: Results, wanted: list[tuple[str, str, int]], place: Place, jobs: int, seeds: int) -> list[str]:
    """Measure what is missing, in worker processes; the parent writes. Returns the names of cells that failed."""
    names = {cell: label(*cell) if cell[0] != "check" else f"check {cell[1]}" for cell in wanted}
    missing = [cell for cell in wanted if names[cell] not in results.cells]
    failed = []
    found = Parallel(n_jobs=jobs, return_as="generator_unordered", batch_size=1, pre_dispatch="n_jobs")(
        delayed(measure)(*cell, place) for cell in missing
    )
    for i, (name, value) in enumerate(found, start=1):
        if "failed" in value:
            failed.append(name)
            print(f"[{i}/{len(missing)}] {name} FAILED\n{value['failed']}", flush=True)
            continue
        results.cells[name] = finite(value)
        results.write(summarise(results.cells, seeds) if i % SUMMARY_EVERY == 0 else None)
        print(f"[{i}/{len(missing)}] {name}: {_shortly(results.cells[name])}", flush=True)
    return failed


def _shortly(cell: dict[str, Any]) -> str:
    """A line for the log."""
    first = next(iter(cell.get("rows", {}).values()), None)
    error = f"median {first['test']['median']}, nfe {first['nfe']}, " if first else ""
    return f"{error}{cell.get('cpu_seconds', 0):.1f} CPU s" + (", FELL BACK" if cell.get("fallback") else "")


def _n_seeds(cells: Iterable[str]) -> int:
    """How many seeds there are cells of."""
    return 1 + max((int(name.rpartition(" | seed ")[2]) for name in cells if " | seed " in name), default=0)


def main() -> None:
    options = parser(__doc__, "work_precision.json")
    options.add_argument("--problems", nargs="+", default=problem_names(), choices=[*problem_names(), "none"])
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
    share = 1.0
    if arguments.quick:
        share, arguments.seeds = QUICK["share"], 1
        arguments.problems, arguments.solvers = QUICK["problems"], QUICK["solvers"]
        if arguments.out == options.get_default("out"):
            arguments.out = str(Path(arguments.out).with_name("work_precision_quick.json"))
    torch.set_num_threads(1)
    place = Place(arguments.cache, arguments.data, arguments.rivals_python, share)
    command = "python examples/benchmarks/work_precision.py --rivals-python PATH --data FOLDER" + (
        " --quick" if arguments.quick else f" --seeds {arguments.seeds}"
    )
    results = Results(arguments.out, command, fresh=arguments.fresh)
    failed = []
    if not arguments.summary:
        problems = [problem for problem in arguments.problems if problem != "none"]
        arguments.problems = problems
        prepare(problems, place, arguments.jobs)
        wanted = list(cell_names(arguments))
        checks = [("check", name, 0) for name in check_names()]
        if not arguments.quick and any("check".startswith(start) for start in arguments.solvers):
            wanted = checks + wanted
        failed = run(results, wanted, place, arguments.jobs, arguments.seeds)
        if any("milliseconds".startswith(start) for start in arguments.solvers):
            timed = [(problem, "milliseconds", 0) for problem in problems if problem in TIMED]
            failed += run(results, timed, place, 1, arguments.seeds)
    summary = summarise(results.cells, arguments.seeds)
    if not arguments.quick:
        results.payload["command"] = f"{command.partition(' --seeds')[0]} --seeds {_n_seeds(results.cells)}"
    results.write(finite(summary))
    text = tables(summary)
    print(text)
    Path(arguments.out).with_suffix(".md").write_text(text)
    rows = read_rows(results.cells)
    if rows:
        draw(rows, Path(arguments.out).with_suffix(".png"))
    if not any(" | torchode" in name for name in results.cells):
        print("torchode, torchdyn: not run (pass --rivals-python)")
    if failed:
        raise SystemExit(f"{len(failed)} cells failed: {', '.join(failed)}. The same command tries them again.")


if __name__ == "__main__":
    main()
