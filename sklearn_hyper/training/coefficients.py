"""Learn the coefficients and the mesh of a nonstationary method, before a correction is fitted to it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..modules.seeding import own_generator
from ..numerics.methods import (
    NONSTATIONARY,
    Field,
    Method,
    Nonstationary,
    Step,
    StepKind,
    compose_predictor_corrector,
    compose_tableaus,
)
from ..numerics.methods.nonstationary import NONSTATIONARY_ORDER, nonstationary_kind, nonstationary_step
from ..numerics.row_errors import numbered_rows
from ..numerics.stepping import FixedMesh
from ..numerics.tableaus import MIDPOINT, RK4_38, ButcherTableau
from ..numerics.tensors import flatten_samples
from ..numerics.times import time_dtype
from .batches import Batches
from .errors import check_overflow
from .nets import BestWeights, LossNet, TensorRows, build_net, cosine_schedule, draw_seed
from .references import solve_ends
from .settings import FitSettings
from .targets import span_units
from .tasks import Task

_ROWS, _VALID_ROWS, _BATCH, _EPOCHS, _LR = 512, 128, 128, 120, 1e-2
_TINY = 1e-20
_LONG = 6
"""From this many evaluations on, coefficients for changes of weights are learned from PEC too. The better ones stay."""
# Ralston (1962). Unlike Kutta's, its last stage is not at the end of the step.
_RALSTON3 = ButcherTableau(
    "ralston3", 3, ((0, 0, 0), (1 / 2, 0, 0), (0, 3 / 4, 0)), (2 / 9, 1 / 3, 4 / 9), (0, 1 / 2, 3 / 4)
)


@dataclass(frozen=True)
class LearnedCoefficients:
    """Learns a :class:`Nonstationary` method of K steps on terminal states of dopri5.

    It starts from the classical method that does best on held-out rows, and keeps the best epoch there. So it is never
    worse on them than that method. For six evaluations and more, under changed weights, it also starts from a
    predictor-corrector method, and keeps what does better.

    Parameters
    ----------
    settings : FitSettings
        Settings of the whole fit. Learning takes ``max_epochs`` passes (at most 120) over a few hundred rows. It has
        its own optimizer and learning rate, which need no tuning because coefficients start at a classical method.
    """

    settings: FitSettings

    @property
    def start(self) -> Nonstationary:
        """A method of the same form, Euler's, to plan a fit with before learning."""
        return classical_starts(self.settings.n_steps)[0]

    def fit(self, task: Task, ends: Tensor | None = None) -> Nonstationary:
        """Learn the method for a task.

        Parameters
        ----------
        task : Task
            The task. A few hundred of its rows are used, enough for the tens of numbers that are learned.
        ends : Tensor, optional
            Result of :func:`solve_ends` for the task. By default the few hundred rows are solved here.

        Raises
        ------
        BaseSolverOverflowError
            If even Euler's method overflows.
        KeyboardInterrupt
            On Ctrl-C. There is no correction yet that could be kept.
        """
        n_rows = len(task)
        chosen = torch.linspace(0, n_rows - 1, min(n_rows, _ROWS + _VALID_ROWS)).long()
        task = task.rows(chosen)
        with numbered_rows(chosen.tolist(), n_rows):
            states = solve_ends(task, self.settings) if ends is None else ends[:, chosen]
            return self._fit(task.to(self.settings.device), states.to(self.settings.device))

    def _fit(self, task: Task, states: Tensor) -> Nonstationary:
        generator = own_generator(draw_seed(self.settings.random_state))
        shuffled = torch.randperm(len(task), generator=generator)
        n_valid = min(_VALID_ROWS, max(1, len(task) // 5))
        held_out, fitted = (rows.to(self.settings.device) for rows in (shuffled[:n_valid], shuffled[n_valid:]))
        loss = _CoefficientLoss(task, states, self.settings.n_steps)
        best_start = self._choose_start(loss, shuffled.to(self.settings.device), n_valid)
        if self.settings.n_steps == 1:
            return best_start
        starts = [best_start]
        if self.settings.n_steps >= _LONG and getattr(self.settings.correction, "tunes_method", False):
            starts.append(compose_predictor_corrector(self.settings.n_steps))
        learned = []
        for start in starts:
            loss.method = TrainableCoefficients(start).to(states)
            learned.append(self._train(loss, fitted, held_out, generator))
        with torch.no_grad():
            return min(learned, key=lambda method: _mean_log(loss.errors(held_out, method)))

    def _choose_start(self, loss: _CoefficientLoss, shuffled: Tensor, n_valid: int) -> Nonstationary:
        """Return the classical method that does best on held-out rows, which come first."""
        starts = classical_starts(self.settings.n_steps)
        with torch.no_grad():
            # In batches, because a step holds the stages of all steps before it.
            errors = [torch.cat([loss.errors(rows, start) for rows in shuffled.split(_BATCH)]) for start in starts]
        # If no start is finite, Euler's method tells which rows overflow.
        finite = [i for i, error in enumerate(errors) if error.isfinite().all()]
        if not finite:
            with numbered_rows(shuffled.tolist(), len(shuffled)):
                check_overflow(errors[0], NONSTATIONARY, self.settings.n_steps)
        return starts[min(finite, key=lambda i: _mean_log(errors[i][:n_valid]))]

    def _train(
        self, loss: _CoefficientLoss, fitted: Tensor, held_out: Tensor, generator: torch.Generator
    ) -> Nonstationary:
        def validate(module: nn.Module) -> float:
            with torch.no_grad():
                return float(module(held_out))

        n_epochs = min(_EPOCHS, self.settings.max_epochs)
        settings = replace(
            self.settings, optimizer=torch.optim.Adam, lr=_LR, max_epochs=n_epochs, callbacks=None, batch_size=_BATCH
        )
        schedule = cosine_schedule(len(Batches(len(fitted), _BATCH)), [n_epochs], [1.0])
        net = build_net(
            LossNet, loss, settings, BestWeights(validate), "learning coefficients", schedule=schedule,
            batch_size=_BATCH, dataset=TensorRows,
        )  # fmt: skip
        net.train(fitted, None, generator)
        if net.interrupted_:
            raise KeyboardInterrupt
        return net.module_.method.freeze()


class TrainableCoefficients(nn.Module, Method):
    """A nonstationary method whose coefficients and mesh are parameters; it runs in the usual stepping loop.

    Parameters
    ----------
    start : Nonstationary
        The method to start from.
    unit : float, default 1.0
        By how much a change of one of a parameter changes a coefficient. A small unit makes an optimizer careful.
    """

    name, order = NONSTATIONARY, NONSTATIONARY_ORDER
    is_learning = True
    first_below: Tensor
    first_log_steps: Tensor

    def __init__(self, start: Nonstationary, unit: float = 1.0):
        super().__init__()
        n = start.n_steps
        below = torch.zeros(n, n)
        for k, row in enumerate(start.weights):
            below[k, :k] = torch.tensor(row[:k])
        self.unit = unit
        self.register_buffer("first_below", below)
        self.register_buffer("first_log_steps", torch.tensor(start.shares).diff().log())
        self.below, self.log_steps = nn.Parameter(torch.zeros(n, n)), nn.Parameter(torch.zeros(n))

    def shares(self) -> Tensor:
        """Return the mesh, as shares of the span."""
        steps = (self.first_log_steps + self.unit * self.log_steps).softmax(0)
        return torch.cat([steps.new_zeros(1), steps.cumsum(0)])

    def mesh(self, t_span: Any, n_steps: int) -> Any:
        """Return the mesh as a tensor, through which the shares learn."""
        start, end = t_span
        return start + (end - start) * self.shares().to(time_dtype(self.below.dtype, t_span))

    def row(self, k: int) -> list[Tensor]:
        """Return the coefficients of step k; the last one is set so that they sum to 1."""
        earlier = self.first_below[k, :k] + self.unit * self.below[k, :k]
        return [*earlier.unbind(), 1 - earlier.sum()]

    def kind(self, index: int) -> StepKind:
        return nonstationary_kind(index)

    def step(self, f: Field, times: Sequence[Tensor], z: Tensor, eps: Any, state: tuple[Any, ...]) -> Step:
        stages = (*state, f(times[0], z))
        direction = sum(weight * stage for weight, stage in zip(self.row(len(state)), stages, strict=True))
        return nonstationary_step(direction, stages)

    def freeze(self) -> Nonstationary:
        """Return the method with its current coefficients, as plain numbers."""
        with torch.no_grad():
            n = len(self.log_steps)
            shares = self.shares().double()
            rows = [torch.stack(self.row(k)).double() for k in range(n)]
        return Nonstationary([(row / row.sum()).tolist() for row in rows], [0.0, *shares[1:-1].tolist(), 1.0])


def _mean_log(errors: Tensor) -> float:
    """Return the mean logarithm, which weighs all rows alike; inf where an error is not finite."""
    mean = float((errors + _TINY).log().mean())
    return mean if math.isfinite(mean) else math.inf


def classical_starts(n_steps: int) -> list[Nonstationary]:
    """Return classical methods of n_steps evaluations: Euler, Adams-Bashforth of order 2, and Runge-Kutta steps.

    The Runge-Kutta steps are all of the midpoint method if n_steps is even. Another start has steps of the highest
    orders that make up n_steps evaluations.
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
    """Return methods of four, three and, if necessary, two stages that make n_steps evaluations in all."""
    n_fours = next((n for n in range(n_steps // 4, -1, -1) if (n_steps - 4 * n) % 3 == 0), 0)
    n_threes, rest = divmod(n_steps - 4 * n_fours, 3)
    return [RK4_38] * n_fours + [_RALSTON3] * n_threes + [MIDPOINT] * (rest // 2)


class _CoefficientLoss(nn.Module):
    """Mean log of the squared terminal error, in units of the states.

    The logarithm weighs all rows alike, whatever the size of their errors.
    """

    method: TrainableCoefficients

    def __init__(self, task: Task, states: Tensor, n_steps: int):
        super().__init__()
        self._n_steps = n_steps
        # A tuple hides the frozen field from parameters(), state_dict() and train().
        self._frozen: Any = (task, states)
        self._unit = span_units(task.neural_ode, states)

    def errors(self, rows: Tensor, start: Nonstationary | None = None) -> Tensor:
        """Return every row's mean squared terminal error in these units: of the current coefficients, or of a start."""
        task, states = self._frozen
        ode = task.neural_ode
        method = self.method if start is None else start
        mesh = FixedMesh.of(method, ode.t_span, self._n_steps)
        *_, z = mesh.iterate(ode.vector_field, states[0][rows], None, task.inputs.rows(rows))
        # Divide before squaring: the squares of small units underflow.
        return flatten_samples((z - states[-1][rows]) / self._unit).pow(2).mean(dim=1)

    def forward(self, rows: Tensor) -> Tensor:
        """Return the loss of some rows."""
        return (self.errors(rows) + _TINY).log().mean()
