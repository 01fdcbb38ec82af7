"""``solver="hypersolved"``: train through a base solver and a correction that is refitted as the field moves."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Protocol

import torch
from skorch import NeuralNet
from torch import Tensor

from ..modules.corrections import ModuleCorrection
from ..numerics.times import time_tensor
from .given_rows import Inputs, apart, times_of
from .solver_control import DOPRI5_RUNG, HYPERSOLVED, SolverControl

_FIT_ROWS = 256
_MOVED_ROWS = 64
_MOVED = 0.1
"""Relative change of f, at the states of a few rows, at which a correction is refitted.

Residuals then change by about a fifth, and corrections in training leave more than that of them.
"""
_CHECKED_EVERY = 5


class Corrected(Protocol):
    """A fit of a correction, as far as training knows it."""

    @property
    def correction(self) -> ModuleCorrection | None: ...
    @property
    def errors(self) -> dict[int, dict[str, float]]: ...
    @property
    def errors_before(self) -> dict[int, dict[str, float]] | None: ...
    @property
    def interrupted(self) -> bool: ...


Refit = Callable[..., Corrected]
"""``refit(neural_ode, x, settings, previous, last=False, seed=...)``: a fit for the field as it is, on rows x."""


class RefitControl(SolverControl):
    """Keeps the correction that a training solves with up to date.

    The correction learns from dopri5's solves alone, in fits of its own. The loss of the training has no gradient with
    respect to it. The last steps of the training are dopri5's, as with "auto".

    Parameters
    ----------
    n_steps : int
        Optimizer steps of the whole training.
    settings : TrainingSettings
        ``refit_every`` is the number of optimizer steps between refits. With None, a refit comes once the field has
        changed by a tenth at states of a few rows, which is looked at every five steps.

    Attributes
    ----------
    fitted_ : Corrected or None
        The last fit, for the field that training ended with; None after Ctrl-C.
    history_ : list of dict
        Every fit, as ``solver_history_`` of :class:`NeuralODEClassifier`.
    """

    fitted_: Any = None

    def __init__(self, n_steps: int, settings: Any):
        super().__init__(n_steps)
        self.settings = settings

    def watch(self, x: Inputs, y: Tensor | None, generator: torch.Generator) -> None:
        """Draw the rows that corrections are fitted on, from those that training is about to begin with."""
        super().watch(x, y, generator)
        assert times_of(x) is None  # rows with times are refused
        if len(x) < 2:
            raise ValueError(
                f"solver='hypersolved' has {len(x)} row to train on, and needs 2 or more: fits of its correction hold "
                "some out. Give more rows, lower validation_fraction, or set solver='dopri5'."
            )
        rows = torch.randperm(len(x), generator=generator)[:_FIT_ROWS].to(x.device)
        self.rows_ = x[rows]
        self.seed_ = int(torch.randint(2**31 - 1, (), generator=generator))

    def on_train_begin(self, net: NeuralNet, **kwargs: Any) -> None:
        self.step_, self.fitted_ = 0, None
        self.seen_: tuple[Tensor, Tensor] | None = None

    def on_batch_begin(self, net: NeuralNet, batch: Any = None, training: bool = False, **kwargs: Any) -> None:
        if not training:
            return
        if self.step_ == self.polish_from:
            self._change(net, DOPRI5_RUNG, "the polish")
        elif self.step_ < self.polish_from:
            net.module_.eval()  # skorch's next step sets train mode again
            why = self._reason(net.module_.solver)
            if why:
                self._refit(net, why)
        self.step_ += 1

    def on_train_end(self, net: NeuralNet, **kwargs: Any) -> None:
        """Keep the rows: the last fit comes after the best weights are back."""

    def finish(self, net: Any) -> None:
        """Fit for the field that training ended with. After Ctrl-C there is no such fit."""
        net.module_.eval()
        try:
            if net.interrupted_:
                self.fitted_ = None
            else:
                self._refit(net, "the end", last=True)
        except KeyboardInterrupt:
            self.fitted_, net.interrupted_ = None, True
        self.probe_ = self.seen_ = None
        del self.rows_

    # ------------------------------------------------------------------ when
    def _reason(self, solver: Any) -> str | None:
        """Return why to refit now, or None."""
        if self.fitted_ is None:
            return "the start"
        every = self.settings.refit_every
        if every is not None:
            return "refit_every" if self.step_ % every == 0 else None
        if self.step_ % _CHECKED_EVERY or self._change_of_field(solver) <= _MOVED:
            return None
        return "the field moved"

    def _look(self, solver: Any) -> None:
        """Keep states of the present solve, and the field there."""
        ode, (x, condition) = solver.ode, apart(self.rows_[:_MOVED_ROWS])
        with torch.no_grad():
            states = solver.mesh.trajectory(
                ode.vector_field, ode.input_map(x), solver.correction, ode.inputs(x, condition)
            )
        solver.n_evaluations += solver.mesh.n_evaluations
        self.seen_ = (states, self._field_at(solver, states))

    def _field_at(self, solver: Any, states: Tensor) -> Tensor:
        ode, inputs = solver.ode, solver.ode.inputs(*apart(self.rows_[:_MOVED_ROWS]))
        solver.n_evaluations += len(states)
        with torch.no_grad():
            times = time_tensor(solver.mesh.grid, states[0], ode.t_span)
            return torch.stack(
                [
                    ode.vector_field(t, z, *inputs.arguments, **inputs.condition)
                    for t, z in zip(times.unbind(), states, strict=True)
                ]
            )

    def _change_of_field(self, solver: Any) -> float:
        assert self.seen_ is not None
        states, before = self.seen_
        change = (self._field_at(solver, states) - before).double().norm()
        return float(change / before.double().norm().clamp(min=torch.finfo(torch.float64).tiny))

    # ------------------------------------------------------------------ what
    def _refit(self, net: NeuralNet, why: str, last: bool = False) -> None:
        solver = net.module_.solver
        refit: Refit = self.settings.refit
        fitted = refit(solver.ode, self.rows_, self.settings, self.fitted_, last=last, seed=self.seed_)
        if fitted.interrupted:
            raise KeyboardInterrupt
        self.fitted_ = fitted
        if last and solver.mesh is None:
            return  # dopri5 has taken over: this fit is to be kept, and not to be trained with
        solver.correct(frozen(fitted.correction))
        n_steps = self.settings.n_steps
        row = {"epoch": len(net.history), "step": self.step_, "solver": HYPERSOLVED, "n_steps": n_steps, "why": why}
        before = fitted.errors_before
        errors = {"error": fitted.errors[n_steps]["mean"], "error_before": before[n_steps]["mean"] if before else None}
        self.history_.append(row | errors)
        if self.settings.refit_every is None and not last:
            self._look(solver)


def frozen(correction: ModuleCorrection | None) -> ModuleCorrection | None:
    """Return a copy whose own parameters get no gradient; those of the field that it bends still do."""
    return None if correction is None else copy.deepcopy(correction).requires_grad_(False).eval()


def finish_control(control: Any, net: Any) -> None:
    """Let a control of solvers do what comes after the best weights are back."""
    if isinstance(control, RefitControl):
        control.finish(net)
