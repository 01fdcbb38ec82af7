"""What the regressor and the classifier share: fit, inference, reports, solver swaps; ``fitted_`` does the numerics."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Self, Unpack

import numpy as np
import torch
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin, _fit_context
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils._set_output import _get_output_config
from sklearn.utils.validation import _check_sample_weight, _num_samples
from torch import Tensor

from ..calibration.measuring import STATE, TRAJECTORY
from ..hypersolvers import (
    FitSettings,
    FittedHypersolver,
    SolveSettings,
    Task,
    choose_base_solver,
    fit_hypersolver,
    fit_hypersolvers,
)
from ..hypersolvers.fitted import UNDEFINED
from ..hypersolvers.prepare import prepare_neural_ode
from ..hypersolvers.refitting import check_same_architecture
from ..metrics import mape_floor, mean_absolute_percentage_error
from ..modules.copies import frozen_copy
from ..modules.field_probes import PROBED_ROWS
from ..modules.neural_ode import NeuralODE
from ..numerics.row_errors import list_rows, refuse_undefined
from ..reports import SolverReport
from ..training.callback_checks import LOSS_NET_RECORDS, check_monitors, refuse_scoring
from ..training.given_rows import Inputs, apart, given, rows_of_array
from ..training.references import lost_rows
from ..training.skorch_nets import predictions
from ._base import (
    TorchEstimator,
    UnsolvedRowsWarning,
    check_device,
    check_output_map,
    module_dtype,
    outside_inference_mode,
)
from ._calibrated import ASKED, Asked, Wanted, drop_calibration
from ._conditions import fit_transform, learn_condition, raw_condition, refuse_condition
from ._conformalizing import CalibrationMixin
from ._derived import DerivedMixin
from ._eval_times import check_t_eval, times_to_fit
from ._fitted_neural_ode import FittedNeuralODE, resolve_neural_ode
from ._given_targets import spread
from ._hypersolver_parameters import HYPERSOLVER_CONSTRAINTS, STEPPING_CONSTRAINTS, fit_settings
from ._inputs import prepare_rows, take_X
from ._refitting import describe_refit, errors_of_refit, refit_changes, require_correction

_CHECKED_ROWS = 32
_ROUGH = 1e-3


def part_of_fit(name: str) -> Any:
    """A read-only attribute of a fitted estimator that is an attribute of its ``fitted_``."""

    def get(estimator: Any) -> Any:
        if "fitted_" not in vars(estimator):
            raise AttributeError(
                f"this {type(estimator).__name__} is not fitted, and so has no {name}; call fit first."
            )
        return getattr(estimator.fitted_, name)

    return property(get)


class Hypersolver(CalibrationMixin, DerivedMixin, ClassNamePrefixFeaturesOutMixin, TransformerMixin, TorchEstimator):
    """A hypersolver of a Neural ODE: ``fitted_`` does the work, the rest is scikit-learn's conventions around it."""

    _model_parameters = ("neural_ode",)
    _parameter_constraints: dict = {**HYPERSOLVER_CONSTRAINTS, **STEPPING_CONSTRAINTS}

    # ------------------------------------------------------------------ fit
    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: Any, y: Any = None, *, condition: Any = None, t_eval: Any = None) -> Self:
        """Fit the correction on dopri5 trajectories that start from X.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, channels, height, width)
            Inputs as the Neural ODE takes them, with its feature names and in its order. For a Pipeline, whatever its
            steps take. No labels are needed.
        y : array-like, optional
            Nothing is learned from it. Where given, it is only compared with what the Neural ODE predicts: labels with
            ``classes_``, and targets with outputs of the same shape.
        condition : dict, frame, structured array, array-like or number, optional
            What the field takes beside X as keyword arguments, ``f(t, z, label=...)``: a dict by name, or the columns
            of a frame or fields of a structured array. A single array is the argument ``condition``. Each has one entry
            a row, of any shape, or one for all rows: a number, or an array of shape (1, ...). The field always gets a
            tensor with one entry a row. Floats have its dtype, integers are int64, and strings are indices in the
            sorted values of this fit, ``condition_[name].categories``. Later calls have to pass the same names. Where
            folds cut rows, as in searches, pass a frame or an array: scikit-learn does not cut a dict.
        t_eval : array-like of shape (n_times,), optional
            Times of the states that ``finetune="trajectory"`` (or such a ``loss``) fits, the same for all rows: in the
            order of the span, and within it. By default those of the solver's own steps. States at other times are
            still there: see :meth:`trajectory`. Where rows have times of their own, pass times spread like them. A
            later :meth:`refit` fits at the same times.

        Returns
        -------
        self

        Raises
        ------
        NotFittedError
            If ``neural_ode`` is not fitted.
        TypeError
            If ``neural_ode`` is none of the accepted forms, or overrides ``predict`` in a way that cannot be taken
            over. If a function holds a module, or the Neural ODE cannot be copied.
        ValueError
            If a parameter, X or the span of time is wrong. If steps of the base solver overflow from rows of X; the
            error names these rows. If a callback scores predictions, or monitors what no epoch records. If a correction
            of your own has nothing to train, holds modules where ``parameters()`` does not find them, is random, mixes
            rows or writes into its arguments. If it needs more than one row to learn from (BatchNorm) and would get a
            single one. If y has another length or numbers that are not finite, or labels other than the Neural ODE's,
            such as those that meta-estimators have recoded.
        VectorFieldError
            If the signature of the field or of a map is wrong, or the shape, dtype or device of its output. If one of
            them is random or mixes rows.
        ReferenceSolveError
            If dopri5 cannot solve the Neural ODE from some rows of X; the error names them.
        TrainingDivergedError
            If the training loss is no longer finite.
        KeyboardInterrupt
            After Ctrl-C, once the estimator holds the best weights of the finished epochs. If no epoch of the
            correction was finished, as in reference solves or while learning coefficients, the estimator stays as it
            was.

        Warns
        -----
        GradientWarning
            If training goes through the field, and autograd's derivative of it disagrees with its values.
        PersistenceWarning
            If the result could not be pickled.
        ConvergenceWarning
            If no epoch was better than the base solver; the fit then falls back to it. If errors are larger than the
            states at the end of the span, or than the outputs.
        UserWarning
            If only one of X and the Neural ODE's estimator has feature names. If the Neural ODE's outputs predict y
            worse than a constant.

        Examples
        --------
        A field with a condition, which is a rate for every row.

        >>> import numpy as np
        >>> from sklearn_hyper import HypersolverRegressor
        >>> def decay(t, z, *, rate):
        ...     return -rate[:, None] * z
        >>> rng = np.random.default_rng(0)
        >>> X, rate = rng.uniform(1, 2, (200, 1)), rng.uniform(0.5, 1.5, 200)
        >>> fast = HypersolverRegressor(decay, base_solver="heun", n_steps=2, max_epochs=20, random_state=0)
        >>> fast = fast.fit(X, condition={"rate": rate})
        >>> z = fast.predict([[1.0], [2.0]], condition={"rate": 1.2})  # one for all rows
        >>> bool(np.abs(z - np.array([[1.0], [2.0]]) * np.exp(-1.2)).max() < 0.02)
        True
        """
        with self._fitting() as fitting:
            self._fit(X, y, condition, t_eval)
            fitting.interrupted = self.fitted_.interrupted
        return self

    def _fit(self, X: Any, y: Any, condition: Any, t_eval: Any) -> None:
        refuse_scoring(self.callbacks, "a hypersolver")
        check_monitors(self.callbacks, LOSS_NET_RECORDS, "Monitor one of those.")
        settings = fit_settings(self, check_device(self.device))
        choose_base_solver(settings, 0)  # a wrong name is an error before anything is solved
        resolved = resolve_neural_ode(self.neural_ode)
        settings = replace(settings, t_eval=times_to_fit(t_eval, resolved.module.t_span))
        previous = self._previous()
        X = take_X(self, X, resolved.estimator, resolved.preprocess, reset=previous is None)
        X = learn_condition(self, condition, X, reset=previous is None, fitted=resolved.estimator)
        neural_ode, n_state = self._take_neural_ode(resolved, X, y, settings)
        task = Task(neural_ode, *rows_of_array(X, self.dtype_))
        fitted = fit_hypersolver(task, settings, previous, copy=False)
        warn_of_problems(fitted)
        self.fitted_, self._n_features_out = fitted, n_state
        drop_calibration(self)

    @_fit_context(prefer_skip_nested_validation=True)
    def refit(
        self, neural_ode: Any, X: Any, *, condition: Any = None, max_epochs: int | None = None, lr: float | None = None
    ) -> Self:
        """Follow a Neural ODE that has been trained on: refit the correction from what it is, in a few epochs.

        All measures of size are taken anew: scales, caps and floors of a net. Changes of weights are added to the
        weights that the field has now. The base solver and its learned coefficients stay.

        Parameters
        ----------
        neural_ode : estimator, Pipeline, search, skorch net, NeuralODE or callable
            The Neural ODE as it is now, of the same architecture, in any form that ``fit`` takes. It becomes the
            parameter ``neural_ode``. Where that has been trained on in place, pass it again.
        X : array-like of shape (n_samples, ...)
            Rows to refit on, like those of ``fit``. Rows of both count as fitted ones to :meth:`conformalize`.
        condition : optional
            As in :meth:`fit`: of the same names, shapes and kinds.
        max_epochs : int, optional
            Passes over the rows. By default a quarter of the parameter ``max_epochs``, rounded up. Where that makes
            fewer than 100 updates, because rows are few, it is more, up to a third of it.
        lr : float, optional
            Highest learning rate. By default half of the parameter ``lr``: there is less to learn.

        Returns
        -------
        self
            ``refit_`` has the errors on held-out rows "before" and "after", each in the form of ``errors_``. A
            calibration is dropped, because it was one of another solver; call :meth:`conformalize` again.

        Raises
        ------
        NotFittedError
            If this hypersolver, or ``neural_ode``, is not fitted.
        ValueError
            If there is no correction to go on from: after :meth:`without_correction`, or where the fit fell back to its
            base solver. If ``neural_ode`` is of another architecture, which the error describes. If ``max_epochs``,
            ``lr`` or X is wrong.
        TypeError, VectorFieldError, ReferenceSolveError, TrainingDivergedError, KeyboardInterrupt
            As :meth:`fit`. The hypersolver then stays as it was, but after Ctrl-C once an epoch is finished.

        Warns
        -----
        ConvergenceWarning
            If the base solver is better on held-out rows than anything found, so that ``correction_`` is None now.

        Examples
        --------
        >>> import numpy as np, torch
        >>> from sklearn_hyper import HypersolverRegressor
        >>> def turn(speed):
        ...     return lambda t, z: speed * torch.stack([z[:, 1], -z[:, 0]], dim=1)
        >>> X = np.random.default_rng(0).normal(size=(200, 2))
        >>> fast = HypersolverRegressor(turn(1.0), n_steps=4, random_state=0).fit(X)
        >>> fast = fast.refit(turn(1.2), X)
        >>> fast.refit_["after"][4]["mean"] < 0.5 * fast.refit_["before"][4]["mean"]
        True
        """
        fitted = self._require_product()
        require_correction(fitted.correction is not None, type(self).__name__)
        changes = refit_changes(self, max_epochs, lr, _num_samples(X))
        with self._fitting() as fitting:
            self.neural_ode = neural_ode
            self._refit(X, condition, fitted, changes)
            fitting.interrupted = self.fitted_.interrupted
        return self

    def _refit(self, X: Any, condition: Any, previous: FittedHypersolver, changes: dict[str, Any]) -> None:
        refuse_scoring(self.callbacks, "a hypersolver")
        settings = replace(fit_settings(self, check_device(self.device)), **changes)
        resolved = resolve_neural_ode(self.neural_ode)
        try:
            settings = replace(settings, t_eval=times_to_fit(previous.settings.t_eval, resolved.module.t_span))
        except ValueError as error:
            raise ValueError(f"{error} These are the times of the fit before: call fit with others.") from error
        X = take_X(self, X, resolved.estimator, resolved.preprocess, reset=False)
        X = learn_condition(self, condition, X, reset=False, fitted=resolved.estimator)
        dtype = self.dtype_
        neural_ode, n_state = self._take_neural_ode(resolved, X, None, settings)
        few_rows, _ = apart(self._to_tensor(X[:PROBED_ROWS], dtype, settings.device))
        check_same_architecture(previous.neural_ode, neural_ode, few_rows)
        self.dtype_ = dtype
        task = Task(neural_ode, *rows_of_array(X, dtype))
        (fitted,) = fit_hypersolvers([task], settings, [previous], refit_units=True, copy=False)
        warn_of_problems(fitted)
        self.fitted_, self._n_features_out = fitted, n_state
        drop_calibration(self)
        if self.verbose:
            print(describe_refit(fitted, type(self).__name__))

    def _previous(self) -> FittedHypersolver | None:
        """Return the fit that a warm start continues, if there is one with a correction."""
        previous = vars(self).get("fitted_") if self.warm_start else None
        return None if previous is None or previous.correction is None else previous

    def _take_neural_ode(
        self, resolved: FittedNeuralODE, X: Any, y: Any, settings: FitSettings
    ) -> tuple[NeuralODE, int]:
        """Return a frozen copy of the Neural ODE, checked before any solve, and the number of values in its state."""
        self.device_ = settings.device
        neural_ode = self._follow_net(frozen_copy(resolved.module), resolved.net).to(settings.device)
        self.dtype_ = module_dtype(neural_ode.dtype, X)
        few_rows, beside = apart(self._to_tensor(X[:PROBED_ROWS], self.dtype_, settings.device))
        z = prepare_neural_ode(
            neural_ode, few_rows, settings, lambda z: self._check_output(neural_ode, z, resolved), beside
        )
        if resolved.checked is not None:
            if resolved.net is not None:
                refuse_condition(self, f"predict of {type(resolved.net).__name__}", "pass its NeuralODE as neural_ode")
            # A few rows, in the dtype that a net's module takes.
            x, beside = apart(self._to_tensor(X[spread(len(X), _CHECKED_ROWS)], self.dtype_, "cpu"))
            self._check_predictions(neural_ode, given(x.numpy(), beside), resolved)
        if y is not None:
            self._check_y(neural_ode, X, y)
        return neural_ode, z[0].numel()

    def _check_output(self, neural_ode: NeuralODE, z: Tensor, resolved: FittedNeuralODE) -> None:
        check_output_map(neural_ode, z)
        self._squeeze_output = resolved.squeeze

    @abstractmethod
    def _follow_net(self, neural_ode: NeuralODE, net: Any) -> NeuralODE:
        """Apply to outputs what a skorch net does to those of its module."""

    @abstractmethod
    def _check_predictions(self, neural_ode: NeuralODE, rows: Any, resolved: FittedNeuralODE) -> None:
        """Refuse a net, or an estimator that overrides ``predict``, whose predictions the copy does not reproduce."""

    def _predictions(self, model: Any, name: str, rows: Any) -> np.ndarray:
        """Return what a method of the Neural ODE's estimator or net gives, such as ``predict``."""
        return predictions(model, name, apart(rows)[0], raw_condition(self, rows))

    @abstractmethod
    def _check_y(self, neural_ode: NeuralODE, X: Any, y: Any) -> None:
        """Compare y with what the Neural ODE predicts; nothing is learned from it."""

    def _rough_outputs(self, neural_ode: NeuralODE, X: Any) -> np.ndarray:
        """Return the Neural ODE's own outputs, at a loose tolerance that is enough to compare them with y."""
        return self._own_outputs(neural_ode, X, rtol=max(self.rtol, _ROUGH), atol=self.atol)

    def _own_outputs(self, neural_ode: NeuralODE, X: Any, **tolerances: Any) -> np.ndarray:
        """Return the Neural ODE's own outputs."""

        def outputs(rows: Inputs) -> Tensor:
            x, condition = apart(rows)
            return neural_ode(x, condition=condition, **tolerances)

        return self._in_batches(outputs, X)

    # ------------------------------------------------------------------ what the fit has made
    module_ = part_of_fit("module")
    correction_ = part_of_fit("correction")
    base_solver_ = part_of_fit("method")
    neural_ode_ = part_of_fit("neural_ode")
    delta_ = part_of_fit("delta")
    errors_ = part_of_fit("errors")
    history_ = part_of_fit("history")
    net_ = part_of_fit("net")
    n_samples_fit_ = part_of_fit("n_samples")

    @property
    def refit_(self) -> dict[str, dict[int, dict[str, float]]]:
        return errors_of_refit(self._require_product())

    @property
    def order_(self) -> int:
        return self.base_solver_.order

    # ------------------------------------------------------------------ inference
    def _require_product(self) -> FittedHypersolver:
        return self._require_fitted("fitted_")

    def _apply(self, method: str, X: Any, condition: Any) -> np.ndarray:
        solve = getattr(self._require_product().module, method)
        return self._in_batches(lambda rows: solve(*apart(rows)), prepare_rows(self, X, condition))

    __metadata_request__transform = dict.fromkeys(ASKED)

    fit_transform = fit_transform

    def transform(self, X: Any, *, condition: Any = None, **asked: Unpack[Asked]) -> Any:
        """Return the terminal state z_K of every sample.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
        condition : optional
            As in :meth:`fit`: of the same names, shapes and kinds.
        **asked : optional
            ``return_bound``, ``coverage``, ``bound``, ``tol``, ``atol``, ``alpha``, ``route`` and ``return_info``:
            bounds on the error of the state, and tolerances of it. As in :meth:`HypersolverRegressor.predict`.

        Returns
        -------
        ndarray of shape (n_samples, ...), with the shape of the state
            In a tuple with the bound and the info, where those are asked for.

        Raises
        ------
        TypeError
            If there is no such keyword.
        NotCalibratedError, CalibrationRowsError, ValueError
            As :meth:`HypersolverRegressor.predict`.
        """
        wanted = Wanted.of(self, "transform", asked)
        beside: list[Any] = []
        if wanted.is_plain:
            z = self._apply("terminal_state", X, condition)
        else:
            ends, beside = self._answer(X, STATE, wanted, condition=condition)
            z = ends.cpu().numpy()
        if z.ndim > 2 and _wants_frame(self):
            raise ValueError(
                f"set_output(transform={_wants_frame(self)!r}) needs vector states, and this Neural ODE's have shape "
                f"{z.shape[1:]}; use set_output(transform='default') and reshape the array."
            )
        return (z, *beside) if beside else z

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


def warn_of_problems(fitted: FittedHypersolver) -> None:
    """Warn of the problems that a fit has found with its result."""
    for problem in fitted.problems:
        warnings.warn(problem, ConvergenceWarning, stacklevel=5)


def _wants_frame(estimator: Any) -> str | None:
    config = _get_output_config("transform", estimator)["dense"]
    return None if config == "default" else config
