"""The stepping loop (paper, eqs. 2, 4 and 5), which runs a method over a span of time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from itertools import islice, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.compiler import is_compiling

from .correction import Correction
from .dense_output import MeshInterpolation, check_shape
from .methods.method import Method, StepPlan
from .protection import NO_INPUTS, FieldInputs, ProtectedField
from .times import check_grid, check_resolution, time_tensor


class Stepping(ABC):
    """A policy that chooses the steps by which a method covers a span.

    :class:`FixedMesh` knows all steps beforehand. :class:`~sklearn_hyper.numerics.Adaptive` chooses each by an estimate
    of its error.
    """

    method: Method
    plans: Sequence[StepPlan] | None = None
    """The steps of every solve, where they are known beforehand. None if they depend on the state."""

    @abstractmethod
    def iterate(
        self,
        f: Callable[..., Tensor],
        z0: Tensor,
        correction: Correction | None = None,
        inputs: FieldInputs = NO_INPUTS,
    ) -> Iterator[Tensor]:
        """Yield the state after every step, z_1, z_2, ..."""

    @property
    @abstractmethod
    def n_evaluations(self) -> int | None:
        """Evaluations of f in a solve. None where they depend on the state."""

    def solve(
        self,
        f: Callable[..., Tensor],
        z0: Tensor,
        correction: Correction | None = None,
        inputs: FieldInputs = NO_INPUTS,
    ) -> Tensor:
        """Return the state at the end of the span."""
        check_state(z0)
        z = z0
        for z in self.iterate(f, z0, correction, inputs):  # noqa: B007 - the last state is the result
            pass
        return z

    def trajectory(
        self,
        f: Callable[..., Tensor],
        z0: Tensor,
        correction: Correction | None = None,
        inputs: FieldInputs = NO_INPUTS,
    ) -> Tensor:
        """Return z_0 and the state after every step, time first."""
        check_state(z0)
        return torch.stack([z0, *self.iterate(f, z0, correction, inputs)])

    def states_at(
        self,
        f: Callable[..., Tensor],
        z0: Tensor,
        times: Tensor,
        correction: Correction | None = None,
        inputs: FieldInputs = NO_INPUTS,
    ) -> Tensor:
        """Return the states at given times, time first, of shape (n_times, batch, ...).

        Parameters
        ----------
        f, z0, correction, inputs
            As of :meth:`solve`.
        times : Tensor of shape (n_times,) or (batch, n_times)
            In float64, within the span and without nan: for all rows, or for each its own.

        Raises
        ------
        TypeError
            If the policy gives states at its own steps alone.
        """
        raise TypeError(
            f"a {type(self).__name__} gives states at its own steps alone: write its method states_at, or take a "
            "FixedMesh or an Adaptive."
        )


class _KeptTimes(NamedTuple):
    """Times of a mesh as tensors, for states of one dtype on one device."""

    dtype: torch.dtype
    times: Tensor
    each: tuple[Tensor, ...]


class FixedMesh(Stepping):
    """Step from each time of a fixed mesh to the next.

    All that does not depend on states is computed once, in the constructor. In the loop it would take as long as
    evaluating a small field.

    Parameters
    ----------
    method : Method
    grid : sequence of float
        The mesh s_0, ..., s_K, already checked by :func:`check_method_grid`. A tensor while it is being learned.
    """

    plans: list[StepPlan]
    _kept: _KeptTimes | None = None

    def __init__(self, method: Method, grid: Sequence[float] | Tensor):
        self.method, self.grid = method, grid
        self.plans = [StepPlan(k, s, after - s, method.kind(k)) for k, (s, after) in enumerate(pairwise(grid))]
        # For each step: its start, which the correction reads, then its nodes. A first node at the start is not
        # repeated.
        self._times: list[Any] = []
        self._places: list[tuple[StepPlan, int, slice, Any]] = []
        for plan in self.plans:
            start = len(self._times)
            self._times += plan.times() if plan.evaluates_start else [plan.s, *plan.times()]
            end = len(self._times)
            nodes = slice(end - len(plan.kind.nodes), end)
            self._places.append((plan, start, nodes, plan.eps ** (plan.kind.order + 1)))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None}

    def _node_times(self, z0: Tensor) -> Sequence[Any]:
        """Return the times of all starts and nodes, as f and the correction read them.

        They go into one tensor before the loop, so that no step waits for a transfer to the device. It is kept for the
        next solve, unless a field has written into it. A mesh that is being learned consists of tensors already.
        """
        if isinstance(self.grid, Tensor):
            return self._times
        if not _makes_plain_tensors(z0):
            return time_tensor(self._times, z0, self.grid).unbind()
        kept = self._kept
        if kept is None or kept.dtype != z0.dtype or kept.times.device != z0.device or kept.times._version:
            times = time_tensor(self._times, z0, self.grid)
            kept = _KeptTimes(z0.dtype, times, times.unbind())
            self._kept = None if times.is_inference() else kept
        return kept.each

    @classmethod
    def of(cls, method: Method, t_span: Any, n_steps: int) -> FixedMesh:
        """Return the mesh of ``n_steps`` steps that a method takes over a span: equal steps, or the method's own."""
        return cls(method, method.mesh(t_span, n_steps))

    @property
    def n_steps(self) -> int:
        """K."""
        return len(self.plans)

    @property
    def n_evaluations(self) -> int:
        return sum(len(plan.kind.nodes) for plan in self.plans)

    def iterate(
        self,
        f: Callable[..., Tensor],
        z0: Tensor,
        correction: Correction | None = None,
        inputs: FieldInputs = NO_INPUTS,
        slopes: list[Tensor | None] | None = None,
    ) -> Iterator[Tensor]:
        """Yield z_1, ..., z_K (eq. 5). Every fixed-step solve of the library runs through this loop.

        ``slopes`` takes f at the start of each step; None where the step does not evaluate f itself there.
        """
        field = ProtectedField(f, inputs)
        times = self._node_times(z0)
        z, state, step, x = z0, (), self.method.step, inputs.x
        for plan, start, nodes, scale in self._places:
            eps = plan.eps
            if correction is None:
                direction, stages, state, _ = step(field, times[nodes], z, eps, state)
                z = _add(z, direction, eps)
                if slopes is not None:
                    slopes.append(stages[0] if plan.evaluates_start else None)
            else:
                stepped = correction.field(field, plan)
                direction, stages, state, _ = step(stepped, times[nodes], z, eps, state)
                if slopes is not None:
                    is_f = stepped is field and field.f is field.given
                    slopes.append(stages[0] if is_f and plan.evaluates_start else None)
                g = correction.term(plan, times[start], z, stages, x)
                z = _add(z, direction, eps)
                if g is not None:
                    z = _add(z, g, scale)
            yield z

    def states_at(
        self,
        f: Callable[..., Tensor],
        z0: Tensor,
        times: Tensor | MeshInterpolation,
        correction: Correction | None = None,
        inputs: FieldInputs = NO_INPUTS,
    ) -> Tensor:
        """Return the states at given times, time first: see :class:`~.dense_output.MeshInterpolation`.

        The solve ends with the last step that is needed. Between the nodes, f is read from the steps that have
        evaluated it; the last node takes one more evaluation, and so does each node whose step does not evaluate f
        itself there: under changed weights, and of "abm2_pec".

        Parameters
        ----------
        f, z0, correction, inputs
            As of :meth:`solve`.
        times : Tensor of shape (n_times,) or (batch, n_times), or MeshInterpolation
            In float64, within the span and without nan.
        """
        dense = times
        if not isinstance(dense, MeshInterpolation):
            at = torch.as_tensor(times, dtype=torch.float64)
            check_shape(at, len(z0))
            dense = MeshInterpolation(self.grid, at)
        states, slopes, _ = self._nodes_for(dense, f, z0, correction, inputs)
        return dense.states(states, slopes)

    def count_evaluations_at(
        self,
        f: Callable[..., Tensor],
        z0: Tensor,
        times: Tensor,
        correction: Correction | None = None,
        inputs: FieldInputs = NO_INPUTS,
    ) -> int:
        """Count the evaluations of f that :meth:`states_at` makes, under changed weights included."""
        first = inputs.rows(slice(0, 1))
        return self._nodes_for(MeshInterpolation(self.grid, times), f, z0[:1], correction, first)[2]

    def _nodes_for(
        self,
        dense: MeshInterpolation,
        f: Callable[..., Tensor],
        z0: Tensor,
        correction: Correction | None,
        inputs: FieldInputs,
    ) -> tuple[list[Tensor], dict[int, Tensor], int]:
        """Return the states at the first nodes, f at those that an interpolation needs, and the evaluations made."""
        check_state(z0)
        slopes: list[Tensor | None] = []
        states = [z0, *islice(self.iterate(f, z0, correction, inputs, slopes), dense.n_steps)]
        known = {node: slope for node, slope in enumerate(slopes) if slope is not None}
        lacking = [node for node in dense.nodes if node not in known]
        if lacking:
            field = ProtectedField(f, inputs)
            ends = float(self.grid[0]), float(self.grid[-1])
            at = time_tensor([float(self.grid[node]) for node in lacking], z0, ends).unbind()
            known |= {node: field(time, states[node]) for node, time in zip(lacking, at, strict=True)}
        n_evaluations = sum(len(plan.kind.nodes) for plan in self.plans[: dense.n_steps])
        return states, known, n_evaluations + len(lacking)


def _makes_plain_tensors(z: Tensor) -> bool:
    """Return whether tensors made now may be used in another call: not while a call is traced or transformed."""
    return type(z) is Tensor and not (is_compiling() or torch._C._are_functorch_transforms_active())


def _add(z: Tensor, direction: Tensor, scale: float | Tensor) -> Tensor:
    # add with alpha is a single operation, but alpha must be a number.
    return z + scale * direction if isinstance(scale, Tensor) else z.add(direction, alpha=scale)


def check_state(z0: Any) -> None:
    """Refuse a state that is not a floating-point tensor with a batch axis."""
    if not isinstance(z0, Tensor) or not z0.is_floating_point() or z0.ndim < 1:
        raise TypeError(f"z0 must be a floating-point tensor of shape (batch, ...), got {z0!r}.")


def check_method_grid(
    method: Method, grid: Sequence[float] | Tensor, t_span: Any = None, n_steps: int | None = None
) -> tuple[float, ...]:
    """Return a user's mesh as floats. Refuse one that is invalid, or that the method is not made for."""
    mesh = check_grid(grid, t_span, n_steps)
    check_resolution("grid", mesh)
    if method.n_steps is not None:
        method.mesh((mesh[0], mesh[-1]), len(mesh) - 1)  # refuses another number of steps
    method.check_mesh(mesh)
    return mesh
