"""Coefficients of multistep methods, on uniform and non-uniform meshes alike."""

from __future__ import annotations

from collections.abc import Sequence

Polynomial = list[float]
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
    >>> from sklearn_hyper.numerics.multistep import adams_bashforth_weights
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
