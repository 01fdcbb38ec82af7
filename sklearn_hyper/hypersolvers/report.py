"""Measure solvers of one Neural ODE side by side: errors, evaluations, MACs and milliseconds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from ..metrics import mape_floor, mean_absolute_percentage_error, relative_l2
from ..modules.hypersolved_ode import SolvedODE
from ..modules.neural_ode import NeuralODE
from ..numerics.cost import CountedField, relative_overhead, time_interleaved
from ..reports import SolverReport, SolverRow
from ..training.given_rows import Inputs, given
from ..training.tasks import Task

Answers: TypeAlias = Callable[[Inputs], tuple[Tensor, np.ndarray]]
"""Returns terminal states of rows, and the evaluations of f that each took."""


def measure_solvers(
    solvers: Mapping[str, SolvedODE],
    task: Task,
    reference: Tensor,
    labels: np.ndarray | None,
    *,
    answers: Mapping[str, Answers],
    to_labels: Callable[[np.ndarray], np.ndarray] | None,
    tolerance: float,
    floor: float,
    batch_size: int,
) -> SolverReport:
    """Measure dopri5 at ``tolerance``, every solver, and whatever else answers; errors are against the reference."""
    ode, first_row = task.neural_ode, task.rows(slice(0, 1))
    batches = [task.rows(slice(start, start + batch_size)) for start in range(0, len(task), batch_size)]
    notes = [f"Errors against the reference; milliseconds for a batch of {len(batches[0])}."]
    macs_f = ode.count_field_macs(first_row.x, first_row.condition)
    if math.isnan(macs_f):
        notes.append("MACs are nan: the field holds no matrix product or convolution, so compare NFE and milliseconds.")

    def dopri5(rows: Task) -> Tensor:
        return _dopri5(rows, tolerance)[0]

    calls: dict[str, Callable[[Task], Tensor]] = {f"dopri5 {tolerance:g}": dopri5}
    calls.update({name: partial(_solve, solver) for name, solver in solvers.items()})
    calls.update({name: partial(_ends, answer) for name, answer in answers.items()})
    with torch.no_grad():
        states = {name: torch.cat([call(rows) for rows in batches]) for name, call in calls.items()}
        outputs = {name: _outputs(ode, z, batch_size) for name, z in states.items()}
        expected = _outputs(ode, reference, batch_size)
        ms = time_interleaved({name: partial(call, batches[0]) for name, call in calls.items()})
        slow, *fast = calls
        evaluations = _dopri5(batches[0], tolerance)[1]
        costs = {slow: _Cost(evaluations, evaluations * macs_f, ms[slow], 1.0, math.nan, *count_numbers(ode))}
        for name in fast:
            if name in solvers:
                # Where steps depend on the state, one row is not like the next.
                counted = first_row if solvers[name].stepping.n_evaluations is not None else batches[0]
                costs[name] = _cost(solvers[name], macs_f, counted, ms[name], ms[slow] / ms[name])
            else:
                nfe = float(np.mean(np.concatenate([_answer(answers[name], rows)[1] for rows in batches])))
                costs[name] = _Cost(nfe, nfe * macs_f, ms[name], ms[slow] / ms[name], math.nan, math.nan, math.nan)
    accuracy = dict.fromkeys(calls, math.nan)
    if labels is not None:
        to_indices = to_labels or partial(np.argmax, axis=1)
        accuracy = {name: float(np.mean(to_indices(outputs[name]) == labels)) for name in calls}
    rows = [
        _row(name, states[name], outputs[name], reference, expected, accuracy[name], floor, costs[name])
        for name in calls
    ]
    return SolverReport(rows, notes)


class _Cost(NamedTuple):
    nfe: float
    macs: float
    ms: float
    speed_up: float
    relative_overhead: float
    parameters: float
    bytes: float


def _ends(answer: Answers, rows: Task) -> Tensor:
    return _answer(answer, rows)[0]


def _answer(answer: Answers, rows: Task) -> tuple[Tensor, np.ndarray]:
    return answer(given(rows.x, rows.condition))


def _solve(solver: SolvedODE, rows: Task) -> Tensor:
    return solver.terminal_state(rows.x, rows.condition)


def _cost(solver: SolvedODE, macs_f: float, rows: Task, ms: float, speed_up: float) -> _Cost:
    nfe = solver.count_evaluations(rows.x, rows.condition)
    if not solver.has_correction:
        return _Cost(nfe, nfe * macs_f, ms, speed_up, math.nan, *count_numbers(solver))
    macs = solver.count_macs(rows.x, rows.condition) / len(rows)
    # Of the whole solve, because steps may differ in cost.
    return _Cost(nfe, macs, ms, speed_up, relative_overhead(macs_f, macs - nfe * macs_f, nfe), *count_numbers(solver))


def count_numbers(module: nn.Module) -> tuple[int, int]:
    """Return how many numbers a module keeps, and their bytes; shared ones count once."""
    kept = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}.values()
    return sum(tensor.numel() for tensor in kept), sum(tensor.numel() * tensor.element_size() for tensor in kept)


def _row(
    name: str, z: Tensor, output: np.ndarray, reference: Tensor, expected: np.ndarray, accuracy: float,
    floor: float, cost: _Cost,
) -> SolverRow:  # fmt: skip
    errors = relative_l2(reference.cpu().numpy(), z.cpu().numpy())
    p50, p99 = np.quantile(errors, [0.5, 0.99])
    return SolverRow(
        solver=name,
        accuracy=accuracy,
        mape=mean_absolute_percentage_error(expected, output, floor=mape_floor(floor, expected)),
        l2_mean=float(errors.mean()),
        l2_p50=float(p50),
        l2_p99=float(p99),
        l2_max=float(errors.max()),
        **cost._asdict(),
    )


def _outputs(ode: NeuralODE, z: Tensor, batch_size: int) -> np.ndarray:
    return np.concatenate([ode.output_map(rows).cpu().numpy() for rows in z.split(batch_size)])


def _dopri5(rows: Task, tolerance: float) -> tuple[Tensor, int]:
    """Solve by dopri5 as it comes, and count its evaluations of f."""
    counted = CountedField(rows.neural_ode.vector_field)
    states = rows.neural_ode.solve(rows.x, rtol=tolerance, condition=rows.condition, field=counted)
    return states, counted.n_evaluations
