"""What predict and transform do when a bound or a tolerance is asked of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import Bunch
from torch import Tensor

from ..calibration import Calibration, NotCalibratedError, Tolerance, UnusualRowsWarning
from ..calibration.bounds import LEARNED, VERIFIED
from ..hypersolvers import FittedHypersolver
from ..numerics.row_errors import list_rows
from ..training.references import computes_alike
from ._base import UnsolvedRowsWarning

_BY_CHANCE = 0.02
"""Share of unusual rows that needs no warning: of rows like the calibration's, one in two hundred counts as unusual."""
_COMPARED = 16
"""Rows on which levels and the solver are compared."""


@dataclass(frozen=True)
class Wanted:
    """What a call asks for beside its values; see :meth:`HypersolverRegressor.predict`.

    Raises
    ------
    ValueError
        If a value is out of its range, or two of them contradict each other.
    """

    return_bound: bool = False
    coverage: float = 0.99
    bound: str = LEARNED
    tol: float | None = None
    atol: float | None = None
    alpha: float = 0.01
    route: bool = False
    return_info: bool = False

    def __post_init__(self) -> None:
        for name in ("coverage", "alpha"):
            value = getattr(self, name)
            if not (_is_number(value) and 0 < value < 1):
                raise ValueError(f"{name} must be a number between 0 and 1, exclusive, got {value!r}.")
        for name in ("tol", "atol"):
            value = getattr(self, name)
            if value is not None and not (_is_number(value) and 0 < value < np.inf):
                raise ValueError(f"{name} must be None or a positive number, got {value!r}.")
        if self.bound not in (LEARNED, VERIFIED):
            raise ValueError(f"bound must be {LEARNED!r} or {VERIFIED!r}, got {self.bound!r}.")
        if self.return_bound and self.keeps_tolerance:
            raise ValueError(
                "return_bound=True and a tolerance (tol or atol) were asked for at once. A tolerance is kept by "
                "solvers that differ by row, and is the bound itself; leave one out."
            )
        if self.route and not self.keeps_tolerance:
            raise ValueError("route=True chooses the cheapest solver for a tolerance, and there is none; pass tol.")
        if self.route and self.bound == VERIFIED:
            raise ValueError("route=True and bound='verified' are two ways to choose a solver by row; take one.")

    @property
    def keeps_tolerance(self) -> bool:
        return self.tol is not None or self.atol is not None

    @property
    def is_plain(self) -> bool:
        """Whether nothing but values is asked for."""
        return not (self.return_bound or self.keeps_tolerance or self.return_info)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def answer(
    calibration: Calibration | None,
    fitted: FittedHypersolver,
    x: Tensor,
    kind: str,
    convert: Callable[[Tensor], NDArray[Any]],
    wanted: Wanted,
) -> tuple[Tensor, list[Any]]:
    """Return terminal states, and what is returned beside the values: the bound, if asked for, and the info."""
    calibration = require(calibration, fitted)
    beside: list[Any] = []
    if wanted.keeps_tolerance:
        tolerance = Tolerance(float(wanted.tol or 0.0), float(wanted.atol or 0.0))
        solved, unusual = calibration.keep(
            fitted, x, convert, kind, tolerance, wanted.alpha, route=wanted.route, how=wanted.bound
        )
        ends = solved.ends
        _warn_of_unsolved(ends)
        info = Bunch(n_evaluations=solved.n_evaluations, solver=solved.solver, unusual=unusual)
    else:
        found = calibration.bound(fitted, x, convert, kind, wanted.coverage, wanted.bound)
        ends = found.ends
        if wanted.return_bound:
            _warn_of_unusual(found.unusual, wanted.bound)
            beside.append(found.bound)
        info = Bunch(n_evaluations=found.n_evaluations, solver=np.full(len(x), found.solver), unusual=found.unusual)
    if wanted.return_info:
        beside.append(info)
    return ends, beside


def require(calibration: Calibration | None, fitted: FittedHypersolver) -> Calibration:
    """Return a calibration, or raise an error if there is none."""
    if calibration is None:
        raise NotCalibratedError(
            f"this solver has no calibration (n_steps={fitted.n_steps}, t_span={fitted.neural_ode.t_span}): call "
            "conformalize(X) with rows that fit has not seen. A new fit, and a copy by with_solver, need a new one."
        )
    return calibration


def level_of(estimator: Any, name: str, fitted: FittedHypersolver, x: Tensor) -> FittedHypersolver:
    """Return a further level of a ladder, an attribute of an estimator, once it is known to be of the same Neural ODE.

    Raises
    ------
    ValueError
    """
    other = getattr(estimator, name, None)
    if not isinstance(other, FittedHypersolver):
        raise ValueError(f"levels must hold fitted hypersolvers like this one, got {estimator!r}.")
    if not computes_alike(other.neural_ode, fitted.neural_ode, x[:_COMPARED]):
        raise ValueError(
            f"levels holds {estimator!r}, which is a hypersolver of another Neural ODE or span of time. Fit it for the "
            "same neural_ode."
        )
    return other


def drop_calibration(estimator: Any) -> None:
    """Forget a calibration. It holds for the solver that it was made with, and for no other."""
    for name in ("calibration_", "density_calibration_"):
        vars(estimator).pop(name, None)


def _warn_of_unsolved(ends: Tensor) -> None:
    rows = ends.reshape(len(ends), -1).isnan().any(dim=1).nonzero()[:, 0].tolist()
    if rows:
        warnings.warn(
            f"dopri5 cannot solve the Neural ODE from {len(rows)} of {len(ends)} rows of X ({list_rows(rows)}), which "
            "nothing cheaper serves to the tolerance; their results are nan. The field is stiff or its solution grows "
            "without bound from there: leave those rows out.",
            UnsolvedRowsWarning,
            stacklevel=4,
        )


def _warn_of_unusual(unusual: NDArray[np.bool_], how: str) -> None:
    rows = np.flatnonzero(unusual).tolist()
    if len(rows) > _BY_CHANCE * len(unusual) and how == LEARNED:
        warnings.warn(
            f"{len(rows)} of {len(unusual)} rows of X ({list_rows(rows)}) lie farther from the rows of conformalize "
            "than those from each other, and their bound is infinite. Pass bound='verified', which solves them twice, "
            "or calibrate on rows like these.",
            UnusualRowsWarning,
            stacklevel=4,
        )
