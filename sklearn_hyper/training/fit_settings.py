"""What a fit of a correction is told."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from joblib import Memory

from ..numerics.base_solvers import BaseSolver, owns_mesh
from ..numerics.nonstationary import Nonstationary

_FINETUNE_SHARE, FINETUNE_LR = 0.6, 0.5


@dataclass(frozen=True)
class FitSettings:
    """What a fit of a correction is told; names and meaning are those of ``HypersolverRegressor``."""

    n_steps: int
    fit_n_steps: int | tuple[int, int] | None
    correction: Any
    loss: str
    finetune: str | None
    rtol: float
    atol: float | None
    max_epochs: int
    lr: float
    batch_size: int
    optimizer: Any
    callbacks: Any
    validation_fraction: float
    memory: Memory | str | None
    device: str
    n_jobs: int | None
    random_state: Any
    verbose: int

    def stages(self) -> list[tuple[int, str]]:
        """(last epoch, kind) of each stage; the two split ``max_epochs``."""
        if self.finetune is None or self.max_epochs == 1:
            return [(self.max_epochs, self.loss)]
        first = min(self.max_epochs - 1, max(1, round((1 - _FINETUNE_SHARE) * self.max_epochs)))
        return [(first, self.loss), (self.max_epochs, self.finetune)]

    def over(self, solver: BaseSolver) -> FitSettings:
        """These settings as they are over a base solver."""
        if not isinstance(solver, Nonstationary) or self.finetune is None or self.loss != "residual":
            return self
        # Learned coefficients let the states between leave the trajectory, which residuals would force them back to.
        return replace(self, loss=self.finetune, finetune=None, lr=FINETUNE_LR * self.lr)

    def trains_on(self, what: str) -> bool:
        """True where a loss of that name ("residual", "trajectory") is one that weights are trained by."""
        return any(what in kind for _, kind in self.stages())

    def needs_mesh(self, solver: BaseSolver) -> bool:
        """True where references of all rows are needed at all times; else their ends will do.

        Other base solvers than those with a mesh of their own share one mesh, and its cached solve, with all candidates of a
        search, whatever their losses.
        """
        settings = self.over(solver)
        return not owns_mesh(solver) or settings.trains_on("residual") or settings.trains_on("trajectory")
