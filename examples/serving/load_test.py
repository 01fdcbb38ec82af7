"""Rows a second and waiting times of service.py on one core: hypersolvers, dopri5, and no solver at all.

    pip install starlette "uvicorn[standard]" onnxruntime
    python examples/serving/load_test.py [--passes 3] [--seconds 1] [--out serving_load.json]

The models of ``examples/benchmarks/serving.py`` are served one after another, each by a process of its own on core 0
(Linux). Clients on core 1 keep 1, 16 or 64 connections busy: each sends its next request, of 1 or 64 rows, when it has
the answer to the one before. Nothing is sent to another machine: the address is 127.0.0.1, and no option changes it.
A cell ends after ``--seconds`` or 20,000 requests, a pass in two to three minutes.

"nothing" answers with zeros: what HTTP and batching cost alone. Other work on the machine only ever slows a server, so
of a cell's passes the one with the most rows a second counts. The server's CPU time counts its own work alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path += [str(Path(__file__).parents[1] / "benchmarks"), str(Path(__file__).parent)]

from _results import Results, parser
from _solving import open_onnx
from service import serve
from serving import EVALUATIONS, FIELDS, Served, digits, head, row

HOST = "127.0.0.1"
CLIENTS = [1, 16, 64]
ROWS = [1, 64]
SOLVERS = ["nothing", "dopri5", *map(str, EVALUATIONS)]
WARM_UP = 0.3
MOST_REQUESTS = 20_000
SERVER_CORE, CLIENT_CORE = 0, 1


# ---------------------------------------------------------------------- the server, in a process of its own
def run_server(field: str, solver: str, port: int, cache: str) -> None:
    os.sched_setaffinity(0, {SERVER_CORE})
    served = Served(field, cache)
    serve(solution(served, solver), served.X.shape[1:], port)


def solution(served: Served, solver: str) -> Callable[[np.ndarray], np.ndarray]:
    """What the service runs."""
    if solver == "dopri5":
        return served.dopri5
    if solver == "nothing":
        width = served.dopri5(served.X[:1]).shape[1:]
        return lambda X: np.zeros((len(X), *width), np.float32)
    session = open_onnx(served.onnx(int(solver)))
    output = session.get_outputs()[0].name  # of a classifier the logits, as for dopri5
    return lambda X: session.run([output], {"X": X})[0]


@contextlib.contextmanager
def server(field: str, solver: str, cache: str) -> Iterator[tuple[int, int]]:
    """The port and process id of a server that answers."""
    with socket.socket() as free:
        free.bind((HOST, 0))
        port = free.getsockname()[1]
    command = [sys.executable, __file__, "--serve", field, solver, str(port), "--cache", cache]
    process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        wait_for(port, process)
        yield port, process.pid
    finally:
        process.terminate()
        process.wait()


def wait_for(port: int, process: subprocess.Popen[bytes], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection((HOST, port), timeout=1):
            return
        time.sleep(0.1)
    raise SystemExit(f"the server did not start within {seconds:g} seconds, or ended: see its messages above.")


# ---------------------------------------------------------------------- the clients
def measure(port: int, process: int, X: np.ndarray, n_clients: int, n_rows: int, seconds: float) -> dict[str, Any]:
    """One cell: some clients with requests of some rows."""
    bodies = [X[np.arange(k * n_rows, (k + 1) * n_rows) % len(X)].tobytes() for k in range(n_clients)]
    asyncio.run(load(port, bodies, WARM_UP))
    before, start = cpu_seconds(process), time.perf_counter()
    waits = asyncio.run(load(port, bodies, seconds))
    wall, cpu = time.perf_counter() - start, cpu_seconds(process) - before
    p50, p99 = 1e3 * np.percentile(waits, [50, 99])
    rows = len(waits) * n_rows
    return {
        "requests": len(waits), "rows_a_second": rows / wall, "p50_ms": p50, "p99_ms": p99,
        "cpu_us_a_row": 1e6 * cpu / rows, "cpu_share": cpu / wall,
    }  # fmt: skip


async def load(port: int, bodies: list[bytes], seconds: float) -> list[float]:
    """Seconds that each request waited for its answer."""
    waits: list[float] = []
    end = time.perf_counter() + seconds
    await asyncio.gather(*(client(port, body, end, waits) for body in bodies))
    return waits


async def client(port: int, body: bytes, end: float, waits: list[float]) -> None:
    reader, writer = await asyncio.open_connection(HOST, port)
    request = f"POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    while (start := time.perf_counter()) < end and len(waits) < MOST_REQUESTS:
        writer.write(request)
        status, *headers = (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
        length = next(int(line.split(":")[1]) for line in headers if line.startswith("content-length"))
        await reader.readexactly(length)
        if status.split()[1] != "200":
            raise SystemExit(f"the server answered {status!r}.")
        waits.append(time.perf_counter() - start)
    writer.close()


def cpu_seconds(process: int) -> float:
    """CPU time of all threads of a process so far."""
    threads = Path(f"/proc/{process}/task").iterdir()
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9


# ---------------------------------------------------------------------- results
def summarise(cells: dict[str, Any]) -> dict[str, Any]:
    """By field, then solver and rows a request, then clients: the pass with the most rows a second."""
    found: dict[str, Any] = {}
    for name, cell in cells.items():
        field, solver, n_rows, n_clients, _ = name.split()
        kept = found.setdefault(field, {}).setdefault(f"{solver} {n_rows}", {})
        if n_clients not in kept or cell["rows_a_second"] > kept[n_clients]["rows_a_second"]:
            kept[n_clients] = cell
    return found


def tables(summary: dict[str, Any]) -> str:
    """The summary as Markdown."""
    lines: list[str] = []
    clients = " / ".join(map(str, CLIENTS))
    for field, measured in summary.items():
        lines += [f"### {field}", ""]
        lines += head(
            "solver", "rows a request", f"rows a second: {clients} clients", "p99, ms", "server's CPU, us a row"
        )  # fmt: skip
        for name, cells in measured.items():
            solver, n_rows = name.split()
            shown = {
                key: " / ".join(digits(cells[str(n)][key]) for n in CLIENTS)
                for key in ("rows_a_second", "p99_ms", "cpu_us_a_row")
            }
            lines.append(row(f"{solver} evaluations" if solver.isdigit() else solver, n_rows, *shown.values()))
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    options = parser(__doc__, "serving_load.json")
    options.add_argument("--passes", type=int, default=3, help="of a file with fewer, those that are missing are made")
    options.add_argument("--seconds", type=float, default=1.0, help="of a cell, at most 10")
    options.add_argument("--summary", action="store_true", help="make summary and tables from the cells")
    options.add_argument("--serve", nargs=3, metavar=("FIELD", "SOLVER", "PORT"), help="be the server")
    arguments = options.parse_args()
    torch.set_num_threads(1)
    if arguments.serve:
        field, solver, port = arguments.serve
        run_server(field, solver, int(port), arguments.cache)
        return
    results = Results(
        arguments.out, "python examples/serving/load_test.py", fresh=arguments.fresh, measuring=not arguments.summary
    )
    if not arguments.summary:
        measure_all(results, arguments.cache, arguments.passes, min(arguments.seconds, 10.0))
    results.write(summarise(results.cells))
    results.path.with_suffix(".md").write_text(tables(results.summary))


def measure_all(results: Results, cache: str, passes: int, seconds: float) -> None:
    """Measure the cells that are missing."""
    models = {field: Served(field, cache) for field in FIELDS}
    for served in models.values():  # fit and export before anything is timed
        for evaluations in EVALUATIONS:
            served.onnx(evaluations)
    os.sched_setaffinity(0, {CLIENT_CORE})
    for nth, (field, served), solver in itertools.product(range(passes), models.items(), SOLVERS):
        cells = {f"{field} {solver} {n_rows} {n} {nth}": (n, n_rows) for n_rows in ROWS for n in CLIENTS}
        if cells.keys() <= results.cells.keys():
            continue
        with server(field, solver, cache) as (port, process):
            for name, (n, n_rows) in cells.items():
                given = (port, process, served.X, n, n_rows, seconds)
                results.cell(name, lambda given=given: measure(*given))


if __name__ == "__main__":
    main()
