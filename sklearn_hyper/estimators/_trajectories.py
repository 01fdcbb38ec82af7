"""States over time: at the steps of a solve, or at times that are asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..calibration.measuring import TRAJECTORY
from ..training.given_rows import Inputs, apart
from ._calibrated import Wanted
from ._eval_times import check_t_eval
from ._inputs import prepare_rows


class TrajectoryMixin:
    """Trajectories of a regressor or a classifier."""

    def trajectory(
        self,
        X: Any,
        output: bool = False,
        *,
        condition: Any = None,
        t_eval: Any = None,
        return_bound: bool = False,
        coverage: float = 0.99,
    ) -> Any:
        r"""Return the states at given times, or at every step of the solve.

        States at ``t_eval`` are interpolated between the steps, through whose states the result passes. It is Hermite's
        formula, which reads f there: the corrected solver's steps have evaluated it, so it costs at most one evaluation
        beyond the solve, which ends at the last step that is needed. (Where ``correction`` changes the weights of f,
        and with "abm2_pec", it is one a step.) Between equal steps its error is :math:`O(\epsilon^6)`, with a single
        step and with adaptive ones :math:`O(\epsilon^4)`, so the solver's order is kept: that of a tableau of your own
        up to order 5.

        With a "nonstationary" base solver, which "auto" may stand for, only the last state approximates one of the
        Neural ODE, and times between the ends are refused. Where the states between matter, fit with
        ``finetune="trajectory"``, and ``t_eval`` if need be.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
        output : bool, default False
            Map each state through the output map. The last step then holds what ``predict`` gives, or a classifier's
            logits.
        condition : optional
            As in :meth:`fit`: of the same names, shapes and kinds.
        t_eval : array-like of shape (n_times,) or (n_samples, n_times), optional
            Times of the states, for all rows or for each its own: in the order of ``t_span``, and within it. They may
            lie at any distances. Rows with fewer times than others are padded with nan at their ends. A single column
            gives each row a span of its own. By default the times of the steps; with adaptive steps, ``n_steps`` + 1
            equal ones.
        return_bound : bool, default False
            Return ``(states, bound)``: for each row a bound on the largest 2-norm of the error over all K + 1 states.
            Needs :meth:`conformalize`. Bounds are of states, not of outputs.
        coverage : float, default 0.99
            The share of rows whose bound is to hold; see :meth:`HypersolverRegressor.predict`.

        Returns
        -------
        ndarray of shape (n_samples, K + 1, ...) or (n_samples, n_times, ...)
            nan where ``t_eval`` is.

        Raises
        ------
        NotCalibratedError
            If a bound is asked for without a calibration of this solver.
        ValueError
            If ``t_eval`` has another shape, is out of order, repeats a time, lies outside of the span, or holds nan
            before a time. If it holds times between the ends, and the base solver is "nonstationary". If a bound is
            asked for with ``output=True`` or ``t_eval``, or a value is out of its range or has no effect.

        Warns
        -----
        UnusualRowsWarning
            If more than 2 % of rows are unlike those of the calibration, so that their bound is infinite.

        Examples
        --------
        >>> import numpy as np
        >>> from sklearn_hyper import HypersolverRegressor
        >>> X = np.random.default_rng(0).uniform(0.5, 1.5, (200, 1))
        >>> decay = HypersolverRegressor(
        ...     lambda t, z: -z, base_solver="heun", n_steps=4, finetune="trajectory", max_epochs=20, random_state=0
        ... ).fit(X)
        >>> times = [0.1, 0.55, 1.0]
        >>> states = decay.trajectory(X, t_eval=times)
        >>> states.shape
        (200, 3, 1)
        >>> bool(np.abs(states[..., 0] - X * np.exp(times)[None] ** -1).max() < 1e-3)
        True
        >>> own = np.array([[0.2, 0.3], [0.9, np.nan]])  # the second row has a single time
        >>> np.isnan(decay.trajectory(X[:2], t_eval=own)[..., 0])
        array([[False, False],
               [False,  True]])
        """
        wanted = Wanted(return_bound=return_bound, coverage=coverage)
        if t_eval is not None:
            if return_bound:
                raise ValueError(
                    "return_bound=True bounds errors at the solver's own steps, not those at t_eval; leave one out."
                )
            return self._states_at(X, t_eval, output, condition)
        module = self._require_product().module
        if return_bound and output:
            raise ValueError("return_bound=True bounds errors of states; leave output=False.")
        if return_bound:
            parts: list[Tensor] = []
            _, beside = self._answer(X, TRAJECTORY, wanted, condition=condition, watch=parts.append)
            return torch.cat(parts, dim=1).transpose(0, 1).numpy(), *beside
        output_map = module.neural_ode.output_map

        def states(rows: Inputs) -> Tensor:
            z = module.trajectory(*apart(rows))
            return torch.stack([output_map(step) if output else step for step in z], dim=1)

        result = self._in_batches(states, prepare_rows(self, X, condition))
        return result[..., 0] if output and self._squeeze_output else result

    def _states_at(self, X: Any, t_eval: Any, output: bool, condition: Any) -> np.ndarray:
        """Return states or outputs at times, of shape (n_samples, n_times, ...); nan where there is no time."""
        fitted = self._require_product()
        rows = prepare_rows(self, X, condition)
        times = self._check_times(rows, t_eval)
        lacks, output_map = np.isnan(times), fitted.neural_ode.output_map

        def states(rows: Inputs, at: Tensor) -> Tensor:
            x, beside = apart(rows)
            z = fitted.module.states_at(x, at, beside)
            return torch.stack([output_map(one) if output else one for one in z], dim=1)

        # The output map may refuse nan, so that a time which is there stands in for one that is not.
        result = self._in_batches(states, rows, np.where(lacks, times[..., :1], times))
        if lacks.any():
            result[lacks] = np.nan
        return result[..., 0] if output and self._squeeze_output else result

    def _check_times(self, X: Any, t_eval: Any) -> np.ndarray:
        times = check_t_eval(t_eval, len(X), self.fitted_.neural_ode.t_span)
        self.fitted_.check_times(times)
        return times
