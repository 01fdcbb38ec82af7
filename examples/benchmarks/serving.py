"""What a row costs on one core, over batch sizes, and what a billion rows a day cost from that.

    python examples/benchmarks/serving.py [--rounds 7] [--out serving.json]

Two fields: the default classifier of scikit-learn's digits (images of 64 numbers), and the default flow of the moons
(2 numbers), fitted by flow matching. For each: torchdiffeq's dopri5 at 1e-4, and hypersolvers of 2, 4 and 8
evaluations, as folded torch modules, as ONNX files and, with 4 evaluations, as a package of AOTInductor. Beside them
what a row costs on its way: as JSON, and as the bytes of float32.

All are timed in turn, in CPU seconds of one thread, so that other work on the machine counts little. A line
a + b n through the medians over batches of n rows, with the least relative errors, gives microseconds a call (a) and a
row (b). The speed of a hypersolver does not depend on how well it was fitted, so each is fitted for a few epochs;
dopri5's does, so both Neural ODEs are trained in full.

``examples/serving/load_test.py`` has the requests.
"""

from __future__ import annotations

import functools
import json
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _results import Results, fitted, parser
from _solving import open_onnx, repeat_rows
from images import load_all_digits

from sklearn_hyper import (
    ContinuousNormalizingFlow,
    HypersolverClassifier,
    HypersolverRegressor,
    NeuralODE,
    NeuralODEClassifier,
)
from sklearn_hyper.datasets import make_density
from sklearn_hyper.numerics import ConditioningWarning

BATCHES = [1, 4, 16, 64, 256, 1024, 4096]
EVALUATIONS = [2, 4, 8]
COMPILED = 4
TOLERANCE = 1e-4
_AT_LEAST = 0.02
"""CPU seconds of a timing: calls are repeated to fill them."""
A_DAY = 10**9


# ---------------------------------------------------------------------- models
class Served:
    """A fitted Neural ODE and its hypersolvers, as they are served.

    Parameters
    ----------
    name : {"digits", "moons"}
    cache : path
        Folder for models, ONNX files and packages.
    """

    def __init__(self, name: str, cache: str | Path):
        self.name, self.cache = name, Path(cache)
        self.slow, self.X = fitted(cache, f"serving {name}", lambda: FIELDS[name]())

    def hypersolver(self, evaluations: int) -> Any:
        """The hypersolver of a number of evaluations."""
        return fitted(self.cache, f"serving {self.name} {evaluations}", lambda: self._fit(evaluations))

    def _fit(self, evaluations: int) -> Any:
        kind = HypersolverClassifier if isinstance(self.slow, NeuralODEClassifier) else HypersolverRegressor
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a short fit does not converge
            return kind(self.slow, n_steps=evaluations, max_epochs=4, max_samples=400, random_state=0).fit(self.X)

    @functools.cached_property
    def ode(self) -> NeuralODE:
        """The Neural ODE itself."""
        return self.slow if isinstance(self.slow, NeuralODE) else self.slow.neural_ode_

    def dopri5(self, X: np.ndarray) -> np.ndarray:
        """Outputs by dopri5."""
        with torch.no_grad():
            return self.ode(torch.from_numpy(X), rtol=TOLERANCE, atol=TOLERANCE).numpy()

    def onnx(self, evaluations: int) -> Path:
        """The ONNX file of a hypersolver."""
        path = self.cache / f"serving_{self.name}_{evaluations}.onnx"
        return path if path.exists() else self.hypersolver(evaluations).export_onnx(path, X=self.X[:64])

    def package(self, evaluations: int) -> Any:
        """The compiled package of a hypersolver."""
        path = self.cache / f"serving_{self.name}_{evaluations}.pt2"
        if not path.exists():
            x = torch.from_numpy(self.X[:3])
            module = self.hypersolver(evaluations).to_module().fold()
            program = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim("rows")},))
            torch._inductor.aoti_compile_and_package(program, package_path=str(path))
        return torch._inductor.aoti_load_package(str(path))


def train_digits() -> tuple[Any, np.ndarray]:
    X, y = load_all_digits()
    return NeuralODEClassifier(random_state=0).fit(X, y), X


def train_moons() -> tuple[Any, np.ndarray]:
    data = make_density("moons", 5000, random_state=0).astype(np.float32)
    flow = ContinuousNormalizingFlow(random_state=0).fit(data)
    return flow.flow_.sampling().eval(), np.random.default_rng(0).normal(size=(1024, 2)).astype(np.float32)


FIELDS = {"digits": train_digits, "moons": train_moons}


# ---------------------------------------------------------------------- measuring
def time_ways(served: Served, n_rows: int, rounds: int) -> dict[str, Any]:
    """CPU microseconds of a call with so many rows, for every way to solve them."""
    X = np.ascontiguousarray(repeat_rows(served.X, n_rows))
    calls: dict[str, Callable[[], Any]] = {"dopri5": lambda: served.dopri5(X)}
    for evaluations in EVALUATIONS:
        module, session = served.hypersolver(evaluations).to_module().fold(), open_onnx(served.onnx(evaluations))
        np.testing.assert_allclose(session.run(None, {"X": X})[0], module(torch.from_numpy(X)), rtol=1e-3, atol=1e-3)
        calls[f"{evaluations}, torch"] = functools.partial(run_module, module, X)
        calls[f"{evaluations}, ONNX"] = functools.partial(session.run, [session.get_outputs()[0].name], {"X": X})
    calls[f"{COMPILED}, AOTInductor"] = functools.partial(run_module, served.package(COMPILED), X)
    return {"us": time_in_turn(calls, rounds)}


def run_module(module: Any, X: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return module(torch.from_numpy(X)).numpy()


def time_formats(served: Served, n_rows: int, rounds: int) -> dict[str, Any]:
    """CPU microseconds to read so many rows, and to write as many outputs."""
    X = np.ascontiguousarray(repeat_rows(served.X, n_rows))
    outputs = served.dopri5(X)
    text, raw = json.dumps({"rows": X.tolist()}), X.tobytes()
    calls = {
        "JSON": lambda: (np.asarray(json.loads(text)["rows"], np.float32), json.dumps({"rows": outputs.tolist()})),
        "bytes": lambda: (np.frombuffer(raw, np.float32).reshape(X.shape), outputs.tobytes()),
    }
    return {"us": time_in_turn(calls, rounds)}


def time_in_turn(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """CPU microseconds of each call, round by round."""
    repeats = {name: count_repeats(call) for name, call in calls.items()}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            seconds[name].append(1e6 * cpu_seconds(call, repeats[name]) / repeats[name])
    return seconds


def count_repeats(call: Callable[[], Any]) -> int:
    """How often a call has to be made to fill a timing. This warms it up, too."""
    repeats = 1
    while cpu_seconds(call, repeats) < _AT_LEAST:
        repeats *= 2
    return repeats


def cpu_seconds(call: Callable[[], Any], repeats: int) -> float:
    start = time.process_time()
    for _ in range(repeats):
        call()
    return time.process_time() - start


# ---------------------------------------------------------------------- what follows
def summarise(cells: dict[str, Any]) -> dict[str, Any]:
    """By field and way: medians over rounds, the line through them, and what a billion rows cost in batches of 256."""
    found: dict[str, Any] = {}
    for name, cell in cells.items():
        field, what, n_rows = name.split()
        for way, rounds in cell["us"].items():
            entry = found.setdefault(field, {}).setdefault(f"{what} {way}", {"us": {}})
            entry["us"][n_rows] = statistics.median(rounds)
    for field in found.values():
        for entry in field.values():
            entry |= line_through({int(n): us for n, us in entry["us"].items()})
    return found


def line_through(points: dict[int, float]) -> dict[str, float]:
    """Microseconds a call and a row: the line with the least relative errors, neither below 0; and what it says."""
    n, us = np.array(list(points), float), np.array(list(points.values()))
    design = np.stack([np.ones_like(n), n], axis=1) / us[:, None]
    call, row = np.linalg.lstsq(design, np.ones_like(n), rcond=None)[0]
    if call < 0:
        call, row = 0.0, float((n / us).sum() / ((n / us) ** 2).sum())
    misfit = float(np.abs(design @ [call, row] - 1).max())
    full = points.get(256, call + 256 * row) / 256
    return {
        "us_a_call": float(call), "us_a_row": float(row), "largest_misfit": misfit,
        "core_hours_a_day_single": 1e-6 * points.get(1, call + row) * A_DAY / 3600,
        "core_hours_a_day": 1e-6 * full * A_DAY / 3600,
    }  # fmt: skip


def tables(summary: dict[str, Any]) -> str:
    """The summary as Markdown."""
    lines: list[str] = []
    for field, ways in summary.items():
        lines += [f"### {field}", ""]
        lines += head(
            "way",
            "us a call",
            "us a row",
            "off by",
            "rows a second, by 256",
            "core hours a billion",
            "cores",
            "one by one",
        )
        for way, entry in ways.items():
            hours, single = entry["core_hours_a_day"], entry["core_hours_a_day_single"]
            if way == "format bytes":  # they are not copied to be read: next to nothing a row
                shown = ["0", "-", "-", "0", "0"]
            else:
                misfit = f"{100 * entry['largest_misfit']:.0f} %"
                shown = [
                    digits(entry["us_a_row"]),
                    misfit,
                    digits(A_DAY / 3600 / hours),
                    digits(hours),
                    digits(hours / 24),
                ]
            lines.append(row(named(way), digits(entry["us_a_call"]), *shown, digits(single / 24)))
        lines.append("")
    return "\n".join(lines)


def digits(value: float) -> str:
    """Two digits, without an exponent."""
    rounded = float(f"{value:.2g}")
    return f"{rounded:,.0f}" if rounded >= 10 else f"{rounded:g}"


def named(way: str) -> str:
    """A way as a reader knows it."""
    what, name = way.split(" ", 1)
    if what == "format":
        return f"reading and writing {name}"
    return "dopri5" if name == "dopri5" else name.replace(",", " evaluations,", 1)


def row(*cells: Any) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def head(*headings: str) -> list[str]:
    return [row(*headings), row(*["---"] * len(headings))]


def main() -> None:
    options = parser(__doc__, "serving.json")
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--summary", action="store_true", help="make summary and tables from the cells")
    arguments = options.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", ConditioningWarning)
    command = f"python examples/benchmarks/serving.py --rounds {arguments.rounds}"
    results = Results(arguments.out, command, fresh=arguments.fresh, measuring=not arguments.summary)
    for field in () if arguments.summary else FIELDS:
        served = Served(field, arguments.cache)
        for n in BATCHES:
            results.cell(f"{field} solve {n}", lambda served=served, n=n: time_ways(served, n, arguments.rounds))
            results.cell(f"{field} format {n}", lambda served=served, n=n: time_formats(served, n, arguments.rounds))
    results.write(summarise(results.cells))
    results.path.with_suffix(".md").write_text(tables(results.summary))


if __name__ == "__main__":
    main()
