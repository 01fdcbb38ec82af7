"""Bounds by row on the errors of one solver."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from .conformal import conformal_quantile
from .describing import Rows
from .error_model import ErrorModel, predict_unseen
from .levels import Level, Run
from .measuring import ENDS, TRAJECTORY, Convert, Measured, distances, ends_as

LEARNED, VERIFIED = "learned", "verified"
_SHARP, _TAIL = 2.0, 0.95
"""A verifier's bounds that hold for 95 % of rows should be at most twice the errors, at the median."""
_PREDICTED_SHARE = 0.3
"""Share of the predicted error in a verified one: by chance, two solves may agree where both are wrong."""


class Bounds:
    r"""Conformal bounds on 2-norms of errors.

    .. math:: \|\hat y - y\|_2 \le q \, \hat e, \qquad
              q = s_{(\lceil (n + 1) c \rceil)}, \quad s_i = \|\hat y_i - y_i\|_2 / \hat e_i

    :math:`\hat e` is the error that a model predicts from the run ("learned"). Or it is the distance to a more accurate
    solve plus .3 times the predicted error ("verified"). Scores come from models that learned from four fifths of the
    rows, but not from this one. So they are nearly like those of new rows: the rate is aimed at, not proven.

    References
    ----------
    Vovk (2015), *Cross-conformal predictors*; Barber et al. (2021), *Predictive inference with the jackknife+*.
    """

    def __init__(self, measured: Measured, convert: Convert):
        own = measured.own
        described = measured.runs[own].described
        errors = {kind: measured.errors[kind][own] for kind in ENDS} | {TRAJECTORY: measured.path_errors}
        self._models = {kind: ErrorModel(described, error) for kind, error in errors.items()}
        unseen = {kind: predict_unseen(described, error, measured.order) for kind, error in errors.items()}
        self._scores: dict[tuple[str, str], Rows] = {
            (LEARNED, kind): _scores(error, unseen[kind]) for kind, error in errors.items()
        }

        def verify(kind: str, level: int) -> Rows:
            """Return the verified errors of calibration rows, with a level as the verifier."""
            values = (measured.values(kind, index, convert) for index in (own, level))
            return distances(*values) + _PREDICTED_SHARE * unseen[kind]

        self.verifiers: dict[str, Level | None] = {}
        """By kind. None stands for dopri5: no level is both dearer than the fitted solver and of use beside it."""
        for kind in ENDS:
            verified = {index: verify(kind, index) for index in measured.dearer}
            at = _choose_verifier(measured, kind, verified)
            self.verifiers[kind] = None if at is None else measured.levels[at]
            if at is not None:
                self._scores[VERIFIED, kind] = _scores(errors[kind], verified[at])

    def learned(self, kind: str, run: Run, coverage: float) -> Rows:
        """Return the bounds of a run, from its own numbers."""
        return conformal_quantile(self._scores[LEARNED, kind], coverage) * self._models[kind].predict(run.described)

    def verified(self, kind: str, run: Run, checks: Tensor, coverage: float, convert: Convert) -> Rows:
        """Return the bounds of a run, from its distance to the terminal states of the verifier."""
        distance = distances(ends_as(kind, run.ends, convert), ends_as(kind, checks, convert))
        predicted = distance + _PREDICTED_SHARE * self._models[kind].predict(run.described)
        return conformal_quantile(self._scores[VERIFIED, kind], coverage) * predicted


def _scores(errors: Rows, predicted: Rows) -> Rows:
    """Return errors as multiples of predicted ones, sorted; infinite where a solve overflowed."""
    with np.errstate(invalid="ignore"):
        return np.sort(np.where(np.isfinite(errors), errors / predicted, np.inf))


def _choose_verifier(measured: Measured, kind: str, verified: Mapping[int, Rows]) -> int | None:
    """Return the cheapest level whose bounds are sharp, else the one with the sharpest; None without finite ones."""
    rows, errors = measured.learns, measured.errors[kind][measured.own] + np.finfo(float).tiny
    widths: dict[int, float] = {}
    for index, predicted in verified.items():
        scores = _scores(errors[rows], predicted[rows])
        tail = np.quantile(scores, _TAIL, method="higher")
        if not np.isfinite(tail):
            continue
        widths[index] = float(tail / np.median(scores))
        if widths[index] <= _SHARP:
            return index
    return min(widths, key=lambda index: widths[index], default=None)
