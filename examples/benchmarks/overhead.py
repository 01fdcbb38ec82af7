"""Overhead of predict over the bare calls of f and g.

    python examples/benchmarks/overhead.py [--rounds 15] [--out overhead.json]

Three ways to the same state, timed in turn in one process, medians of ratios round by round: a hand-written loop of the
same calls of f and g; the tensor path (``to_module()``); the array path (``predict``); and one validate_data call, the input
check that the array path makes. On a 2-64-64-2 field, K = 4 Euler
steps, batch 1, 256 and 4096.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics

import numpy as np
import torch
from sklearn.utils.validation import validate_data

from sklearn_hyper import HypersolverRegressor, __version__
from sklearn_hyper.modules import MLPVectorField
from sklearn_hyper.numerics import time_interleaved

K = 4


def hand_written(f: torch.nn.Module, g: torch.nn.Module, z: torch.Tensor) -> torch.Tensor:
    eps = 1.0 / K
    for k in range(K):
        s = torch.tensor(k * eps)
        r = f(s, z)
        z = z + eps * r + eps**2 * g(eps, s, z, [r])
    return z


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", default="examples/benchmarks/overhead.json")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    field = MLPVectorField(2)
    X = np.random.default_rng(0).normal(size=(4096, 2)).astype(np.float32)
    fast = HypersolverRegressor(field, n_steps=K, max_epochs=5, batch_size=512, random_state=0).fit(X)
    module, f, g = fast.to_module(), fast.neural_ode_.vector_field, fast.correction_
    rows = []
    with torch.inference_mode():
        for batch in (1, 256, 4096):
            x, z = X[:batch], torch.from_numpy(X[:batch])
            torch.testing.assert_close(module(z), hand_written(f, g, z))
            calls = {
                "hand-written": lambda z=z: hand_written(f, g, z),
                "tensor path": lambda z=z: module(z),
                "array path": lambda x=x: fast.predict(x),
                "validate_data": lambda x=x: validate_data(fast, x, reset=False, dtype=(np.float64, np.float32)),
            }
            rounds = [time_interleaved(calls, repeats=1) for _ in range(arguments.rounds)]
            row = {"batch": batch}
            for name in calls:
                row[f"{name} ms"] = statistics.median(r[name] for r in rounds)
                row[f"{name} ratio"] = statistics.median(r[name] / r["hand-written"] for r in rounds)
            rows.append(row)
            print(
                f"batch {batch:>4}: hand-written {row['hand-written ms']:.3f} ms, tensor path {row['tensor path ms']:.3f} ms "
                f"(x{row['tensor path ratio']:.2f}), array path {row['array path ms']:.3f} ms (x{row['array path ratio']:.2f}, "
                f"+{1e3 * (row['array path ms'] - row['tensor path ms']):.0f} us), "
                f"one validate_data call {1e3 * row['validate_data ms']:.0f} us"
            )
    payload = {
        "command": f"python examples/benchmarks/overhead.py --rounds {arguments.rounds}",
        "versions": {"sklearn_hyper": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "threads": torch.get_num_threads(),
        "rows": rows,
    }
    with open(arguments.out, "w") as file:
        json.dump(payload, file, indent=1)


if __name__ == "__main__":
    main()
