"""How hypersolvers are calibrated, and how they answer where a bound or a tolerance is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from ..calibration import Calibration, CalibrationRowsError
from ..calibration.calibration import FEWEST
from ..calibration.ladder import ONE
from ..calibration.measuring import OUTPUT
from ..hypersolvers import SolveSettings
from ..training.given_rows import Inputs
from ..training.nets import draw_seed
from ._base import outside_inference_mode
from ._calibrated import Wanted, answer, check_levels, levels_of, require
from ._conditions import with_drawn_entries
from ._inputs import prepare_rows
from .flows import draw_base


class CalibrationMixin:
    """Calibration of a regressor or a classifier."""

    def conformalize(self, X: Any, *, condition: Any = None, levels: Sequence[Any] = ()) -> Self:
        r"""Learn how wrong this solver is, from rows that ``fit`` has not seen.

        Afterwards ``predict`` and ``transform`` give bounds (``return_bound=True``) and keep tolerances (``tol=``). A
        model predicts the error's size :math:`\hat e` from what a solve computes anyway. With n rows,

        .. math:: \|\hat y - y\|_2 \le q \, \hat e, \qquad
                  q = s_{(\lceil (n + 1) c \rceil)}, \quad s_i = \|\hat y_i - y_i\|_2 / \hat e_i

        aims to hold for a share c of new rows like them, the coverage. y is dopri5's result at ``rtol``.

        This share is measured, not guaranteed for finite n: each score is by a model that did not see its row, and the
        model at work has seen them all. With a single calibration, the share varies around c by about
        :math:`\sqrt{c (1 - c) / n}`.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Rows drawn like those of later calls, at least 40. Coverage c needs :math:`c / (1 - c)` of them (99 for
            .99), and a tolerance at ``alpha=0.01`` needs 460. 1,000 are advised.
        condition : optional
            As in ``fit``, drawn with the rows as in later calls. Rows whose integers or categories are not among these
            count as unusual.
        levels : list of hypersolvers, default ()
            Further fitted hypersolvers of the same Neural ODE, for other numbers of steps, which ``tol`` may use. It
            always uses the numbers of steps that this fit covers (``fit_n_steps=(a, b)``), the classical fourth-order
            Runge-Kutta method, and dopri5 in the end.

        Returns
        -------
        self

        Raises
        ------
        TypeError
            If ``levels`` is no list or tuple.
        CalibrationRowsError
            If there are too few rows, or more than one in twenty were fitted on.
        ReferenceSolveError
            If dopri5 cannot solve some rows; the error names them.
        ValueError
            If a level is no fitted hypersolver, or is one of another Neural ODE, or of other shapes or dtypes of X.

        See Also
        --------
        sklearn_hyper.calibration : The parts of a calibration.

        References
        ----------
        Papadopoulos et al. (2002), *Inductive confidence machines for regression*; Vovk (2015), *Cross-conformal
        predictors*; Angelopoulos et al. (2021), *Learn then Test*.
        """
        fitted, levels = self._require_product(), check_levels(levels)
        x = self._to_tensor(prepare_rows(self, X, condition), self.dtype_, "cpu")
        solving = SolveSettings.of(self.get_params(deep=False) | {"device": self.device_})
        with outside_inference_mode():
            others = levels_of(levels, "fitted_", fitted, x, self)
            self.calibration_ = Calibration(fitted, x, self._final_outputs, others, solving)
        return self

    def _final_outputs(self, ends: Tensor) -> np.ndarray:
        """Return the outputs of terminal states that bounds are about."""
        return self._require_product().map_output(ends)

    def _answer(
        self, X: Any, kind: str, wanted: Wanted, *, condition: Any = None, **how: Any
    ) -> tuple[Tensor, list[Any]]:
        """Return terminal states, and what is returned beside values."""
        fitted = self._require_product()
        x = self._to_tensor(prepare_rows(self, X, condition), self.dtype_, "cpu")
        with outside_inference_mode():
            return answer(vars(self).get("calibration_"), fitted, x, kind, self._final_outputs, wanted, **how)

    def _answers_to(self, tol: Any, **how: Any) -> dict[str, Callable[[Inputs], tuple[Tensor, np.ndarray]]]:
        """Return what solves rows to each tolerance of a report, by the name of its row.

        Raises
        ------
        ValueError
            If a value is out of its range, or has no effect.
        NotCalibratedError
            If there is a tolerance and no calibration.
        """
        tolerances = _as_tolerances(tol)
        every = [Wanted(tol=one, return_info=True, **how) for one in tolerances or [1.0]]  # checks values in any case
        given = [name for name, value in how.items() if value != getattr(Wanted, name)]
        if not tolerances:
            if given:
                raise ValueError(
                    f"{' and '.join(f'{name}={how[name]!r}' for name in given)}: solver_report keeps tolerances "
                    "so, and there is none; pass tol."
                )
            return {}
        calibration = require(vars(self).get("calibration_"), self.fitted_)
        answers = {}
        for one in every:
            policy = calibration.policy(OUTPUT, one.tolerance, one.alpha, route=one.route, how=one.bound)
            gave_way = ", one solver" * (one.route and policy == ONE)
            answers[f"tol={one.tol:g}{gave_way}"] = partial(self._answer_rows, one)
        return answers

    def _answer_rows(self, wanted: Wanted, x: Inputs) -> tuple[Tensor, np.ndarray]:
        """Return terminal states to a tolerance, and the evaluations of each row."""
        calibration = vars(self).get("calibration_")
        ends, (info,) = answer(calibration, self.fitted_, x.cpu(), OUTPUT, self._final_outputs, wanted)
        return ends, info.n_evaluations


def _as_tolerances(tol: Any) -> list[Any]:
    if tol is None:
        return []
    tolerances = list(tol) if isinstance(tol, (list, tuple)) else np.atleast_1d(np.asarray(tol, dtype=object)).tolist()
    if any(one is None for one in tolerances):
        raise ValueError(f"tol must be a positive number or a list of them, got {tol!r}; leave None out of the list.")
    return tolerances


class DensityCalibrationMixin:
    """Calibration of a HypersolverDensity: one of samples, one of log densities."""

    def conformalize(
        self, X: Any = None, *, condition: Any = None, levels: Sequence[Any] = (), n_samples: int = 1000
    ) -> Self:
        """Learn how wrong samples and log densities are, as :meth:`HypersolverRegressor.conformalize` does.

        Samples are calibrated on fresh base draws. Log densities are calibrated on X, where it is given.

        Parameters
        ----------
        X : array-like of shape (n, n_features), optional
            Data that ``fit`` has not seen. Without it, log densities are not calibrated.
        condition : optional
            As in ``fit``, where the flow is conditional. Entries of it are drawn for the base draws.
        levels : list of HypersolverDensity, default ()
            Further hypersolvers of the same flow, for other numbers of steps, which ``tol`` may use.
        n_samples : int, default 1000
            Number of base draws, at least 40.

        Returns
        -------
        self

        Raises
        ------
        TypeError
            If ``levels`` is no list or tuple.
        CalibrationRowsError
            If there are too few rows or base draws, or more than one row in twenty was fitted on.
        ValueError
            If a level is no fitted HypersolverDensity, or is one of another flow or dtype. If X is given and densities
            were not fitted, here or by a level.
        """
        flow, levels = self._require_fitted("flow_"), check_levels(levels)
        solving = SolveSettings.of(self.get_params(deep=False) | {"device": self.device_})
        seed = draw_seed(draw_seed(self.random_state))  # neither the draws of the fit nor those of sample(n, seed)
        drawn = draw_base(flow, n_samples, self.dtype_, seed)
        if X is not None:
            self._require_density()
        given = None if X is None else self._rows(X, condition)
        entries = self._entries(None, condition) if given is None else given
        base = self._to_tensor(with_drawn_entries(drawn, entries, seed), self.dtype_, "cpu")
        if n_samples < FEWEST:
            raise CalibrationRowsError(
                f"n_samples={n_samples} base draws are too few; a calibration needs {FEWEST}, and 1,000 are advised."
            )
        with outside_inference_mode():
            # All levels are checked before anything is solved.
            others = levels_of(levels, "sampler_", self.sampler_, base, self)
            if X is not None:
                rows = self._to_tensor(given, self.dtype_, "cpu")
                density_others = levels_of(levels, "density_", self.density_, rows, self)
            calibration = Calibration(self.sampler_, base, self.sampler_.map_output, others, solving)
            density_calibration = None
            if X is not None:
                density_calibration = Calibration(self.density_, rows, self._log_densities, density_others, solving)
        self.calibration_, self.density_calibration_ = calibration, density_calibration
        return self

    def _log_densities(self, ends: Tensor) -> np.ndarray:
        """Return log densities from terminal states, one column."""
        with torch.no_grad():
            return self.flow_.log_prob(ends.to("cpu"))[:, None].numpy()
