"""How long fits take, what reference recipe (i) reaches in ten times that, and how reference solves scale with n_jobs.

    python examples/benchmarks/fit_speed.py [--seeds 3] [--cache FOLDER]

Run it alone. Default fits (ab2 on the moons, learned coefficients on the digits), their reference solves included, of
the moons flow (flow matching) and of the digits classifier: for two, four and eight evaluations of f on two threads,
once; for two on one thread, beside recipe (i) (work_precision/recipes.py) on one, every seed. As published it solves
dopri5 anew at every iteration; it runs for ten times our seconds, at its step size and refitted at ours with references
free of charge, and its validation error is noted at twenty moments. Reference solves: 16,384 rows of the moons flow and
512 digits, in chunks dealt to joblib's workers of one thread each, on loky and on a local Dask cluster.
"""

from __future__ import annotations

import contextlib
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import joblib
import torch
from _results import Results, parser
from _solving import repeat_rows
from work_precision.loading import LoadedProblem, load_by_name
from work_precision.measuring import validation_error
from work_precision.recipes import ReferenceHyperEuler, fit_published_hypereuler, fit_residuals

from sklearn_hyper import HypersolverRegressor

PROBLEMS = ("moons flow_matching", "digits")
PATIENCE = 10
"""Recipe (i) may take so many times our seconds."""
EVALUATIONS = (2, 4, 8)
ROWS = {"moons flow_matching": 16_384, "digits": 512}


def fit_ours(problem: LoadedProblem, seed: int, n_steps: int = 2) -> dict[str, Any]:
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # conditioning in float32, which mends itself
        fast = HypersolverRegressor(problem.neural_ode, n_steps=n_steps, random_state=seed)
        fast.fit(problem.rows["fit"].numpy())
    return {"wall": time.perf_counter() - start, "error": validation_error(fast.module_.terminal_state, problem)}


@contextlib.contextmanager
def threads(n: int) -> Iterator[None]:
    """torch with so many."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def fit_on_two_threads(problem: LoadedProblem, n_steps: int) -> dict[str, Any]:
    with threads(2):
        return fit_ours(problem, 0, n_steps)


def fit_recipe(problem: LoadedProblem, seed: int, ours: dict[str, Any], *, published: bool) -> dict[str, Any]:
    """Recipe (i) until it reaches our error, or for ten times our seconds."""
    seconds = PATIENCE * ours["wall"]
    if published:
        model, trace = fit_published_hypereuler(problem, seed, seconds=seconds, n_steps=2)
    else:
        model = ReferenceHyperEuler(problem, 2)
        trace = fit_residuals(model, problem, seed, seconds=seconds)
    reached = next((row["seconds"] for row in trace if row["error"] <= ours["error"]), None)
    return {
        "error at two steps": validation_error(model, problem),
        "seconds to our error": reached,
        "times ours": None if reached is None else reached / ours["wall"],
        "trace": trace,
    }


@contextlib.contextmanager
def workers(backend: str, n_jobs: int) -> Iterator[None]:
    """joblib on loky, or on a Dask cluster of this machine, with one thread a worker."""
    if backend == "loky":
        with joblib.parallel_config("loky", n_jobs=n_jobs, inner_max_num_threads=1):
            yield
        return
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=n_jobs, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster),
        joblib.parallel_config("dask"),
    ):
        yield


def time_references(problem: LoadedProblem, backend: str, n_jobs: int, repeats: int = 3) -> dict[str, Any]:
    """Median seconds of a solve of many rows, workers started and warm."""
    X = repeat_rows(problem.rows["fit"].numpy(), ROWS[problem.problem.name])
    # Any fit will do: references are solved by dopri5, not by what is fitted.
    fast = HypersolverRegressor(
        problem.neural_ode, base_solver="euler", n_steps=1, finetune=None, max_samples=64, max_epochs=1, random_state=0,
        rtol=1e-6, atol=1e-6, n_jobs=n_jobs,
    ).fit(X[:64])  # fmt: skip

    def solve() -> float:
        start = time.perf_counter()
        fast.reference(X)
        return time.perf_counter() - start

    with threads(1), workers(backend, n_jobs):  # as in a worker, so that one job is one core
        solve()
        return {"wall": statistics.median(solve() for _ in range(repeats))}


def main() -> None:
    options = parser(__doc__, "fit_speed.json")
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--data", default=None, help="not needed by the problems of this script")
    arguments = options.parse_args()
    command = f"python examples/benchmarks/fit_speed.py --seeds {arguments.seeds}"
    results = Results(arguments.out, command, fresh=arguments.fresh)
    torch.set_num_threads(1)  # so that wall-clock seconds, ours, and CPU seconds, the recipe's, are the same
    for name in PROBLEMS:
        problem = load_by_name(name, arguments.cache, arguments.data)
        for backend in ("loky", "dask"):
            for n_jobs in (1, 2):
                measure: Callable[[], dict] = lambda b=backend, j=n_jobs, p=problem: time_references(p, b, j)  # noqa: E731
                results.cell(f"{name} | references | {backend} n_jobs={n_jobs}", measure)
        for n_steps in EVALUATIONS:
            results.cell(f"{name} | two threads | {n_steps} NFE", lambda p=problem, n=n_steps: fit_on_two_threads(p, n))
        for seed in range(arguments.seeds):
            ours = results.cell(f"{name} | ours | seed {seed}", lambda p=problem, s=seed: fit_ours(p, s))
            for kind in ("refitted", "published"):
                results.cell(
                    f"{name} | recipe (i) {kind} | seed {seed}",
                    lambda p=problem, s=seed, o=ours, k=kind: fit_recipe(p, s, o, published=k == "published"),
                )
    results.write(summarise(results.cells))
    for name, row in results.summary.items():
        print(name, row)


def summarise(cells: dict[str, Any]) -> dict[str, Any]:
    """By problem: medians over seeds, and the speed-up of two jobs over one."""
    rows = {}
    for name in PROBLEMS:
        ours = [cell for key, cell in cells.items() if key.startswith(f"{name} | ours")]
        row: dict[str, Any] = {
            "our seconds": statistics.median(cell["wall"] for cell in ours),
            "our error": statistics.median(cell["error"] for cell in ours),
        }
        for n_steps in EVALUATIONS:
            row[f"seconds of two threads, {n_steps} NFE"] = cells[f"{name} | two threads | {n_steps} NFE"]["wall"]
        for kind in ("refitted", "published"):
            theirs = [cell for key, cell in cells.items() if key.startswith(f"{name} | recipe (i) {kind}")]
            row[f"recipe (i) {kind}, error"] = statistics.median(cell["error at two steps"] for cell in theirs)
            row[f"recipe (i) {kind}, times our seconds"] = [cell["times ours"] for cell in theirs]
        for backend in ("loky", "dask"):
            one, two = (cells[f"{name} | references | {backend} n_jobs={n}"]["wall"] for n in (1, 2))
            row[f"{backend}: two jobs over one"] = one / two
        rows[name] = row
    return rows


if __name__ == "__main__":
    main()
