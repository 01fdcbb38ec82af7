"""What the regressor and the classifier share: fit, refit and transform; ``fitted_`` does the numerics."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from dataclasses import replace
from typing import Any, Self, Unpack

import numpy as np
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin, _fit_context
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils._set_output import _get_output_config
from sklearn.utils.validation import _num_samples
from torch import Tensor

from ..calibration.measuring import STATE
from ..hypersolvers import (
    FitSettings,
    FittedHypersolver,
    Task,
    choose_base_solver,
    fit_hypersolver,
    fit_hypersolvers,
)
from ..hypersolvers.prepare import prepare_neural_ode
from ..hypersolvers.refitting import check_same_architecture
from ..modules.copies import frozen_copy
from ..modules.field_probes import PROBED_ROWS
from ..modules.neural_ode import NeuralODE
from ..training.callback_checks import LOSS_NET_RECORDS, check_monitors, refuse_scoring
from ..training.given_rows import Inputs, apart
from ._base import (
    TorchEstimator,
    check_device,
    check_output_map,
    module_dtype,
)
from ._calibrated import ASKED, Asked, Wanted, drop_calibration
from ._conditions import fit_transform, learn_condition, refuse_condition, with_condition
from ._conformalizing import CalibrationMixin
from ._derived import DerivedMixin
from ._eval_times import times_to_fit
from ._fitted_neural_ode import FittedNeuralODE, resolve_neural_ode
from ._given_targets import spread
from ._hypersolver_parameters import HYPERSOLVER_CONSTRAINTS, STEPPING_CONSTRAINTS, fit_settings
from ._inputs import prepare_rows, take_X
from ._measured import MeasuredMixin
from ._refitting import describe_refit, errors_of_refit, refit_changes, require_correction
from ._trajectories import TrajectoryMixin

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


class Hypersolver(
    CalibrationMixin,
    DerivedMixin,
    TrajectoryMixin,
    MeasuredMixin,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
    TorchEstimator,
):
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
        X = learn_condition(self, condition, X, reset=previous is None)
        neural_ode, n_state = self._take_neural_ode(resolved, X, y, settings)
        task = Task(neural_ode, *apart(self._to_tensor(X, self.dtype_, "cpu")))
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
        X = with_condition(self, condition, X)
        dtype = self.dtype_
        neural_ode, n_state = self._take_neural_ode(resolved, X, None, settings)
        few_rows, _ = apart(self._to_tensor(X[:PROBED_ROWS], dtype, settings.device))
        check_same_architecture(previous.neural_ode, neural_ode, few_rows)
        self.dtype_ = dtype
        task = Task(neural_ode, *apart(self._to_tensor(X, dtype, "cpu")))
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
            refuse_condition(self, f"predict of {type(resolved.checked).__name__}", "pass its NeuralODE as neural_ode")
            # A few rows, in the dtype that a net's module takes.
            rows = self._to_tensor(X[spread(len(X), _CHECKED_ROWS)], self.dtype_, "cpu").numpy()
            self._check_predictions(neural_ode, rows, resolved)
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
    def _check_predictions(self, neural_ode: NeuralODE, rows: np.ndarray, resolved: FittedNeuralODE) -> None:
        """Refuse a net, or an estimator that overrides ``predict``, whose predictions the copy does not reproduce."""

    @abstractmethod
    def _check_y(self, neural_ode: NeuralODE, X: Any, y: Any) -> None:
        """Compare y with what the Neural ODE predicts; nothing is learned from it."""

    def _rough_outputs(self, neural_ode: NeuralODE, X: Any) -> np.ndarray:
        """Return the Neural ODE's own outputs, at a loose tolerance that is enough to compare them with y."""
        rtol = max(self.rtol, _ROUGH)

        def outputs(rows: Inputs) -> Tensor:
            x, condition = apart(rows)
            return neural_ode(x, rtol=rtol, atol=self.atol, condition=condition)

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


def warn_of_problems(fitted: FittedHypersolver) -> None:
    """Warn of the problems that a fit has found with its result."""
    for problem in fitted.problems:
        warnings.warn(problem, ConvergenceWarning, stacklevel=5)


def _wants_frame(estimator: Any) -> str | None:
    config = _get_output_config("transform", estimator)["dense"]
    return None if config == "default" else config
