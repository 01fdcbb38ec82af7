"""Problems ready to be solved: their fields, the rows to fit and to measure on, and reference solutions.

Every problem has rows to fit on, rows to choose on (valid), rows to report on (test), and rows beyond the fitted range
(outside). References are dopri5's in float64 at 1e-8, for the rows to fit on in float32 at 1e-6.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from _flows import load_flow, load_table_flow
from _results import fitted
from _solving import solve_exactly, uniform_grid
from image_flow import load_digits_flow
from images import load_digit_images, load_images, trained_model
from torch import Tensor, nn

from sklearn_hyper import ContinuousNormalizingFlow, NeuralODE, NeuralODEClassifier
from sklearn_hyper.datasets import ForcedOscillator, LeadingFeatures, Pendulum, VanDerPol

from .problems import (
    PROBLEMS,
    AttentionProblem,
    FlowProblem,
    ImageFlowProblem,
    ImageProblem,
    Problem,
    SystemProblem,
    TableProblem,
)

FITTED_STEPS = 24
"""References of the rows to fit on are known at this many steps, those of every K that divides it among them."""
OUTSIDE = 1.5
"""How far beyond the fitted range the outside rows reach."""
N_ROWS = {"fit": 2000, "valid": 500, "test": 2000, "outside": 1000}
REFERENCE_BATCH = 500


@dataclass
class References:
    """Reference solutions.

    Parameters
    ----------
    states : dict of Tensor
        Terminal states by part, but of the rows to fit on.
    trajectory : Tensor
        States of the rows to fit on at FITTED_STEPS steps, time first.
    """

    states: dict[str, Tensor]
    trajectory: Tensor


@dataclass
class LoadedProblem:
    """A Neural ODE and its rows, as float32 tensors of what the Neural ODE takes.

    Parameters
    ----------
    problem : Problem
    neural_ode : NeuralODE
    rows : dict of Tensor
        By part.
    labels : ndarray, optional
        Classes of the test rows.
    share : float
        Of their seconds that rivals may train for.
    """

    problem: Problem
    neural_ode: NeuralODE
    rows: dict[str, Tensor]
    labels: np.ndarray | None = None
    share: float = 1.0
    references: References | None = None

    def seconds_for(self, n_evaluations: int) -> float:
        """CPU seconds that a rival of so many evaluations may train for."""
        return self.share * self.problem.seconds_for(n_evaluations)

    @property
    def initial_states(self) -> Tensor:
        """Of the rows to fit on."""
        with torch.no_grad():
            return self.neural_ode.input_map(self.rows["fit"])

    @functools.cached_property
    def macs_f(self) -> float:
        """MACs of one evaluation of f; nan where it is made of elementwise operations."""
        return self.neural_ode.count_field_macs(self.rows["test"][:1])

    def states(self, part: str) -> Tensor:
        """Terminal states of rows, in float64."""
        return self.references.states[part]

    def states_at(self, n_steps: int) -> Tensor:
        """References of the rows to fit on at the mesh of n_steps, which divides FITTED_STEPS."""
        if FITTED_STEPS % n_steps:
            raise ValueError(f"n_steps={n_steps} does not divide {FITTED_STEPS}.")
        return self.references.trajectory[:: FITTED_STEPS // n_steps]

    @property
    def fitted_ends(self) -> Tensor:
        """Terminal states of the rows to fit on."""
        return self.references.trajectory[-1]

    def solve_references(self) -> References:
        """Solve for the states of all parts and the trajectories of the rows to fit on."""
        ode = self.neural_ode
        exact = copy.deepcopy(ode).double()
        states = {
            part: solve_exactly(exact, x.double(), ode.t_span, 1e-8, REFERENCE_BATCH)[-1]
            for part, x in self.rows.items()
            if part != "fit"
        }
        times = uniform_grid(ode.t_span, FITTED_STEPS)
        return References(states, solve_exactly(ode, self.rows["fit"], times, 1e-6, REFERENCE_BATCH))


@functools.lru_cache(maxsize=2)
def load(problem: Problem, cache: str, data: str | None, share: float = 1.0) -> LoadedProblem:
    """A problem with its references, from the cache where it has them; rivals get a share of their CPU seconds."""
    loaded = _build(problem, cache, data)
    loaded.share = share
    loaded.neural_ode.eval().requires_grad_(False)
    solved = fitted(cache, f"work_precision references {problem.name}", lambda: vars(loaded.solve_references()))
    loaded.references = References(**solved)
    return loaded


def load_by_name(name: str, cache: str, data: str | None = None) -> LoadedProblem:
    """A problem for other benchmarks."""
    return load(PROBLEMS[name], cache, data)


@functools.singledispatch
def _build(problem: Problem, cache: str, data: str | None) -> LoadedProblem:
    raise TypeError(f"nothing says how {problem!r} is made")


@_build.register
def _(problem: FlowProblem, cache: str, data: str | None) -> LoadedProblem:
    return _sampling(problem, load_flow(problem.density, problem.objective, cache))


@_build.register
def _(problem: TableProblem, cache: str, data: str | None) -> LoadedProblem:
    return _sampling(problem, load_table_flow(problem.name, cache, data))


def _sampling(problem: Problem, flow: ContinuousNormalizingFlow) -> LoadedProblem:
    """From base draws to data; outside, base draws are scaled up. Errors are those of standardised states."""
    draw = torch.Generator().manual_seed(0)
    scales = {part: OUTSIDE if part == "outside" else 1.0 for part in N_ROWS}
    rows = {
        part: scale * torch.randn(N_ROWS[part], flow.flow_.n_features, generator=draw) for part, scale in scales.items()
    }
    return LoadedProblem(problem, NeuralODE(flow.flow_.vector_field, t_span=flow.flow_.t_span), rows)


class ForcedVanDerPol(VanDerPol):
    """Van der Pol's oscillator under a force cos(3 t): nonlinear and non-autonomous.

    The forced linear oscillator's solution is affine in its start, so that learned linear coefficients alone are exact.
    """

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        dz = super().forward(t, z)
        return torch.stack([dz[..., 0], dz[..., 1] + torch.cos(3 * t)], dim=-1)


_FORMULAS: dict[str, Callable[[], NeuralODE]] = {
    "pendulum": lambda: NeuralODE(Pendulum(), input_map=LeadingFeatures(2), data_controlled=True),
    "van_der_pol": lambda: NeuralODE(VanDerPol(mu=1.0)),
    "forced_van_der_pol": lambda: NeuralODE(ForcedVanDerPol(mu=1.0), t_span=(0.0, 2.0)),
    "forced_oscillator": lambda: NeuralODE(ForcedOscillator(), t_span=(0.0, 2.0)),
}


@_build.register
def _(problem: SystemProblem, cache: str, data: str | None) -> LoadedProblem:
    """Uniform rows in a box; outside, rows of the larger box that are not in it."""
    draw = torch.Generator().manual_seed(0)
    width = torch.tensor(problem.half_width)

    def uniform(n: int) -> Tensor:
        return width * (2 * torch.rand(n, len(width), generator=draw) - 1)

    rows = {part: uniform(N_ROWS[part]) for part in ("fit", "valid", "test")}
    larger = OUTSIDE * uniform(10 * N_ROWS["outside"])
    rows["outside"] = larger[(larger.abs() > width).any(dim=1)][: N_ROWS["outside"]]
    return LoadedProblem(problem, _FORMULAS[problem.name](), rows)


class TokenField(nn.Module):
    """Attention and a perceptron, as a block of a transformer has them, whose normalisation is told the time."""

    def __init__(self, width: int = 16, hidden: int = 32):
        super().__init__()
        self.time = nn.Linear(1, width)
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.perceptron = nn.Sequential(nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, width))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        h = self.before(z) + self.time(t.reshape(1).to(z))
        a, _ = self.attention(h, h, h, need_weights=False)
        return a + self.perceptron(self.between(z + a))


@_build.register
def _(problem: AttentionProblem, cache: str, data: str | None) -> LoadedProblem:
    """Rows of pixels as tokens; outside, test images of more contrast."""
    images = load_digit_images(seed=0)
    train, test = (torch.from_numpy(x[:, 0] / 16) for x in (images.X_train, images.X_test))

    def learn() -> NeuralODEClassifier:
        torch.manual_seed(0)  # modules draw their weights when they are made
        model = NeuralODEClassifier(
            TokenField(), input_map=nn.Linear(8, 16), output_map=nn.Sequential(nn.Flatten(), nn.Linear(128, 10)),
            t_span=(0.0, 2.0), rtol=1e-3, atol=1e-3, max_epochs=20, lr=5e-3, random_state=0,
        )  # fmt: skip
        return model.fit(train.numpy(), images.y_train)

    model = fitted(cache, problem.name, learn)
    rows = {"fit": train[:1000], "valid": train[1000:1150], "test": test, "outside": OUTSIDE * test[:200]}
    return LoadedProblem(problem, model.neural_ode_, rows, labels=images.y_test)


@_build.register
def _(problem: ImageFlowProblem, cache: str, data: str | None) -> LoadedProblem:
    """Base draws with a class each; outside, base draws are scaled up. Fewer rows than elsewhere: they cost more."""
    neural_ode, base_rows = load_digits_flow(cache)
    draw = torch.Generator().manual_seed(0)
    n_rows = {"fit": 1000, "valid": 150, "test": 500, "outside": 200}
    rows = {part: base_rows(n, draw, OUTSIDE if part == "outside" else 1.0) for part, n in n_rows.items()}
    return LoadedProblem(problem, neural_ode, rows)


@_build.register
def _(problem: ImageProblem, cache: str, data: str | None) -> LoadedProblem:
    """Training images to fit and to choose on; outside, test images of more contrast."""
    if problem.name == "digits":
        images = load_digit_images(seed=0)
        model = fitted(cache, "digits", lambda: NeuralODEClassifier(random_state=0).fit(images.X_train, images.y_train))
    else:
        images = load_images(problem.name, data)
        model = trained_model(problem.name, images, cache)
    n_fit, n_valid, n_test, n_outside = problem.n_rows
    train, test = torch.from_numpy(images.X_train[: n_fit + n_valid]), torch.from_numpy(images.X_test[:n_test])
    rows = {"fit": train[:n_fit], "valid": train[n_fit:], "test": test, "outside": OUTSIDE * test[:n_outside]}
    return LoadedProblem(problem, model.neural_ode_, rows, labels=images.y_test[:n_test])
