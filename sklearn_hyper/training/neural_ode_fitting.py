"""Train a Neural ODE on labels or targets with skorch."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

import torch
from skorch.callbacks import Callback, LRScheduler
from skorch.helper import predefined_split
from torch import Tensor, nn

from ..modules.neural_ode import NeuralODE
from ..numerics.reference import ReferenceSolveError, gave_up
from .batches import Batches
from .given_rows import Inputs, apart, given, times_of
from .joint import count_fewest, joint_callbacks, make_joint_loss
from .losses import ObservedMSELoss
from .nets import (
    BestWeights,
    ClassifierNet,
    NamedRows,
    RegressorNet,
    TrainingDivergedError,
    TrainingNet,
    build_net,
    cosine_schedule,
)
from .references import solve_ends
from .refit_control import RefitControl, finish_control
from .settings import SolveSettings
from .solver_control import (
    SolverControl,
    TrainingSolver,
    control_of,
    is_auto,
    is_controlled,
    is_hypersolved,
    polished_schedule,
)
from .tasks import Task

_VALID_CHUNK = 8
"""Validation keeps no graph, so that it can take this many times ``batch_size`` rows at a time."""


@dataclass(frozen=True)
class TrainingSettings:
    """Settings of the training of a Neural ODE; ``NeuralODEClassifier`` documents them under the same names."""

    solver: Any
    n_steps: int
    rtol: float
    atol: float | None
    adjoint: bool
    max_epochs: int
    lr: float
    batch_size: int
    optimizer: Any
    callbacks: Any
    device: str
    verbose: int
    joint: float
    base_solver: Any
    refit_every: int | None
    refit: Any
    """Fits the correction of a hypersolved training, which ring 4 knows: ``correct_in_training``."""

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """Pick these settings from a mapping that also holds others, such as parameters of an estimator."""
        return cls(**{field.name: values[field.name] for field in fields(cls) if field.name in values})

    def solving(self, device: Any) -> SolveSettings:
        """Return settings of reference solves with the tolerances of the training."""
        return SolveSettings(rtol=self.rtol, atol=self.atol, device=str(device))


class TrainingForward(nn.Module):
    """The forward pass that training differentiates: dopri5, or a fixed-step solver of K steps."""

    def __init__(self, neural_ode: NeuralODE, settings: TrainingSettings, criterion: nn.Module):
        super().__init__()
        self.neural_ode = neural_ode
        self.solver = TrainingSolver(neural_ode, settings)
        self.joint = make_joint_loss(self.solver, settings)
        self.settings = settings
        by_row: Any = copy.copy(criterion)
        by_row.reduction = "none"
        self._by_row = (by_row,)  # a tuple hides it from nn.Module, for the criterion is the net's

    def forward(self, x: Tensor, condition: Mapping[str, Tensor] | None = None, times: Tensor | None = None) -> Any:
        """Return outputs, or those (batch, n_times, ...) at these times, which are nan where the time is."""
        rows = given(x, condition or {}, times)
        states = self.solver(rows, self.training)
        if times is not None:
            return self.neural_ode.outputs(states, ~times.isnan())
        output = self.neural_ode.output_map(states)
        return output if self.joint is None or not self.training else self.joint.beside(output, rows, states)

    def solver_inputs(self, x: Inputs) -> Inputs:
        """Return what the solver takes for these rows: the rows themselves."""
        return x

    def row_losses(self, states: Tensor, y: Tensor) -> Tensor:
        """Return the loss of every row from its terminal state, or from those at its times."""
        observed = ~y.isnan().all(dim=-1) if isinstance(self._by_row[0], ObservedMSELoss) else None
        losses: Tensor = self._by_row[0](self.neural_ode.outputs(states, observed), y)
        return losses.reshape(len(y), -1).mean(dim=1)

    def solve_ends(self, rows: Inputs) -> None:
        """Solve from all rows as training does; the error names the rows that dopri5 cannot solve."""
        times = times_of(rows)
        ode = self.neural_ode if times is None else _until(self.neural_ode, times)
        if ode is not None:
            solve_ends(Task(ode, *apart(rows)), self.settings.solving(rows.device))


def _until(ode: NeuralODE, times: Tensor) -> NeuralODE | None:
    """Return the Neural ODE until the last of the times, or None if that is where it starts."""
    start, end = ode.t_span
    known = times[~times.isnan()]
    last = float(known.max() if end > start else known.min())
    return None if last == start else ode.with_span((start, last))


def build_ode_net(
    neural_ode: NeuralODE,
    criterion: nn.Module,
    settings: TrainingSettings,
    valid: tuple[Inputs, Tensor] | None,
    n_rows: int,
    scheduled: bool,
    n_classes: int | None = None,
) -> TrainingNet:
    """Make a skorch net around the module, to be trained.

    Parameters
    ----------
    scheduled : bool
        Whether the learning rate follows a cosine to zero over ``max_epochs``. False for partial_fit, which has no last
        epoch.
    n_classes : int, optional
        Number of classes of a classifier, whose net predicts encoded labels. None makes a regressor.
    """
    n_batches, chunked = len(Batches(n_rows, settings.batch_size)), is_controlled(settings.solver)
    schedule, first = schedule_and_control(settings, n_batches) if scheduled else (None, joint_callbacks(settings))
    # Classes are given, because a batch of partial_fit need not hold all of the encoded labels.
    kind: type[TrainingNet]
    classes: Any
    kind, classes = (RegressorNet, {}) if n_classes is None else (ClassifierNet, {"classes": list(range(n_classes))})
    return build_net(
        kind, TrainingForward(neural_ode, settings, criterion), settings, BestWeights(), "training Neural ODE",
        schedule=schedule, first=first, criterion=criterion,
        train_split=None if valid is None else predefined_split(NamedRows(*valid)),
        batch_size=settings.batch_size,
        # dopri5's time goes with the solves and hardly with their rows, and held-out rows need no graph.
        **({"iterator_valid__batch_size": _VALID_CHUNK * settings.batch_size} if chunked else {}),
        dataset=NamedRows, **classes,
    )  # fmt: skip


def schedule_and_control(settings: TrainingSettings, n_batches: int) -> tuple[LRScheduler, list[tuple[str, Callback]]]:
    """Return the schedule of the learning rate, and the callback that chooses solvers if ``solver`` is "auto"."""
    first = joint_callbacks(settings)
    n_steps = n_batches * settings.max_epochs
    if is_hypersolved(settings.solver):
        return polished_schedule(n_steps), [("solver_control", RefitControl(n_steps, settings)), *first]
    if not is_auto(settings.solver):
        return cosine_schedule(n_batches, [settings.max_epochs], [1.0]), first
    control = SolverControl(n_steps, count_fewest(settings))
    return polished_schedule(n_steps), [("solver_control", control), *first]


def train_net(
    net: TrainingNet, x: Inputs, y: Tensor | None, generator: torch.Generator, epochs: int | None = None
) -> TrainingNet:
    """Train for some epochs; after Ctrl-C set ``net.interrupted_``, or raise it if no epoch was finished.

    If dopri5 cannot solve the field that was passed, the error names rows of x.
    """
    if epochs is not None:
        net.set_params(max_epochs=epochs)
    before = copy.deepcopy(net.module_.state_dict())
    control = control_of(net)
    if control is not None:
        control.watch(net.module_.solver_inputs(x), y, generator)
    try:
        net.train(x, y, generator)
        finish_control(control, net)
    except ReferenceSolveError as error:
        updated = any("train_loss" in batch for epoch in net.history for batch in epoch["batches"])
        # Solve again with the weights that training began with: was it the field that was passed, or the updates?
        net.module_.load_state_dict(before)
        _name_rows(net, x)
        if updated:
            raise TrainingDivergedError(
                f"training diverged in epoch {len(net.history)}: dopri5 can no longer solve the field. Lower lr (now "
                f"{net.lr:g}), clip gradients with a skorch GradientNormClipping callback, or scale the inputs."
            ) from error
        raise ReferenceSolveError.of(error.what, (), len(x)) from error  # its own rows are numbered within a batch
    except AssertionError as error:
        if not gave_up(error):
            raise
        raise TrainingDivergedError(
            f"training failed in epoch {len(net.history)}: the adjoint's solve back in time gave up ({error}). It "
            "solves the field again, so a field that changes from call to call in training (dropout, spectral_norm) "
            "has no adjoint. Set adjoint=False or a fixed-step solver, or lower lr."
        ) from error
    net.module_.eval()
    return net


def _name_rows(net: TrainingNet, x: Inputs) -> None:
    """Raise an error that names the rows of x that dopri5 cannot solve, if these are some but not all."""
    try:
        net.module_.eval().solve_ends(x)
    except ReferenceSolveError as error:
        if len(error.rows) < len(x):
            raise
