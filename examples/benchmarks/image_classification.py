"""Hypersolvers of convolutional Neural ODEs on MNIST and CIFAR-10 (section 4.1 of the paper, Figs. 3 and 4).

    python examples/benchmarks/image_classification.py --images mnist --data FOLDER [--only PART]

Trains the Neural ODE (see images.py), fits hypersolvers on 600 (CIFAR-10: 300) of its *training* images, without their
labels, and measures on the test images. Accuracy is lost, and labels agree, against dopri5 at 1e-4, on all of them;
errors are against dopri5 at 1e-6 (the paper: 1e-4 for both), on the first 2,000. As in the paper, the fewest steps that
lose under 0.1 points are read off the test images. training_seconds leave out the reference solves, which the fits of a
data set share. A cost is MACs in units of one evaluation of f, with those of g. Parts, each of cells that a stopped run
goes on from:

- classical: Euler, midpoint, Heun and RK4 over step counts;
- paper: HyperEuler by the paper's recipe: its three-layer g, residuals of ten steps, no fine-tuning;
- plain: the same recipe with our default g (under a tenth of f's MACs);
- generalist: one g for Euler with 1 to 20 steps, and one for 1 to 50, compared with Euler at every K from 1 to 50;
- specialists: our recipe at one low K each. "auto" is the default, changed weights in every evaluation; the others are
  nets beside f;
- finetune: finetune="terminal" against "output" at K = 1 and 2, over seeds;
- timing: wall-clock over dopri5 at 1e-4, batch 256 and 1, of each method at its fewest steps with under 0.1 points
  lost, and of the specialists. Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _results import HERE, Results, fitted, parser, spread
from _solving import count_calls, dopri5_solver, plain_solver, solve_exactly
from images import Images, add_image_options, load_images, trained_model
from torch import Tensor

from sklearn_hyper import ConvCorrection, HypersolverClassifier, NeuralODE
from sklearn_hyper.metrics import mean_absolute_percentage_error, relative_l2
from sklearn_hyper.modules import FoldedODE, HypersolvedODE
from sklearn_hyper.numerics import count_macs, time_interleaved

Solver = FoldedODE | HypersolvedODE

BATCH = 256
EPOCHS = 60
ALLOWED_LOSS = 0.1
FEW_STEPS = [1, 2, 3, 4, 5, 7, 10]
ERROR_ROWS = 2000
SWEEP_ROWS = 200
FIT_ROWS = {"mnist": 600, "cifar": 300}

CLASSICAL = {
    "euler": [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 15, 20],
    "midpoint": [1, 2, 3, 4, 5],
    "heun": [1, 2, 3, 4, 5],
    "rk4": [1, 2, 3],
}
PAPER_G = ConvCorrection(hidden=32, depth=2, activation="prelu", gate=False)
PLAIN = {"base_solver": "euler", "n_steps": 10, "fit_n_steps": 10, "loss": "residual", "finetune": None}
SPECIALISTS = [
    ("auto", 1), ("auto", 2), ("auto", 4), ("euler", 1), ("euler", 2), ("euler", 4), ("midpoint", 1), ("midpoint", 2), ("midpoint", 3), ("midpoint", 4), ("heun", 1), ("rk4", 1),
]  # fmt: skip


@dataclass
class Bench:
    """A trained Neural ODE, its test images and dopri5's answers on them."""

    ode: NeuralODE
    x: Tensor
    y: np.ndarray
    states: Tensor
    labels: np.ndarray
    macs_f: float

    @property
    def accuracy(self) -> float:
        """Of dopri5 at 1e-4."""
        return float(np.mean(self.labels == self.y))

    def measure(self, solver: Solver, n_rows: int | None = None) -> dict[str, Any]:
        """Errors and costs of a solver on the first rows of the test images."""
        rows, few = slice(n_rows), slice(min(len(self.states), n_rows or len(self.x)))
        with torch.no_grad():
            z = torch.cat([solver.terminal_state(x) for x in self.x[rows].split(BATCH)])
            logits, expected = (outputs(self.ode, states) for states in (z, self.states[few]))
        states, own = self.states[few].cpu(), z[few].cpu()
        found, errors = logits.argmax(1), relative_l2(states, own)
        one = self.x[:1]
        macs = count_macs(solver.terminal_state, one) - np.nan_to_num(count_macs(self.ode.input_map, one))
        return {
            "accuracy": np.mean(found == self.y[rows]),
            "loss_points": 100 * (np.mean(self.labels[rows] == self.y[rows]) - np.mean(found == self.y[rows])),
            "agreement": np.mean(found == self.labels[rows]),
            "mape": mean_absolute_percentage_error(states, own),
            "mape_logits": mean_absolute_percentage_error(expected, logits[few]),
            "l2": errors.mean(), "l2_p99": np.quantile(errors, 0.99), "l2_max": errors.max(),
            "nfe": solver.base_solver.count_evaluations(solver.n_steps), "gmac": macs / 1e9, "cost": macs / self.macs_f,
        }  # fmt: skip

    def plain(self, base: str, n_steps: int) -> HypersolvedODE:
        """A base solver without a correction."""
        return plain_solver(self.ode, base, n_steps)


def outputs(ode: NeuralODE, states: Tensor) -> np.ndarray:
    """Logits of terminal states."""
    return torch.cat([ode.output_map(z) for z in states.split(BATCH)]).cpu().numpy()


def solve_test_images(ode: NeuralODE, x: Tensor) -> dict[str, Any]:
    """dopri5 in batches of 256: labels at 1e-4, and what they cost; at 1e-6 the states that errors are against."""
    loose, evaluations = [], []
    solve = dopri5_solver(ode, 1e-4)
    with torch.no_grad():
        for rows in x.split(BATCH):
            evaluations.append(count_calls(ode.vector_field, lambda rows=rows: loose.append(solve(rows))))
        states = solve_exactly(ode, x[:ERROR_ROWS], ode.t_span, 1e-6, BATCH)[-1]
        loose_states = torch.cat(loose)
        expected, logits = outputs(ode, states), outputs(ode, loose_states)
    few = slice(len(states))
    facts = {
        "nfe_dopri5": np.mean(evaluations),
        "agreement_with_1e-6": np.mean(expected.argmax(1) == logits[few].argmax(1)),
        "mape": mean_absolute_percentage_error(states.cpu(), loose_states[few].cpu()),
        "mape_logits": mean_absolute_percentage_error(expected, logits[few]),
        "l2": relative_l2(states.cpu(), loose_states[few].cpu()).mean(),
    }
    return {"states": states, "labels": logits.argmax(1), "facts": facts}


class Run:
    """One data set: the parts of the benchmark, over a file of results and a cache of fitted models."""

    def __init__(self, arguments: argparse.Namespace):
        self.arguments = arguments
        name, architecture = arguments.images, arguments.architecture
        # A folder a data set and architecture: names of fitted hypersolvers repeat.
        self.cache = Path(arguments.cache) / f"{name}-{architecture}"
        self.images: Images = load_images(name, arguments.data)
        self.model = trained_model(
            name, self.images, arguments.cache, architecture=architecture, device=arguments.device
        )
        suffix = "" if architecture == "patches" else f"_{architecture}"
        command = f"python examples/benchmarks/image_classification.py --images {name} --seeds {arguments.seeds}"
        if arguments.epochs != EPOCHS:
            command += f" --epochs {arguments.epochs}"
        self.results = Results(
            arguments.out or HERE / f"image_classification_{name}{suffix}.json",
            command + (f" --architecture {architecture} --device {arguments.device}" if suffix else ""),
            fresh=arguments.fresh,
        )
        self.bench = self._bench()

    def _bench(self) -> Bench:
        ode, device = self.model.neural_ode_, self.arguments.device
        x = torch.from_numpy(self.images.X_test).to(device)
        solved = fitted(self.cache, "test-solutions", lambda: solve_test_images(ode, x))
        with torch.no_grad():
            macs_f = count_macs(ode.vector_field, x.new_tensor(0.0), ode.input_map(x[:1]))
        bench = Bench(ode, x, self.images.y_test, solved["states"].to(device), solved["labels"], macs_f)
        self.results.cell("dopri5", lambda: {
            "accuracy": bench.accuracy, **solved["facts"], "gmac_f": macs_f / 1e9, "n_test": len(x),
            "training_seconds": sum(row["dur"] for row in self.model.history_),
        })  # fmt: skip
        return bench

    # ------------------------------------------------------------------ fitting
    def fit(self, name: str, seed: int = 0, **settings: Any) -> HypersolverClassifier:
        """A hypersolver fitted on training images, from the cache where it has one."""

        def fit() -> HypersolverClassifier:
            settings.setdefault("max_epochs", self.arguments.epochs)
            rows = self.images.X_train[: FIT_ROWS[self.arguments.images]]
            hypersolver = HypersolverClassifier(
                self.model, max_samples=len(rows), memory=str(self.cache / "references"), random_state=seed,
                device=self.arguments.device, **settings,
            )  # fmt: skip
            return hypersolver.fit(rows)

        key = f"{name} seed={seed}".replace(" ", "-")
        if self.arguments.epochs != EPOCHS:
            key += f"-epochs={self.arguments.epochs}"
        return fitted(self.cache, key, fit)

    def measure(self, name: str, hypersolver: Callable[[], HypersolverClassifier], n_steps: int) -> dict[str, Any]:
        """The cell of a hypersolver at a number of steps."""

        def measure() -> dict[str, Any]:
            found = hypersolver()
            solver = self._at(found, n_steps)
            return {"training_seconds": sum(row["dur"] for row in found.history_), **self.bench.measure(solver)}

        return self.results.cell(f"{name} K={n_steps}", measure)

    def _at(self, hypersolver: HypersolverClassifier, n_steps: int) -> FoldedODE:
        """The same correction in another number of steps, without the warning of step sizes that it has not seen."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return hypersolver.with_solver(n_steps=n_steps).to_module().fold()

    # ------------------------------------------------------------------ parts
    def classical(self) -> None:
        """Solvers without a correction."""
        for base, steps in CLASSICAL.items():
            for k in steps:
                self.results.cell(f"{base} K={k}", lambda base=base, k=k: self.bench.measure(self.bench.plain(base, k)))

    def paper(self) -> None:
        """The reference's recipe and net."""
        for k in FEW_STEPS:
            self.measure("HyperEuler (paper)", lambda: self.fit("paper", correction=PAPER_G, lr=5e-3, **PLAIN), k)

    def plain(self) -> None:
        """The reference's recipe, our net."""
        for k in FEW_STEPS:
            self.measure("HyperEuler (plain)", lambda: self.fit("plain", **PLAIN), k)

    def generalist(self) -> None:
        """One g for many step counts, on the Euler base; the comparison at every K is on 200 test images."""
        for k in FEW_STEPS:
            self.measure("generalist (1, 20)", lambda: self._generalist(20), k)
        for name, solver in [("euler", None), ("generalist (1, 50)", self._generalist)]:
            for k in range(1, 51):
                self.results.cell(f"200 images: {name} K={k}", lambda solver=solver, k=k: self._few_rows(solver, k))

    def _generalist(self, most: int = 50) -> HypersolverClassifier:
        return self.fit(f"generalist-{most}", base_solver="euler", n_steps=4, fit_n_steps=(1, most))

    def _few_rows(self, hypersolver: Callable[[], HypersolverClassifier] | None, k: int) -> dict[str, Any]:
        solver = self.bench.plain("euler", k) if hypersolver is None else self._at(hypersolver(), k)
        return {
            key: value for key, value in self.bench.measure(solver, SWEEP_ROWS).items() if key in ("l2", "mape", "cost")
        }

    def _specialist(self, base: str, k: int, seed: int = 0, finetune: str = "terminal") -> HypersolverClassifier:
        return self.fit(f"{base}-{k}-{finetune}", seed, base_solver=base, n_steps=k, finetune=finetune)

    def specialists(self) -> None:
        """Our default recipe."""
        for base, k in SPECIALISTS:
            self.measure(f"specialist {base}", lambda base=base, k=k: self._specialist(base, k), k)

    def finetune(self) -> None:
        """State against output."""
        for seed in range(self.arguments.seeds):
            for k in (2, 1):
                for target in ("terminal", "output"):
                    self.measure(
                        f"finetune={target} seed={seed} euler",
                        lambda k=k, seed=seed, target=target: self._specialist("euler", k, seed, target), k,
                    )  # fmt: skip

    def timing(self) -> None:
        """Wall-clock, all in turn."""
        solvers = dict(self._timed())
        for batch in (BATCH, 1):
            self.results.cell(
                f"milliseconds, batch {batch}", lambda batch=batch: self._milliseconds(solvers, self.bench.x[:batch])
            )

    def _milliseconds(self, solvers: dict[str, Solver], x: Tensor) -> dict[str, float]:
        ode = self.bench.ode
        solve = dopri5_solver(ode, 1e-4)
        with torch.no_grad():
            z0 = ode.input_map(x)
            return time_interleaved({
                "dopri5": lambda: solve(x),
                **{name: (lambda solver=solver: solver.terminal_state(x)) for name, solver in solvers.items()},
                "one evaluation of f": lambda: ode.vector_field(x.new_tensor(0.0), z0),
                "input map": lambda: ode.input_map(x),
            })  # fmt: skip

    def _timed(self) -> Iterator[tuple[str, Solver]]:
        cells = self.results.cells
        for base in CLASSICAL:
            k = fewest_steps(cells, base, CLASSICAL[base])
            if k is not None:
                yield f"{base} K={k}", self.bench.plain(base, k)
        for label, found in [
            ("HyperEuler (paper)", lambda: self.fit("paper", correction=PAPER_G, lr=5e-3, **PLAIN)),
            ("HyperEuler (plain)", lambda: self.fit("plain", **PLAIN)),
            ("generalist (1, 20)", lambda: self._generalist(20)),
        ]:
            k = fewest_steps(cells, label, FEW_STEPS)
            if k is not None:
                yield f"{label} K={k}", self._at(found(), k)
        for base, k in SPECIALISTS:
            yield f"specialist {base} K={k}", self._specialist(base, k).module_
        for k in (1, 2):
            yield f"specialist euler, output K={k}", self._specialist("euler", k, 0, "output").module_


PARTS = ["specialists", "classical", "finetune", "plain", "paper", "generalist", "timing"]


# ---------------------------------------------------------------------- reading the cells
def fewest_steps(cells: dict[str, Any], name: str, steps: Iterable[int]) -> int | None:
    """Fewest steps with under 0.1 points of accuracy lost."""
    known = [k for k in steps if f"{name} K={k}" in cells]
    return next((k for k in known if cells[f"{name} K={k}"]["loss_points"] < ALLOWED_LOSS), None)


def summarise(cells: dict[str, Any]) -> dict[str, Any]:
    """The claims, one by one."""
    ours = {name: cell for name, cell in cells.items() if "cost" in cell and _is_ours(name)}
    classical = {n: cells[n] for base, steps in CLASSICAL.items() for k in steps if (n := f"{base} K={k}") in cells}
    summary: dict[str, Any] = {"dopri5": cells["dopri5"]}
    summary["equal_macs"] = {n: _rivals(cell, classical) for n, cell in ours.items() if cell["nfe"] < 10}
    summary["fewest_steps_under_0.1"] = {
        name: fewest_steps(cells, name, range(1, 51))
        for name in [*CLASSICAL, "HyperEuler (paper)", "HyperEuler (plain)", "generalist (1, 20)"]
    }
    pairs = [
        (k, cells[f"200 images: generalist (1, 50) K={k}"], cells[f"200 images: euler K={k}"])
        for k in range(1, 51)
        if f"200 images: generalist (1, 50) K={k}" in cells and f"200 images: euler K={k}" in cells
    ]
    if pairs:
        summary["generalist"] = {
            error: {
                "worse_than_euler_at": [k for k, own, euler in pairs if own[error] >= euler[error]],
                "euler_over_ours": {k: euler[error] / own[error] for k, own, euler in pairs},
            }
            for error in ("l2", "mape")
        }
    summary["finetune"] = {
        f"{target} K={k}": {key: spread(cell[key] for cell in found) for key in ("loss_points", "agreement", "l2")}
        for target in ("terminal", "output")
        for k in (1, 2)
        if (found := [c for n, c in cells.items() if n.startswith(f"finetune={target} ") and n.endswith(f"K={k}")])
    }
    summary["speed"] = {batch: _speeds(cells, batch) for batch in (BATCH, 1) if f"milliseconds, batch {batch}" in cells}
    return summary


def _is_ours(name: str) -> bool:
    return name.startswith(("specialist", "generalist", "HyperEuler", "finetune=output seed=0"))


def _rivals(cell: dict[str, Any], classical: dict[str, Any]) -> dict[str, Any]:
    """The best classical solver of no more MACs, and of MACs rounded up to whole evaluations: its error over ours."""
    found: dict[str, Any] = {"cost": cell["cost"]}
    for key, limit in [("no_more_macs", cell["cost"]), ("rounded_up", np.ceil(cell["cost"]))]:
        rivals = {name: rival for name, rival in classical.items() if rival["cost"] <= limit + 1e-6}
        for error in ("l2", "mape") if rivals else ():
            best = min(rivals, key=lambda name: rivals[name][error])
            found[f"{key}_{error}"] = {"rival": best, "rival_over_ours": rivals[best][error] / cell[error]}
    return found


def _speeds(cells: dict[str, Any], batch: int) -> dict[str, Any]:
    ms = cells[f"milliseconds, batch {batch}"]
    nfe = cells["dopri5"]["nfe_dopri5"]
    table = {}
    for name in ms:
        # One fine-tuned on the output is the seed 0 of that part.
        cell = cells.get(name.replace("specialist euler, output", "finetune=output seed=0 euler"))
        if cell is None or "cost" not in cell:
            continue
        speed_up = ms["dopri5"] / ms[name]
        table[name] = {
            "speed_up": speed_up, "loss_points": cell["loss_points"], "cost": cell["cost"],
            "share_of_ideal": speed_up * cell["cost"] / nfe,
        }  # fmt: skip
    return table


def print_summary(summary: dict[str, Any], cells: dict[str, Any]) -> None:
    print(f"\n{'solver':<38}{'NFE':>4}{'cost':>7}{'loss':>8}{'agree':>8}{'MAPE':>9}{'rel. L2':>9}")
    for name, cell in cells.items():
        if "nfe" in cell:
            print(
                f"{name:<38}{cell['nfe']:>4}{cell['cost']:>7.2f}{cell['loss_points']:>8.2f}{cell['agreement']:>8.4f}"
                f"{cell['mape']:>9.4f}{cell['l2']:>9.4f}"
            )
    for batch, table in summary["speed"].items():
        print(f"\nbatch {batch}: speed-up over dopri5 at 1e-4, accuracy lost, speed-up / (NFE of dopri5 / cost)")
        for name, row in table.items():
            print(f"{name:<38}{row['speed_up']:>7.1f}{row['loss_points']:>8.2f}{row['share_of_ideal']:>7.2f}")


def main() -> None:
    options = parser(__doc__, "image_classification.json")
    options.set_defaults(out=None)
    add_image_options(options)
    options.add_argument("--only", choices=PARTS, nargs="+", default=PARTS)
    options.add_argument("--seeds", type=int, default=3, help="of the comparison of fine-tuning targets")
    options.add_argument("--epochs", type=int, default=EPOCHS, help="of each hypersolver's fit")
    run = Run(options.parse_args())
    for part in run.arguments.only:
        getattr(run, part)()
        run.results.write(summarise(run.results.cells))
    print_summary(summarise(run.results.cells), run.results.cells)


if __name__ == "__main__":
    main()
