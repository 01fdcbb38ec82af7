"""Settings of a fit of a correction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, Self

import torch
from joblib import Memory
from torch import Tensor

from ..modules.corrections import CorrectionSpec
from ..numerics.methods import Method
from ..numerics.reference import DEFAULT_TOLERANCE
from .soap import Soap

_FINETUNE_SHARE, FINETUNE_LR = 0.6, 0.5
"""Share of the epochs that fine-tuning takes, and its learning rate as a share of ``lr``."""
_RANGE = 4
"""With adaptive steps, a correction is fitted at steps up to so many times shorter and longer than ``n_steps`` says."""

OPTIMIZERS = {"adam": torch.optim.Adam, "soap": Soap}


class Phase(NamedTuple):
    """A part of a training, with one loss, up to and including an epoch."""

    last_epoch: int
    loss: str

    def includes(self, loss: str) -> bool:
        """Return whether a loss ("residual", "trajectory", ...) is a term of this phase's loss."""
        return loss in self.loss


@dataclass(frozen=True)
class SolveSettings:
    """Settings of reference solves; ``HypersolverRegressor`` documents them under the same names."""

    rtol: float = DEFAULT_TOLERANCE
    atol: float | None = None
    memory: Memory | str | None = None
    device: str = "cpu"
    n_jobs: int | None = None
    verbose: int = 0

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """Pick these settings from a mapping that also holds others, such as parameters of an estimator."""
        return cls(**{field.name: values[field.name] for field in fields(cls) if field.name in values})


@dataclass(frozen=True)
class FitSettings(SolveSettings):
    """Settings of a fit of a correction; ``HypersolverRegressor`` documents them under the same names."""

    base_solver: Any = "auto"
    order: int | None = None
    stepping: str = "fixed"
    step_rtol: float = 1e-3
    step_controller: str = "pi"
    row_times: bool | None = None
    n_steps: int = 10
    fit_n_steps: int | tuple[int, int] | None = None
    correction: Any = "auto"
    loss: str = "residual"
    finetune: str | None = "terminal"
    max_samples: int | str = "auto"
    extra_rows: Any = None
    max_epochs: int = 120
    lr: float = 2e-2
    batch_size: int = 128
    optimizer: Any = "auto"
    callbacks: Any = None
    validation_fraction: float = 0.1
    random_state: Any = None
    t_eval: tuple[float, ...] | None = None
    """Times at which "trajectory" losses compare states; None stands for those of the steps."""

    def __post_init__(self) -> None:
        if self.is_adaptive and self.fit_n_steps is None:
            pair = max(1, self.n_steps // _RANGE), _RANGE * self.n_steps
            object.__setattr__(self, "fit_n_steps", pair)
        if self.is_adaptive and self.finetune == "terminal":
            # Training through equal steps would not make adaptive ones better: it takes g away from the residual,
            # which is what estimates errors.
            object.__setattr__(self, "finetune", None)

    @property
    def is_adaptive(self) -> bool:
        """Whether solves choose their steps."""
        return self.stepping == "adaptive"

    @property
    def phases(self) -> list[Phase]:
        """The phases of the training, which split ``max_epochs``."""
        if self.finetune is None or self.max_epochs == 1:
            return [Phase(self.max_epochs, self.loss)]
        first = min(self.max_epochs - 1, max(1, round((1 - _FINETUNE_SHARE) * self.max_epochs)))
        return [Phase(first, self.loss), Phase(self.max_epochs, self.finetune)]

    def adapted_to(self, method: Method) -> FitSettings:
        """Return these settings adapted to a method: one that leaves the trajectory is not trained on residuals."""
        if method.follows_trajectory or self.finetune is None or self.loss != "residual":
            return self
        # Its states between the ends may leave the trajectory; residuals would force them back to it.
        return replace(self, loss=self.finetune, finetune=None, lr=FINETUNE_LR * self.lr)

    def with_optimizer_of(self, spec: CorrectionSpec, z: Tensor) -> FitSettings:
        """Return these settings with the optimizer that "auto" stands for, for states like ``z``."""
        return (
            replace(self, optimizer=OPTIMIZERS[spec.optimizer_for(z, self.n_steps)])
            if self.optimizer == "auto"
            else self
        )

    def through_solves(self) -> FitSettings:
        """Return these settings for a correction that residuals cannot train: no phase trains on them."""
        states = self.loss.removeprefix("residual").removeprefix("+") or self.finetune or "terminal"
        return replace(self, loss=states, finetune=None if states == self.finetune else self.finetune)

    def trains_on(self, loss: str) -> bool:
        """Return whether some phase trains on a loss ("residual", "trajectory", "output")."""
        return any(phase.includes(loss) for phase in self.phases)

    def needs_mesh(self, method: Method) -> bool:
        """Return whether all rows need references on the whole mesh, and not only at the ends of the span.

        Methods that take any mesh always use the whole one, whatever their losses. Candidates of a search then share
        its cached solve.
        """
        settings = self.adapted_to(method)
        return method.n_steps is None or settings.trains_on("residual") or settings.trains_on("trajectory")
