"""Evaluations of f to an error, of steps chosen by a correction beside equal steps and dopri5.

    python examples/benchmarks/adaptive.py [--out adaptive.json] [--cache FOLDER]

Van der Pol with mu = 5 over ten units of time, nearly a period; the controlled pendulum over five; and sampling from a
flow of the two moons, by flow matching. On each, one g over RK4 is fitted by residuals for a range of step sizes, from
2,000 rows (8,000 of Van der Pol, whose fast stretches are short, so that few samples lie in them). It
then runs in five ways beside two of dopri5 (torchdiffeq's):

- "rk4+g adaptive": each row chooses its steps by g, which is added.
- "rk4+g learned": the same g, and steps that a small net proposes (step_controller="learned").
- "rk4 adaptive": the same, but g only estimates the error.
- "rk4+g", "rk4": K equal steps.
- "dopri5": all rows in one batch, as it comes, by the RMS of the batch's errors.
- "dopri5 by row": each row alone, so that it has steps of its own, too.

The error is the RMS over 64 fresh rows of the end's error against dopri5 at 1e-11, as a share of the states' RMS.
Evaluations are the mean over rows. Between two tolerances, or two K, they are interpolated on logarithmic axes.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from functools import partial
from itertools import pairwise, product
from typing import Any

import numpy as np
import torch
from _flows import load_flow
from _results import Results, fitted, parser
from torch import Tensor

from sklearn_hyper import HypersolverRegressor, NeuralODE
from sklearn_hyper.datasets import VanDerPol, make_pendulum
from sklearn_hyper.numerics import (
    Adaptive,
    CountedField,
    ReferenceSolveError,
    StepLimitError,
    hypersolve,
    reference_solution,
)

N_TEST = 64
TARGETS = (1e-2, 1e-3, 1e-4)
TOLERANCES = (10.0 ** -np.arange(0, 7.01, 0.25)).tolist()
PROBLEMS: dict[str, dict[str, Any]] = {
    # RK4 is not stable at steps longer than a 55th of this span.
    "van_der_pol": {
        "t_span": (0.0, 10.0), "n_steps": 200, "fit_n_steps": (55, 1000), "max_samples": 8000, "batch_size": 256,
    },
    "pendulum": {"t_span": (0.0, 5.0), "n_steps": 25, "fit_n_steps": (8, 200)},
    "moons": {"n_steps": 4, "fit_n_steps": (1, 16), "row_times": True},
}  # fmt: skip
SOLVERS = ("rk4+g adaptive", "rk4+g learned", "rk4 adaptive", "rk4+g", "rk4", "dopri5", "dopri5 by row")
Curve = list[tuple[float, float]]


def load(problem: str, n_rows: int, seed: int, cache: str) -> tuple[np.ndarray, NeuralODE]:
    """Rows of a problem and its Neural ODE."""
    if problem == "van_der_pol":
        rows = np.random.default_rng(seed).uniform(-2, 2, (n_rows, 2))
        return rows, NeuralODE(VanDerPol(5.0), t_span=PROBLEMS[problem]["t_span"])
    if problem == "pendulum":
        rows, ode = make_pendulum(n_rows, random_state=seed)
        return rows, ode.with_span(PROBLEMS[problem]["t_span"])
    rows = np.random.default_rng(seed).normal(size=(n_rows, 2))
    return rows.astype(np.float32), load_flow("moons", "flow_matching", cache).flow_.sampling()


def fit(problem: str, cache: str) -> HypersolverRegressor:
    """The hypersolver of a problem, from the cache or fitted now."""

    def train() -> HypersolverRegressor:
        X, ode = load(problem, PROBLEMS[problem].get("max_samples", 2000), 0, cache)
        settings = {key: value for key, value in PROBLEMS[problem].items() if key != "t_span"}
        # The controller is fitted after g, which is the same without it.
        return HypersolverRegressor(
            ode, base_solver="rk4", stepping="adaptive", step_controller="learned", random_state=0, **settings
        ).fit(X)

    return fitted(cache, f"adaptive {problem}", train)


def solvers(fast: HypersolverRegressor, x: Tensor) -> dict[str, tuple[Callable[[Any, Any], Tensor], Iterable[Any]]]:
    """By name: what solves from x, given a counted field and a tolerance or K; and the values of that."""
    ode, g = fast.neural_ode_, fast.to_module().correction
    z0, inputs, stepping = ode.input_map(x), ode.inputs(x), fast.module_.stepping

    def adaptive(f: Any, rtol: float, adds: bool = True, learned: bool = False) -> Tensor:
        policy = Adaptive(
            fast.base_solver_, ode.t_span, rtol, sizes=ode.state_size, times=stepping.times,
            max_step=stepping.max_step, adds_correction=adds, proposer=stepping.proposer if learned else None,
        )  # fmt: skip
        return policy.solve(f, z0, g, inputs)

    def by_row(f: Any, rtol: float) -> Tensor:
        return torch.cat([ode.solve(row, rtol=rtol, field=f) for row in x.split(1)])

    fewest, most = fast.fit_n_steps
    steps = sorted({round(k) for k in np.geomspace(fewest, 4 * most, 40)})
    equal = partial(hypersolve, t_span=ode.t_span, base_solver=fast.base_solver_, x=inputs.x)
    return {
        "rk4+g adaptive": (adaptive, TOLERANCES),
        "rk4+g learned": (partial(adaptive, learned=True), TOLERANCES),
        "rk4 adaptive": (partial(adaptive, adds=False), TOLERANCES),
        "rk4+g": (lambda f, k: equal(f, z0, n_steps=k, g=g), steps),
        "rk4": (lambda f, k: equal(f, z0, n_steps=k), steps),
        "dopri5": (lambda f, rtol: ode.solve(x, rtol=rtol, field=f), TOLERANCES),
        "dopri5 by row": (by_row, TOLERANCES[4::2]),
    }


def measure(problem: str, name: str, cache: str) -> dict[str, Any]:
    """Evaluations and errors of a solver at all its tolerances or K."""
    fast = fit(problem, cache)
    X, _ = load(problem, N_TEST, 1, cache)
    x, ode = torch.from_numpy(X), fast.neural_ode_
    solve, values = solvers(fast, x)[name]
    curve: Curve = []
    with torch.no_grad():
        exact = solve_exactly(ode, x)
        size = exact.square().mean().sqrt()
        for value in values:
            f = CountedField(ode.vector_field)
            try:
                error = float((solve(f, value) - exact).square().mean().sqrt() / size)
            except (ReferenceSolveError, StepLimitError):
                continue
            if math.isfinite(error):
                curve.append((f.n_rows_evaluated / len(x), error))
            if error < TARGETS[-1] / 10:
                break
    return {"evaluations": [n for n, _ in curve], "errors": [error for _, error in curve]}


def solve_exactly(ode: NeuralODE, x: Tensor) -> Tensor:
    """Ends of the span to eleven digits."""
    double = copy.deepcopy(ode).double()
    z0, inputs = double.input_map(x.double()), double.inputs(x.double())
    return reference_solution(double.vector_field, z0, ode.t_span, rtol=1e-11, atol=1e-11, x=inputs.x)[-1]


def evaluations_to(target: float, cell: dict[str, Any]) -> float | None:
    """Fewest evaluations at which the interpolated curve reaches an error."""
    points = sorted(zip(cell["evaluations"], cell["errors"], strict=True))
    if points[0][1] <= target:
        return points[0][0]
    for (n, error), (n_after, after) in pairwise(points):
        if error > target >= after:
            share = math.log(error / target) / math.log(error / after)
            return n * (n_after / n) ** share
    return None


def summarise(cells: dict[str, Any]) -> dict[str, Any]:
    """By problem and solver: evaluations to each error; then those of others over those of adaptive hypersolvers."""
    summary: dict[str, Any] = {}
    for problem in PROBLEMS:
        rows: dict[str, Any] = {}
        for key, cell in cells.items():
            name = key.removeprefix(f"{problem}: ")
            if name != key and "errors" in cell:
                rows[name] = {f"{target:g}": evaluations_to(target, cell) for target in TARGETS}
        for other, ours in product(("dopri5", "dopri5 by row", "rk4+g"), ("rk4+g adaptive", "rk4+g learned")):
            pairs = zip(TARGETS, rows[other].values(), rows[ours].values(), strict=True)
            rows[f"{other} over {ours}"] = {f"{t:g}": None if None in (n, own) else n / own for t, n, own in pairs}
        summary[problem] = rows
    return summary


def main() -> None:
    options = parser(__doc__, "adaptive.json")
    arguments = options.parse_args()
    torch.set_num_threads(1)
    results = Results(arguments.out, "python examples/benchmarks/adaptive.py", fresh=arguments.fresh)
    for problem in PROBLEMS:
        for name in SOLVERS:
            results.cell(f"{problem}: {name}", partial(measure, problem, name, arguments.cache))
    results.write(summarise(results.cells))
    for problem, rows in results.summary.items():
        print(f"{problem:>32}" + "".join(f"{target:>10g}" for target in TARGETS))
        for name, row in rows.items():
            print(f"{name:>32}" + "".join(f"{n:>10.3g}" if n is not None else f"{'-':>10}" for n in row.values()))


if __name__ == "__main__":
    main()
