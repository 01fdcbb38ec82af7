"""Overhead of predict over the bare calls of f and g, the exported file, and rivals with the same f and g.

    python examples/benchmarks/overhead.py [--rounds 25] [--rivals-python PATH] [--fresh] [--out overhead.json]

Two fields, four Euler steps each, batches of 1, 256 and 4096: a 2-64-64-2 net that flow matching has fitted to the
moons, and the default classifier of scikit-learn's digits (images of 8 channels, one epoch). Timed in turn in one
process, on one thread:

- bare f, bare g: K calls of each, g as it runs (folded), one after another. Their sum is what a predict cannot go below.
- hand-written: a loop of the same calls, with the input and output maps.
- tensor path: ``to_module().fold()``. Array path: ``predict``, which splits a batch of 4096 into chunks. Array path alone: the same around a
  copy in place of the solver: what arrays cost. validate_data: the one input check in it.
- unfolded: ``to_module()``, whose weights can be trained: s, eps and scales are left outside of them.
- ONNX: the file of ``export_onnx`` in ONNX Runtime. dopri5: torchdiffeq's at 1e-5, for single samples.
- torchdiffeq euler: its fixed-step solver with the same f and K, beside our base solver without g.
- torchdyn HyperEuler: with the same f, g and K, beside ours, in the interpreter of --rivals-python (``python -m venv PEERS;
  PEERS/bin/pip install torch torchdiffeq torchdyn cloudpickle``: 1.0.6 ran beside torch 2.13). Its g sees the state
  alone, so for this row ours gets that g, too.

The tensor path of the default base solvers, four evaluations of ab2 on the small field and of learned coefficients on
the digits, is timed beside the bare calls that they make.

Ratios are medians of ratios round by round.
"""

from __future__ import annotations

import copy
import json
import os
import statistics
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from _results import HERE, Results, parser
from _solving import open_onnx, repeat_rows
from images import load_all_digits
from overhead_rivals import BATCHES, FIELDS, K, time_rounds
from sklearn.utils.validation import validate_data
from torchdiffeq import odeint

from sklearn_hyper import ContinuousNormalizingFlow, HypersolverClassifier, HypersolverRegressor, NeuralODEClassifier
from sklearn_hyper.datasets import make_density
from sklearn_hyper.modules import FoldedODE, HypersolvedODE, MLPVectorField
from sklearn_hyper.numerics import ConditioningWarning, CountedField


def fit_small(base_solver: str) -> tuple[HypersolverRegressor, np.ndarray]:
    torch.manual_seed(0)
    data = make_density("moons", 5000, random_state=0).astype(np.float32)
    flow = ContinuousNormalizingFlow(MLPVectorField(2), batch_size=256, random_state=0).fit(data)
    X = np.random.default_rng(0).normal(size=(1024, 2)).astype(np.float32)
    field = flow.flow_.vector_field
    fast = HypersolverRegressor(field, base_solver=base_solver, n_steps=K, max_epochs=20, random_state=0)
    return fast.fit(X), X


def fit_digits(base_solver: str) -> tuple[HypersolverClassifier, np.ndarray]:
    X, y = load_all_digits()
    slow = NeuralODEClassifier(max_epochs=1, random_state=0).fit(X, y)
    return HypersolverClassifier(
        slow, base_solver=base_solver, n_steps=K, max_epochs=40, max_samples=400, random_state=0
    ).fit(X), X


def hand_written(module: FoldedODE, x: torch.Tensor) -> torch.Tensor:
    """What a user would write: the maps, K calls of f and of g."""
    ode, eps = module.neural_ode, 1.0 / K
    z = ode.input_map(x)
    for k, g in enumerate(module.steps):
        s = torch.tensor(k * eps)
        r = ode.vector_field(s, z)
        z = z + eps * r + eps**2 * g(eps, s, z, [r])
    return ode.output_map(z)


class CopyInput(torch.nn.Module):
    """In place of a solver."""

    def terminal_state(self, x: torch.Tensor, condition: Any = None) -> torch.Tensor:
        return x.clone()


def without_solver(fast: Any) -> Any:
    """A hypersolver whose transform does everything but solve."""
    copies = copy.copy(fast)
    copies.fitted_ = SimpleNamespace(module=CopyInput())
    return copies


def plain_calls(module: FoldedODE, z: torch.Tensor) -> dict[str, Callable[[], Any]]:
    """torchdiffeq's Euler and ours without g, from the same state."""
    f, ends = module.neural_ode.vector_field, torch.tensor([0.0, 1.0])
    ours = HypersolvedODE(type(module.neural_ode)(f), module.base_solver, None, module.grid).eval()

    def theirs() -> torch.Tensor:
        return odeint(f, z, ends, method="euler", options={"step_size": 1 / K})[-1]

    torch.testing.assert_close(ours(z), theirs())
    return {"base solver": lambda: ours(z), "torchdiffeq euler": theirs}


def paths(fast: Any, session: Any, X: np.ndarray) -> dict[str, Callable[[], Any]]:
    """Every way from a batch to its output, by name."""
    trained, x = fast.to_module(), torch.from_numpy(X)
    module = trained.fold()
    torch.testing.assert_close(module(x), hand_written(module, x))
    torch.testing.assert_close(module(x), trained(x), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(session.run(None, {"X": X})[0], module(x).numpy(), rtol=1e-3, atol=1e-4)
    f = module.neural_ode.vector_field
    z, eps, times = module.neural_ode.input_map(x), 1.0 / K, [torch.tensor(k / K) for k in range(K)]
    r = f(times[0], z)
    copies, images = without_solver(fast), X.ndim > 2
    calls: dict[str, Callable[[], Any]] = {
        "bare f": lambda: [f(s, z) for s in times],
        "bare g": lambda: [g(eps, s, z, [r]) for g, s in zip(module.steps, times, strict=True)],
        "hand-written": lambda: hand_written(module, x),
        "tensor path": lambda: module(x),
        "array path": lambda: fast.predict(X),
        "validate_data": lambda: validate_data(
            fast, X, reset=False, dtype=(np.float64, np.float32), ensure_2d=not images, allow_nd=images
        ),
        "array path alone": lambda: copies.transform(X),
        "unfolded": lambda: trained(x),
        "ONNX": lambda: session.run(None, {"X": X}),
        **plain_calls(module, z),
    }
    if len(X) == 1:
        ends = torch.tensor([0.0, 1.0])
        calls["dopri5 1e-5"] = lambda: odeint(f, z, ends, rtol=1e-5, atol=1e-5, method="dopri5")[-1]
    return calls


def measure(fast: Any, session: Any, X: np.ndarray, rounds: int) -> dict[str, Any]:
    """Milliseconds of every path, and the ratios that the targets are about."""
    calls = paths(fast, session, X)
    times = time_rounds(calls, rounds)

    def median(value: Callable[[Mapping[str, float]], float]) -> float:
        return statistics.median(value(one) for one in times)

    def ratio(one: str, other: str) -> float:
        return median(lambda t: t[one] / t[other])

    row: dict[str, Any] = {"ms": {name: median(lambda t, name=name: t[name]) for name in calls}}
    row["ratios"] = {
        "tensor path / hand-written": ratio("tensor path", "hand-written"),
        "tensor path / bare calls": median(lambda t: t["tensor path"] / (t["bare f"] + t["bare g"])),
        "array path alone / validate_data": ratio("array path alone", "validate_data"),
        "array path / tensor path": ratio("array path", "tensor path"),
        "unfolded / tensor path": ratio("unfolded", "tensor path"),
        "ONNX / bare calls": median(lambda t: t["ONNX"] / (t["bare f"] + t["bare g"])),
        "torchdiffeq euler / ours": ratio("torchdiffeq euler", "base solver"),
    }
    if "dopri5 1e-5" in calls:
        row["ratios"]["dopri5 1e-5 / ONNX"] = ratio("dopri5 1e-5", "ONNX")
        row["ratios"]["dopri5 1e-5 / array path"] = ratio("dopri5 1e-5", "array path")
        counted = CountedField(fast.module_.neural_ode.vector_field)
        z = fast.module_.neural_ode.input_map(torch.from_numpy(X))
        odeint(counted, z, torch.tensor([0.0, 1.0]), rtol=1e-5, atol=1e-5, method="dopri5")
        row["dopri5_nfe"] = counted.n_evaluations
    return row


def measure_default(fast: Any, X: np.ndarray, rounds: int) -> dict[str, Any]:
    """The tensor path beside the calls of f (and g) that it makes, with what they get there."""
    module, x = fast.to_module().fold(), torch.from_numpy(X)
    made: list[tuple[torch.nn.Module, tuple[Any, ...]]] = []
    # Changed weights are copies of f, which stand in its place; a net is called beside f.
    kind = type(module.neural_ode.vector_field)
    copies = [part for part in module.folded.modules() if isinstance(part, kind)]
    parts = copies or [module.neural_ode.vector_field, *module.steps]
    hooks = [part.register_forward_pre_hook(lambda part, arguments: made.append((part, arguments))) for part in parts]
    module(x)
    for hook in hooks:
        hook.remove()
    assert len(made) == (K if copies else 2 * K)
    calls = {
        "bare calls": lambda: [call(*arguments) for call, arguments in made],
        "tensor path": lambda: module(x),
    }
    times = time_rounds(calls, rounds)
    return {
        "ms": {name: statistics.median(one[name] for one in times) for name in calls},
        "ratios": {"tensor path / bare calls": statistics.median(t["tensor path"] / t["bare calls"] for t in times)},
    }


def measure_torchdyn(interpreter: str, rounds: int) -> dict[str, Any]:
    """torchdyn's over ours, field by field and batch by batch, in the rivals' environment."""
    process = subprocess.run(
        [interpreter, str(HERE / "overhead_rivals.py"), str(rounds)],
        env=os.environ | {"PYTHONPATH": str(HERE.parents[1])}, capture_output=True, text=True,
    )  # fmt: skip
    if process.returncode:
        raise SystemExit(f"{interpreter} failed:\n{process.stderr}")
    return json.loads(process.stdout.splitlines()[-1])


def summarise(cells: Mapping[str, Any]) -> dict[str, Any]:
    """Every ratio by field and batch; torchdyn's are "not run" where no interpreter was given."""
    summary: dict[str, Any] = {}
    for field in FIELDS:
        for batch in BATCHES:
            ratios = dict(cells[f"{field}, batch {batch}"]["ratios"])
            rival = cells.get("torchdyn", {}).get(field, {}).get(str(batch))
            ratios["torchdyn HyperEuler / ours"] = rival["ratio"] if rival else "not run"
            summary[f"{field}, batch {batch}"] = ratios
            default = f"{field}, default base solver, batch {batch}"
            summary[default] = cells[default]["ratios"]
    return summary


def measure_field(field: str, fit: Callable[[str], tuple[Any, np.ndarray]], results: Results, rounds: int) -> None:
    """Every cell of a field that is missing."""
    names = {batch: f"{field}, batch {batch}" for batch in BATCHES}
    if any(name not in results.cells for name in names.values()):
        fast, X = fit_guarded(fit, "euler")
        with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
            path = fast.export_onnx(Path(folder) / "fast.onnx")
            session = open_onnx(path)
            for batch, name in names.items():
                some = repeat_rows(X, batch)
                results.cell(name, lambda some=some: measure(fast, session, some, rounds))
    names = {batch: f"{field}, default base solver, batch {batch}" for batch in BATCHES}
    if any(name not in results.cells for name in names.values()):
        fast, X = fit_guarded(fit, "auto")
        with torch.no_grad():
            for batch, name in names.items():
                some = repeat_rows(X, batch)
                results.cell(name, lambda some=some: measure_default(fast, some, rounds))


def fit_guarded(fit: Callable[[str], tuple[Any, np.ndarray]], base_solver: str) -> tuple[Any, np.ndarray]:
    """A fit that has a correction to time."""
    fast, X = fit(base_solver)
    if fast.correction_ is None:
        raise SystemExit(f"a fit with base_solver={base_solver!r} fell back to it: there is no g to time")
    return fast, X


def main() -> None:
    options = parser(__doc__, "overhead.json")
    options.add_argument("--rounds", type=int, default=25)
    options.add_argument("--rivals-python", help="interpreter that has torchdyn; without it that row is not run")
    arguments = options.parse_args()
    torch.set_num_threads(1)
    # The short fits need no targets beyond float32's.
    warnings.simplefilter("ignore", ConditioningWarning)
    command = f"python examples/benchmarks/overhead.py --rounds {arguments.rounds} --rivals-python PATH"
    results = Results(arguments.out, command, fresh=arguments.fresh)
    for field, fit in zip(FIELDS, (fit_small, fit_digits), strict=True):
        measure_field(field, fit, results, arguments.rounds)
    if arguments.rivals_python:
        results.cell("torchdyn", lambda: measure_torchdyn(arguments.rivals_python, arguments.rounds))
    results.write(summarise(results.cells))
    for name, ratios in results.summary.items():
        print(name)
        for ratio, value in ratios.items():
            print(f"    {ratio:<50}{value if isinstance(value, str) else format(value, '.3g')}")


if __name__ == "__main__":
    sys.exit(main())
