"""Min-max over a hypersolver and its field, as section 6 of the paper proposes: what it does to both.

    python examples/benchmarks/adversarial.py [--seeds 3] [--problems NAME ...]

    min over omega, max over theta of sum_k |z_k - z(s_k)|,

with z_k the states of the hypersolver (weights omega of its net) and z(s_k) those of the Neural ODE (weights theta).
HyperEuler with four steps, `MLPCorrection()`. In each of six rounds theta takes 20 steps of Adam upwards, through the
hypersolver and an RK4 solve with 16 steps, from the rows of the fit. Then the correction is refitted for 20 epochs.
"bounded" puts theta back to within 10 % of its norm from where it started; "free" does not. "plain" is the same
correction with as many epochs on the field as it is, 120 after those that all begin with.

Judged on test rows, as errors against dopri5 at 1e-6 relative to the mean norm:

- of the field itself, with the correction that the rounds left, and after a last refit to it ("back");
- of five fields whose weights were moved by 10 % of their norm at random: does the game make it robust?
- of the field that the game ended with.

And of that field: evaluations of dopri5 at 1e-4, the error of Euler's method, and a Lipschitz constant (the largest
spectral norm of df/dz at the states of test rows). Seconds are CPU seconds of one thread.
"""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _results import Results, parser, spread
from _solving import count_calls, dopri5_solver, plain_solver
from refits import models, split, timed
from torch import Tensor

from sklearn_hyper import MLPCorrection, NeuralODE
from sklearn_hyper.hypersolvers import FitSettings, FittedHypersolver, Task, fit_hypersolver, refit_hypersolver

PROBLEMS = ("wine", "digits", "moons")
ROUNDS, ASCENTS, EPOCHS, FIRST_EPOCHS, N_STEPS, FINE_STEPS = 6, 20, 20, 60, 4, 16
LR, RADIUS, BATCH, MOVED_FIELDS, LIPSCHITZ_ROWS = 3e-3, 0.1, 256, 5, 64
GAMES = {"bounded": RADIUS, "free": None}


# ---------------------------------------------------------------------- the game
def play(fast: FittedHypersolver, X: Tensor, radius: float | None, seed: int) -> FittedHypersolver:
    """Rounds of max over the field and min over the correction; the value has the field that they ended with."""
    start, field = fast.neural_ode, trainable(fast.neural_ode)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(ROUNDS):
        ascend(field, start, fast, X, radius, generator)
        fast = refit_hypersolver(fast, X, copy.deepcopy(field).requires_grad_(False), max_epochs=EPOCHS)
        if fast.correction is None:  # no epoch beats the base solver on this field any more: the game is lost
            break
    return fast


def trainable(ode: NeuralODE) -> NeuralODE:
    """A copy whose field alone can be trained."""
    copied = copy.deepcopy(ode).requires_grad_(False)
    copied.vector_field.requires_grad_(True)
    return copied


def ascend(
    field: NeuralODE,
    start: NeuralODE,
    fast: FittedHypersolver,
    X: Tensor,
    radius: float | None,
    generator: torch.Generator,
) -> None:
    """Make the field harder for the hypersolver, within a radius of where it started."""
    solver, exact = fast.to_module(), plain_solver(field, "rk4", FINE_STEPS)
    solver.neural_ode = field  # the correction is read, and stays as it is
    optimizer = torch.optim.Adam(field.vector_field.parameters(), lr=LR)
    for _ in range(ASCENTS):
        x = X[torch.randint(len(X), (min(BATCH, len(X)),), generator=generator)]
        apart = solver.trajectory(x)[1:] - exact.trajectory(x)[:: FINE_STEPS // N_STEPS][1:]
        loss = -apart.flatten(2).norm(dim=2).sum(dim=0).mean()
        if not torch.isfinite(loss):
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if radius is not None:
            project(field, start, radius)


@torch.no_grad()
def project(field: NeuralODE, start: NeuralODE, radius: float) -> None:
    """Put weights back to a distance of ``radius`` times their norm."""
    pairs = list(zip(start.vector_field.parameters(), field.vector_field.parameters(), strict=True))
    moved, size = norm([b - a for a, b in pairs]), norm([a for a, _ in pairs])
    if moved > radius * size:
        for a, b in pairs:
            b.copy_(a + (b - a) * (radius * size / moved))


def norm(tensors: list[Tensor]) -> float:
    return float(torch.stack([tensor.pow(2).sum() for tensor in tensors]).sum().sqrt())


# ---------------------------------------------------------------------- measuring
def put_under(fast: FittedHypersolver, ode: NeuralODE) -> FittedHypersolver:
    """The correction as it is, over another field."""
    return replace(fast, neural_ode=copy.deepcopy(ode).eval().requires_grad_(False))


def errors(fast: FittedHypersolver, x: Tensor) -> np.ndarray:
    """Errors of terminal states by row, as a share of their mean norm."""
    truth, found = fast.reference(x).flatten(1), fast.solve(x).flatten(1)
    return ((found - truth).norm(dim=1) / truth.norm(dim=1).mean()).nan_to_num(torch.inf).numpy()


def moved_at_random(ode: NeuralODE, seed: int) -> NeuralODE:
    """The field with weights moved by a tenth of their norm in a random direction."""
    result, generator = copy.deepcopy(ode), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weights in result.vector_field.parameters():
            direction = torch.randn(weights.shape, generator=generator)
            weights.add_(RADIUS * weights.norm() * direction / direction.norm())
    return result


def describe_field(ode: NeuralODE, x: Tensor) -> dict[str, float]:
    """What dopri5 and Euler's method make of a field, and how steep it is."""
    solve = dopri5_solver(ode, 1e-4)
    with torch.no_grad():
        evaluations = count_calls(ode.vector_field, lambda: solve(x))
        states = plain_solver(ode, "rk4", N_STEPS).trajectory(x[:LIPSCHITZ_ROWS])
        truth = solve(x).flatten(1)
        euler = plain_solver(ode, "euler", N_STEPS).terminal_state(x).flatten(1)
    times = torch.linspace(*ode.t_span, N_STEPS + 1)
    steepest = 0.0
    for t, z in zip(times, states, strict=True):
        jacobians = torch.func.vmap(torch.func.jacrev(lambda row, t=t: ode.vector_field(t, row[None])[0]))(z)
        size = z[0].numel()
        steepest = max(steepest, float(torch.linalg.matrix_norm(jacobians.reshape(-1, size, size), ord=2).max()))
    error = float(((euler - truth).norm(dim=1) / truth.norm(dim=1).mean()).mean())
    return {"dopri5 evaluations": evaluations, "Euler error": error, "Lipschitz": steepest}


def measure(problem: str, cache: str, seed: int) -> dict[str, Any]:
    """One problem and seed: the plain fit and the games."""
    ode, _, rows = models(problem, cache)
    ode = copy.deepcopy(ode).eval().requires_grad_(False)
    X, test = map(torch.from_numpy, split(problem, rows, seed))
    settings = FitSettings(
        base_solver="euler", n_steps=N_STEPS, correction=MLPCorrection(), max_epochs=FIRST_EPOCHS, random_state=seed
    )
    first = fit_hypersolver(Task(ode, X), settings)
    fits = {"plain": timed(lambda: refit_hypersolver(first, X, ode, max_epochs=ROUNDS * EPOCHS))}
    for name, radius in GAMES.items():
        fits[name] = timed(lambda radius=radius: play(first, X, radius, seed))
    moved = [moved_at_random(ode, 100 * seed + i) for i in range(MOVED_FIELDS)]
    found: dict[str, Any] = {"field": describe_field(ode, test)}
    for name, (fast, seconds) in fits.items():
        own = put_under(fast, ode)
        lost = fast.correction is None
        back = own if lost or name == "plain" else refit_hypersolver(own, X, ode, max_epochs=EPOCHS)
        here, there = errors(own, test), np.concatenate([errors(put_under(fast, one), test) for one in moved])
        found[name] = {
            "mean": here.mean(), "p99": np.quantile(here, 0.99), "moved mean": there.mean(),
            "moved p99": np.quantile(there, 0.99), "back mean": errors(back, test).mean(),
            "back p99": np.quantile(errors(back, test), 0.99), "its field mean": errors(fast, test).mean(),
            "lost": lost, "seconds": seconds, **describe_field(fast.neural_ode, test),
        }  # fmt: skip
    return found


def summarise(cells: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Medians and ranges over seeds."""
    by_problem: dict[str, list[dict[str, Any]]] = {}
    for name, cell in cells.items():
        by_problem.setdefault(name.split(": ")[0], []).append(cell)
    return {
        problem: {
            who: {what: spread(cell[who][what] for cell in found) for what in found[0][who]}
            for who in ("field", "plain", *GAMES)
            if all(value is not None for cell in found for value in cell[who].values())
        }
        for problem, found in by_problem.items()
    }


def main() -> None:
    options = parser(__doc__, "adversarial.json")
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--problems", nargs="+", default=PROBLEMS, choices=PROBLEMS)
    arguments = options.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    Path(arguments.cache).mkdir(parents=True, exist_ok=True)
    results = Results(arguments.out, "python examples/benchmarks/adversarial.py", fresh=arguments.fresh)
    for seed in range(arguments.seeds):
        for problem in arguments.problems:
            results.cell(
                f"{problem}: {seed}", lambda problem=problem, seed=seed: measure(problem, arguments.cache, seed)
            )
            results.write(summarise(results.cells))


if __name__ == "__main__":
    main()
