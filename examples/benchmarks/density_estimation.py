"""Continuous normalizing flows by dopri5 and by hypersolvers (paper, section 4.2, Figs. 1 and 7).

    python examples/benchmarks/density_estimation.py [--seeds 3] [--only errors|tables|timing] [--data FOLDER]

Fields: six two-dimensional densities by flow matching, two of them also by maximum likelihood, and real tables by flow
matching. For each, and for each seed of the hypersolver (fields by maximum likelihood: one):

- sampling by HyperHeun with K=1 (2 evaluations of f) beside plain Heun, against dopri5 at 1e-5 on base draws never
  fitted: error relative to the state and to the displacement, sliced Wasserstein distances over that of two sets of
  dopri5 samples (the noise floor; the same base draws and projections on both sides, three pairs);
- log likelihoods of held-out data by hypersolvers of 4 evaluations of (f, trace): difference of the means in nats, the
  median and p99 of single differences, and the mass on a grid;
- the errors of other solvers on the same field, and of dopri5 at loose tolerances;
- HyperEuler with K=1, a single evaluation of f: the same errors (one seed);
- milliseconds of sampling 1,000 at once beside dopri5 at 1e-5 (cells of their own: run them on a quiet machine).

Cells are kept in the JSON and models in --cache, so that a stopped run goes on where it was.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from _flows import load_flow, load_table, load_table_flow, training_rows
from _results import Results, fitted, parser, spread
from _solving import count_calls, dopri5_solver, plain_solver

from sklearn_hyper import ContinuousNormalizingFlow, HypersolverDensity, MLPCorrection, NeuralODE
from sklearn_hyper.datasets import DENSITIES, make_density
from sklearn_hyper.metrics import relative_l2, sliced_wasserstein_distance
from sklearn_hyper.numerics import ConditioningWarning, time_interleaved

N_TEST, N_SAMPLES, TOLERANCE = 2000, 10_000, 1e-5
LIKELIHOOD = ("8gaussians", "moons")
TABLES = ("wine", "breast_cancer", "digits_pca", "uci_airfoil", "uci_protein")
# One step: the residual of that step is all there is to learn, so no fine-tuning. Depth and lr were compared on
# 8gaussians and checkerboard, on base draws that are not used below.
SETTINGS = {
    "sampling": {
        "base_solver": "heun", "n_steps": 1, "fit_n_steps": 1, "finetune": None, "max_samples": 8000, "max_epochs": 100,
        "correction": MLPCorrection(depth=3),
    },
    # The same on Euler's method: a single evaluation of f.
    "single": {
        "base_solver": "euler", "n_steps": 1, "fit_n_steps": 1, "finetune": None, "max_samples": 8000, "max_epochs": 100,
        "correction": MLPCorrection(depth=3),
    },
    "density": {
        "base_solver": "midpoint", "n_steps": 2, "max_samples": 3000, "max_epochs": 80,
        "correction": MLPCorrection(depth=3),
    },
}  # fmt: skip
PAIRS = 3
SAMPLING_ERRORS = {
    "hyper": (
        "relative_mean",
        "relative_median",
        "displacement_median",
        "error_over_mean_state",
        "distance_over_floor",
    ),
    "heun": ("relative_median", "distance_over_floor"),
}
"""What the summary has of each solver."""
RIVALS = [("heun", 1), ("midpoint", 1), ("euler", 2), ("rk4", 1), ("midpoint", 2), ("rk4", 2), ("midpoint", 5)]


class Field(NamedTuple):
    """The field of a flow on a two-dimensional density."""

    density: str
    objective: str

    @property
    def name(self) -> str:
        """In the names of cells."""
        return f"{self.density} {self.objective}"

    def load(self, cache: str) -> ContinuousNormalizingFlow:
        """The flow, trained or from the cache."""
        return load_flow(self.density, self.objective, cache)

    def held_out(self) -> np.ndarray:
        """Rows of the density that the flow has not seen."""
        return make_density(self.density, N_TEST, random_state=1).astype(np.float32)


FIELDS = [
    *(Field(name, "flow_matching") for name in DENSITIES),
    *(Field(name, "likelihood") for name in LIKELIHOOD),
]


def measure_field(field: Field, cache: str) -> dict:
    """Held-out log likelihood, mass on a grid, and what dopri5 costs."""
    flow = field.load(cache)
    ode = NeuralODE(flow.flow_.vector_field, t_span=flow.flow_.t_span)
    solve = dopri5_solver(ode, TOLERANCE)
    torch.manual_seed(999)
    z = flow.flow_.sample_base(1000, torch.float32)
    with torch.no_grad():
        nfe = count_calls(ode.vector_field, lambda: solve(z))
    return {
        "log_likelihood": flow.score(field.held_out()),
        "mass": mass(flow),
        "dopri5_nfe": nfe,
        "train_epochs": len(flow.history_),
    }


def mass(density: object) -> float:
    """Integral of a density over a square that holds all but its tails."""
    axis = np.linspace(-7, 7, 201, dtype=np.float32)
    points = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    return float(np.exp(density.score_samples(points).astype(np.float64)).sum() * (axis[1] - axis[0]) ** 2)


def fit_hypersolver(flow: ContinuousNormalizingFlow, X: np.ndarray | None, seed: int, kind: str) -> HypersolverDensity:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConditioningWarning)  # settles itself by a float64 solve
        return HypersolverDensity(flow, random_state=seed, **SETTINGS[kind]).fit(X)


def measure_sampling(flow: ContinuousNormalizingFlow, fast: HypersolverDensity) -> dict:
    """Errors of HyperHeun K=1 and Heun K=1 on fresh base draws."""
    draws = [flow.flow_.sample_base(N_SAMPLES, torch.float32).numpy() for _ in range(2 * PAIRS)]
    exact = [dopri5_samples(flow, z) for z in draws]
    solvers = {"hyper": fast.inverse_transform, "heun": fast.without_correction().inverse_transform}
    result: dict = {}
    # Displacements are measured where the field lives: in standardised coordinates.
    scale, shift = (t.numpy() for t in (flow.flow_.scaler.scale, flow.flow_.scaler.shift))
    displacement = np.linalg.norm((exact[0] - shift) / scale - draws[0], axis=1)
    for name, solve in solvers.items():
        samples = [solve(z) for z in draws[:PAIRS]]
        relative = relative_l2(exact[0], samples[0])
        moved = np.linalg.norm((samples[0] - exact[0]) / scale, axis=1) / displacement
        ratios, floors = [], []
        for i in range(PAIRS):
            floor = sliced_wasserstein_distance(exact[i], exact[PAIRS + i], n_projections=500, random_state=i)
            distance = sliced_wasserstein_distance(samples[i], exact[PAIRS + i], n_projections=500, random_state=i)
            ratios.append(distance / floor)
            floors.append(floor)
        result[name] = {
            "relative_mean": relative.mean(),
            "relative_median": np.median(relative),
            "relative_p99": np.quantile(relative, 0.99),
            "displacement_mean": moved.mean(),
            "displacement_median": np.median(moved),
            # Errors over the mean size: no division by states that happen to lie at the origin.
            "error_over_mean_state": np.linalg.norm(samples[0] - exact[0], axis=1).mean()
            / np.linalg.norm(exact[0], axis=1).mean(),
            "distance_over_floor": statistics.median(ratios),
            "distance_over_floor_all": ratios,
        }
    result["floors"] = floors
    return result


def dopri5_sampler(flow: ContinuousNormalizingFlow, tolerance: float = TOLERANCE) -> Callable:
    """From base draws to samples by dopri5, at 1e-5 as the paper's."""
    ode = flow.flow_.sampling()
    solve = dopri5_solver(ode, tolerance)
    return lambda z: ode.output_map(solve(z))


def dopri5_samples(flow: ContinuousNormalizingFlow, z: np.ndarray) -> np.ndarray:
    """Samples from these base draws."""
    with torch.no_grad():
        return dopri5_sampler(flow)(torch.from_numpy(z)).numpy()


def measure_density(flow: ContinuousNormalizingFlow, fast: HypersolverDensity, X: np.ndarray) -> dict:
    """Differences of held-out log likelihoods in nats."""
    expected = flow.score_samples(X).astype(np.float64)
    result = {}
    for name, density in (("hyper", fast), ("plain", fast.without_correction())):
        values = density.score_samples(X)
        difference = np.abs(values - expected)
        result[name] = {
            "mean_difference": float(values.astype(np.float64).mean() - expected.mean()),
            "median": np.median(difference),
            "p99": np.quantile(difference, 0.99),
        }
    return result


def measure_seed(field: Field, seed: int, cache: str) -> dict:
    """One field and one seed of the hypersolver: both directions."""
    flow = field.load(cache)
    X = training_rows(field.density)
    sampler = fitted(cache, f"sampler {field.name} {seed}", lambda: fit_hypersolver(flow, None, seed, "sampling"))
    density = fitted(cache, f"density {field.name} {seed}", lambda: fit_hypersolver(flow, X, seed, "density"))
    torch.manual_seed(1000 + seed)
    return {
        "sampling": measure_sampling(flow, sampler),
        "log_likelihood": measure_density(flow, density, field.held_out()) | {"mass": mass(density)},
    }


def measure_rivals(field: Field, cache: str) -> dict:
    """What others get on fresh base draws: fixed steps at 2 to 10 evaluations, and dopri5 at loose tolerances."""
    flow = field.load(cache)
    ode = flow.flow_.sampling()
    torch.manual_seed(1000)
    z = flow.flow_.sample_base(N_SAMPLES, torch.float32)
    exact = dopri5_samples(flow, z.numpy())
    result = {}
    with torch.no_grad():
        for base, n_steps in RIVALS:
            solver = plain_solver(ode, base, n_steps)
            nfe = solver.base_solver.count_evaluations(n_steps)
            result[f"{base} K={n_steps}"] = {"nfe": nfe, **_errors(exact, solver(z).numpy())}
        for tolerance in (1e-3, 1e-2, 1e-1):
            sample = dopri5_sampler(flow, tolerance)
            nfe = count_calls(ode.vector_field, lambda sample=sample: sample(z))
            result[f"dopri5 {tolerance:g}"] = {"nfe": nfe, **_errors(exact, sample(z).numpy())}
    return result


def _errors(exact: np.ndarray, samples: np.ndarray) -> dict[str, float]:
    relative = relative_l2(exact, samples)
    return {"relative_mean": relative.mean(), "relative_median": np.median(relative)}


def measure_timing(field: Field, cache: str) -> dict:
    """Milliseconds of 1,000 samples: dopri5 at 1e-5, HyperHeun K=1 and plain Heun K=1, interleaved."""
    flow = field.load(cache)
    sampler = fitted(cache, f"sampler {field.name} 0", lambda: fit_hypersolver(flow, None, 0, "sampling"))
    sample = dopri5_sampler(flow)
    module, heun = sampler.to_module().fold(), sampler.without_correction().to_module()
    result = {}
    torch.manual_seed(999)
    for batch in (1, 1000):
        z = flow.flow_.sample_base(batch, torch.float32)
        with torch.no_grad():
            ms = time_interleaved({
                "dopri5": lambda z=z: sample(z),
                "hyper": lambda z=z: module(z),
                "heun": lambda z=z: heun(z),
            })  # fmt: skip
        result[f"batch_{batch}"] = ms | {
            "speed_up": ms["dopri5"] / ms["hyper"],
            "heun_speed_up": ms["dopri5"] / ms["heun"],
        }
    return result


def measure_single(field: Field, cache: str) -> dict:
    """HyperEuler with K=1, one evaluation of f: errors on fresh base draws, and its time beside dopri5's."""
    flow = field.load(cache)
    fast = fitted(cache, f"single {field.name} 0", lambda: fit_hypersolver(flow, None, 0, "single"))
    sample, module = dopri5_sampler(flow), fast.to_module().fold()
    torch.manual_seed(1000)
    draws = [flow.flow_.sample_base(N_SAMPLES, torch.float32).numpy() for _ in range(2)]
    exact, other = (dopri5_samples(flow, z) for z in draws)
    samples = fast.inverse_transform(draws[0])
    floor, distance = (
        sliced_wasserstein_distance(x, other, n_projections=500, random_state=0) for x in (exact, samples)
    )
    z = torch.from_numpy(draws[0][:1000])
    with torch.no_grad():
        ms = time_interleaved({"dopri5": lambda: sample(z), "hyper": lambda: module(z)})
    return _errors(exact, samples) | {"distance_over_floor": distance / floor, "speed_up": ms["dopri5"] / ms["hyper"]}


def measure_table(name: str, cache: str, folder: str | None) -> dict:
    """A flow-matching flow of a real table: both directions, one seed."""
    train, test = load_table(name, folder)
    flow = load_table_flow(name, cache, folder)
    sampler = fitted(cache, f"sampler {name}", lambda: fit_hypersolver(flow, None, 0, "sampling"))
    density = fitted(cache, f"density {name}", lambda: fit_hypersolver(flow, train, 0, "density"))
    torch.manual_seed(1000)
    return {
        "n_features": train.shape[1],
        "n_train": len(train),
        "log_likelihood": flow.score(test),
        "gaussian_log_likelihood": gaussian_score(train, test),
        "sampling": measure_sampling(flow, sampler),
        "density": measure_density(flow, density, test),
    }


def gaussian_score(train: np.ndarray, test: np.ndarray) -> float:
    """Mean log likelihood of a Gaussian with full covariance: what a flow has to beat."""
    from sklearn.mixture import GaussianMixture

    return float(GaussianMixture(random_state=0).fit(train).score(test))


def summarise(cells: dict, seeds: int) -> dict:
    """Per field medians over seeds, and the medians over the six flow-matching fields."""
    fields: dict = {}
    for field in FIELDS:
        rows = [cells[key] for seed in range(seeds) if (key := f"{field.name} seed {seed}") in cells]
        if rows:
            fields[field] = _summarise_field(rows)
            if (timing := cells.get(f"{field.name} timing")) is not None:
                fields[field]["speed_up"] = timing["batch_1000"]["speed_up"]
                fields[field]["speed_up_1"] = timing["batch_1"]["speed_up"]
    matched = [row for field, row in fields.items() if field.objective == "flow_matching"]
    overall = {
        key: statistics.median(row[key]["median"] if isinstance(row[key], dict) else row[key] for row in matched)
        for key in (matched[0] if matched else ())
        if all(key in row for row in matched)
    }
    return {
        "median over flow-matching fields": overall,
        "fields": {field.name: row for field, row in fields.items()},
    }


def _summarise_field(rows: list[dict]) -> dict:
    sampling = {
        f"{solver}_{error}": spread(row["sampling"][solver][error] for row in rows)
        for solver, errors in SAMPLING_ERRORS.items()
        for error in errors
    }
    return sampling | {
        "nats": spread(abs(row["log_likelihood"]["hyper"]["mean_difference"]) for row in rows),
        "plain_nats": spread(abs(row["log_likelihood"]["plain"]["mean_difference"]) for row in rows),
        "nats_p99": spread(row["log_likelihood"]["hyper"]["p99"] for row in rows),
        "mass": spread(row["log_likelihood"]["mass"] for row in rows),
    }


def measure_all(results: Results, wanted: list[str], seeds: int, cache: str, data: str | None) -> None:
    """Every cell that is wanted and missing."""
    if "fields" in wanted or "errors" in wanted:
        for field in FIELDS:
            results.cell(field.name, lambda field=field: measure_field(field, cache))
    if "errors" in wanted:
        for seed in range(seeds):
            for field in FIELDS:
                if seed and field.objective == "likelihood":
                    continue
                name = f"{field.name} seed {seed}"
                results.cell(name, lambda field=field, seed=seed: measure_seed(field, seed, cache))
                results.write(summarise(results.cells, seeds))
    if "tables" in wanted:
        for name in TABLES:
            results.cell(name, lambda name=name: measure_table(name, cache, data))
    if "timing" in wanted:
        kinds = {"rivals": measure_rivals, "single": measure_single, "timing": measure_timing}
        for kind, measure in kinds.items():
            for field in FIELDS:
                results.cell(f"{field.name} {kind}", lambda field=field, measure=measure: measure(field, cache))


def main() -> None:
    parts = ["fields", "errors", "tables", "timing"]
    options = parser(__doc__, "density_estimation.json")
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--only", choices=parts)
    options.add_argument("--data", help="folder of uci_tabular.npz; the uci_ tables need it")
    arguments = options.parse_args()
    command = f"python examples/benchmarks/density_estimation.py --seeds {arguments.seeds} --data FOLDER"
    results = Results(arguments.out, command, fresh=arguments.fresh)
    wanted = [arguments.only] if arguments.only else parts
    measure_all(results, wanted, arguments.seeds, arguments.cache, arguments.data)
    results.write(summarise(results.cells, arguments.seeds))


if __name__ == "__main__":
    main()
