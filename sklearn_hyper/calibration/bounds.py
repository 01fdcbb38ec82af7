"""Bounds by row on the errors of one solver."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from .conformal import conformal_quantile
from .describing import Rows
from .error_model import CrossFittedErrorModel
from .levels import Run
from .measuring import ENDS, OUTPUT, TRAJECTORY, Convert, Measured, ends_as

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
    solve plus .3 times the predicted error ("verified"). Scores come from models that did not see their row.

    References
    ----------
    Vovk (2015), *Cross-conformal predictors*; Barber et al. (2021), *Predictive inference with the jackknife+*.
    """

    def __init__(self, measured: Measured, convert: Convert):
        own = measured.own
        described = measured.runs[own].described
        errors = {kind: measured.errors[kind][own] for kind in ENDS} | {TRAJECTORY: measured.path_errors}
        self._models = {kind: CrossFittedErrorModel(described, error, measured.order) for kind, error in errors.items()}
        self._scores: dict[tuple[str, str], Rows] = {
            (LEARNED, kind): np.sort(error / self._models[kind].unseen) for kind, error in errors.items()
        }
        at = self._choose_verifier(measured, convert)
        self.verifier = measured.levels[at]
        for kind in ENDS:
            self._scores[VERIFIED, kind] = np.sort(errors[kind] / self._verify(measured, kind, at, convert))

    def _verify(self, measured: Measured, kind: str, level: int, convert: Convert) -> Rows:
        """Return the verified errors of calibration rows, with a level as the verifier."""
        values = (measured.values(kind, index, convert) for index in (measured.own, level))
        return _distances(*values) + _PREDICTED_SHARE * self._models[kind].unseen

    def _choose_verifier(self, measured: Measured, convert: Convert) -> int:
        """Return the cheapest level beyond the fitted solver whose bounds are sharp; else the one with the sharpest."""
        rows, cost = measured.learns, measured.levels[measured.own].n_evaluations
        errors = measured.errors[OUTPUT][measured.own, rows] + np.finfo(float).tiny
        widths: dict[int, float] = {}
        for index, level in enumerate(measured.levels):
            if level.n_evaluations > cost:
                shares = errors / self._verify(measured, OUTPUT, index, convert)[rows]
                widths[index] = float(np.quantile(shares, _TAIL) / np.median(shares))
                if widths[index] <= _SHARP:
                    return index
        return min(widths, key=lambda index: widths[index], default=len(measured.levels) - 1)

    def learned(self, kind: str, run: Run, coverage: float) -> Rows:
        """Return the bounds of a run, from its own numbers."""
        return conformal_quantile(self._scores[LEARNED, kind], coverage) * self._models[kind].predict(run.described)

    def verified(self, kind: str, run: Run, checks: Tensor, coverage: float, convert: Convert) -> Rows:
        """Return the bounds of a run, from its distance to the terminal states of the verifier."""
        distance = _distances(ends_as(kind, run.ends, convert), ends_as(kind, checks, convert))
        predicted = distance + _PREDICTED_SHARE * self._models[kind].predict(run.described)
        return conformal_quantile(self._scores[VERIFIED, kind], coverage) * predicted


def _distances(one: Rows, other: Rows) -> Rows:
    return np.asarray(np.linalg.norm(one - other, axis=1))
