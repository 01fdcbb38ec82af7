"""How much faster two workers of one machine are than one: joblib's backends, and processes that share a field.

    python examples/benchmarks/scaling.py [--out scaling.json]

Needs the extra ``dask``, and ``pip install ray``. Run it alone, on two cores or more: five minutes. "here" is one
process of one thread, which is also what joblib makes of any backend with one worker. Each worker has one thread.
Rounds take turns over the backends, after one that is not counted. Dask's workers and Ray's cluster are started before.
Ray's backend starts its workers in every call, and this is counted, as its users wait for it.

Searches and reference solves go through joblib. The fit of one field is that of two processes with ``RowParallel``,
which torch.distributed joins by gloo; their start is not counted.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import dask
import joblib
import numpy as np
import ray
import torch
import torch.distributed as dist
from _results import Results, parser
from distributed import Client, LocalCluster
from ray.util.joblib import register_ray
from sklearn.model_selection import GridSearchCV
from torch import nn

from sklearn_hyper import HypersolverRegressor
from sklearn_hyper.modules import ConvVectorField, MLPVectorField, RowParallel

BACKENDS = ("here", "threading", "loky", "dask", "ray")
N_WORKERS = 2
ROUNDS = 3


@contextlib.contextmanager
def clusters() -> Iterator[None]:
    """A Dask and a Ray cluster of this machine."""
    ray.init(num_cpus=N_WORKERS, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    register_ray()
    with (
        # Without this setting Dask's workers hand freed memory back at once, which torch asks for again.
        dask.config.set({"distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": None}),
        LocalCluster(n_workers=N_WORKERS, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster),
    ):
        yield
    ray.shutdown()


def workers(backend: str) -> Any:
    """The context in which joblib uses a backend."""
    if backend == "here":
        return contextlib.nullcontext()
    own = {"inner_max_num_threads": 1} if backend == "loky" else {}
    return joblib.parallel_config(backend, n_jobs=N_WORKERS, **own)


def states(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make()


def references(field: nn.Module, X: np.ndarray) -> Callable[[], Any]:
    """Solve references of all rows by dopri5, as a fit does before it trains."""
    # Any fit will do: references are solved by dopri5, not by what is fitted.
    fast = HypersolverRegressor(field, base_solver="euler", n_steps=1, finetune=None, max_epochs=1, random_state=0)
    fast.fit(X[:32])
    return lambda: fast.reference(X)


def search(field: nn.Module, X: np.ndarray) -> Callable[[], Any]:
    """A grid of four hypersolvers, in two folds."""
    fast = HypersolverRegressor(field, max_epochs=12, random_state=0)
    grid = {"base_solver": ["euler", "midpoint"], "n_steps": [1, 2]}
    return lambda: GridSearchCV(fast, grid, cv=2, refit=False).fit(X)


def tasks() -> dict[str, Callable[[], Callable[[], Any]]]:
    """What is timed: each makes its fields and rows first."""
    return {
        "references, 2-64-64-2": lambda: references(seeded(lambda: MLPVectorField(2, hidden=64)), states(98_304, 2)),
        "references, digits": lambda: references(seeded(lambda: ConvVectorField(8)), states(6_144, 8, 8, 8)),
        "references, 32 channels of 28 x 28": lambda: references(
            seeded(lambda: ConvVectorField(32)), states(320, 32, 28, 28)
        ),
        "search, 2-64-64-2": lambda: search(seeded(lambda: MLPVectorField(2, hidden=64)), states(1_000, 2)),
    }


def measure(make: Callable[[], Callable[[], Any]]) -> dict[str, Any]:
    """Seconds of each backend, in rounds."""
    work = make()
    seconds: dict[str, list[float]] = {backend: [] for backend in BACKENDS}
    for _ in range(1 + ROUNDS):
        for backend in BACKENDS:
            with workers(backend):
                start = time.perf_counter()
                work()
                seconds[backend].append(time.perf_counter() - start)
    return {backend: taken[1:] for backend, taken in seconds.items()}


def fit_shared(rank: int, n_processes: int, rendezvous: str) -> float:
    """Seconds of a fit of a large field, whose evaluations so many processes share."""
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=n_processes)
    field = RowParallel(seeded(lambda: ConvVectorField(32)))
    fast = HypersolverRegressor(field, n_steps=1, max_epochs=6, random_state=0)
    start = time.perf_counter()
    fast.fit(states(48, 32, 28, 28))
    return time.perf_counter() - start


def run_processes(n_processes: int) -> float:
    """Seconds of that fit, in processes of their own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--shared", str(n_processes), f"{folder}/rendezvous", "--rank"]
        processes = [
            subprocess.Popen([*command, str(rank)], stdout=subprocess.PIPE, text=True) for rank in range(n_processes)
        ]
        return max(float(process.communicate()[0].splitlines()[-1]) for process in processes)


def measure_shared() -> dict[str, Any]:
    """Seconds of one process and of two, in rounds."""
    rounds = [(run_processes(1), run_processes(N_WORKERS)) for _ in range(ROUNDS)]
    return {"here": [one for one, _ in rounds], "RowParallel": [two for _, two in rounds]}


def summarise(cells: dict[str, Any]) -> dict[str, Any]:
    """Medians of the rounds, and how many times as fast as "here" two workers are."""
    rows = {}
    for name, cell in cells.items():
        medians = {how: statistics.median(seconds) for how, seconds in cell.items() if how != "seconds"}
        here = medians.pop("here")
        rows[name] = {"seconds here": here, **{f"{how}, times as fast": here / two for how, two in medians.items()}}
    return rows


def main() -> None:
    options = parser(__doc__, "scaling.json", cache=False)
    options.add_argument("--shared", nargs=2, metavar=("PROCESSES", "FILE"), help="be one of these processes")
    options.add_argument("--rank", type=int, help="and this one")
    arguments = options.parse_args()
    torch.set_num_threads(1)  # as in a worker, so that one process is one core
    os.environ["PYTHONWARNINGS"] = "ignore"  # of conditioning in float32, which mends itself; for workers too
    warnings.simplefilter("ignore")
    if arguments.shared:
        print(fit_shared(arguments.rank, int(arguments.shared[0]), arguments.shared[1]))
        return
    results = Results(arguments.out, "python examples/benchmarks/scaling.py", fresh=arguments.fresh)
    with clusters():
        for name, make in tasks().items():
            results.cell(name, lambda make=make: measure(make))
    results.cell("fit, 32 channels of 28 x 28", measure_shared)
    results.write(summarise(results.cells))
    for name, row in results.summary.items():
        print(name, row)


if __name__ == "__main__":
    main()
