"""Methods whose coefficients and mesh are made for one number of steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import Tensor

from ..tableaus import ButcherTableau
from ..tensors import weighted_sum
from ..times import check_n_steps, check_t_span
from .method import Field, Method, Step, StepKind

NONSTATIONARY = "nonstationary"
"""Name of the method whose coefficients a fit learns."""
NONSTATIONARY_ORDER = 1
_OFFSETS = (0.0, -1.0)
"""A correction reads f at the start of the step and at the previous mesh point. Offsets are those of equal steps."""
_LAST_STAGE = 0.9
"""Where :func:`compose_tableaus` moves a last stage that lies at the end of the step."""


@dataclass(frozen=True)
class Nonstationary(Method):
    r"""Explicit method with its own coefficients in every step, for one K and one mesh.

    .. math:: z_{k+1} = z_k + \epsilon_k \sum_{j \le k} w_{kj} f(s_j, z_j), \qquad \sum_j w_{kj} = 1

    This is the general form of a consistent explicit method that evaluates f once per step. Euler's method and
    second-order Adams-Bashforth are examples. It has order 1, and is defined for its K only. Estimators learn one with
    ``base_solver="nonstationary"``.

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

    name = NONSTATIONARY
    order = NONSTATIONARY_ORDER
    follows_trajectory = False
    """Learned coefficients let the states in between leave the trajectory if that makes the last one better."""

    @property
    def n_steps(self) -> int:  # type: ignore[override]
        """The K that the method is made for."""
        return len(self.weights)

    @property
    def memory(self) -> int:  # type: ignore[override]
        """Every step reads all steps before it."""
        return self.n_steps - 1

    def kind(self, index: int) -> StepKind:
        return nonstationary_kind(index)

    def step(self, f: Field, times: Sequence[Tensor], z: Tensor, eps: float, state: tuple[Any, ...]) -> Step:
        stages = (*state, f(times[0], z))
        return nonstationary_step(weighted_sum(self.weights[len(state)], stages), stages)

    def remember(self, state: tuple[Tensor, ...], eps: float, stage: Tensor) -> tuple[Tensor, ...]:
        return (*state, stage)

    def mesh(self, t_span: Any, n_steps: int | None = None) -> tuple[float, ...]:
        if n_steps is not None and self.n_steps != check_n_steps(n_steps):
            raise ValueError(
                f"base_solver={self.name!r} is made for n_steps={self.n_steps} alone, got n_steps={n_steps}; "
                "fit it anew, or fit a base solver that takes any number of steps (base_solver='ab2', or 'auto' with "
                "fit_n_steps=(a, b))."
            )
        start, end = check_t_span(t_span)
        return (start, *(start + (end - start) * share for share in self.shares[1:-1]), end)

    def check_mesh(self, mesh: Sequence[float]) -> None:
        n = min(len(mesh), len(self.shares))
        span = (mesh[n - 1] - mesh[0]) / self.shares[n - 1]
        off = [abs(s - mesh[0] - span * share) for s, share in zip(mesh, self.shares, strict=False)]
        if len(mesh) > len(self.shares) or max(off) > 1e-6 * max(abs(span), abs(mesh[0]), abs(mesh[-1])):
            raise ValueError(
                f"grid={tuple(mesh)} is not the mesh that base_solver={self.name!r} is made for, {self.shares} as "
                "shares of the span; leave grid=None, or take another base solver, such as 'ab2'."
            )


def nonstationary_kind(index: int) -> StepKind:
    """Return the kind of a step: Euler's for the first; later steps also read f at the previous mesh point."""
    return StepKind(NONSTATIONARY_ORDER, (0.0,), _OFFSETS[: index + 1])


def nonstationary_step(direction: Tensor, stages: tuple[Tensor, ...]) -> Step:
    """Return a step, given f at all mesh points up to its start, oldest first."""
    return Step(direction, list(stages[: -len(_OFFSETS) - 1 : -1]), stages)


def compose_tableaus(tableaus: Sequence[ButcherTableau]) -> Nonstationary:
    r"""Write one step of each Runge-Kutta method in turn as a single nonstationary method.

    Each Runge-Kutta step gets a share of the span in proportion to its stages. The states of the result are the states
    at which the stages are evaluated: each step goes from one stage's state to the next one's.

    Parameters
    ----------
    tableaus : sequence of ButcherTableau
        Their stages must lie at different times, in rising order. A last stage at the end of the step is moved to 0.9
        of the step, because the next step starts at its end. That lowers the order of such a method.

    Returns
    -------
    Nonstationary
        Its K is the total number of stages.

    Examples
    --------
    >>> from sklearn_hyper.numerics.methods import compose_tableaus
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


def compose_predictor_corrector(n_evaluations: int) -> Nonstationary:
    r"""Write steps of the predictor-corrector method "abm2_pec" as a nonstationary method.

    Each evaluation is at a predicted state, and corrects the state that the next prediction starts from:

    .. math::

        \hat z_{k+1} = z_k + h \big(\tfrac32 r_k - \tfrac12 r_{k-1}\big), \qquad
        z_{k+1} = z_k + \tfrac h2 (r_k + r_{k+1}), \qquad r_k = f(s_k, \hat z_k)

    Parameters
    ----------
    n_evaluations : int, at least 2
        Number of evaluations, one more than steps. The last one would be at the end of the span. It is moved to 0.9 of
        the last step, with the weights that are exact for lines there.

    Examples
    --------
    >>> from sklearn_hyper.numerics.methods import compose_predictor_corrector
    >>> [round(share, 3) for share in compose_predictor_corrector(3).shares]  # two steps
    [0.0, 0.5, 0.95, 1.0]
    """
    n_steps = n_evaluations - 1
    h = 1 / n_steps
    corrected = [0.0] * n_evaluations
    states = [list(corrected)]
    for k in range(n_steps):
        share = _LAST_STAGE if k == n_steps - 1 else 1.0
        predicted = list(corrected)
        predicted[k] += h * share * (1 + share / 2 if k else 1.0)
        if k:
            predicted[k - 1] -= h * share**2 / 2
        states.append(predicted)
        corrected[k] += h * (1 - 1 / (2 * share))
        corrected[k + 1] += h / (2 * share)
    states.append(corrected)
    shares = [*(k * h for k in range(n_steps)), 1 - h * (1 - _LAST_STAGE), 1.0]
    rows = [
        [(after - before) / (end - start) for before, after in zip(*pair, strict=True)][: k + 1]
        for k, (pair, (start, end)) in enumerate(zip(pairwise(states), pairwise(shares), strict=True))
    ]
    return Nonstationary(rows, shares)
