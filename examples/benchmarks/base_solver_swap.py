"""One correction, other base solvers: HyperMidpoint over the alpha family on MNIST (section 4.1, Fig. 6 of the paper).

    python examples/benchmarks/base_solver_swap.py --data FOLDER [--seeds 3]

Corrections are fitted for the midpoint method (alpha = 0.5) on 1,000 training images of the Neural ODE of images.py,
without labels. ``with_solver`` then puts other members of the family under them, without refitting, and 1,000 test
images tell the errors of the terminal states beside those of the plain members. Ground truth is dopri5, at 1e-4 as in
the paper and at 1e-6 (which resolves what the former does not). Corrections, all but the first of one architecture (16
channels, 0.4 of f's MACs):

paper     Reads z, the first stage and eps: the paper's net (two convolutions, 92 channels, 1.7 times f's MACs).
raw       Reads (r_2 - r_1) / eps: quotients whose size depends on alpha.
default   Reads (r_2 - r_1) / (alpha eps), the derivative of f along the step whatever alpha is.
family    The same, reads which member it runs with, and is fitted over eight of them (``tableaus=``).

Recipes: "residual" is the paper's (residuals of K steps, no fine-tuning), "finetuned" our default. The two ends of the
family also get a "specialist" of their own at K = 2, a fit for that base solver alone, to tell how much of an error is
the swap's.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from _results import Results, fitted, parser, spread
from _solving import solve_exactly
from images import Images, load_images, trained_model
from torch import Tensor, nn

from sklearn_hyper import ConvCorrection, HypersolverClassifier, NeuralODE, alpha_family
from sklearn_hyper.metrics import mean_absolute_percentage_error, relative_l2
from sklearn_hyper.modules import CorrectionNet, NetInputs, ScaleSample
from sklearn_hyper.numerics import StepKind

ALPHAS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
FAMILY = [alpha_family(alpha) for alpha in (0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 1.0)]
FIT_ROWS = TEST_ROWS = 1000
TOLERANCES = (1e-4, 1e-6)
REFERENCE_BATCH = 83
"""Images that are solved at a time; at 1e-4 they make a difference to each other."""


class PaperCorrection(nn.Module):
    """The paper's HyperMidpoint net for states of 32 channels; its last layer starts at zero."""

    def __init__(self, channels: int = 32, hidden: int = 92):
        super().__init__()
        self.first = nn.Conv2d(2 * channels + 1, hidden, 3, padding=1)
        self.last = nn.Conv2d(hidden, channels, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, eps: float, s: Tensor, z: Tensor, stages: list[Tensor], x: Tensor | None = None) -> Tensor:
        features = torch.cat([z, stages[0], torch.full_like(z[:, :1], eps)], dim=1)
        return self.last(torch.relu(self.first(features)))


class Blind(CorrectionNet):
    """A net of the library that is told the same kind of step, whichever base solver it runs with."""

    def __init__(self, net: CorrectionNet):
        super().__init__()
        self.net = net

    def with_scales(self, sample: ScaleSample) -> CorrectionNet:
        residuals = [residual._replace(kind=_blind(residual.kind)) for residual in sample.residuals]
        return Blind(self.net.with_scales(replace(sample, residuals=residuals)))

    def forward(
        self, eps: float, s: Tensor, z: Tensor, stages: list[Tensor], x: Tensor | None, kind: StepKind
    ) -> Tensor:
        return self.net(eps, s, z, stages, x, _blind(kind))


def _blind(kind: StepKind) -> StepKind:
    """The kind with its second stage at the end of the step."""
    return replace(kind, nodes=(0.0, 1.0), offsets=(0.0, 1.0))


class RawCorrection(ConvCorrection):
    """The library's net with (r_2 - r_1) / eps in place of (r_2 - r_1) / (alpha eps)."""

    def build(self, inputs: NetInputs) -> nn.Module:
        return Blind(super().build(inputs))


CORRECTIONS = {
    "paper": {"correction": PaperCorrection(), "lr": 5e-3},
    "raw": {"correction": RawCorrection(hidden=16)},
    "default": {"correction": ConvCorrection(hidden=16)},
    "family": {"correction": ConvCorrection(hidden=16, tableaus=FAMILY)},
}


class Plan(NamedTuple):
    """Corrections to fit by one recipe at one K, and over how many seeds at most (the last ones take long)."""

    recipe: str
    n_steps: int
    names: tuple[str, ...]
    seeds: int


PLANS = [
    Plan("residual", 10, ("paper", "raw", "default", "family"), 3),
    Plan("finetuned", 2, ("raw", "default", "family"), 3),
    Plan("finetuned", 5, ("default", "family"), 3),
    Plan("finetuned", 10, ("default", "family"), 1),
]


class Run:
    """The benchmark over a file of results and a cache of fitted models."""

    def __init__(self, arguments: argparse.Namespace):
        self.arguments = arguments
        self.cache = Path(arguments.cache) / "base-solver-swap"
        self.images: Images = load_images("mnist", arguments.data)
        self.model = trained_model("mnist", self.images, arguments.cache)
        self.x_test = self.images.X_test[:TEST_ROWS]
        self.truth = fitted(self.cache, "truth", lambda: solve_tests(self.model.neural_ode_, self.x_test))
        self.results = Results(
            arguments.out, f"python examples/benchmarks/base_solver_swap.py --seeds {arguments.seeds}", fresh=arguments.fresh
        )  # fmt: skip

    def fit(
        self, recipe: str, n_steps: int, name: str, seed: int = 0, base_solver: Any = "midpoint"
    ) -> HypersolverClassifier:
        """A correction from the cache, or fitted now."""
        settings = {"fit_n_steps": n_steps, "finetune": None} if recipe == "residual" else {}

        def fit() -> HypersolverClassifier:
            hypersolver = HypersolverClassifier(
                self.model, base_solver=base_solver, n_steps=n_steps, max_epochs=self.arguments.epochs,
                memory=str(self.cache / "references"), random_state=seed, **settings, **CORRECTIONS[name],
            )  # fmt: skip
            return hypersolver.fit(self.images.X_train[:FIT_ROWS])

        key = f"{recipe}-{n_steps}-{name}-{seed}"
        return fitted(self.cache, key if base_solver == "midpoint" else f"{key}-{base_solver.name}", fit)

    def measure(self, recipe: str, n_steps: int, name: str, seed: int = 0) -> None:
        """One cell: a correction (or none: "plain") under every alpha."""

        def measure() -> dict[str, Any]:
            if name == "plain":
                fast = self.fit(recipe, n_steps, "default", 0).without_correction()
                facts = {}
            else:
                fast = self.fit(recipe, n_steps, name, seed)
                facts = {"fit_seconds": sum(row["dur"] for row in fast.history_)}
            swapped = [self._errors(fast.with_solver(alpha_family(alpha))) for alpha in ALPHAS]
            return facts | {key: [errors[key] for errors in swapped] for key in swapped[0]}

        label = f"plain K={n_steps}" if name == "plain" else f"{name} {recipe} K={n_steps} seed={seed}"
        self.results.cell(label, measure)

    def specialist(self, alpha: float) -> None:
        """One cell: a correction fitted for this alpha, at K = 2."""

        def measure() -> dict[str, Any]:
            fast = self.fit("finetuned", 2, "default", base_solver=alpha_family(alpha))
            return {"fit_seconds": sum(row["dur"] for row in fast.history_), **self._errors(fast)}

        self.results.cell(f"specialist finetuned K=2 alpha={alpha}", measure)

    def _errors(self, solver: HypersolverClassifier) -> dict[str, float]:
        states = solver.transform(self.x_test)
        errors = {}
        for tolerance, truth in self.truth.items():
            errors[f"mape_{tolerance:g}"] = mean_absolute_percentage_error(truth, states)
            errors[f"l2_{tolerance:g}"] = relative_l2(truth, states).mean()
        return errors


def solve_tests(ode: NeuralODE, x: np.ndarray) -> dict[float, np.ndarray]:
    """dopri5's terminal states of the test images, by tolerance."""
    rows = torch.from_numpy(x)
    return {
        tolerance: solve_exactly(ode, rows, ode.t_span, tolerance, REFERENCE_BATCH)[-1].numpy()
        for tolerance in TOLERANCES
    }


def summarise(cells: dict[str, Any]) -> dict[str, Any]:
    """By run and correction: errors over alpha, and where the plain solver is as good or better."""
    summary: dict[str, Any] = {"alphas": list(ALPHAS)}
    for recipe, n_steps, names, _ in PLANS:
        plain = cells.get(f"plain K={n_steps}")
        for name in names:
            prefix = f"{name} {recipe} K={n_steps} seed="
            found = [cell for label, cell in cells.items() if label.startswith(prefix)]
            if not found or plain is None:
                continue
            table = {}
            for key in ("mape_1e-06", "l2_1e-06", "mape_0.0001", "l2_0.0001"):
                errors = np.array([cell[key] for cell in found])
                gain = np.array(plain[key]) / errors
                table[key] = {
                    "plain": plain[key],
                    "error": [spread(column.tolist()) for column in errors.T],
                    "plain_over_ours": [spread(column.tolist()) for column in gain.T],
                    "no_better_than_plain_at": [
                        a for a, column in zip(ALPHAS, gain.T, strict=True) if min(column) <= 1
                    ],
                }
            summary[f"{name} {recipe} K={n_steps}"] = table
    return summary


def print_summary(summary: dict[str, Any]) -> None:
    print(f"\nMAPE of terminal states against dopri5 at 1e-6, median over seeds\n{'alpha':<28}", end="")
    print("".join(f"{alpha:>9}" for alpha in summary["alphas"]))
    shown = set()
    for name, table in summary.items():
        if name == "alphas":
            continue
        errors, run = table["mape_1e-06"], name.split("K=")[1]
        if run not in shown:
            shown.add(run)
            print(f"{f'plain K={run}':<28}" + "".join(f"{value:>9.2g}" for value in errors["plain"]))
        print(f"{name:<28}" + "".join(f"{value['median']:>9.2g}" for value in errors["error"]))


def main() -> None:
    options = parser(__doc__, "base_solver_swap.json")
    options.add_argument("--data", help="folder of mnist.npz; default SKLEARN_HYPER_DATA, OpenML")
    options.add_argument("--seeds", type=int, default=3, help="of the corrections; the Neural ODE is one")
    options.add_argument("--epochs", type=int, default=60, help="of each correction's fit")
    run = Run(options.parse_args())

    for seed in range(run.arguments.seeds):
        for recipe, n_steps, names, seeds in PLANS:
            if seed < seeds:
                run.measure(recipe, n_steps, "plain")
                for name in names:
                    run.measure(recipe, n_steps, name, seed)
                run.results.write(summarise(run.results.cells))
    for alpha in (ALPHAS[0], ALPHAS[-1]):
        run.specialist(alpha)
    run.results.write(summarise(run.results.cells))
    print_summary(summarise(run.results.cells))


if __name__ == "__main__":
    main()
