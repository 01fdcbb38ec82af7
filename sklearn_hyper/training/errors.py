"""Solve a frozen Neural ODE over whole spans, and measure errors: a fit trains through them and is guarded by them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..modules.neural_ode import NeuralODE
from ..numerics.correction import Correction
from ..numerics.dense_output import MeshInterpolation
from ..numerics.protection import FieldInputs
from ..numerics.row_errors import RowsError, list_rows, refuse_undefined
from ..numerics.stepping import FixedMesh
from ..numerics.tensors import flatten_samples, mean_norm, mean_size, row_norms
from ..numerics.units import state_units
from .losses import StateLoss, terminal_loss, trajectory_loss
from .plan import Run, mesh_indices
from .tasks import Task

_TINY = 1e-20
"""An error of this share of the states is below rounding in every dtype."""
_UNIT_ROWS = 256
_LAST_CHOICE_MEAN, _LAST_CHOICE_TAIL = 0.5, 2.0
"""Weights that raise the largest error are kept, if no others are good, while the mean error, and that of the largest
twentieth, are at most these shares of the base solver's. In samplers of many modes a row in a hundred may end in
another mode, whatever the weights, and one such row would else undo a fit."""
_TAIL = 20
_LAST_CHOICE = 0.999
"""Loss from which on such weights count; the base solver has 1."""


@dataclass
class References:
    """Reference states of some rows of a task, at the times of a mesh."""

    task: Task
    times: tuple[float, ...]
    states: Tensor
    unit: Tensor
    """Unit of the states by feature: see :func:`sklearn_hyper.numerics.units.state_units`."""
    _found: dict[tuple[float, ...], list[int]] = field(default_factory=dict, repr=False)
    """Where grids were found: training asks for the same ones in every step."""

    def __len__(self) -> int:
        return len(self.task)

    @property
    def inputs(self) -> FieldInputs:
        """The field's arguments beside t and z, for each row."""
        return self.task.inputs

    def indices(self, grid: Sequence[float]) -> list[int]:
        """Return the mesh indices of the times of a grid."""
        key = tuple(grid)
        if key not in self._found:
            found = mesh_indices(self.times, grid)
            if not found:
                raise KeyError(f"references are on {self.times}, which lacks times of {grid}")
            self._found[key] = found
        return self._found[key]

    def on_grid(self, grid: Sequence[float], rows: Any = slice(None)) -> Tensor:
        """Return the states at the times of a grid, which the mesh must hold."""
        return torch.stack([self.states[i][rows] for i in self.indices(grid)])


class UnrolledSolves:
    """Solves of a frozen Neural ODE, and their errors as shares of the base solver's.

    Parameters
    ----------
    neural_ode : NeuralODE
    loss : callable
        What is taken of states and the reference's. ``trajectory_loss`` gets all states, any other the ends.
    t_eval : sequence of float, optional
        Times of the states that ``trajectory_loss`` gets. By default those of the steps.
    """

    def __init__(self, neural_ode: NeuralODE, loss: StateLoss, t_eval: Sequence[float] | None = None):
        self.neural_ode, self.loss = neural_ode, loss
        start = neural_ode.t_span[0]
        # The state at the start is known.
        self._at = None if t_eval is None else tuple(time for time in t_eval if time != start)
        self._units: dict[Run, Tensor] = {}
        self._meshes: dict[Run, FixedMesh] = {}
        self._between: dict[Run, MeshInterpolation] = {}

    def mesh(self, run: Run) -> FixedMesh:
        """Return the steps of a run; they are planned once, unless the method is being learned."""
        if run.method.is_learning:
            return FixedMesh.of(run.method, self.neural_ode.t_span, run.n_steps)
        mesh = self._meshes.get(run)
        if mesh is None:
            mesh = self._meshes[run] = FixedMesh.of(run.method, self.neural_ode.t_span, run.n_steps)
        return mesh

    def solve(
        self, references: References, rows: Any, run: Run, correction: Correction | None
    ) -> tuple[Tensor, Tensor]:
        """Solve some rows; return the states that the loss needs, and the reference's."""
        mesh = self.mesh(run)
        every_step = self.loss is trajectory_loss
        if every_step and self._at is not None:
            return self._solve_at(self._at, references, rows, run, correction)
        reference = references.on_grid(tuple(mesh.grid) if every_step else self.neural_ode.t_span, rows)
        z0 = reference[0]
        inputs = references.inputs.rows(rows)
        states = [z0, *mesh.iterate(self.neural_ode.vector_field, z0, correction, inputs)]
        return torch.stack(states if every_step else [z0, states[-1]]), reference

    def _solve_at(
        self, times: tuple[float, ...], references: References, rows: Any, run: Run, correction: Correction | None
    ) -> tuple[Tensor, Tensor]:
        """Solve some rows; return the states at the start and at given times, and the reference's."""
        mesh = self.mesh(run)
        if run not in self._between:
            self._between[run] = MeshInterpolation(mesh.grid, times)
        reference = references.on_grid((self.neural_ode.t_span[0], *times), rows)
        states = mesh.states_at(
            self.neural_ode.vector_field, reference[0], self._between[run], correction, references.inputs.rows(rows)
        )
        return torch.cat([reference[:1], states]), reference

    def share(self, references: References, rows: Any, run: Run, correction: Correction) -> Tensor:
        """Compute the loss of some rows, as a share of the base solver's on the first rows of ``references``."""
        unit = self._units.get(run)
        if unit is None:
            unit = self._units[run] = self._unit_of(references, run)
        found = self.solve(references, rows, run, correction)
        return mean_norm(self.loss(*found) / unit)

    def _unit_of(self, references: References, run: Run) -> Tensor:
        """Measure the base solver's mean loss in a run."""
        with torch.no_grad():
            states, reference = self.solve(references, slice(0, _UNIT_ROWS), run, None)
            difference = self.loss(states, reference)
            is_of_states = self.loss in (terminal_loss, trajectory_loss)
            unit = references.unit if is_of_states else state_units(self.neural_ode.output_map(reference[-1]))
            return unit * max(mean_size(difference, unit), _TINY)


class BaseSolverOverflowError(RowsError, ValueError):
    """A base solver overflows from some rows from which dopri5 does not."""

    @classmethod
    def _describe(cls, what: str, rows: Sequence[int], n_rows: int) -> str:
        return (
            f"{what} overflows from {len(rows)} of {n_rows} rows of X ({list_rows(rows)}), where dopri5 does not: its "
            "steps are too long for this field. Raise n_steps (or the lower end of fit_n_steps), take a base solver of "
            "higher order, or leave those rows out."
        )


def check_overflow(values: Tensor, name: str, n_steps: int) -> None:
    """Refuse rows from which a base solver is not finite, since no correction can be trained through that."""
    lost = (~flatten_samples(values).isfinite()).any(dim=1).nonzero()[:, 0].tolist()
    if lost:
        raise BaseSolverOverflowError.of(f"base_solver={name!r} with n_steps={n_steps}", lost, len(values))


def check_runs(
    neural_ode: NeuralODE, both: Sequence[References], runs: Sequence[Run], batch_size: int, needs_outputs: bool
) -> None:
    """Refuse rows from which losses are not finite: a base solver overflows, or outputs are nan.

    Parameters
    ----------
    both : sequence of References
        References of the rows trained on, and of those held out.
    needs_outputs : bool
        Whether outputs are part of a loss.
    """
    what = "finetune='output' needs outputs, and the output map is not finite at states that {} reaches"
    if needs_outputs:
        ends = torch.cat([references.states[-1] for references in both])
        with torch.no_grad():
            expected = torch.cat([neural_ode.output_map(z) for z in ends.split(batch_size)])
        refuse_undefined(expected, what.format("dopri5"))
    for run in runs:
        outputs: list[Tensor] | None = [] if needs_outputs else None
        errors = torch.cat([_base_errors(neural_ode, references, run, outputs) for references in both])
        check_overflow(errors, run.method.name, run.n_steps)
        if outputs:
            refuse_undefined(
                torch.cat(outputs), what.format(f"base_solver={run.method.name!r} with n_steps={run.n_steps}")
            )


def _base_errors(neural_ode: NeuralODE, references: References, run: Run, outputs: list[Tensor] | None) -> Tensor:
    """Return the norm of the base solver's terminal error by row, which is not finite where it overflows.

    If ``outputs`` is given, append the outputs at the base solver's terminal states to it.
    """
    unrolled = UnrolledSolves(neural_ode, terminal_loss)
    errors = []
    with torch.no_grad():
        for start in range(0, len(references), _UNIT_ROWS):
            states, reference = unrolled.solve(references, slice(start, start + _UNIT_ROWS), run, None)
            errors.append(row_norms((states[-1] - reference[-1]) / references.unit))
            if outputs is not None:
                outputs.append(neural_ode.output_map(states[-1]))
    return torch.cat(errors)


def _mean_of_largest(errors: Tensor) -> Tensor:
    """Return the mean of the largest twentieth of each column, of one row at least."""
    return errors.topk(max(1, len(errors) // _TAIL), dim=0).values.mean(dim=0)


class TerminalErrors:
    r"""Errors :math:`\|z(S) - z_K\|_2` on held-out rows, compared with the base solver's to guard a fit.

    Parameters
    ----------
    references : References
        References of the held-out rows.
    guarded : Run
        The run that predictions will take.
    base : Run, optional
        The run without a correction, where it takes another method: one whose coefficients the training changes.
    """

    def __init__(self, references: References, guarded: Run, base: Run | None = None):
        self._neural_ode = references.task.neural_ode
        self._unrolled, self._references = UnrolledSolves(self._neural_ode, terminal_loss), references
        self.guarded, self.base = guarded, base or guarded
        self._base = self._norms(*self._ends(self.base, None))

    def run(self, correction: Correction | None) -> Run:
        """Return the run that a correction takes; None is the base method alone."""
        return self.base if correction is None else self.guarded

    def _ends(self, run: Run, correction: Correction | None) -> tuple[Tensor, Tensor]:
        """Return the terminal states of a run, and the reference's."""
        with torch.no_grad():
            states, reference = self._unrolled.solve(self._references, slice(None), run, correction)
        return states[-1], reference[-1]

    def _norms(self, end: Tensor, reference: Tensor) -> Tensor:
        """Return two columns of errors by row: in the units of the states, and unscaled."""
        scaled = row_norms((end - reference) / self._references.unit)
        return torch.stack([scaled.double(), _plain_norms(end, reference)], dim=1)

    def relative_state_error(self, correction: Correction | None, rtol: float) -> float:
        """Return the mean error of the terminal states as a share of their mean norm.

        The norm counts as at least ``rtol`` times the states' norm at the start, because the reference does not resolve
        smaller ones.
        """
        return self._share_of_states(*self._ends(self.run(correction), correction), rtol)

    def _share_of_states(self, end: Tensor, reference: Tensor, rtol: float) -> float:
        unit = self._references.unit
        start = mean_norm(self._references.states[0] / unit)
        size = mean_norm(reference / unit).clamp(min=float(rtol * start) + _TINY)
        return float(self._norms(end, reference)[:, 0].mean() / size)

    def relative(self, correction: Correction | None, rtol: float) -> dict[str, float]:
        """Return the mean error of the terminal states and of the outputs, each as a share of its own mean norm."""
        output_map = self._neural_ode.output_map
        end, reference = self._ends(self.run(correction), correction)
        shares = {"the states at the end of t_span": self._share_of_states(end, reference, rtol)}
        if not isinstance(output_map, nn.Identity):
            with torch.no_grad():
                output, expected = output_map(end), output_map(reference)
            unit = state_units(expected)
            error, size = mean_norm((output - expected) / unit), mean_norm(expected / unit)
            shares["the outputs"] = float(error / size.clamp(min=_TINY))
        return shares

    def guard(self, correction: Correction) -> tuple[Tensor, float]:
        """Return the mean error as a share of the base solver's, and the least loss that such weights count with.

        That is 0 where the largest error is not above the base solver's. Where it is, but the mean is at most half the
        base solver's, and that of the largest twentieth at most twice, it is just below 1: better than the base solver,
        and worse than all weights that bend no row too far. Else it is infinite.
        """
        errors = self._norms(*self._ends(self.guarded, correction))
        means, base_means = errors.mean(dim=0), self._base.mean(dim=0)
        mean = means[0] / base_means[0].clamp(min=_TINY)
        share = mean.to(self._references.states.dtype)
        if (errors.amax(dim=0) <= self._base.amax(dim=0)).all():
            return share, 0.0
        tail, base_tail = (_mean_of_largest(one) for one in (errors, self._base))
        halves = (means <= _LAST_CHOICE_MEAN * base_means).all()
        is_last_choice = halves and (tail <= _LAST_CHOICE_TAIL * base_tail).all()
        return share, _LAST_CHOICE if is_last_choice else math.inf

    def table(self, correction: Correction | None, steps: Sequence[int]) -> dict[int, dict[str, float]]:
        """Return mean and largest errors of the hypersolver and of its base solver, by number of steps."""
        rows = {}
        for k in sorted({*steps, self.guarded.n_steps}):
            corrected, base = (
                _plain_norms(*self._ends(self.run(g)._replace(n_steps=k), g)) for g in (correction, None)
            )
            rows[k] = {
                "mean": float(corrected.mean()),
                "max": float(corrected.max()),
                "base_mean": float(base.mean()),
                "base_max": float(base.max()),
            }
        return rows


def _plain_norms(end: Tensor, reference: Tensor) -> Tensor:
    # float64, in which squares of small units do not underflow.
    return row_norms(end.double() - reference)
