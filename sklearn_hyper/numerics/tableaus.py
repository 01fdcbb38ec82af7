"""Butcher tableaus of explicit Runge-Kutta methods (paper, eq. 3 and Fig. 5)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Vector = tuple[float, ...]

# Order conditions are sums of products of a few numbers of order one, so rounding errors stay far below this.
# A coefficient typed with too few digits exceeds it.
_TOLERANCE = 1e-10


def _as_vector(name: str, values: Any) -> Vector:
    try:
        return tuple(float(value) for value in values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"tableau {name} must be a sequence of real numbers, got {values!r}.") from error


def _apply(a: tuple[Vector, ...], v: Vector) -> Vector:
    return tuple(_dot(row, v) for row in a)


def _dot(u: Vector, v: Vector) -> float:
    return sum(left * right for left, right in zip(u, v, strict=True))


def _times(*vectors: Vector) -> Vector:
    product = vectors[0]
    for vector in vectors[1:]:
        product = tuple(left * right for left, right in zip(product, vector, strict=True))
    return product


def _order_conditions(a: tuple[Vector, ...], b: Vector, c: Vector) -> list[tuple[int, str, float, float]]:
    """Return the 17 conditions up to order 5, one per rooted tree, as (order, formula, value, required)."""
    ac, ac2, ac3 = _apply(a, c), _apply(a, _times(c, c)), _apply(a, _times(c, c, c))
    aac, aac2 = _apply(a, ac), _apply(a, ac2)
    return [
        (1, "sum b", sum(b), 1.0),
        (2, "b.c", _dot(b, c), 1 / 2),
        (3, "b.c^2", _dot(b, _times(c, c)), 1 / 3),
        (3, "b.Ac", _dot(b, ac), 1 / 6),
        (4, "b.c^3", _dot(b, _times(c, c, c)), 1 / 4),
        (4, "b.(c Ac)", _dot(b, _times(c, ac)), 1 / 8),
        (4, "b.Ac^2", _dot(b, ac2), 1 / 12),
        (4, "b.AAc", _dot(b, aac), 1 / 24),
        (5, "b.c^4", _dot(b, _times(c, c, c, c)), 1 / 5),
        (5, "b.(c^2 Ac)", _dot(b, _times(c, c, ac)), 1 / 10),
        (5, "b.(Ac)^2", _dot(b, _times(ac, ac)), 1 / 20),
        (5, "b.(c Ac^2)", _dot(b, _times(c, ac2)), 1 / 15),
        (5, "b.Ac^3", _dot(b, ac3), 1 / 20),
        (5, "b.(c AAc)", _dot(b, _times(c, aac)), 1 / 30),
        (5, "b.A(c Ac)", _dot(b, _apply(a, _times(c, ac))), 1 / 40),
        (5, "b.AAc^2", _dot(b, aac2), 1 / 60),
        (5, "b.AAAc", _dot(b, _apply(a, aac)), 1 / 120),
    ]


@dataclass(frozen=True)
class ButcherTableau:
    r"""Coefficients of an explicit Runge-Kutta method, checked when built.

    One step from :math:`z_k` at :math:`s_k` with step size :math:`\epsilon` (paper, eq. 3):

    .. math::

        r_i = f\Big(s_k + c_i \epsilon,\; z_k + \epsilon \sum_{j<i} a_{ij} r_j\Big), \qquad
        \psi = \sum_i b_i r_i .

    Parameters
    ----------
    name : str
        Shown in reports and errors.
    order : int, 1 to 5
        The order p, *checked* against the order conditions to 1e-10. It is not the number of stages: Dormand and
        Prince's fifth-order formula has six.
    a : sequence of sequences of float
        The strictly lower triangular stage matrix.
    b, c : sequences of float
        Weights and nodes; each node is the sum of its row of ``a``.
    embedded : sequence of float, optional
        Weights of a method of order p - 1 with the same stages. Its distance from ``b``'s estimates the error of a
        step, by which :class:`Adaptive` chooses steps.

    Raises
    ------
    ValueError
        If shapes differ, the method is implicit, rows of ``a`` do not sum to ``c``, or an order
        condition up to ``order`` is violated.

    References
    ----------
    Butcher (2016), *Numerical Methods for Ordinary Differential Equations*, table 310.

    Examples
    --------
    >>> from sklearn_hyper.numerics import ButcherTableau
    >>> heun = ButcherTableau("my heun", order=2, a=[[0, 0], [1, 0]], b=[0.5, 0.5], c=[0, 1])
    >>> heun.n_stages
    2
    >>> ButcherTableau("typo", order=2, a=[[0, 0], [1, 0]], b=[0.4, 0.6], c=[0, 1])
    Traceback (most recent call last):
        ...
    ValueError: tableau 'typo' is not of order 2: b.c = 0.6, required 0.5.
    """

    name: str
    order: int
    a: tuple[Vector, ...]
    b: Vector
    c: Vector
    embedded: Vector | None = field(default=None, compare=False)  # it changes no step

    def __post_init__(self) -> None:
        object.__setattr__(self, "a", tuple(_as_vector("a", row) for row in self.a))
        object.__setattr__(self, "b", _as_vector("b", self.b))
        object.__setattr__(self, "c", _as_vector("c", self.c))
        if self.embedded is not None:
            object.__setattr__(self, "embedded", _as_vector("embedded", self.embedded))
        self._check_shapes()
        self._check_coefficients()
        self._check_embedded()

    @property
    def n_stages(self) -> int:
        """Evaluations of f per step."""
        return len(self.b)

    def _check_shapes(self) -> None:
        n = len(self.b)
        if isinstance(self.order, bool) or not isinstance(self.order, int) or not 1 <= self.order <= 5:
            raise ValueError(f"tableau {self.name!r}: order must be an integer from 1 to 5, got {self.order!r}.")
        if n == 0 or len(self.c) != n or len(self.a) != n or any(len(row) != n for row in self.a):
            raise ValueError(
                f"tableau {self.name!r}: a must be square and as long as b and c, got a with rows of "
                f"{[len(row) for row in self.a]}, b of {n} and c of {len(self.c)}."
            )

    def _check_coefficients(self) -> None:
        for i, row in enumerate(self.a):
            if any(row[i:]):
                raise ValueError(
                    f"tableau {self.name!r} is implicit: row {i} of a has entries on or above the diagonal, "
                    f"{row}. Only explicit methods (a strictly lower triangular) are supported."
                )
            if not abs(sum(row) - self.c[i]) <= _TOLERANCE:
                raise ValueError(
                    f"tableau {self.name!r} is inconsistent: row {i} of a sums to {sum(row):.12g}, c is "
                    f"{self.c[i]:.12g}."
                )
        for order, formula, value, required in _order_conditions(self.a, self.b, self.c):
            if order <= self.order and not abs(value - required) <= _TOLERANCE:
                raise ValueError(
                    f"tableau {self.name!r} is not of order {self.order}: "
                    f"{formula} = {value:.12g}, required {required:.12g}."
                )

    def _check_embedded(self) -> None:
        if self.embedded is None:
            return
        if len(self.embedded) != len(self.b) or self.embedded == self.b:
            raise ValueError(
                f"tableau {self.name!r}: embedded must be {len(self.b)} weights, other than b, got {self.embedded}."
            )
        for order, formula, value, required in _order_conditions(self.a, self.embedded, self.c):
            if order < self.order and not abs(value - required) <= _TOLERANCE:
                raise ValueError(
                    f"tableau {self.name!r}: embedded is not of order {self.order - 1}: "
                    f"{formula.replace('b', 'embedded')} = {value:.12g}, required {required:.12g}."
                )


EULER = ButcherTableau("euler", 1, ((0,),), (1,), (0,))
MIDPOINT = ButcherTableau("midpoint", 2, ((0, 0), (1 / 2, 0)), (0, 1), (0, 1 / 2), embedded=(1, 0))
HEUN = ButcherTableau("heun", 2, ((0, 0), (1, 0)), (1 / 2, 1 / 2), (0, 1), embedded=(1, 0))
RALSTON = ButcherTableau("ralston", 2, ((0, 0), (2 / 3, 0)), (1 / 4, 3 / 4), (0, 2 / 3), embedded=(1, 0))
RK3 = ButcherTableau(
    "rk3",
    3,
    ((0, 0, 0), (1 / 2, 0, 0), (-1, 2, 0)),
    (1 / 6, 2 / 3, 1 / 6),
    (0, 1 / 2, 1),
    embedded=(0, 1, 0),  # the midpoint method
)
RK4 = ButcherTableau(
    "rk4",
    4,
    ((0, 0, 0, 0), (1 / 2, 0, 0, 0), (0, 1 / 2, 0, 0), (0, 0, 1, 0)),
    (1 / 6, 1 / 3, 1 / 3, 1 / 6),
    (0, 1 / 2, 1 / 2, 1),
)
RK4_38 = ButcherTableau(
    "rk4_38",
    4,
    ((0, 0, 0, 0), (1 / 3, 0, 0, 0), (-1 / 3, 1, 0, 0), (1, -1, 1, 0)),
    (1 / 8, 3 / 8, 3 / 8, 1 / 8),
    (0, 1 / 3, 2 / 3, 1),
)

TABLEAUS: dict[str, ButcherTableau] = {
    tableau.name: tableau for tableau in (EULER, MIDPOINT, HEUN, RALSTON, RK3, RK4, RK4_38)
}


def alpha_family(alpha: float) -> ButcherTableau:
    r"""Return the second-order, two-stage method with parameter alpha (paper, Fig. 5).

    :math:`c_2 = a_{21} = \alpha`, :math:`b = (1 - 1/(2\alpha),\; 1/(2\alpha))`. alpha = 1/2 is the midpoint method,
    2/3 is Ralston's, 1 is Heun's.

    Parameters
    ----------
    alpha : float
        Position of the second stage in the step. Any finite number except 0.

    Returns
    -------
    ButcherTableau

    Examples
    --------
    >>> from sklearn_hyper.numerics import alpha_family
    >>> alpha_family(0.5).b
    (0.0, 1.0)
    """
    alpha = float(alpha)
    if alpha == 0 or alpha != alpha or alpha in (float("inf"), float("-inf")):
        raise ValueError(f"alpha must be a finite number other than 0, got {alpha!r}; 0.5 is the midpoint method.")
    weight = 1 / (2 * alpha)
    return ButcherTableau(f"alpha({alpha:g})", 2, ((0, 0), (alpha, 0)), (1 - weight, weight), (0, alpha))
