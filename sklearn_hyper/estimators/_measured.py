"""How good a hypersolver is, and what it costs: its reference, errors, counts and report."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sklearn.utils.validation import _check_sample_weight
from torch import Tensor

from ..hypersolvers import SolveSettings
from ..hypersolvers.fitted import UNDEFINED
from ..metrics import mape_floor, mean_absolute_percentage_error
from ..numerics.row_errors import list_rows, refuse_undefined
from ..reports import SolverReport
from ..training.given_rows import apart
from ..training.references import lost_rows
from ._base import UnsolvedRowsWarning, outside_inference_mode
from ._inputs import prepare_rows


class MeasuredMixin:
    """Reference, errors, counts and reports of a regressor or a classifier."""

    def reference(self, X: Any, *, condition: Any = None) -> np.ndarray:
        """Return the output h_y(z(S)) of dopri5 at ``rtol`` and ``atol``, which the hypersolver approximates.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
        condition : optional
            As in :meth:`fit`: of the same names, shapes and kinds.

        Returns
        -------
        ndarray of shape (n_samples, ...)
            For a classifier's Neural ODE these are logits; for a skorch net's what its module gives, logits or
            probabilities. They are nan for rows that dopri5 cannot solve.

        Raises
        ------
        ReferenceSolveError
            If dopri5 can solve none of the rows.

        Warns
        -----
        UnsolvedRowsWarning
            If dopri5 cannot solve some of the rows; the warning names them.
        """
        fitted = self._require_product()
        states = self._reference_states(prepare_rows(self, X, condition), keep_lost=True)
        lost = lost_rows(states[None])
        if lost:
            solved = np.setdiff1d(np.arange(len(states)), lost)
            states[lost] = states[solved[0]].clone()  # a stand-in, since the output map may refuse nan
            warnings.warn(
                f"dopri5 cannot solve the Neural ODE from {len(lost)} of {len(states)} rows of X ({list_rows(lost)}), "
                "whose references are nan: the field is stiff or its solution grows without bound from there. Leave "
                "those rows out of score and solver_report.",
                UnsolvedRowsWarning,
                stacklevel=2,
            )
        output = fitted.map_output(states)
        if lost:
            output[lost] = np.nan
        return output[:, 0] if self._squeeze_output else output

    def _reference_states(self, X: Any, keep_lost: bool = False) -> Tensor:
        with outside_inference_mode():
            solving = SolveSettings.of(self.get_params(deep=False) | {"device": self.device_})
            rows = self._to_tensor(X, self.dtype_, "cpu")
            return self.fitted_.reference(*apart(rows), solving=solving, keep_lost=keep_lost)

    def neg_mape(self, X: Any, sample_weight: Any = None, *, condition: Any = None) -> float:
        """Return minus the MAPE of the outputs against dopri5's; for a classifier the outputs are logits.

        No labels are needed.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
        sample_weight : array-like of shape (n_samples,), optional
        condition : optional
            As in :meth:`fit`: of the same names, shapes and kinds.

        Returns
        -------
        float
            Greater is better, 0 is perfect.

        Raises
        ------
        ReferenceSolveError, ValueError
            As :meth:`solver_report`.
        """
        fitted = self._require_product()
        X = prepare_rows(self, X, condition)
        if sample_weight is not None:
            sample_weight = _check_sample_weight(sample_weight, apart(X)[0], ensure_non_negative=True)
        reference = fitted.map_output(self._reference_states(X))
        refuse_undefined(torch.from_numpy(reference), UNDEFINED)
        outputs = self._in_batches(lambda rows: fitted.module(*apart(rows)), X)
        return -mean_absolute_percentage_error(
            reference, outputs, floor=mape_floor(self.mape_floor, reference, sample_weight),
            sample_weight=sample_weight,
        )  # fmt: skip

    def count_macs(self, X: Any, *, condition: Any = None) -> float:
        """Count the multiply-accumulates of f and g in a solve, for one sample: the first of X.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
        condition : optional
            As in :meth:`fit`: of the same names, shapes and kinds.

        Returns
        -------
        float
            nan if f has none, that is, no matrix product or convolution.
        """
        fitted = self._require_product()
        first = self._to_tensor(prepare_rows(self, X, condition)[:1], self.dtype_, self.device_)
        return fitted.module.count_macs(*apart(first))

    def count_evaluations(self, X: Any = None, *, condition: Any = None, t_eval: Any = None) -> float:
        """Count the evaluations of f in a solve.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...), optional
            Needed with adaptive steps, which depend on it, and with ``t_eval``.
        condition : optional
            As in :meth:`fit`: of the same names, shapes and kinds.
        t_eval : array-like of shape (n_times,) or (n_samples, n_times), optional
            Count those of :meth:`trajectory` or ``predict`` at these times, for all rows of X in one batch.

        Returns
        -------
        int or float
            With adaptive steps or ``t_eval``, the mean over the rows of X.
        """
        module = self._require_product().module
        if t_eval is None and module.stepping.n_evaluations is not None:
            return module.stepping.n_evaluations
        if X is None:
            what = "with stepping='adaptive' evaluations" if t_eval is None else "with t_eval evaluations"
            raise ValueError(f"X=None: {what} depend on the rows; pass X.")
        X = prepare_rows(self, X, condition)
        times = None
        if t_eval is not None:
            at = self._check_times(X, t_eval)
            times = torch.from_numpy(np.where(np.isnan(at), at[..., :1], at))
        return module.count_evaluations(*apart(self._to_tensor(X, self.dtype_, self.device_)), times)

    def solver_report(
        self,
        X: Any,
        y: Any = None,
        *,
        condition: Any = None,
        tolerance: float = 1e-4,
        batch_size: int = 256,
        tol: float | Sequence[float] | None = None,
        alpha: float = 0.01,
        route: bool = False,
        bound: str = "learned",
    ) -> SolverReport:
        """Compare accuracy and cost of this hypersolver with its base solver and dopri5.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Errors are measured on all rows, milliseconds on one batch of them.
        y : array-like of shape (n_samples,), optional
            Labels, which add a classifier's accuracy. A regressor ignores them.
        condition : optional
            As in :meth:`fit`: of the same names, shapes and kinds.
        tolerance : float, default 1e-4
            Tolerance of the dopri5 that is timed and listed, relative to the states' size. Errors are measured against
            ``reference(X)``, at the tolerance ``rtol``.
        batch_size : int, default 256
            Number of rows in the batch that is timed.
        tol : float or list of float, optional
            Relative tolerances of the output, each of which adds a row: what ``predict(X, tol=)`` makes of it. NFE is
            its mean over rows, and MACs are those of f. Its name tells where ``route=True`` gave way to one solver for
            all rows. Needs :meth:`conformalize`.
        alpha, route, bound : optional
            As in :meth:`HypersolverRegressor.predict`, for ``tol``.

        Returns
        -------
        SolverReport
            One row a solver: MAPE of the outputs, relative L2 error of the terminal states (mean, median, p99, max),
            NFE, MACs a sample, milliseconds a batch, speed-up over dopri5, and the relative overhead O_r of g (section
            6).

        Raises
        ------
        ReferenceSolveError
            If dopri5 cannot solve some rows of X; the error names them.
        ValueError
            If the output map is not finite at dopri5's states for some rows of X; the error names them. If ``alpha``,
            ``route``, ``bound`` or an entry of ``tol`` is out of its range, or one of the first three is given without
            ``tol``.
        NotCalibratedError
            If ``tol`` is given without a calibration of this solver.
        """
        fitted = self._require_product()
        answers = self._answers_to(tol, alpha=alpha, route=route, bound=bound)
        X = prepare_rows(self, X, condition)
        states = self._reference_states(X)
        labels = None if y is None else self._label_indices(y, len(X))
        to_labels = None if labels is None else self._indices
        with outside_inference_mode():
            x, beside = apart(self._to_tensor(X, self.dtype_, self.device_))
            return fitted.report(
                x, states.clone(), beside, labels=labels, to_labels=to_labels,
                tolerance=tolerance, mape_floor=self.mape_floor, batch_size=batch_size, answers=answers,
            )  # fmt: skip

    def _label_indices(self, y: Any, n_samples: int) -> np.ndarray | None:
        """Return labels as indices of the outputs; None for a regressor."""
        return None
