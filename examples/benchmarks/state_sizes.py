"""From how many numbers a state on learned coefficients are worth more than ab2: where base_solver="auto" draws its line.

    python examples/benchmarks/state_sizes.py [--jobs 2] [--sizes 3 4 6 8]

Flows (flow matching, default field) of the first columns of scikit-learn's wine table, sampled by hypersolvers with 2, 4 and 8
evaluations of f and either base solver, everything else the default. Median relative errors of terminal states on validation rows, as in
work_precision.py; one seed. Since a default is chosen by it, no test rows are looked at.
"""

from __future__ import annotations

import statistics
import warnings
from typing import Any

import torch
from _results import Results, fitted, parser
from joblib import Parallel, delayed
from sklearn.datasets import load_wine
from wp_names import BUDGETS
from wp_problems import flow_problem, solve_references
from wp_training import validation_error

from sklearn_hyper import ContinuousNormalizingFlow, HypersolverRegressor

BASES = ("ab2", "nonstationary")


def measure(size: int, cache: str) -> tuple[int, dict[str, Any]]:
    """Errors of all hypersolvers of one flow, by base solver and evaluations."""
    torch.set_num_threads(1)
    table = load_wine().data[:, :size].astype("float32")
    flow = fitted(cache, f"flow wine {size}", lambda: ContinuousNormalizingFlow(random_state=0).fit(table))
    problem = flow_problem(f"wine {size}", "tabular flow", flow)
    problem.neural_ode.eval().requires_grad_(False)
    solve_references(problem)
    errors: dict[str, Any] = {}
    for base in BASES:
        for n_steps in BUDGETS:
            fast = HypersolverRegressor(problem.neural_ode, base_solver=base, n_steps=n_steps, random_state=0)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # conditioning in float32, which mends itself
                fast.fit(problem.rows["fit"].numpy())
            errors[f"{base}, {n_steps}"] = validation_error(fast.module_, problem)
    return size, {"errors": errors}


def main() -> None:
    options = parser(__doc__, "state_sizes.json")
    options.add_argument("--sizes", type=int, nargs="+", default=[3, 4, 6, 8])
    options.add_argument("--jobs", type=int, default=1, help="worker processes of one thread each")
    arguments = options.parse_args()
    torch.set_num_threads(1)
    results = Results(arguments.out, "python examples/benchmarks/state_sizes.py --jobs 2", fresh=arguments.fresh)
    missing = [size for size in arguments.sizes if str(size) not in results.cells]
    found = Parallel(n_jobs=arguments.jobs, return_as="generator_unordered", batch_size=1, pre_dispatch="n_jobs")(
        delayed(measure)(size, arguments.cache) for size in missing
    )
    for size, cell in found:
        results.cells[str(size)] = cell
        results.write(summarise(results.cells))
    for row in summarise(results.cells):
        print(row)


def summarise(cells: dict[str, Any]) -> list[dict[str, Any]]:
    """By size of the state: ab2's error over that of learned coefficients; above 1 these are the better ones."""
    rows = []
    for size in sorted(cells, key=int):
        errors = cells[size]["errors"]
        ratios = {f"{n} evaluations": errors[f"ab2, {n}"] / errors[f"nonstationary, {n}"] for n in BUDGETS}
        rows.append({"size": int(size), **ratios, "median": statistics.median(ratios.values())})
    return rows


if __name__ == "__main__":
    main()
