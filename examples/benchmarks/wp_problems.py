"""The problems of work_precision.py: fields, the rows to fit and to measure on, and their reference solutions.

Every problem has rows to fit on, rows to choose on (validation), rows to report on (test), and rows beyond the fitted range
(outside). References are dopri5's in float64 at 1e-8, for the rows to fit on in float32 at 1e-6.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from _results import fitted
from density_estimation import load_field, load_table
from images import load_images, trained_model
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from sklearn_hyper import ContinuousNormalizingFlow, NeuralODE, NeuralODEClassifier
from sklearn_hyper.datasets import DENSITIES, ForcedOscillator, Pendulum, VanDerPol
from sklearn_hyper.datasets.fields import LeadingFeatures
from sklearn_hyper.numerics import reference_solution
from sklearn_hyper.numerics.solve import uniform_grid

FITTED_STEPS = 24
"""References of the rows to fit on are known at this many steps, those of every K that divides it among them."""
OUTSIDE = 1.5
"""How far beyond the fitted range the outside rows reach."""
FIT_ROWS, VALID_ROWS, TEST_ROWS, OUTSIDE_ROWS = 2000, 500, 2000, 1000
IMAGE_ROWS = {"digits": (1000, 150, 450, 200), "mnist": (600, 100, 500, 200)}
"""To fit on, to choose on, to report on, outside: of images, which cost more."""
REFERENCE_BATCH = 500
SECONDS = {"wine": (16.0, 30.0, 55.0), "digits": (45.0, 80.0, 150.0), "mnist": (75.0, 135.0, 250.0)}
"""CPU seconds that a rival of up to three, up to five and more evaluations of f may train for: what our default fit of two, four
and eight takes on a quiet core. On all other problems those of Problem. What fits of ours and of rivals took is reported."""


@dataclass
class Problem:
    """A Neural ODE and its rows, as float32 tensors of what the Neural ODE takes."""

    name: str
    family: str
    neural_ode: NeuralODE
    rows: dict[str, Tensor]
    labels: np.ndarray | None = None
    states: dict[str, Tensor] | None = None
    trajectory: Tensor | None = None
    seconds: tuple[float, ...] = (16.0, 25.0, 40.0)

    def seconds_for(self, n_evaluations: int) -> float:
        """CPU seconds that a rival of so many evaluations may train for."""
        return self.seconds[sum(n_evaluations > most for most in (3, 5))]

    @property
    def initial_states(self) -> Tensor:
        """Of the rows to fit on."""
        with torch.no_grad():
            return self.neural_ode.input_map(self.rows["fit"])

    @functools.cached_property
    def macs_f(self) -> float:
        """MACs of one evaluation of f; nan where it is made of elementwise operations."""
        return self.neural_ode.count_field_macs(self.rows["test"][:1])

    def states_at(self, n_steps: int) -> Tensor:
        """References of the rows to fit on at the mesh of n_steps, which divides FITTED_STEPS."""
        if FITTED_STEPS % n_steps:
            raise ValueError(f"n_steps={n_steps} does not divide {FITTED_STEPS}.")
        return self.trajectory[:: FITTED_STEPS // n_steps]


def problem_names() -> list[str]:
    """All problems, those that cost least first."""
    flows = [f"{name} {kind}" for kind in ("flow_matching", "likelihood") for name in DENSITIES]
    return ["pendulum", "van_der_pol", "forced_van_der_pol", "forced_oscillator", *flows, "wine", "digits", "mnist"]


@functools.lru_cache(maxsize=2)
def load_problem(name: str, cache: str, data: str | None, share: float = 1.0) -> Problem:
    """A problem with its references, from the cache where it has them; rivals get a share of their CPU seconds."""
    problem = _build(name, cache, data)
    problem.seconds = tuple(share * seconds for seconds in SECONDS.get(name, problem.seconds))
    problem.neural_ode.eval().requires_grad_(False)
    solved = fitted(cache, f"work_precision references {name}", lambda: solve_references(problem))
    problem.states, problem.trajectory = solved["states"], solved["trajectory"]
    return problem


def _build(name: str, cache: str, data: str | None) -> Problem:
    if name in _SYSTEMS:
        return _system(name)
    if name == "wine":
        flow = fitted(
            cache, "flow wine", lambda: ContinuousNormalizingFlow(random_state=0).fit(load_table("wine", data)[0])
        )
        return _flow(name, "tabular flow", flow)
    if name == "digits":
        return _digits(cache)
    if name == "mnist":
        return _mnist(cache, data)
    return _flow(name, "flow matching" if name.endswith("flow_matching") else "FFJORD", load_field(name, cache))


def _flow(name: str, family: str, flow: ContinuousNormalizingFlow) -> Problem:
    """Sampling, from base draws to data; outside, base draws are scaled up. Errors are those of standardised states."""
    draw = torch.Generator().manual_seed(0)
    rows = {
        part: scale * torch.randn(n, flow.flow_.n_features, generator=draw)
        for part, n, scale in [
            ("fit", FIT_ROWS, 1.0), ("valid", VALID_ROWS, 1.0), ("test", TEST_ROWS, 1.0), ("outside", OUTSIDE_ROWS, OUTSIDE),
        ]
    }  # fmt: skip
    return Problem(name, family, NeuralODE(flow.flow_.vector_field, t_span=flow.flow_.t_span), rows)


class ForcedVanDerPol(VanDerPol):
    """Van der Pol's oscillator under a force cos(3 t): nonlinear and non-autonomous.

    The forced linear oscillator's solution is affine in its start, so that learned linear coefficients alone are exact.
    """

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        dz = super().forward(t, z)
        return torch.stack([dz[..., 0], dz[..., 1] + torch.cos(3 * t)], dim=-1)


_SYSTEMS: dict[str, tuple[Callable[[], NeuralODE], tuple[float, ...]]] = {
    "pendulum": (lambda: NeuralODE(Pendulum(), input_map=LeadingFeatures(2), data_controlled=True), (5.0, 5.0, 10.0)),
    "van_der_pol": (lambda: NeuralODE(VanDerPol(mu=1.0)), (2.0, 2.0)),
    "forced_van_der_pol": (lambda: NeuralODE(ForcedVanDerPol(mu=1.0), t_span=(0.0, 2.0)), (2.0, 2.0)),
    "forced_oscillator": (lambda: NeuralODE(ForcedOscillator(), t_span=(0.0, 2.0)), (2.0, 2.0)),
}


def _system(name: str) -> Problem:
    """Uniform rows in a box; outside, rows of the larger box that are not in it."""
    build, half_width = _SYSTEMS[name]
    draw = torch.Generator().manual_seed(0)
    width = torch.tensor(half_width)

    def uniform(n: int) -> Tensor:
        return width * (2 * torch.rand(n, len(half_width), generator=draw) - 1)

    rows = {part: uniform(n) for part, n in [("fit", FIT_ROWS), ("valid", VALID_ROWS), ("test", TEST_ROWS)]}
    larger = OUTSIDE * uniform(10 * OUTSIDE_ROWS)
    rows["outside"] = larger[(larger.abs() > width).any(dim=1)][:OUTSIDE_ROWS]
    return Problem(name, "physics", build(), rows)


def _digits(cache: str) -> Problem:
    X, y = load_digits(return_X_y=True)
    X = X.reshape(-1, 1, 8, 8).astype(np.float32)
    X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=450, stratify=y, random_state=0)
    model = fitted(cache, "digits", lambda: NeuralODEClassifier(random_state=0).fit(X_train, y_train))
    return _images("digits", model, X_train, X_test, y_test)


def _mnist(cache: str, data: str | None) -> Problem:
    images = load_images("mnist", data)
    model = trained_model("mnist", images, cache)
    return _images("mnist", model, images.X_train, images.X_test, images.y_test)


def _images(name: str, model: NeuralODEClassifier, X_train: np.ndarray, X_test: np.ndarray, y: np.ndarray) -> Problem:
    """Training images to fit and to choose on; outside, test images of more contrast."""
    n_fit, n_valid, n_test, n_outside = IMAGE_ROWS[name]
    train, test = torch.from_numpy(X_train[: n_fit + n_valid]), torch.from_numpy(X_test[:n_test])
    rows = {"fit": train[:n_fit], "valid": train[n_fit:], "test": test, "outside": OUTSIDE * test[:n_outside]}
    return Problem(name, "images", model.neural_ode_, rows, labels=y[:n_test])


def solve_references(problem: Problem) -> dict:
    """Solve for the states of all parts and the trajectories of the rows to fit on; put them into the problem."""
    ode = problem.neural_ode
    exact = copy.deepcopy(ode).double()

    def solve(ode: NeuralODE, x: Tensor, times: tuple[float, ...], tolerance: float) -> Tensor:
        parts = []
        with torch.no_grad():
            for some in x.split(REFERENCE_BATCH):
                z0 = ode.input_map(some)
                solution = reference_solution(
                    ode.vector_field, z0, times, rtol=tolerance, atol=tolerance, x=ode.control(some)
                )
                parts.append(solution)
        return torch.cat(parts, dim=1)

    states = {part: solve(exact, x.double(), ode.t_span, 1e-8)[-1] for part, x in problem.rows.items() if part != "fit"}
    trajectory = solve(ode, problem.rows["fit"], uniform_grid(ode.t_span, FITTED_STEPS), 1e-6)
    problem.states, problem.trajectory = states, trajectory
    return {"states": states, "trajectory": trajectory}


def count_calls(module: nn.Module, call: Callable[[], object]) -> int:
    """Evaluations of a module that a call makes, counted by a hook."""
    calls: list[None] = []
    handle = module.register_forward_pre_hook(lambda *_: calls.append(None))
    try:
        call()
    finally:
        handle.remove()
    return len(calls)
