"""What predict and transform do when a bound or a tolerance is asked of them."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import sklearn
import torch
from numpy.typing import NDArray
from sklearn.utils import Bunch
from torch import Tensor

from ..calibration import Calibration, NotCalibratedError, Tolerance, UnusualRowsWarning
from ..calibration.bounds import LEARNED, VERIFIED
from ..calibration.measuring import TRAJECTORY
from ..hypersolvers import FittedHypersolver
from ..numerics.reference import ReferenceSolveError
from ..numerics.row_errors import list_rows
from ..training.given_rows import Inputs, apart
from ..training.references import computes_alike, lost_rows
from ._base import TorchEstimator, UnsolvedRowsWarning

_BY_CHANCE = 0.02
"""Share of unusual rows that needs no warning: of rows like the calibration's, one in two hundred counts as unusual."""
_COMPARED = 16
"""Rows on which levels and the solver are compared."""
_NO_LABEL = "there is no label where nothing solves the Neural ODE to the tolerance, not even dopri5"
_ANY_COVERAGE = 0.5
"""Coverage of a bound that nobody asked for: every calibration has the rows for it."""
_PACKAGES = (Path(module.__file__).parent for module in (sklearn, torch))
_NOT_THE_USERS = tuple(f"{folder}{os.sep}" for folder in (Path(__file__).parents[1], *_PACKAGES))
"""Folders of code that stands between a user's line and a warning."""


class Asked(TypedDict, total=False):
    """What methods besides :meth:`HypersolverRegressor.predict` take as ``**asked``; see there for the meaning."""

    return_bound: bool
    coverage: float
    bound: str
    tol: float | None
    atol: float | None
    alpha: float
    route: bool
    return_info: bool


ASKED = tuple(Asked.__annotations__)
"""Their names, which scikit-learn cannot read off ``**asked`` to route them as metadata."""


@dataclass(frozen=True)
class Wanted:
    """What a call asks for beside its values; see :meth:`HypersolverRegressor.predict`.

    Raises
    ------
    ValueError
        If a value is out of its range, has no effect, or two of them contradict each other.
    """

    return_bound: bool = False
    coverage: float = 0.99
    bound: str = LEARNED
    tol: float | None = None
    atol: float | None = None
    alpha: float = 0.01
    route: bool = False
    return_info: bool = False

    @classmethod
    def of(cls, estimator: Any, method: str, asked: Asked) -> Wanted:
        """Return what was asked of a method of an estimator.

        Raises
        ------
        TypeError
            If there is no such keyword; it names the keyword and the method.
        """
        for name in asked:
            if name not in ASKED:
                raise TypeError(
                    f"{type(estimator).__name__}.{method}() got an unexpected keyword argument {name!r}; it takes "
                    f"{', '.join(ASKED)}."
                )
        return cls(**asked)

    def __post_init__(self) -> None:
        self._check_values()
        self._check_combination()
        self._check_effects()

    def _check_values(self) -> None:
        for name in ("return_bound", "route", "return_info"):
            value = getattr(self, name)
            if not isinstance(value, (bool, np.bool_)):
                raise ValueError(f"{name} must be True or False, got {value!r}.")
        for name in ("coverage", "alpha"):
            value = getattr(self, name)
            if not (_is_number(value) and 0 < value < 1):
                raise ValueError(f"{name} must be a number between 0 and 1, exclusive, got {value!r}.")
        for name in ("tol", "atol"):
            value = getattr(self, name)
            if value is not None and not (_is_number(value) and 0 <= value < np.inf):
                raise ValueError(f"{name} must be None, a positive number, or 0 beside the other, got {value!r}.")
        if not (isinstance(self.bound, str) and self.bound in (LEARNED, VERIFIED)):
            raise ValueError(f"bound must be {LEARNED!r} or {VERIFIED!r}, got {self.bound!r}.")

    def _check_combination(self) -> None:
        if self.keeps_tolerance and not (self.tol or self.atol):
            raise ValueError(
                f"tol={self.tol!r} and atol={self.atol!r} allow no error at all; make one of them a positive number."
            )
        if self.return_bound and self.keeps_tolerance:
            raise ValueError(
                "return_bound=True and a tolerance (tol or atol) were asked for at once. A tolerance is kept by "
                "solvers that differ by row, and is the bound itself; leave one out."
            )
        if self.route and self.bound == VERIFIED:
            raise ValueError("route=True and bound='verified' are two ways to choose a solver by row; take one.")

    def _check_effects(self) -> None:
        """Refuse what would change nothing."""
        if self.route and not self.keeps_tolerance:
            raise ValueError("route=True chooses the cheapest solver for a tolerance, and there is none; pass tol.")
        if self.alpha != Wanted.alpha and not self.keeps_tolerance:
            raise ValueError(
                f"alpha={self.alpha!r} is the share of rows that may exceed a tolerance, and there is none; pass tol."
            )
        if self.coverage != Wanted.coverage and not self.return_bound:
            instead = "the share of rows within a tolerance is 1 - alpha" * self.keeps_tolerance
            raise ValueError(
                f"coverage={self.coverage!r} is that of a bound, and none is asked for; "
                f"{instead or 'pass return_bound=True'}."
            )
        if self.bound != Wanted.bound and not (self.return_bound or self.keeps_tolerance):
            raise ValueError(
                f"bound={self.bound!r} says how a bound is computed or a tolerance kept, and neither is asked for; "
                "pass return_bound=True or tol."
            )

    @property
    def keeps_tolerance(self) -> bool:
        return self.tol is not None or self.atol is not None

    @property
    def tolerance(self) -> Tolerance:
        return Tolerance(float(self.tol or 0.0), float(self.atol or 0.0))

    @property
    def is_plain(self) -> bool:
        """Whether nothing but values is asked for."""
        return not (self.return_bound or self.keeps_tolerance or self.return_info)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def answer(
    calibration: Calibration | None,
    fitted: FittedHypersolver,
    x: Inputs,
    kind: str,
    convert: Callable[[Tensor], NDArray[Any]],
    wanted: Wanted,
    rows_are: str = "rows of X",
    *,
    needs_all: bool = False,
    watch: Callable[[Tensor], None] | None = None,
) -> tuple[Tensor, list[Any]]:
    """Return terminal states, and what is returned beside the values: the bound, if asked for, and the info.

    Rows that nothing solves to a tolerance are nan, with a warning. With ``needs_all`` they raise a
    ReferenceSolveError instead. ``watch`` sees the trajectories of rows whose errors are bounded.
    """
    calibration = require(calibration, fitted)
    beside: list[Any] = []
    if wanted.keeps_tolerance:
        solved, unusual = calibration.keep(
            fitted, x, convert, kind, wanted.tolerance, wanted.alpha, route=wanted.route, how=wanted.bound
        )
        ends = solved.ends
        unsolved = lost_rows(ends[None])
        if unsolved and needs_all:
            raise ReferenceSolveError.of(_NO_LABEL, unsolved, len(ends))
        if unsolved:
            _warn_of_unsolved(unsolved, len(ends), rows_are)
        info = Bunch(
            n_evaluations=solved.n_evaluations, solver=solved.solver, unusual=unusual, policy=solved.policy
        )  # fmt: skip
    else:
        coverage = wanted.coverage if wanted.return_bound else _ANY_COVERAGE
        found = calibration.bound(fitted, x, convert, kind, coverage, wanted.bound, watch)
        ends = found.ends
        if wanted.return_bound:
            if wanted.bound == LEARNED:
                _warn_of_unusual(found.unusual, kind, rows_are)
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


def check_levels(levels: Any) -> list[Any] | tuple[Any, ...]:
    """Return the further hypersolvers of a calibration; refuse what is no list of them.

    Raises
    ------
    TypeError
    """
    if not isinstance(levels, (list, tuple)):
        raise TypeError(
            f"levels must be a list or tuple of fitted hypersolvers, got {levels!r}; a single one goes into a list."
        )
    return levels


def levels_of(
    levels: Sequence[Any], name: str, fitted: FittedHypersolver, x: Inputs, own: TorchEstimator
) -> list[FittedHypersolver]:
    """Return further levels of a ladder, an attribute of estimators, once they are known to be of one Neural ODE.

    Raises
    ------
    ValueError
        If one of them is no fitted hypersolver, or is one of other inputs or of another Neural ODE.
    """
    return [_level_of(estimator, name, fitted, x, own) for estimator in levels]


def _level_of(
    estimator: Any, name: str, fitted: FittedHypersolver, x: Inputs, own: TorchEstimator
) -> FittedHypersolver:
    other = getattr(estimator, name, None)
    if other is None and hasattr(estimator, name):
        raise ValueError(
            f"levels holds {estimator!r}, which was fitted for sampling only and has no log densities to calibrate. "
            "Fit it with data, fit(X), or call conformalize without X."
        )
    if not isinstance(other, FittedHypersolver):
        raise ValueError(f"levels must hold fitted hypersolvers like this one, got {estimator!r}.")
    shape, expected = _input_shape(estimator), _input_shape(own)
    if shape != expected:
        raise ValueError(
            f"levels holds {estimator!r}, whose Neural ODE takes samples of shape {shape}, and this one's takes "
            f"{expected}. Fit it for the same neural_ode."
        )
    if estimator.dtype_ != own.dtype_:
        raise ValueError(
            f"levels holds {estimator!r}, which computes in {estimator.dtype_}, and this one in {own.dtype_}. Fit both "
            "on X of the same dtype."
        )
    another = (
        f"levels holds {estimator!r}, which is a hypersolver of another Neural ODE or span of time. Fit it for the "
        "same neural_ode."
    )
    try:
        is_alike = computes_alike(other.neural_ode, fitted.neural_ode, *apart(x[:_COMPARED]))
    except Exception as error:  # its maps need not take these rows
        raise ValueError(another) from error
    if not is_alike:
        raise ValueError(another)
    return other


def _input_shape(estimator: Any) -> tuple[int, ...]:
    """Return the shape of a sample as the Neural ODE takes it, behind the steps of a Pipeline."""
    return (estimator.flow_.n_features,) if hasattr(estimator, "flow_") else tuple(estimator._input_shape)


def drop_calibration(estimator: Any) -> None:
    """Forget a calibration. It holds for the solver that it was made with, and for no other."""
    for name in ("calibration_", "density_calibration_"):
        vars(estimator).pop(name, None)


def _warn_of_unsolved(rows: Sequence[int], n_rows: int, rows_are: str) -> None:
    _warn(
        f"dopri5 cannot solve the Neural ODE from {len(rows)} of {n_rows} {rows_are} ({list_rows(rows)}), which "
        "nothing cheaper serves to the tolerance; their results are nan. The field is stiff or its solution grows "
        "without bound from there: leave those rows out.",
        UnsolvedRowsWarning,
    )


def _warn_of_unusual(unusual: NDArray[np.bool_], kind: str, rows_are: str) -> None:
    rows = np.flatnonzero(unusual).tolist()
    if len(rows) <= _BY_CHANCE * len(unusual):
        return
    verify = "" if kind == TRAJECTORY else "Pass bound='verified', which solves them twice, or calibrate"
    _warn(
        f"{len(rows)} of {len(unusual)} {rows_are} ({list_rows(rows)}) lie farther from the rows of conformalize than "
        f"those from each other, and their bound is infinite. {verify or 'Calibrate'} on rows like these.",
        UnusualRowsWarning,
    )


def _warn(message: str, category: type[Warning]) -> None:
    """Warn at the line of the user's code, however many frames of ours and of scikit-learn lie between."""
    frame, stacklevel = sys._getframe(), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_NOT_THE_USERS):
        frame, stacklevel = frame.f_back, stacklevel + 1
    warnings.warn(message, category, stacklevel=stacklevel)
