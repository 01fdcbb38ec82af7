"""Solvers whose coefficients and mesh are made for one number of steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import Tensor

from .base_solvers import NONSTATIONARY, BaseStep, Field, RungeKutta, weighted_sum
from .solve import check_t_span
from .tableaus import EULER, ButcherTableau

NONSTATIONARY_ORDER = 1
_READ_STAGES = 2
_LAST_STAGE = 0.9


@dataclass(frozen=True)
class Nonstationary:
    r"""Explicit method with coefficients of its own in every step, for one K and one mesh.

    .. math:: z_{k+1} = z_k + \epsilon_k \sum_{j \le k} w_{kj} f(s_j, z_j), \qquad \sum_j w_{kj} = 1

    Every explicit method that evaluates f once a step and whose steps are consistent is one of these: Euler, and the
    Adams-Bashforth methods that start with it, too. It has order 1, and is defined for its K alone. Estimators learn one
    with ``base_solver="nonstationary"``.

    Parameters
    ----------
    weights : sequence of K sequences of float
        Row k holds w_k0, ..., w_kk.
    shares : sequence of K + 1 floats
        The mesh as shares of the span, from 0 to 1.

    Raises
    ------
    ValueError
        If a row has a wrong length or does not sum to 1, or the shares do not rise from 0 to 1.

    References
    ----------
    Shaul et al. (2024), *Bespoke Non-Stationary Solvers for Fast Sampling of Diffusion and Flow Models*, ICML.

    Examples
    --------
    >>> import torch
    >>> from sklearn_hyper.numerics import Nonstationary, hypersolve
    >>> ab2 = Nonstationary([(1.0,), (-0.5, 1.5)], (0.0, 0.5, 1.0))
    >>> hypersolve(lambda t, z: -z, torch.ones(1, 1), (0.0, 1.0), 2, ab2)
    tensor([[0.3750]])
    """

    weights: tuple[tuple[float, ...], ...]
    shares: tuple[float, ...]

    def __init__(self, weights: Sequence[Sequence[float]], shares: Sequence[float]):
        rows, mesh = tuple(tuple(map(float, row)) for row in weights), tuple(map(float, shares))
        for k, row in enumerate(rows):
            if len(row) != k + 1 or not math.isclose(sum(row), 1, abs_tol=1e-5):
                raise ValueError(f"weights[{k}] must hold {k + 1} numbers that sum to 1, got {row}.")
        rises = all(after > before for before, after in pairwise(mesh))
        if not rows or len(mesh) != len(rows) + 1 or (mesh[0], mesh[-1]) != (0.0, 1.0) or not rises:
            raise ValueError(f"shares must be {len(rows) + 1} numbers that rise from 0 to 1, got {mesh}.")
        object.__setattr__(self, "weights", rows)
        object.__setattr__(self, "shares", mesh)

    @property
    def name(self) -> str:
        return NONSTATIONARY

    @property
    def order(self) -> int:
        return NONSTATIONARY_ORDER

    @property
    def n_steps(self) -> int:
        """The K that it is made for."""
        return len(self.weights)

    @property
    def n_stages(self) -> int:
        """What a correction reads: f here and at the mesh point before."""
        return min(_READ_STAGES, self.n_steps)

    @property
    def starters(self) -> tuple[Any, ...]:
        """The first step is Euler's, and has one stage; those after it remember all that came before."""
        return (RungeKutta(EULER), *[self] * (self.n_steps - 2))[: self.n_steps - 1]

    def mesh(self, t_span: Any) -> tuple[float, ...]:
        """Its mesh on a span."""
        start, end = check_t_span(t_span)
        return (start, *(start + (end - start) * share for share in self.shares[1:-1]), end)

    def nodes(self, s: float, eps: float) -> list[float]:
        return [s]

    def step(self, f: Field, times: Sequence[Tensor], z: Tensor, eps: float, history: tuple[Any, ...]) -> BaseStep:
        stages = (*history, f(times[0], z))
        return nonstationary_step(weighted_sum(self.weights[len(history)], stages), stages)

    def remember(self, history: tuple[Tensor, ...], eps: float, stage: Tensor) -> tuple[Tensor, ...]:
        """The history after a step from a point where f is ``stage``: oldest first."""
        return (*history, stage)

    def count_evaluations(self, n_steps: int) -> int:
        return n_steps

    def stage_offsets(self, n_stages: int | None = None) -> tuple[float, ...]:
        """Where the stages that a correction reads would lie on a uniform mesh, in units of eps."""
        return (0.0, -1.0)[: self.n_stages if n_stages is None else n_stages]


def nonstationary_step(psi: Tensor, stages: tuple[Tensor, ...]) -> BaseStep:
    """A step in the direction psi, after f here (the last of ``stages``) and at all mesh points before."""
    return BaseStep(psi, list(stages[: -_READ_STAGES - 1 : -1]), NONSTATIONARY_ORDER, stages)


def compose_tableaus(tableaus: Sequence[ButcherTableau]) -> Nonstationary:
    r"""One step of each Runge-Kutta method in turn, as a nonstationary method; spans go by the number of stages.

    Its states are those that the stages are evaluated at, so that a step leads from one stage's state to the next one's.

    Parameters
    ----------
    tableaus : sequence of ButcherTableau
        With stages at different times, in their order. A last stage at the end of the step, where the next one begins, is
        moved to nine tenths of it, which costs such a method its full order.

    Returns
    -------
    Nonstationary
        Its K is the number of all stages.

    Examples
    --------
    >>> from sklearn_hyper.numerics.nonstationary import compose_tableaus
    >>> from sklearn_hyper.numerics.tableaus import MIDPOINT
    >>> compose_tableaus([MIDPOINT]).weights
    ((1.0,), (-1.0, 2.0))
    """
    n = sum(tableau.n_stages for tableau in tableaus)
    rows: list[list[float]] = []
    shares: list[float] = []
    for tableau in tableaus:
        start = len(rows)
        at_end = tableau.c[-1] == 1
        scales = [*[1.0] * (tableau.n_stages - 1), _LAST_STAGE if at_end else 1.0]
        states = [[scale * a for a in row] for scale, row in zip(scales, tableau.a, strict=True)] + [list(tableau.b)]
        nodes = [scale * c for scale, c in zip(scales, tableau.c, strict=True)] + [1.0]
        for i in range(tableau.n_stages):
            step = [
                (after - before) / (nodes[i + 1] - nodes[i]) for before, after in zip(*states[i : i + 2], strict=True)
            ]
            rows.append([*[0.0] * start, *step[: i + 1]])
            shares.append((start + nodes[i] * tableau.n_stages) / n)
    return Nonstationary(rows, [*shares, 1.0])
