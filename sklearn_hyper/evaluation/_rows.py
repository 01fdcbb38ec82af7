"""Rows as a fitted hypersolver's solvers take them, and where dopri5 takes them."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from ..estimators._base import outside_inference_mode
from ..estimators._inputs import prepare_rows
from ..hypersolvers import Task
from ..training.given_rows import apart


def task_of(hypersolver: Any, X: Any, condition: Any = None) -> Task:
    """Return rows of X as a task of a fitted hypersolver: its Neural ODE, and tensors on its device."""
    rows = prepare_rows(hypersolver, X, condition)
    return Task(
        hypersolver.fitted_.neural_ode, *apart(hypersolver._to_tensor(rows, hypersolver.dtype_, hypersolver.device_))
    )


def reference_states(hypersolver: Any, task: Task) -> Tensor:
    """Return dopri5's terminal states of the rows of a task, at the tolerance of the hypersolver's fit.

    Raises
    ------
    ReferenceSolveError
        If dopri5 cannot solve some rows; the error names them.
    """
    with outside_inference_mode():
        on_cpu = task.to("cpu")
        return hypersolver.fitted_.reference(on_cpu.x, on_cpu.condition).to(task.x.device)


def state_errors(reference: Tensor, states: Any) -> np.ndarray:
    """Return the 2-norm of each row's error, in units of the states."""
    difference = np.asarray(states, dtype=float) - reference.cpu().numpy()
    return np.asarray(np.linalg.norm(difference.reshape(len(difference), -1), axis=1))
