"""One net for five step sizes of the controlled pendulum, beside Euler, midpoint, RK4 and one net a step size.

    python examples/benchmarks/pendulum.py [--seeds 3] [--out pendulum.json]

q' = p / m, p' = -k q - m g l sin q - beta p / m + u with m = 1, k = .5, l = 1, g = 9.81, beta = .01. Samples x ~ U(-5,
5)^2, u ~ U(-10, 10). The error is the mean over 20,000 fresh samples of the 2-norm of one step's error against dopri5
in float64 at 1e-10. One HypersolverRegressor on the Euler base, three hidden layers of 64, ``fit_n_steps=(1, 100)`` on
t_span (0, 1). The per-step-size nets' errors are the published figures of nets trained for one dt each (7 to 51 minutes
of training each).
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np
import torch
from _results import Results, parser, spread

from sklearn_hyper import HypersolverRegressor, MLPCorrection
from sklearn_hyper.datasets import make_pendulum
from sklearn_hyper.numerics import hypersolve, reference_solution

PER_STEP_NETS = {0.01: 6.8e-6, 0.03: 7.1e-5, 0.1: 7.0e-4, 0.3: 4.3e-3, 1.0: 9.8e-2}
BASE_SOLVERS = ("euler", "midpoint", "rk4")
N_FIT, N_TEST = 20_000, 20_000


def fit(seed: int) -> HypersolverRegressor:
    """One net for all step sizes."""
    X, neural_ode = make_pendulum(N_FIT, random_state=seed)
    return HypersolverRegressor(
        neural_ode, base_solver="euler", n_steps=1, fit_n_steps=(1, 100), correction=MLPCorrection(hidden=64, depth=3),
        finetune=None, max_samples=N_FIT, max_epochs=230, batch_size=512, random_state=seed, verbose=1,
    ).fit(X.astype(np.float32))  # fmt: skip


def one_step_errors(fast: HypersolverRegressor, seed: int) -> dict[float, dict[str, float]]:
    """By dt: of base solvers and of the net."""
    X, neural_ode = make_pendulum(N_TEST, random_state=10_000 + seed)
    x = torch.from_numpy(X)
    z, f = neural_ode.input_map(x), neural_ode.vector_field
    errors = {}
    for dt in PER_STEP_NETS:
        exact = reference_solution(f, z, (0.0, dt), rtol=1e-10, atol=1e-10, x=x)[-1]

        def error(state: torch.Tensor, exact: torch.Tensor = exact) -> float:
            return float(torch.linalg.vector_norm(state - exact, dim=1).mean())

        row = {name: error(hypersolve(f, z, (0.0, dt), 1, name, x=x)) for name in BASE_SOLVERS}
        row["one net"] = error(torch.from_numpy(fast.with_solver(t_span=(0.0, dt)).predict(X)).double())
        errors[dt] = row
    return errors


def measure(seed: int) -> dict[str, Any]:
    """A fit and its errors."""
    start = time.perf_counter()
    fast = fit(seed)
    return {"fit_seconds": time.perf_counter() - start, "errors": one_step_errors(fast, seed)}


def summarise(cells: dict[str, Any]) -> dict[str, Any]:
    """By dt: medians over seeds, and the net's error over that of the dt's own net."""
    summary = {}
    for dt, own in PER_STEP_NETS.items():
        rows = [cell["errors"][str(dt)] for cell in cells.values()]
        errors = {name: statistics.median(row[name] for row in rows) for name in (*BASE_SOLVERS, "one net")}
        ratios = spread(row["one net"] / own for row in rows)
        summary[f"dt={dt}"] = errors | {"its own net": own, "one net over its own": ratios}
    return summary


def main() -> None:
    options = parser(__doc__, "pendulum.json", cache=False)
    options.add_argument("--seeds", type=int, default=3)
    arguments = options.parse_args()
    command = f"python examples/benchmarks/pendulum.py --seeds {arguments.seeds}"
    results = Results(arguments.out, command, fresh=arguments.fresh)
    for seed in range(arguments.seeds):
        results.cell(f"seed {seed}", lambda seed=seed: measure(seed))
    results.write(summarise(results.cells))
    columns = (*BASE_SOLVERS, "its own net", "one net")
    print(f"{'':>8}" + "".join(f"{name:>13}" for name in columns) + f"{'ratio (seeds)':>20}")
    for name, row in results.summary.items():
        ratios = row["one net over its own"]
        print(
            f"{name:>8}" + "".join(f"{row[column]:>13.1e}" for column in columns)
            + f"{ratios['min']:>13.2f} to {ratios['max']:.2f}"
        )  # fmt: skip


if __name__ == "__main__":
    main()
