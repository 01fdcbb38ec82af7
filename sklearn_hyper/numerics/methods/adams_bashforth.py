"""Explicit multistep methods, on uniform and non-uniform meshes alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

from torch import Tensor
from torch.compiler import is_compiling

from ..tableaus import TABLEAUS
from ..tensors import weighted_sum
from .method import Field, Method, Step, StepKind
from .runge_kutta import RungeKutta

STARTERS = {1: "euler", 2: "midpoint", 3: "rk3"}
"""The Runge-Kutta method of the start-up steps, by order."""

Past: TypeAlias = tuple[()] | tuple[tuple[float, ...], tuple[Tensor, ...]]
"""The state of a multistep method, newest first: the sizes of the last steps, and f at their starts."""


@dataclass(frozen=True)
class AdamsBashforth(Method):
    r"""Explicit multistep method: each step evaluates f once and reads the last p - 1 evaluations.

    :math:`\psi = \sum_j b_j f(s_{k-j}, z_{k-j})`, with weights that fit the step sizes, equal or not. For equal steps
    and p = 2 they are 3/2 and -1/2; see :func:`adams_bashforth_weights`.

    The first p - 1 steps are those of a Runge-Kutta method of order p - 1 (euler, midpoint, rk3). Their local error is
    of order p and their number is fixed, so a solve has order p. These start-up steps have another kind, with its own
    order and stages.

    Parameters
    ----------
    order : int, 2 to 4
        p.

    References
    ----------
    Hairer, Norsett, Wanner (1993), *Solving Ordinary Differential Equations I*, sections III.1 and III.5.

    Examples
    --------
    >>> from sklearn_hyper.numerics import AdamsBashforth
    >>> solver = AdamsBashforth(3)
    >>> solver.name, solver.count_evaluations(10)  # two midpoint steps, then eight of one evaluation
    ('ab3', 12)
    """

    order: int

    def __post_init__(self) -> None:
        if isinstance(self.order, bool) or self.order not in (2, 3, 4):
            raise ValueError(f"AdamsBashforth order must be 2, 3 or 4, got {self.order!r}; order 1 is 'euler'.")

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"ab{self.order}"

    @property
    def memory(self) -> int:  # type: ignore[override]
        return self.order - 1

    @property
    def starter(self) -> RungeKutta:
        """The method of the start-up steps."""
        return RungeKutta(TABLEAUS[STARTERS[self.order - 1]])

    def kind(self, index: int) -> StepKind:
        if index < self.memory:
            return self.starter.kind(index)
        # The offsets are those of equal steps. On other meshes they are an approximation.
        return StepKind(self.order, (0.0,), tuple(0.0 - k for k in range(self.order)))

    def step(self, f: Field, times: Sequence[Tensor], z: Tensor, eps: float, state: tuple[Any, ...]) -> Step:
        sizes, remembered = state or ((), ())
        if len(sizes) < self.memory:
            direction, stages, *_ = self.starter.step(f, times, z, eps, ())
        else:
            stages = [f(times[0], z), *remembered]
            direction = weighted_sum(past_weights(eps, sizes), stages)
        return Step(direction, stages, self.remember(state, eps, stages[0]))

    def remember(self, state: Past, eps: float, stage: Tensor) -> Past:
        sizes, stages = state or ((), ())
        kept = self.order - 2
        return (eps, *sizes[:kept]), (stage, *stages[:kept])


def past_weights(eps: float, sizes: tuple[float, ...]) -> tuple[float, ...]:
    """Return the weights of f at the start of a step of size eps and at the starts of earlier steps, newest first."""
    # torch.compile folds the weights into its graph, and warns about cached functions.
    return (_weights if is_compiling() else _cached_weights)(eps, sizes)


def _weights(eps: float, sizes: tuple[float, ...]) -> tuple[float, ...]:
    return adams_bashforth_weights([-sum(sizes[:k]) / eps for k in range(len(sizes) + 1)])


# A mesh has few different step sizes, and computing the weights of one takes as long as evaluating a small field.
_cached_weights = lru_cache(maxsize=4096)(_weights)


Polynomial: TypeAlias = list[float]
"""Coefficients, lowest degree first."""


def adams_bashforth_weights(offsets: Sequence[float]) -> tuple[float, ...]:
    r"""Return the weights of f at the mesh points that an Adams-Bashforth step reads.

    They integrate the interpolating polynomial over the step. The points need not be equally spaced:

    .. math::

        b_j = \int_0^1 \prod_{m \ne j} \frac{\tau - o_m}{o_j - o_m} \, d\tau, \qquad
        \psi = \sum_j b_j f(s_k + o_j \epsilon, z(s_k + o_j \epsilon)) .

    Parameters
    ----------
    offsets : sequence of float
        :math:`o_j`, the points, measured from the start of the step in units of its size. All must differ.

    Returns
    -------
    tuple of float
        One weight per point. They sum to 1. With n points they are exact for polynomials of degree below n.

    References
    ----------
    Hairer, Norsett, Wanner (1993), *Solving Ordinary Differential Equations I*, section III.5.

    Examples
    --------
    >>> from sklearn_hyper.numerics.methods import adams_bashforth_weights
    >>> adams_bashforth_weights((0.0, -1.0))
    (1.5, -0.5)
    >>> adams_bashforth_weights((0.0, -0.5))  # the step before was half as long
    (2.0, -1.0)
    """
    return tuple(_integral(_lagrange(offsets, j)) for j in range(len(offsets)))


def _lagrange(offsets: Sequence[float], j: int) -> Polynomial:
    """Return the polynomial that is 1 at point j and 0 at the others."""
    product = [1.0]
    for m, root in enumerate(offsets):
        if m != j:
            product = _times_linear(product, -root / (offsets[j] - root), 1 / (offsets[j] - root))
    return product


def _times_linear(polynomial: Polynomial, constant: float, slope: float) -> Polynomial:
    """Multiply a polynomial by ``constant + slope * tau``."""
    raised, kept = [0.0, *polynomial], [*polynomial, 0.0]
    return [constant * low + slope * high for low, high in zip(kept, raised, strict=True)]


def _integral(polynomial: Polynomial) -> float:
    """Integrate a polynomial over [0, 1]."""
    return sum(coefficient / (degree + 1) for degree, coefficient in enumerate(polynomial))
