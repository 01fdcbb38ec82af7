"""Bounds and tolerances of calibrated hypersolvers: what they promise, what they keep, and what they cost.

    python examples/benchmarks/trust.py [--problems NAME ...] [--splits 100] [--data FOLDER]
    python examples/benchmarks/trust.py --milliseconds        # alone, on a quiet machine

Problems are those of work_precision. On each, hypersolvers with default settings are fitted for 1, 2, 4, 8 and 16
evaluations, on the problem's rows for fits. The one for two evaluations is calibrated on 1,000 of the remaining rows,
with the others as levels of its ladder, and judged on the rest. Splits are drawn at random, and come in blocks of ten:

- coverage: share of rows whose bound holds, median of bound / error ("sharpness"), and the coverage of the tenth of
  rows with the largest errors, and of the tenth that lie farthest from the calibration rows;
- tolerance: share of rows over it, and mean evaluations of f a row, by policy; beside them dopri5 (torchdiffeq) at the
  cheapest of its tolerances that leaves at most one row in a hundred over;
- shift: share of rows over a tolerance of 1e-2 where inputs are scaled, or their columns shuffled, after calibration;
- milliseconds: medians at batch 1, 64 and 2,000, interleaved with dopri5.

Errors are 2-norms of outputs against dopri5 in the problem's own precision at 1e-6.
"""

from __future__ import annotations

import time
import warnings
from typing import Any

import numpy as np
import torch
from _results import Results, fitted, parser, spread
from sklearn.neighbors import NearestNeighbors
from work_precision.loading import load_by_name

from sklearn_hyper import HypersolverRegressor
from sklearn_hyper.calibration import UnusualRowsWarning
from sklearn_hyper.metrics import CountedField

PROBLEMS = (
    "moons flow_matching", "wine", "van_der_pol", "digits", "8gaussians flow_matching", "checkerboard flow_matching",
    "rings flow_matching", "pendulum", "uci_airfoil", "digits_tokens", "forced_van_der_pol", "moons likelihood",
    "spirals likelihood",
)  # fmt: skip
STEPS, OWN = (1, 2, 4, 8, 16), 2
N_CALIBRATION, FEWEST, BLOCK = 1000, 480, 10
COVERAGES, KINDS = (0.9, 0.99), ("learned", "verified")
TOLERANCES = (1e-1, 1e-2, 1e-3)
POLICIES: dict[str, dict[str, Any]] = {"one": {}, "routed": {"route": True}, "verified": {"bound": "verified"}}
DOPRI5 = tuple(10.0 ** -(power / 2) for power in range(1, 13))
SHIFTS = ("x 1.2", "x 1.5", "x 2", "shuffled")
BATCHES = (1, 64, 2000)


class Problem:
    """The rows of a problem that no fit has seen, their references, and its hypersolvers."""

    def __init__(self, name: str, cache: str, data: str | None):
        loaded = load_by_name(name, cache, data)
        self.neural_ode, rows = loaded.neural_ode, loaded.rows
        self.levels = {
            k: fitted(cache, f"trust {name} K={k}", lambda k=k: self._fit(rows["fit"].numpy(), k)) for k in STEPS
        }
        self.own = self.levels[OWN]
        self.X = np.concatenate([rows["valid"].numpy(), rows["test"].numpy()])
        self.truth = self.reference(self.X)

    def _fit(self, X: np.ndarray, n_steps: int) -> HypersolverRegressor:
        return HypersolverRegressor(self.neural_ode, n_steps=n_steps, random_state=0).fit(X)

    def reference(self, X: np.ndarray) -> np.ndarray:
        """Flat outputs of dopri5."""
        return flat(self.own.reference(X))

    def split(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows to calibrate on, and rows to judge on."""
        order = np.random.default_rng(seed).permutation(len(self.X))
        n = min(N_CALIBRATION, max(FEWEST, len(order) // 2))
        return order[:n], order[n:]

    def calibrate(self, rows: np.ndarray) -> HypersolverRegressor:
        """The hypersolver for two evaluations, with the others as levels."""
        others = [level for k, level in self.levels.items() if k != OWN]
        return self.own.conformalize(self.X[rows], levels=others)

    def dopri5(self, X: np.ndarray, rtol: float) -> tuple[np.ndarray, int]:
        """Outputs and evaluations of torchdiffeq's dopri5 as it comes, in one batch."""
        counted, ode = CountedField(self.neural_ode.vector_field), self.neural_ode
        with torch.no_grad():
            output = ode.output_map(ode.solve(torch.from_numpy(X), rtol=rtol, field=counted))
        return flat(output.numpy()), counted.n_evaluations


def flat(values: np.ndarray) -> np.ndarray:
    return np.asarray(values, dtype=float).reshape(len(values), -1)


def errors(values: np.ndarray, truth: np.ndarray) -> np.ndarray:
    return np.linalg.norm(flat(values) - truth, axis=1)


def measure_coverage(problem: Problem, seeds: range) -> dict[str, Any]:
    """Coverage and sharpness, by kind of bound and coverage: one number a split."""
    found: dict[str, dict[str, list[float]]] = {}
    for seed in seeds:
        calibration, test = problem.split(seed)
        fast = problem.calibrate(calibration)
        flat_rows = flat(problem.X)
        index = NearestNeighbors(n_neighbors=5).fit(flat_rows[calibration])
        distance = index.kneighbors(flat_rows[test])[0].mean(axis=1)
        far = distance >= np.quantile(distance, 0.9)
        for kind in KINDS:
            for coverage in COVERAGES:
                values, bound = fast.predict(problem.X[test], return_bound=True, coverage=coverage, bound=kind)
                error = errors(values, problem.truth[test])
                holds, worst = error <= bound, error >= np.quantile(error, 0.9)
                entry = found.setdefault(f"{kind} {coverage}", {})
                for name, value in {
                    "coverage": holds.mean(), "sharpness": np.median(bound / np.maximum(error, 1e-300)),
                    "worst errors": holds[worst].mean(), "farthest": holds[far].mean(),
                    "infinite": np.isinf(bound).mean(),
                }.items():  # fmt: skip
                    entry.setdefault(name, []).append(float(value))
    verifier = fast.calibration_.bounds.verifiers["output"]
    return found | {"verifier": "dopri5" if verifier is None else verifier.name}


def measure_tolerances(problem: Problem, seeds: range) -> dict[str, Any]:
    """Shares over a tolerance and evaluations, by policy: one number a split."""
    found: dict[str, dict[str, list[float]]] = {}
    for seed in seeds:
        calibration, test = problem.split(seed)
        fast = problem.calibrate(calibration)
        sizes = np.linalg.norm(problem.truth[test], axis=1)
        for tol in TOLERANCES:
            for policy, how in POLICIES.items():
                values, info = fast.predict(problem.X[test], tol=tol, return_info=True, **how)
                entry = found.setdefault(f"{tol:g} {policy}", {"over": [], "evaluations": []})
                entry["over"].append(float((errors(values, problem.truth[test]) > tol * sizes).mean()))
                entry["evaluations"].append(float(info.n_evaluations.mean()))
    return found


def measure_dopri5(problem: Problem) -> dict[str, Any]:
    """The cheapest dopri5 that leaves one row in a hundred over each tolerance, in batches of 256."""
    sizes = np.linalg.norm(problem.truth, axis=1)
    found: dict[str, Any] = {}
    for rtol in DOPRI5:
        parts = [problem.dopri5(problem.X[i : i + 256], rtol) for i in range(0, len(problem.X), 256)]
        error = errors(np.concatenate([values for values, _ in parts]), problem.truth)
        evaluations = float(np.mean([count for _, count in parts]))
        for tol in TOLERANCES:
            over, key = float((error > tol * sizes).mean()), f"{tol:g}"
            if over <= 0.01 and evaluations < found.get(key, {"evaluations": np.inf})["evaluations"]:
                found[key] = {"rtol": rtol, "over": over, "evaluations": evaluations}
    return found


def measure_shifts(problem: Problem) -> dict[str, Any]:
    """Shares over 1e-2 where inputs have moved since the calibration."""
    calibration, test = problem.split(0)
    fast = problem.calibrate(calibration)
    found: dict[str, Any] = {}
    for shift in SHIFTS:
        X = problem.X[test]
        if shift == "shuffled":
            generator = np.random.default_rng(0)
            X = generator.permuted(flat(X), axis=0).reshape(X.shape).astype(X.dtype)
        else:
            X = X * np.asarray(float(shift[2:]), dtype=X.dtype)
        truth = problem.reference(X)
        sizes = np.linalg.norm(truth, axis=1)
        found[shift] = {}
        for policy, how in POLICIES.items():
            values, info = fast.predict(X, tol=1e-2, return_info=True, **how)
            found[shift][policy] = {
                "over": float((errors(values, truth) > 1e-2 * sizes).mean()),
                "evaluations": float(info.n_evaluations.mean()), "unusual": float(info.unusual.mean()),
            }  # fmt: skip
    return found


def measure_milliseconds(problem: Problem, rtol: float) -> dict[str, Any]:
    """Milliseconds at a tolerance of 1e-2, beside dopri5 at the tolerance that keeps it; medians of interleaved calls."""
    calibration, test = problem.split(0)
    fast = problem.calibrate(calibration)
    calls = {policy: lambda X, how=how: fast.predict(X, tol=1e-2, **how) for policy, how in POLICIES.items()}
    calls |= {"dopri5": lambda X: problem.dopri5(X, rtol), "no tolerance": fast.predict}
    found: dict[str, Any] = {}
    for batch in BATCHES:
        X = np.resize(problem.X[test], (batch, *problem.X.shape[1:]))
        times: dict[str, list[float]] = {name: [] for name in calls}
        for turn in range(12 if batch < 2000 else 6):
            for name, call in calls.items():
                start = time.perf_counter()
                call(X)
                if turn > 1:
                    times[name].append(1e3 * (time.perf_counter() - start))
        found[str(batch)] = {name: float(np.median(values)) for name, values in times.items()}
    return found


def summarise(cells: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Blocks of splits joined: medians and ranges over splits."""
    joined: dict[str, dict[str, Any]] = {}
    for name, cell in cells.items():
        what, problem = name.split(": ")[:2]
        entry = joined.setdefault(problem, {}).setdefault(what, {})
        for key, value in cell.items():
            if key in ("seconds", "verifier") or not what.startswith(("coverage", "tolerance")):
                entry[key] = value
                continue
            for measure, numbers in value.items():
                entry.setdefault(key, {}).setdefault(measure, []).extend(numbers)
    for measures in joined.values():
        for what in ("coverage", "tolerance"):
            for value in measures.get(what, {}).values():
                if isinstance(value, dict):
                    n = len(next(iter(value.values())))
                    value |= {name: spread(v) | {"mean": float(np.mean(v))} for name, v in value.items()}
                    value["splits"] = n
    return joined


def tables(summary: dict[str, dict[str, Any]]) -> str:
    """The summary as Markdown."""
    lines = ["## Coverage and sharpness", ""]
    lines += _head(
        "problem", "splits", "bound", "coverage, stated .9", "stated .99", "bound / error, .9", "bound / error, .99",
        "largest tenth of errors, .99", "farthest tenth, .99",
    )  # fmt: skip
    for name, measured in summary.items():
        for kind in KINDS:
            low, high = (measured.get("coverage", {}).get(f"{kind} {coverage}") for coverage in COVERAGES)
            if low and high:
                covered = [f"{one['coverage']['mean']:.3f}" for one in (low, high)]
                sharp = [f"{one['sharpness']['median']:.2g}" for one in (low, high)]
                tails = [f"{high[key]['mean']:.2f}" for key in ("worst errors", "farthest")]
                lines.append(_row(name, low["splits"], kind, *covered, *sharp, *tails))
    lines += ["", "## Tolerances: evaluations, and share over the tolerance", ""]
    lines += _head("problem", "tolerance", *POLICIES, "dopri5")
    for name, measured in summary.items():
        for tol in TOLERANCES if "tolerance" in measured else ():
            cells = [measured["tolerance"][f"{tol:g} {policy}"] for policy in POLICIES]
            shown = [f"{one['evaluations']['median']:.1f}, {100 * one['over']['mean']:.2f} %" for one in cells]
            slow = measured.get("dopri5", {}).get(f"{tol:g}")
            shown.append(f"{slow['evaluations']:.1f}, {100 * slow['over']:.2f} %" if slow else "-")
            lines.append(_row(name, f"{tol:g}", *shown))
    lines += ["", "## Shifted inputs: share over a tolerance of 1e-2, and share of unusual rows", ""]
    lines += _head("problem", "policy", *SHIFTS)
    for name, measured in summary.items():
        for policy in POLICIES if "shift" in measured else ():
            cells = [measured["shift"][shift][policy] for shift in SHIFTS]
            lines.append(_row(name, policy, *(f"{100 * x['over']:.1f} %, {100 * x['unusual']:.0f} %" for x in cells)))
    if any("milliseconds" in measured for measured in summary.values()):
        lines += ["", "## Milliseconds at a tolerance of 1e-2", ""]
        names = (*POLICIES, "dopri5", "no tolerance")
        lines += _head("problem", "batch", *names)
        for name, measured in summary.items():
            for batch in BATCHES if "milliseconds" in measured else ():
                found = measured["milliseconds"][str(batch)]
                lines.append(_row(name, batch, *(f"{found[one]:.2g}" for one in names)))
    return "\n".join(lines) + "\n"


def _row(*cells: Any) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def _head(*headings: str) -> list[str]:
    return [_row(*headings), _row(*["---"] * len(headings))]


def main() -> None:
    options = parser(__doc__, "trust.json")
    options.add_argument("--problems", nargs="+", default=PROBLEMS, metavar="NAME")
    options.add_argument("--splits", type=int, default=100, help="of coverage; tolerances take a tenth of them")
    options.add_argument("--data", help="folder of the benchmark data, for problems of real tables and images")
    options.add_argument("--milliseconds", action="store_true", help="measure these alone, of problems in the file")
    options.add_argument("--summary", action="store_true", help="make summary and tables from the cells")
    arguments = options.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", UnusualRowsWarning)
    results = Results(
        arguments.out, "python examples/benchmarks/trust.py --data FOLDER", fresh=arguments.fresh,
        measuring=not arguments.summary,
    )  # fmt: skip
    if arguments.summary:
        write(results)
        return
    if arguments.milliseconds:
        for name in [name for name in arguments.problems if f"dopri5: {name}" in results.cells]:
            rtol = results.cells[f"dopri5: {name}"]["0.01"]["rtol"]
            problem = Problem(name, arguments.cache, arguments.data)
            results.cell(
                f"milliseconds: {name}", lambda problem=problem, rtol=rtol: measure_milliseconds(problem, rtol)
            )
        write(results)
        return
    for start in range(0, arguments.splits, BLOCK):
        for name in arguments.problems:
            cells = {f"coverage: {name}: {start}": measure_coverage}
            if start == 0:
                cells |= {f"tolerance: {name}: 0": measure_tolerances}
            if all(key in results.cells for key in (*cells, f"shift: {name}")):
                continue
            problem, seeds = Problem(name, arguments.cache, arguments.data), range(start, start + BLOCK)
            for key, measure in cells.items():
                results.cell(key, lambda measure=measure, problem=problem, seeds=seeds: measure(problem, seeds))
            results.cell(f"dopri5: {name}", lambda problem=problem: measure_dopri5(problem))
            results.cell(f"shift: {name}", lambda problem=problem: measure_shifts(problem))
            write(results)


def write(results: Results) -> None:
    """Write the summary, and the tables beside it."""
    results.write(summarise(results.cells))
    results.path.with_suffix(".md").write_text(tables(results.summary))


if __name__ == "__main__":
    main()
