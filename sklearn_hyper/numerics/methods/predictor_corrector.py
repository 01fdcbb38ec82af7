"""Predictor-corrector methods: an Adams-Bashforth step predicts the state, the trapezoidal rule corrects it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from ..tensors import weighted_sum
from .adams_bashforth import past_weights
from .method import Field, Method, Step, StepKind

_MILNE = 1 / 6
"""Error of the corrector as a share of its distance from the predictor, on equal steps: 1/12 of 5/12 + 1/12."""


class _Past(NamedTuple):
    """What a step leaves for the next one."""

    size: float
    """Size of the step."""
    stage: Tensor
    """f at its start."""
    ahead: Tensor | None = None
    """f at its end, at the predicted state. None if the next step evaluates f at its start itself."""


@dataclass(frozen=True)
class PredictorCorrector(Method):
    r"""Predict with Adams-Bashforth of order 2, correct with the trapezoidal rule.

    .. math::

        \hat z = z_k + \epsilon \big(w_0 r_k + w_1 r_{k-1}\big), \qquad
        \psi = \tfrac12 \big(r_k + f(s_{k+1}, \hat z)\big)

    The weights w fit the step sizes (3/2 and -1/2 for equal steps). The first step predicts with Euler's method, which
    makes it a step of Heun's method. Each step estimates its local error as a sixth of the distance between corrector
    and predictor (Milne).

    Parameters
    ----------
    evaluations : int, 1 or 2
        Evaluations of f per step. With two (PECE, "abm2"), r_k is f at the corrected state. With one (PEC, "abm2_pec"),
        r_k is f at the predicted state, taken from the previous step. Both have order 2. PEC costs half as much and is
        less accurate.

    References
    ----------
    Hairer, Norsett, Wanner (1993), *Solving Ordinary Differential Equations I*, section III.1.

    Examples
    --------
    >>> from sklearn_hyper.numerics import resolve_base_solver
    >>> [resolve_base_solver(name).count_evaluations(10) for name in ("abm2", "abm2_pec")]
    [20, 11]
    """

    evaluations: int

    order = 2
    memory = 1
    error_order = 3

    def __post_init__(self) -> None:
        if isinstance(self.evaluations, bool) or self.evaluations not in (1, 2):
            raise ValueError(f"PredictorCorrector evaluations must be 1 or 2, got {self.evaluations!r}.")

    @property
    def name(self) -> str:  # type: ignore[override]
        return "abm2" if self.evaluations == 2 else "abm2_pec"

    def kind(self, index: int) -> StepKind:
        if index == 0:
            return StepKind(2, nodes=(0.0, 1.0), offsets=(0.0, 1.0))
        return StepKind(2, nodes=(0.0, 1.0) if self.evaluations == 2 else (1.0,), offsets=(0.0, 1.0, -1.0))

    def step(self, f: Field, times: Sequence[Tensor], z: Tensor, eps: float, state: tuple[Any, ...]) -> Step:
        past = _Past(*state) if state else None
        here = f(times[0], z) if past is None or past.ahead is None else past.ahead
        if past is None:
            predicted, remembered = here, []
        else:
            predicted, remembered = weighted_sum(past_weights(eps, (past.size,)), [here, past.stage]), [past.stage]
        ahead = f(times[-1], z.add(predicted, alpha=eps))
        direction = weighted_sum((0.5, 0.5), [here, ahead])
        left = _Past(eps, here, ahead if self.evaluations == 1 else None)
        error = (direction - predicted) * (_MILNE * eps)
        return Step(direction, [here, ahead, *remembered], tuple(left), error)

    def remember(self, state: tuple[Any, ...], eps: float, stage: Tensor) -> tuple[Any, ...]:
        return tuple(_Past(eps, stage))

    def arrive(self, state: tuple[Any, ...], stage: Tensor) -> tuple[Any, ...]:
        return tuple(_Past(*state)._replace(ahead=stage))
