"""Refits of hypersolvers after the field was trained on, and rows to fit on beside the given ones.

    python examples/benchmarks/refits.py [--seeds 3] [--what refit rows] [--problems NAME ...]

Problems, with K steps of the default base solvers:

- wine, digits: `NeuralODEClassifier` with default settings; K = 4;
- moons: sampling from a flow, by flow matching; K = 4;
- van_der_pol: mu = 1 over two units of time, K = 8. It is a formula, so that the correction is a net;
- pendulum: the controlled one, K = 10, a net too (rows alone).

Refit: the model is trained on, and its weights are put where they have moved by 10 % of their norm on that way (mu = 1.1
for Van der Pol). Judged on test rows of the moved field, as mean errors against dopri5 at 1e-6, relative to the mean
norm: the correction as it was ("stale"), `refit` with default settings and at other numbers of epochs, a new fit, a new
fit in 30 epochs, and the base solver. "moons net" is the same with `MLPCorrection()`.

Rows: mean, 99 % quantile and largest of these errors with each kind of `extra_rows`, on test rows, and on test rows 1.5
times as far from their mean ("beyond").

Seconds are CPU seconds of one thread, reference solves included: the machine had other work.
"""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _results import Results, fitted, parser, spread
from sklearn.datasets import load_digits, load_wine
from sklearn.preprocessing import StandardScaler

from sklearn_hyper import ContinuousNormalizingFlow, HypersolverRegressor, MLPCorrection, NeuralODE, NeuralODEClassifier
from sklearn_hyper.datasets import VanDerPol, make_density, make_pendulum

ROWS, TEST_ROWS, CHANGE = 500, 2000, 0.1
EPOCHS: tuple[int | None, ...] = (12, None, 60)
REFITS = ("wine", "digits", "moons", "moons net", "van_der_pol")
EXTRA = ("wine", "digits", "moons", "van_der_pol", "pendulum")
KINDS: tuple[Any, ...] = (None, "box", "worst")
STEPS = {"pendulum": 10, "van_der_pol": 8}


# ---------------------------------------------------------------------- problems
def models(problem: str, cache: str) -> tuple[NeuralODE, NeuralODE, np.ndarray | None]:
    """A Neural ODE, the same after training on, and rows where there are only some."""
    if problem == "van_der_pol":
        return *(NeuralODE(VanDerPol(mu), t_span=(0.0, 2.0)) for mu in (1.0, 1.0 + CHANGE)), None
    if problem == "moons":
        X = make_density("moons", 4000, random_state=0).astype(np.float32)
        first = fitted(cache, "refits moons", lambda: ContinuousNormalizingFlow(max_epochs=60, random_state=0).fit(X))
        on = copy.deepcopy(first).set_params(warm_start=True, max_epochs=20, random_state=7)
        after = fitted(cache, "refits moons on", lambda: on.fit(X[:2000]))
        return first.flow_.sampling(), moved(first.flow_.sampling(), after.flow_.sampling()), None
    X, y = {"wine": load_wine, "digits": load_digits}[problem](return_X_y=True)
    X = (StandardScaler().fit_transform(X) if problem == "wine" else X / 16).astype(np.float32)
    epochs = {"wine": 60, "digits": 30}[problem]
    first = fitted(cache, f"refits {problem}", lambda: NeuralODEClassifier(max_epochs=epochs, random_state=0).fit(X, y))
    on = copy.deepcopy(first).set_params(warm_start=True, max_epochs=10, random_state=7)
    after = fitted(cache, f"refits {problem} on", lambda: on.fit(X, y))
    return first.neural_ode_, moved(first.neural_ode_, after.neural_ode_), X


def moved(before: NeuralODE, after: NeuralODE) -> NeuralODE:
    """The Neural ODE on the way from one to the other, where its weights have moved by a tenth of their norm."""
    result = copy.deepcopy(after)
    with torch.no_grad():
        pairs = list(zip(before.parameters(), result.parameters(), strict=True))
        distance = sum(float((b - a).pow(2).sum()) for a, b in pairs) ** 0.5
        share = CHANGE * sum(float(a.pow(2).sum()) for a, _ in pairs) ** 0.5 / distance
        for a, b in pairs:
            b.copy_(a + share * (b - a))
    return result


def split(problem: str, X: np.ndarray | None, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to fit on, and to test on."""
    rng = np.random.default_rng(seed)
    if X is not None:
        order = rng.permutation(len(X))
        n = min(ROWS, round(0.7 * len(X)))
        return X[order[:n]], X[order[n:]]
    if problem == "pendulum":
        X = make_pendulum(ROWS + TEST_ROWS, random_state=seed)[0]
    elif problem == "van_der_pol":
        X = rng.uniform(-2, 2, (ROWS + TEST_ROWS, 2)).astype(np.float32)
    else:
        X = rng.normal(size=(ROWS + TEST_ROWS, 2)).astype(np.float32)
    return X[:ROWS], X[ROWS:]


def make(neural_ode: NeuralODE, problem: str, seed: int, **params: Any) -> HypersolverRegressor:
    return HypersolverRegressor(neural_ode, n_steps=STEPS.get(problem, 4), random_state=seed, **params)


# ---------------------------------------------------------------------- measuring
def errors(fast: HypersolverRegressor, X: np.ndarray) -> np.ndarray:
    """Errors of terminal states by row, as a share of their mean norm."""
    x = torch.from_numpy(X)
    truth = fast.fitted_.reference(x).flatten(1)
    found = fast.fitted_.solve(x).flatten(1)
    errors = (found - truth).norm(dim=1) / truth.norm(dim=1).mean()
    return errors.nan_to_num(torch.inf).numpy()


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    start = time.process_time()
    result = work()
    return result, time.process_time() - start


def measure_refit(name: str, cache: str, seed: int) -> dict[str, Any]:
    problem = name.removesuffix(" net")
    params = {"correction": MLPCorrection()} if name.endswith("net") else {}
    before, now, rows = models(problem, cache)
    X, test = split(problem, rows, seed)
    first = make(before, problem, seed, **params).fit(X)
    full, seconds = timed(lambda: make(now, problem, seed, **params).fit(X))
    found: dict[str, Any] = {
        "base": errors(full.without_correction(), test).mean(),
        "before the change": errors(first, test).mean(),
        "full": errors(full, test).mean(),
        "full seconds": seconds,
    }
    for epochs in EPOCHS:
        again, seconds = timed(lambda epochs=epochs: copy.deepcopy(first).refit(now, X, max_epochs=epochs))
        name = f"refit {epochs or 'default'}"
        found |= {name: errors(again, test).mean(), f"{name} seconds": seconds}
        if epochs is None:
            found["default epochs"] = len(again.history_)
    short, seconds = timed(lambda: make(now, problem, seed, max_epochs=30, **params).fit(X))
    return found | {
        "new 30": errors(short, test).mean(),
        "new 30 seconds": seconds,
        "stale": stale_error(first, now, test),
    }


def stale_error(first: HypersolverRegressor, now: NeuralODE, test: np.ndarray) -> float:
    """The error of the earlier correction on the moved field."""
    swapped = copy.copy(first)
    swapped.fitted_ = replace(first.fitted_, neural_ode=copy.deepcopy(now).eval().requires_grad_(False))
    return float(errors(swapped, test).mean())


def measure_rows(problem: str, cache: str, seed: int) -> dict[str, Any]:
    neural_ode, rows = make_pendulum(1)[1], None
    if problem != "pendulum":
        neural_ode, _, rows = models(problem, cache)
    X, test = split(problem, rows, seed)
    beyond = (test.mean(axis=0) + 1.5 * (test - test.mean(axis=0))).astype(test.dtype)
    found: dict[str, Any] = {}
    for kind in KINDS:
        fast, seconds = timed(lambda kind=kind: make(neural_ode, problem, seed, extra_rows=kind).fit(X))
        inside, outside = errors(fast, test), errors(fast, beyond)
        found[str(kind)] = {
            "mean": inside.mean(), "p99": np.quantile(inside, 0.99), "max": inside.max(),
            "beyond median": np.median(outside), "beyond p99": np.quantile(outside, 0.99),
            "held out mean": fast.errors_[fast.n_steps]["mean"], "seconds": seconds,
        }  # fmt: skip
    return found


# ---------------------------------------------------------------------- summary
def summarise(cells: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Medians and ranges over seeds; ratios are taken seed by seed."""
    seeds: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for name, cell in cells.items():
        what, problem, _ = name.split(": ")
        seeds.setdefault(what, {}).setdefault(problem, []).append(cell)
    summary: dict[str, Any] = {}
    for problem, found in seeds.get("refit", {}).items():
        entry = {key: spread(cell[key] for cell in found) for key in found[0] if key != "seconds"}
        for epochs in EPOCHS:
            refit = f"refit {epochs or 'default'}"
            for what, key in {"error": refit, "seconds": f"{refit} seconds"}.items():
                full = "full" if what == "error" else "full seconds"
                entry[f"{refit} / full, {what}"] = spread(cell[key] / cell[full] for cell in found)
        entry["new 30 / full, error"] = spread(cell["new 30"] / cell["full"] for cell in found)
        summary.setdefault("refit", {})[problem] = entry
    for problem, found in seeds.get("rows", {}).items():
        entry = {}
        for kind in map(str, KINDS):
            measures = found[0][kind]
            entry[kind] = {key: spread(cell[kind][key] for cell in found) for key in measures if known(key, found)}
            if kind != "None":
                entry[kind] |= {
                    f"None / {kind}, {key}": spread(cell["None"][key] / cell[kind][key] for cell in found)
                    for key in measures
                    if known(key, found)
                }
        summary.setdefault("rows", {})[problem] = entry
    return summary


def known(key: str, found: list[dict[str, Any]]) -> bool:
    """Whether a measure is finite with every kind and seed: solves may overflow far from the rows of a fit."""
    return all(cell[str(kind)][key] is not None for cell in found for kind in KINDS)


def main() -> None:
    options = parser(__doc__, "refits.json")
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--what", nargs="+", default=["refit", "rows"], choices=["refit", "rows"])
    options.add_argument("--problems", nargs="+", default=sorted({*REFITS, *EXTRA}), metavar="NAME")
    arguments = options.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    Path(arguments.cache).mkdir(parents=True, exist_ok=True)
    results = Results(arguments.out, "python examples/benchmarks/refits.py", fresh=arguments.fresh)
    measures = {"refit": (measure_refit, REFITS), "rows": (measure_rows, EXTRA)}
    for seed in range(arguments.seeds):
        for what in arguments.what:
            measure, problems = measures[what]
            for name in [name for name in problems if name in arguments.problems]:
                results.cell(
                    f"{what}: {name}: {seed}",
                    lambda measure=measure, name=name, seed=seed: measure(name, arguments.cache, seed),
                )
            results.write(summarise(results.cells))


if __name__ == "__main__":
    main()
