"""Learn the coefficients and the mesh of a nonstationary base solver, before a correction is fitted on top of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..modules.correction_nets import flatten_samples
from ..modules.neural_ode import NeuralODE
from ..modules.seeding import own_generator
from ..numerics.base_solvers import NONSTATIONARY, BaseStep, Field
from ..numerics.nonstationary import NONSTATIONARY_ORDER, Nonstationary, compose_tableaus, nonstationary_step
from ..numerics.row_errors import numbered_rows
from ..numerics.solve import iterate_states, time_dtype
from ..numerics.tableaus import MIDPOINT, RK4_38, ButcherTableau
from .batches import Batches
from .fit_sets import solve_ends
from .fit_settings import FitSettings
from .nets import BestWeights, LossNet, TensorRows, assemble_callbacks, collated, cosine_schedule, draw_seed
from .objectives import check_overflow, span_units

_ROWS, _VALID_ROWS, _BATCH, _EPOCHS, _LR = 512, 128, 128, 120, 1e-2
_TINY = 1e-20
# Ralston (1962). Unlike Kutta's, its last stage is not at the end of the step.
_RALSTON3 = ButcherTableau(
    "ralston3", 3, ((0, 0, 0), (1 / 2, 0, 0), (0, 3 / 4, 0)), (2 / 9, 1 / 3, 4 / 9), (0, 1 / 2, 3 / 4)
)


class LearnedCoefficients(nn.Module):
    """A nonstationary solver whose coefficients and mesh are parameters; runs in the one stepping loop."""

    name, order, n_stages = NONSTATIONARY, NONSTATIONARY_ORDER, 2

    def __init__(self, start: Nonstationary):
        super().__init__()
        n = start.n_steps
        below = torch.zeros(n, n)
        for k, row in enumerate(start.weights):
            below[k, :k] = torch.tensor(row[:k])
        self.below = nn.Parameter(below)
        self.log_steps = nn.Parameter(torch.tensor(start.shares).diff().log())

    def shares(self) -> Tensor:
        """The mesh, as shares of the span."""
        steps = self.log_steps.softmax(0)
        return torch.cat([steps.new_zeros(1), steps.cumsum(0)])

    def row(self, k: int) -> list[Tensor]:
        """Coefficients of step k; the newest makes their sum 1."""
        earlier = self.below[k, :k]
        return [*earlier.unbind(), 1 - earlier.sum()]

    def nodes(self, s: Tensor, eps: Tensor) -> list[Tensor]:
        """Where a step evaluates f: at its start."""
        return [s]

    def step(self, f: Field, times: Sequence[Tensor], z: Tensor, eps: Any, history: tuple[Any, ...]) -> BaseStep:
        """A step whose place is told by how much came before."""
        stages = (*history, f(times[0], z))
        psi = sum(weight * stage for weight, stage in zip(self.row(len(history)), stages, strict=True))
        return nonstationary_step(psi, stages)

    def freeze(self) -> Nonstationary:
        """The solver as it is now, in plain numbers."""
        with torch.no_grad():
            n = len(self.log_steps)
            shares = self.shares().double()
            rows = [torch.stack(self.row(k)).double() for k in range(n)]
        return Nonstationary([(row / row.sum()).tolist() for row in rows], [0.0, *shares[1:-1].tolist(), 1.0])


def classical_starts(n_steps: int) -> list[Nonstationary]:
    """Classical methods of n_steps evaluations: Euler, Adams-Bashforth of order 2, and Runge-Kutta steps.

    Those are of the midpoint method where n_steps is even, and of as high an order as n_steps lets all of them be.
    """
    uniform = [k / n_steps for k in range(n_steps + 1)]
    euler, ab2 = [[1.0]], [[1.0]]
    for k in range(1, n_steps):
        zeros = [0.0] * (k - 1)
        euler.append([*zeros, 0.0, 1.0])
        ab2.append([*zeros, -0.5, 1.5])
    starts = [Nonstationary(rows, uniform) for rows in (euler, ab2)]
    if n_steps % 2 == 0:
        starts.append(compose_tableaus([MIDPOINT] * (n_steps // 2)))
    if n_steps > 2:
        starts.append(compose_tableaus(_highest_orders(n_steps)))
    return starts


def _highest_orders(n_steps: int) -> list[ButcherTableau]:
    """Methods of four, three and, where it has to be, two stages that make n_steps evaluations."""
    n_fours = next((n for n in range(n_steps // 4, -1, -1) if (n_steps - 4 * n) % 3 == 0), 0)
    n_threes, rest = divmod(n_steps - 4 * n_fours, 3)
    return [RK4_38] * n_fours + [_RALSTON3] * n_threes + [MIDPOINT] * (rest // 2)


class _CoefficientLoss(nn.Module):
    """Mean log squared terminal error, which weighs all rows alike, whatever their size.

    Squares are those of errors in a unit of the states.
    """

    def __init__(self, solver: LearnedCoefficients, neural_ode: NeuralODE, x: Tensor, states: Tensor):
        super().__init__()
        self.solver = solver
        # In a tuple, the frozen field stays out of parameters(), state_dict() and train().
        self._frozen: Any = (neural_ode, x, states)
        self._unit = span_units(neural_ode, states)

    def errors(self, rows: Tensor, solver: Any = None) -> Tensor:
        """Mean square of the terminal error of every row, in those units."""
        neural_ode, x, states = self._frozen
        control = x[rows] if neural_ode.data_controlled else None
        start, end = neural_ode.t_span
        solver = solver or self.solver
        if solver is self.solver:
            grid = start + (end - start) * solver.shares().to(time_dtype(states.dtype, neural_ode.t_span))
        else:
            grid = solver.mesh(neural_ode.t_span)
        *_, z = iterate_states(neural_ode.vector_field, states[0][rows], grid, solver, None, control)
        # Divided first: the squares of small units underflow.
        return flatten_samples((z - states[-1][rows]) / self._unit).pow(2).mean(dim=1)

    def forward(self, rows: Tensor) -> Tensor:
        """The loss of some rows."""
        return (self.errors(rows) + _TINY).log().mean()


def fit_coefficients(
    neural_ode: NeuralODE, x: Tensor, settings: FitSettings, ends: Tensor | None = None
) -> Nonstationary:
    """Learn a nonstationary solver of K steps on terminal states of dopri5.

    It starts as the classical method that does best on held-out rows, and keeps its best epoch: on them it is never worse.

    Parameters
    ----------
    neural_ode : NeuralODE
        In eval mode, parameters frozen, on ``settings.device``.
    x : Tensor of shape (n, ...)
        Some tens of numbers are learned, so a few hundred rows of it are used.
    settings : FitSettings
        Of the whole fit; this part takes ``max_epochs``, at most 120, passes over its few hundred rows.
    ends : Tensor, optional
        What :func:`solve_ends` gives for x; where missing, the few hundred rows are solved.

    Returns
    -------
    Nonstationary
    """
    n_rows = len(x)
    few = torch.linspace(0, n_rows - 1, min(n_rows, _ROWS + _VALID_ROWS)).long()
    x = x[few]
    with numbered_rows(few.tolist(), n_rows):
        return _fit(neural_ode, x, settings, solve_ends(neural_ode, x, settings) if ends is None else ends[:, few])


def _fit(neural_ode: NeuralODE, x: Tensor, settings: FitSettings, ends: Tensor) -> Nonstationary:
    states = ends.to(settings.device)
    generator = own_generator(draw_seed(settings.random_state))
    shuffled = torch.randperm(len(x), generator=generator)
    n_valid = min(_VALID_ROWS, max(1, len(x) // 5))
    held_out, fitted = shuffled[:n_valid].to(settings.device), shuffled[n_valid:].to(settings.device)
    starts = classical_starts(settings.n_steps)
    loss = _CoefficientLoss(LearnedCoefficients(starts[0]), neural_ode, x.to(settings.device), states)
    with torch.no_grad():
        # In batches: a step holds the stages of all steps before it.
        batches = shuffled.to(settings.device).split(_BATCH)
        errors = [torch.cat([loss.errors(rows, start) for rows in batches]) for start in starts]
    # Where none is finite, Euler's method tells which rows are to blame.
    finite = [i for i, error in enumerate(errors) if error.isfinite().all()]
    if not finite:
        with numbered_rows(shuffled.tolist(), len(x)):
            check_overflow(errors[0], NONSTATIONARY, settings.n_steps)
    best_start = starts[min(finite, key=lambda i: float((errors[i][:n_valid] + _TINY).log().mean()))]
    if settings.n_steps == 1:
        return best_start
    loss.solver = LearnedCoefficients(best_start).to(states)
    return _train(loss, fitted, held_out, settings, generator)


def _train(
    loss: _CoefficientLoss, fitted: Tensor, held_out: Tensor, settings: FitSettings, generator: torch.Generator
) -> Nonstationary:
    def validate(module: nn.Module) -> float:
        with torch.no_grad():
            return float(module(held_out))

    best = BestWeights(validate)
    n_epochs = min(_EPOCHS, settings.max_epochs)
    schedule = cosine_schedule(len(Batches(len(fitted), _BATCH)), [n_epochs], [1.0])
    net = LossNet(
        loss,
        criterion=nn.Identity,
        optimizer=torch.optim.Adam,
        lr=_LR,
        max_epochs=n_epochs,
        batch_size=_BATCH,
        dataset=TensorRows,
        iterator_train__shuffle=True,
        iterator_train__collate_fn=collated,
        train_split=None,
        callbacks=assemble_callbacks(best, None, schedule, "learning coefficients", settings.verbose),
        verbose=settings.verbose,
        device=settings.device,
    )
    net.initialize().train(fitted, None, generator)
    if net.interrupted_:
        raise KeyboardInterrupt  # without a correction yet, there is nothing to keep
    return net.module_.solver.freeze()
