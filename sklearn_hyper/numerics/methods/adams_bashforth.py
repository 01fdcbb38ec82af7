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
"""The Runge-Kutta method of the start-up steps, by its order."""

Past: TypeAlias = tuple[()] | tuple[tuple[float, ...], tuple[Tensor, ...]]
"""What a multistep method remembers, newest first: the sizes of the last steps, and f at their starts."""


@dataclass(frozen=True)
class AdamsBashforth(Method):
    r"""Explicit multistep method: one evaluation of f a step, and the last p - 1 remembered.

    :math:`\psi = \sum_j b_j f(s_{k-j}, z_{k-j})` with the weights of the mesh as it is, uniform or not. On a uniform one
    they are 3/2, -1/2 for p = 2, and so on; see :func:`adams_bashforth_weights`.

    The first p - 1 steps are those of a Runge-Kutta method of order p - 1 (euler, midpoint, rk3). Their local error is
    of order p, and there are never more of them, so the order of a solve is p. They are of a kind of their own, with
    their own order and stages.

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
        # Offsets are those on a uniform mesh.
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
    """Weights of f here and at the starts of earlier steps of these sizes, newest first, for a step of size eps."""
    # A compiler folds the weights into its graph, and warns of caches.
    return (_weights if is_compiling() else _cached_weights)(eps, sizes)


def _weights(eps: float, sizes: tuple[float, ...]) -> tuple[float, ...]:
    return adams_bashforth_weights([-sum(sizes[:k]) / eps for k in range(len(sizes) + 1)])


# A mesh has few different steps, and computing the weights of one takes as long as evaluating a small field.
_cached_weights = lru_cache(maxsize=4096)(_weights)


Polynomial: TypeAlias = list[float]
"""Coefficients, lowest degree first."""


def adams_bashforth_weights(offsets: Sequence[float]) -> tuple[float, ...]:
    r"""Weights of f at the mesh points that an Adams-Bashforth step reads.

    The polynomial through them is integrated over the step, which asks for no equal steps:

    .. math::

        b_j = \int_0^1 \prod_{m \ne j} \frac{\tau - o_m}{o_j - o_m} \, d\tau, \qquad
        \psi = \sum_j b_j f(s_k + o_j \epsilon, z(s_k + o_j \epsilon)) .

    Parameters
    ----------
    offsets : sequence of float
        :math:`o_j`: where the points lie, measured from the start of the step in units of its size; all different.

    Returns
    -------
    tuple of float
        One weight a point. They sum to 1, and are exact for polynomials of degree below their number.

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
    """The polynomial that is 1 at point j and 0 at the others."""
    product = [1.0]
    for m, root in enumerate(offsets):
        if m != j:
            product = _times_linear(product, -root / (offsets[j] - root), 1 / (offsets[j] - root))
    return product


def _times_linear(polynomial: Polynomial, constant: float, slope: float) -> Polynomial:
    raised, kept = [0.0, *polynomial], [*polynomial, 0.0]
    return [constant * low + slope * high for low, high in zip(kept, raised, strict=True)]


def _integral(polynomial: Polynomial) -> float:
    """Over [0, 1]."""
    return sum(coefficient / (degree + 1) for degree, coefficient in enumerate(polynomial))
