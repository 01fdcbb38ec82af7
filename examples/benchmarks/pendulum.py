"""One net for five step sizes of the controlled pendulum, beside Euler, midpoint, RK4 and one net a step size.

    python examples/benchmarks/pendulum.py [--seeds 3] [--out pendulum.json]

q' = p / m, p' = -k q - m g l sin q - beta p / m + u with m = 1, k = .5, l = 1, g = 9.81, beta = .01. Samples
x ~ U(-5, 5)^2, u ~ U(-10, 10). The error is the mean over 20,000 fresh samples of the 2-norm of one step's error
against dopri5 in float64 at 1e-10. One HypersolverRegressor on the Euler base, three hidden layers of 64,
``fit_n_steps=(1, 100)`` on t_span (0, 1). The per-step-size nets' errors are the published figures of nets trained for one
dt each (7 to 51 minutes of training each).
"""

from __future__ import annotations

import argparse
import json
import platform
import time

import numpy as np
import torch

from sklearn_hyper import HypersolverRegressor, MLPCorrection, __version__
from sklearn_hyper.datasets import make_pendulum
from sklearn_hyper.numerics import hypersolve, reference_solution

PER_STEP_NETS = {0.01: 6.8e-6, 0.03: 7.1e-5, 0.1: 7.0e-4, 0.3: 4.3e-3, 1.0: 9.8e-2}
N_FIT, N_TEST = 20_000, 20_000


def fit(seed: int) -> tuple[HypersolverRegressor, float]:
    X, neural_ode = make_pendulum(N_FIT, random_state=seed)
    start = time.perf_counter()
    fast = HypersolverRegressor(
        neural_ode,
        base_solver="euler",
        n_steps=1,
        fit_n_steps=(1, 100),
        correction=MLPCorrection(hidden=64, depth=3),
        finetune=None,
        max_samples=N_FIT,
        max_epochs=230,
        batch_size=512,
        random_state=seed,
        verbose=1,
    ).fit(X.astype(np.float32))
    return fast, time.perf_counter() - start


def one_step_errors(fast: HypersolverRegressor, seed: int) -> dict[float, dict[str, float]]:
    X, neural_ode = make_pendulum(N_TEST, random_state=10_000 + seed)
    x = torch.from_numpy(X)
    z, f = neural_ode.input_map(x), neural_ode.vector_field
    errors = {}
    for dt in PER_STEP_NETS:
        exact = reference_solution(f, z, (0.0, dt), rtol=1e-10, atol=1e-10, x=x)[-1]

        def error(state: torch.Tensor, exact: torch.Tensor = exact) -> float:
            return float(torch.linalg.vector_norm(state - exact, dim=1).mean())

        row = {name: error(hypersolve(f, z, (0.0, dt), 1, name, x=x)) for name in ("euler", "midpoint", "rk4")}
        row["one net"] = error(torch.from_numpy(fast.with_solver(t_span=(0.0, dt)).predict(X)).double())
        errors[dt] = row
    return errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", default="examples/benchmarks/pendulum.json")
    arguments = parser.parse_args()
    runs = []
    for seed in range(arguments.seeds):
        fast, seconds = fit(seed)
        runs.append({"seed": seed, "fit_seconds": seconds, "errors": one_step_errors(fast, seed)})
        print(f"seed {seed}: fitted in {seconds:.0f} s")
        payload = {
            "command": f"python examples/benchmarks/pendulum.py --seeds {arguments.seeds}",
            "versions": {"sklearn_hyper": __version__, "torch": torch.__version__, "python": platform.python_version()},
            "threads": torch.get_num_threads(),
            "per_step_nets": PER_STEP_NETS,
            "runs": runs,
        }
        with open(arguments.out, "w") as file:
            json.dump(payload, file, indent=1)
    print(f"{'dt':>5}{'Euler':>10}{'midpoint':>10}{'RK4':>10}{'its own net':>13}{'one net':>10}{'ratio (seeds)':>24}")
    for dt, own in PER_STEP_NETS.items():
        rows = [run["errors"][dt] for run in runs]
        ours = [row["one net"] for row in rows]
        ratios = "  ".join(f"{value / own:.2f}" for value in sorted(ours))
        print(
            f"{dt:>5}{rows[0]['euler']:>10.1e}{rows[0]['midpoint']:>10.1e}{rows[0]['rk4']:>10.1e}"
            f"{own:>13.1e}{float(np.median(ours)):>10.1e}{ratios:>24}"
        )


if __name__ == "__main__":
    main()
