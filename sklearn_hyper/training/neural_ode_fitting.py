"""Train a Neural ODE on labels or targets with skorch."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

import torch
from skorch.dataset import Dataset
from skorch.helper import predefined_split
from torch import Tensor, nn

from ..modules.hypersolved_ode import HypersolvedODE
from ..modules.neural_ode import NeuralODE
from ..numerics.methods import resolve_base_solver
from ..numerics.reference import ReferenceSolveError, gave_up
from ..numerics.times import uniform_grid
from .batches import Batches
from .nets import (
    BestWeights,
    ClassifierNet,
    RegressorNet,
    TrainingDivergedError,
    TrainingNet,
    build_net,
    cosine_schedule,
)
from .references import solve_ends
from .settings import SolveSettings
from .tasks import Task


@dataclass(frozen=True)
class TrainingSettings:
    """What the training of a Neural ODE is told; names and meaning are those of ``NeuralODEClassifier``."""

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

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """From a mapping that holds these settings and others: parameters of an estimator."""
        return cls(**{field.name: values[field.name] for field in fields(cls) if field.name in values})

    def solving(self, device: Any) -> SolveSettings:
        """How to solve as training does."""
        return SolveSettings(rtol=self.rtol, atol=self.atol, device=str(device))


class TrainingForward(nn.Module):
    """The forward pass that training differentiates: dopri5, or a fixed-step solver of K steps."""

    def __init__(self, neural_ode: NeuralODE, settings: TrainingSettings):
        super().__init__()
        self.neural_ode = neural_ode
        self.solve: Any = None
        if settings.solver != "dopri5":
            grid = uniform_grid(neural_ode.t_span, settings.n_steps)
            # In a tuple: the same parameters must not be registered twice.
            self.solve = (HypersolvedODE(neural_ode, resolve_base_solver(settings.solver), None, grid),)
        self.settings = settings

    def forward(self, x: Tensor) -> Tensor:
        if self.solve is not None:
            return self.solve[0](x)
        settings = self.settings
        return self.neural_ode(x, rtol=settings.rtol, atol=settings.atol, adjoint=settings.adjoint)

    def solve_ends(self, x: Tensor) -> None:
        """Solve from all rows as training does, or raise an error that names those from which dopri5 cannot."""
        solve_ends(Task(self.neural_ode, x), self.settings.solving(x.device))


def build_ode_net(
    neural_ode: NeuralODE,
    criterion: nn.Module,
    settings: TrainingSettings,
    valid: tuple[Tensor, Tensor] | None,
    n_rows: int,
    scheduled: bool,
    n_classes: int | None = None,
) -> TrainingNet:
    """A skorch net around the module, not yet trained.

    Parameters
    ----------
    scheduled : bool
        Whether the learning rate follows a cosine to zero over ``max_epochs`` (not so for partial_fit, which has no
        end).
    n_classes : int, optional
        Of a classifier, whose net predicts encoded labels.
    """
    n_batches = len(Batches(n_rows, settings.batch_size))
    schedule = cosine_schedule(n_batches, [settings.max_epochs], [1.0]) if scheduled else None
    # Classes are those of the encoded labels: a batch of partial_fit need not hold them all.
    kind: type[TrainingNet]
    classes: Any
    kind, classes = (RegressorNet, {}) if n_classes is None else (ClassifierNet, {"classes": list(range(n_classes))})
    return build_net(
        kind, TrainingForward(neural_ode, settings), settings, BestWeights(), "training Neural ODE", schedule=schedule,
        criterion=criterion,
        train_split=None if valid is None else predefined_split(Dataset(*valid)),
        batch_size=settings.batch_size,
        iterator_train__shuffle=True,
        **classes,
    )  # fmt: skip


def train_net(
    net: TrainingNet, x: Tensor, y: Tensor | None, generator: torch.Generator, epochs: int | None = None
) -> TrainingNet:
    """Train for some epochs; a Ctrl-C shows in ``net.interrupted_``, and is raised where no epoch has been finished.

    Where dopri5 cannot solve the field as it was given, the error names rows of x.
    """
    if epochs is not None:
        net.set_params(max_epochs=epochs)
    before = copy.deepcopy(net.module_.state_dict())
    try:
        net.train(x, y, generator)
    except ReferenceSolveError as error:
        updated = any("train_loss" in batch for epoch in net.history for batch in epoch["batches"])
        # By the weights it began with, since a row that was the field's to refuse may come after some updates.
        net.module_.load_state_dict(before)
        _name_rows(net, x)
        if updated:
            raise TrainingDivergedError(
                f"training diverged in epoch {len(net.history)}: dopri5 can no longer solve the field. Lower lr (now "
                f"{net.lr:g}), clip gradients with a skorch GradientNormClipping callback, or scale the inputs."
            ) from error
        raise ReferenceSolveError.of(error.what, (), len(x)) from error  # the rows that it knows are those of a batch
    except AssertionError as error:
        if not gave_up(error):
            raise
        raise TrainingDivergedError(
            f"training failed in epoch {len(net.history)}: the adjoint's solve back in time gave up ({error}). It "
            "solves the "
            "field again, so a field that changes from call to call in training (dropout, spectral_norm) has no "
            "adjoint. Set "
            "adjoint=False or a fixed-step solver, or lower lr."
        ) from error
    net.module_.eval()
    return net


def _name_rows(net: TrainingNet, x: Tensor) -> None:
    """Raise an error with the rows of x from which dopri5 cannot solve the field, where that is some of them."""
    try:
        net.module_.eval().solve_ends(x)
    except ReferenceSolveError as error:
        if len(error.rows) < len(x):
            raise
