"""Explicit Runge-Kutta methods (paper, eq. 3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from torch import Tensor
from torch.compiler import is_compiling

from ..tableaus import ButcherTableau
from ..tensors import weighted_sum
from .method import Field, Method, Step, StepKind


@dataclass(frozen=True)
class RungeKutta(Method):
    r"""Explicit Runge-Kutta step from a tableau (paper, eq. 3).

    :math:`r_i = f(s_k + c_i \epsilon, z_k + \epsilon \sum_j a_{ij} r_j)` and
    :math:`\psi = \sum_i b_i r_i`. f is called once per stage.

    Parameters
    ----------
    tableau : ButcherTableau
    """

    tableau: ButcherTableau

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.tableau.name

    @property
    def order(self) -> int:  # type: ignore[override]
        return self.tableau.order

    def kind(self, index: int) -> StepKind:
        # torch.compile warns about cached functions.
        return (_kind_of if is_compiling() else _cached_kind_of)(self.tableau)

    def step(self, f: Field, times: Sequence[Tensor], z: Tensor, eps: float, state: tuple[Any, ...]) -> Step:
        stages: list[Tensor] = []
        for time, row in zip(times, self.tableau.a, strict=True):
            point = z
            for weight, stage in zip(row, stages, strict=False):
                if weight:
                    point = point.add(stage, alpha=eps * weight)
            stages.append(f(time, point))
        return Step(weighted_sum(self.tableau.b, stages), stages, state)

    @property
    def error_order(self) -> int | None:  # type: ignore[override]
        return None if self.tableau.embedded is None else self.tableau.order

    @property
    def ends_at_next_start(self) -> bool:  # type: ignore[override]
        tableau = self.tableau
        return tableau.c[-1] == 1 and tableau.a[-1] == tableau.b

    def estimate_error(self, step: Step, eps: float) -> Tensor | None:
        # Not in step(): a solve with fixed steps has no use for it.
        tableau = self.tableau
        if tableau.embedded is None:
            return None
        differences = [b - other for b, other in zip(tableau.b, tableau.embedded, strict=True)]
        return weighted_sum(differences, step.stages) * eps


def _kind_of(tableau: ButcherTableau) -> StepKind:
    return StepKind(tableau.order, tableau.c, tableau.c, leading_error(tableau))


_cached_kind_of = lru_cache(maxsize=256)(_kind_of)


def leading_error(tableau: ButcherTableau) -> tuple[float, float]:
    r"""Return the weights of two terms of a method's leading error, :math:`b \cdot c^p` and :math:`b \cdot A c^{p-1}`.

    As eps -> 0 the residual is linear in such weights, and for p <= 2 there are no others. In the alpha family they are
    alpha / 2 and 0. So they stay small for small alpha, where b grows without bound.
    """
    a, b, c, p = tableau.a, tableau.b, tableau.c, tableau.order
    inner = [sum(weight * node ** (p - 1) for weight, node in zip(row, c, strict=True)) for row in a]
    return (
        sum(weight * node**p for weight, node in zip(b, c, strict=True)),
        sum(weight * value for weight, value in zip(b, inner, strict=True)),
    )
