"""What the regressor and the classifier share: fit, inference, reports, solver swaps; ``fitted_`` does the numerics."""

from __future__ import annotations

import copy
import os
import warnings
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin, _fit_context
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils._set_output import _get_output_config
from sklearn.utils.validation import _check_sample_weight
from torch import Tensor, nn

from .. import __version__
from ..calibration import Calibration
from ..calibration.measuring import OUTPUT, STATE, TRAJECTORY
from ..hypersolvers import FitSettings, FittedHypersolver, SolveSettings, Task, choose_base_solver, fit_hypersolver
from ..hypersolvers.described import describe_fitted, read_fitted
from ..hypersolvers.fitted import UNDEFINED
from ..hypersolvers.prepare import prepare_neural_ode
from ..metrics import mape_floor, mean_absolute_percentage_error
from ..modules.closed_list import Writer
from ..modules.copies import frozen_copy
from ..modules.field_probes import PROBED_ROWS
from ..modules.hypersolved_ode import HypersolvedODE
from ..modules.neural_ode import NeuralODE
from ..modules.onnx_export import FirstOutput, check_target, require_onnx
from ..numerics.row_errors import list_rows, refuse_undefined
from ..reports import SolverReport
from ..training.callback_checks import LOSS_NET_RECORDS, check_monitors, refuse_scoring
from ..training.references import lost_rows
from ._base import (
    TorchEstimator,
    UnsolvedRowsWarning,
    check_device,
    check_output_map,
    module_dtype,
    outside_inference_mode,
)
from ._calibrated import Wanted, answer, drop_calibration, level_of, require
from ._fitted_neural_ode import FittedNeuralODE, resolve_neural_ode
from ._given_targets import spread
from ._hypersolver_parameters import HYPERSOLVER_CONSTRAINTS, STEPPING_CONSTRAINTS, fit_settings
from ._inputs import prepare_X, take_X
from ._saving import EstimatorReader
from ._sources import describe_source, read_source

_CHECKED_ROWS, _PARITY_ROWS = 32, 16
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


class Hypersolver(ClassNamePrefixFeaturesOutMixin, TransformerMixin, TorchEstimator):
    """A hypersolver of a Neural ODE: ``fitted_`` does the work, the rest is scikit-learn's conventions around it."""

    _model_parameters = ("neural_ode",)
    _parameter_constraints: dict = {**HYPERSOLVER_CONSTRAINTS, **STEPPING_CONSTRAINTS}

    # ------------------------------------------------------------------ fit
    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: Any, y: Any = None) -> Self:
        """Fit the correction on dopri5 trajectories that start from X.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, channels, height, width)
            Inputs as the Neural ODE takes them, with its feature names and in its order. For a Pipeline, whatever its
            steps take. No labels are needed.
        y : array-like, optional
            Nothing is learned from it. Where given, it is only compared with what the Neural ODE predicts: labels with
            ``classes_``, and targets with outputs of the same shape.

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
        """
        with self._fitting() as fitting:
            self._fit(X, y)
            fitting.interrupted = self.fitted_.interrupted
        return self

    def _fit(self, X: Any, y: Any) -> None:
        refuse_scoring(self.callbacks, "a hypersolver")
        check_monitors(self.callbacks, LOSS_NET_RECORDS, "Monitor one of those.")
        settings = fit_settings(self, check_device(self.device))
        choose_base_solver(settings, 0)  # a wrong name is an error before anything is solved
        resolved = resolve_neural_ode(self.neural_ode)
        previous = self._previous()
        X = take_X(self, X, resolved.estimator, resolved.preprocess, reset=previous is None)
        neural_ode, n_state = self._take_neural_ode(resolved, X, y, settings)
        task = Task(neural_ode, self._to_tensor(X, self.dtype_, "cpu"))
        fitted = fit_hypersolver(task, settings, previous, copy=False)
        warn_of_problems(fitted)
        self.fitted_, self._n_features_out = fitted, n_state
        drop_calibration(self)

    def _previous(self) -> FittedHypersolver | None:
        """Return the fit that a warm start continues, if there is one with a correction."""
        previous = vars(self).get("fitted_") if self.warm_start else None
        return None if previous is None or previous.correction is None else previous

    def _take_neural_ode(
        self, resolved: FittedNeuralODE, X: np.ndarray, y: Any, settings: FitSettings
    ) -> tuple[NeuralODE, int]:
        """Return a frozen copy of the Neural ODE, checked before any solve, and the number of values in its state."""
        self.device_ = settings.device
        neural_ode = self._follow_net(frozen_copy(resolved.module), resolved.net).to(settings.device)
        self.dtype_ = module_dtype(neural_ode.dtype, X)
        few_rows = self._to_tensor(X[:PROBED_ROWS], self.dtype_, settings.device)
        z = prepare_neural_ode(neural_ode, few_rows, settings, lambda z: self._check_output(neural_ode, z, resolved))
        if resolved.checked is not None:
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
    def _check_y(self, neural_ode: NeuralODE, X: np.ndarray, y: Any) -> None:
        """Compare y with what the Neural ODE predicts; nothing is learned from it."""

    def _rough_outputs(self, neural_ode: NeuralODE, X: np.ndarray) -> np.ndarray:
        """Return the Neural ODE's own outputs, at a loose tolerance that is enough to compare them with y."""
        rtol = max(self.rtol, _ROUGH)
        return self._in_batches(lambda x: neural_ode(x, rtol=rtol, atol=self.atol), X)

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
    def order_(self) -> int:
        return self.base_solver_.order

    # ------------------------------------------------------------------ inference
    def _require_product(self) -> FittedHypersolver:
        return self._require_fitted("fitted_")

    def conformalize(self, X: Any, *, levels: Sequence[Any] = ()) -> Self:
        r"""Learn how wrong this solver is, from rows that ``fit`` has not seen.

        Afterwards ``predict`` and ``transform`` give bounds (``return_bound=True``) and keep tolerances (``tol=``). A
        model predicts the error's size :math:`\hat e` from what a solve computes anyway. With n rows,

        .. math:: \|\hat y - y\|_2 \le q \, \hat e, \qquad
                  q = s_{(\lceil (n + 1) c \rceil)}, \quad s_i = \|\hat y_i - y_i\|_2 / \hat e_i

        holds for a new row like them with probability at least c, the coverage. y is dopri5's result at ``rtol``.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Rows drawn like those of later calls, at least 40. Coverage c needs :math:`c / (1 - c)` of them (99 for
            .99), and a tolerance at ``alpha=0.01`` needs 460. 1,000 are advised.
        levels : list of hypersolvers, default ()
            Further fitted hypersolvers of the same Neural ODE, for other numbers of steps, which ``tol`` may use. It
            always uses the numbers of steps that this fit covers (``fit_n_steps=(a, b)``), the classical fourth-order
            Runge-Kutta method, and dopri5 in the end.

        Returns
        -------
        self

        Raises
        ------
        CalibrationRowsError
            If there are too few rows, or more than one in twenty were fitted on.
        ReferenceSolveError
            If dopri5 cannot solve some rows; the error names them.
        ValueError
            If a level is a hypersolver of another Neural ODE.

        See Also
        --------
        sklearn_hyper.calibration : The parts of a calibration.

        References
        ----------
        Papadopoulos et al. (2002), *Inductive confidence machines for regression*; Angelopoulos et al. (2021), *Learn
        then Test*.
        """
        fitted = self._require_product()
        x = self._to_tensor(prepare_X(self, X), self.dtype_, "cpu")
        solving = SolveSettings.of(self.get_params(deep=False) | {"device": self.device_})
        with outside_inference_mode():
            others = [level_of(one, "fitted_", fitted, x) for one in levels]
            self.calibration_ = Calibration(fitted, x, self._final_outputs, others, solving)
        return self

    def _final_outputs(self, ends: Tensor) -> np.ndarray:
        """Return the outputs of terminal states that bounds are about."""
        return self._require_product().map_output(ends)

    def _answer(self, X: Any, kind: str, wanted: Wanted) -> tuple[Tensor, list[Any]]:
        """Return terminal states, and what is returned beside values."""
        fitted = self._require_product()
        x = self._to_tensor(prepare_X(self, X), self.dtype_, "cpu")
        with outside_inference_mode():
            return answer(vars(self).get("calibration_"), fitted, x, kind, self._final_outputs, wanted)

    def _apply(self, method: str, X: Any) -> np.ndarray:
        module = self._require_product().module
        return self._in_batches(getattr(module, method), prepare_X(self, X))

    def transform(
        self,
        X: Any,
        *,
        return_bound: bool = False,
        coverage: float = 0.99,
        bound: str = "learned",
        tol: float | None = None,
        atol: float | None = None,
        alpha: float = 0.01,
        route: bool = False,
        return_info: bool = False,
    ) -> Any:
        """Return the terminal state z_K of every sample.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
        return_bound, coverage, bound, tol, atol, alpha, route, return_info : optional
            Bounds on the error of the state, and tolerances of it: as in :meth:`predict`.

        Returns
        -------
        ndarray of shape (n_samples, ...), with the shape of the state
            In a tuple with the bound and the info, where those are asked for.
        """
        wanted = Wanted(return_bound, coverage, bound, tol, atol, alpha, route, return_info)
        beside: list[Any] = []
        if wanted.is_plain:
            z = self._apply("terminal_state", X)
        else:
            ends, beside = self._answer(X, STATE, wanted)
            z = ends.cpu().numpy()
        if z.ndim > 2 and _wants_frame(self):
            raise ValueError(
                f"set_output(transform={_wants_frame(self)!r}) needs vector states, and this Neural ODE's have shape "
                f"{z.shape[1:]}; use set_output(transform='default') and reshape the array."
            )
        return (z, *beside) if beside else z

    def trajectory(self, X: Any, output: bool = False, *, return_bound: bool = False, coverage: float = 0.99) -> Any:
        """Return the states at every step of the solve; with adaptive steps, at ``n_steps`` + 1 equal times.

        With a "nonstationary" base solver, which "auto" may stand for, only the last state approximates one of the
        Neural ODE. Where the states between matter, fit with ``finetune="trajectory"`` or another base solver.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
        output : bool, default False
            Map each state through the output map. The last step then holds what ``predict`` gives, or a classifier's
            logits.
        return_bound : bool, default False
            Return ``(states, bound)``: for each row a bound on the largest 2-norm of the error over all K + 1 states.
            Needs :meth:`conformalize`. Bounds are of states, not of outputs.
        coverage : float, default 0.99
            Probability that the bound of a row holds.

        Returns
        -------
        ndarray of shape (n_samples, K + 1, ...)

        Raises
        ------
        NotCalibratedError
            If a bound is asked for without a calibration of this solver.
        ValueError
            If a bound is asked for with ``output=True``.
        """
        module = self._require_product().module
        if return_bound and output:
            raise ValueError("return_bound=True bounds errors of states; leave output=False.")
        output_map = module.neural_ode.output_map

        def states(x: Tensor) -> Tensor:
            z = module.trajectory(x)
            return torch.stack([output_map(step) if output else step for step in z], dim=1)

        result = self._in_batches(states, prepare_X(self, X))
        if return_bound:
            _, beside = self._answer(X, TRAJECTORY, Wanted(return_bound, coverage))
            return result, *beside
        return result[..., 0] if output and self._squeeze_output else result

    def reference(self, X: Any) -> np.ndarray:
        """Return the output h_y(z(S)) of dopri5 at ``rtol`` and ``atol``, which the hypersolver approximates.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)

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
        states = self._reference_states(prepare_X(self, X), keep_lost=True)
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

    def _reference_states(self, X: np.ndarray, keep_lost: bool = False) -> Tensor:
        with outside_inference_mode():
            solving = SolveSettings.of(self.get_params(deep=False) | {"device": self.device_})
            rows = self._to_tensor(X, self.dtype_, "cpu")
            return self.fitted_.reference(rows, solving=solving, keep_lost=keep_lost)

    def neg_mape(self, X: Any, sample_weight: Any = None) -> float:
        """Return minus the MAPE of the outputs against dopri5's; for a classifier the outputs are logits.

        No labels are needed.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
        sample_weight : array-like of shape (n_samples,), optional

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
        X = prepare_X(self, X)
        if sample_weight is not None:
            sample_weight = _check_sample_weight(sample_weight, X, ensure_non_negative=True)
        reference = fitted.map_output(self._reference_states(X))
        refuse_undefined(torch.from_numpy(reference), UNDEFINED)
        return -mean_absolute_percentage_error(
            reference, self._in_batches(fitted.module, X), floor=mape_floor(self.mape_floor, reference, sample_weight),
            sample_weight=sample_weight,
        )  # fmt: skip

    def count_macs(self, X: Any) -> float:
        """Count the multiply-accumulates of f and g in a solve, for one sample: the first of X.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)

        Returns
        -------
        float
            nan if f has none, that is, no matrix product or convolution.
        """
        fitted = self._require_product()
        return fitted.module.count_macs(self._to_tensor(prepare_X(self, X)[:1], self.dtype_, self.device_))

    def count_evaluations(self, X: Any = None) -> float:
        """Count the evaluations of f in a solve.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...), optional
            Needed with adaptive steps alone, which depend on it.

        Returns
        -------
        int or float
            With adaptive steps, the mean over the rows of X.
        """
        module = self._require_product().module
        if module.stepping.n_evaluations is not None:
            return module.stepping.n_evaluations
        if X is None:
            raise ValueError("X=None: with stepping='adaptive' evaluations depend on the rows; pass X.")
        return module.count_evaluations(self._to_tensor(prepare_X(self, X), self.dtype_, self.device_))

    def solver_report(
        self,
        X: Any,
        y: Any = None,
        *,
        tolerance: float = 1e-4,
        batch_size: int = 256,
        tol: float | Sequence[float] = (),
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
        tolerance : float, default 1e-4
            Tolerance of the dopri5 that is timed and listed, relative to the states' size. Errors are measured against
            ``reference(X)``, at the tolerance ``rtol``.
        batch_size : int, default 256
            Number of rows in the batch that is timed.
        tol : float or list of float, default ()
            Relative tolerances of the output, each of which adds a row: what ``predict(X, tol=)`` makes of it. NFE is
            its mean over rows, and MACs are those of f. Needs :meth:`conformalize`.
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
            If the output map is not finite at dopri5's states for some rows of X; the error names them.
        NotCalibratedError
            If ``tol`` is given without a calibration of this solver.
        """
        fitted = self._require_product()
        tolerances = [tol] if isinstance(tol, Real) else list(tol)
        every = [Wanted(tol=one, alpha=alpha, route=route, bound=bound, return_info=True) for one in tolerances]
        if every:
            require(vars(self).get("calibration_"), fitted)
        answers = {f"tol={one.tol:g}": partial(self._answer_rows, one) for one in every}
        X = prepare_X(self, X)
        states = self._reference_states(X)
        labels = None if y is None else self._label_indices(y, len(X))
        to_labels = None if labels is None else self._indices
        with outside_inference_mode():
            return fitted.report(
                self._to_tensor(X, self.dtype_, self.device_), states.clone(), labels=labels, to_labels=to_labels,
                tolerance=tolerance, mape_floor=self.mape_floor, batch_size=batch_size, answers=answers,
            )  # fmt: skip

    def _answer_rows(self, wanted: Wanted, x: Tensor) -> tuple[Tensor, np.ndarray]:
        """Return terminal states to a tolerance, and the evaluations of each row."""
        calibration = vars(self).get("calibration_")
        ends, (info,) = answer(calibration, self.fitted_, x.cpu(), OUTPUT, self._final_outputs, wanted)
        return ends, info.n_evaluations

    def _label_indices(self, y: Any, n_samples: int) -> np.ndarray | None:
        """Return labels as indices of the outputs; None for a regressor."""
        return None

    # ------------------------------------------------------------------ others like it
    def with_solver(
        self,
        base_solver: Any = None,
        n_steps: int | None = None,
        t_span: tuple[float, float] | None = None,
        *,
        step_rtol: float | None = None,
    ) -> Self:
        """Return a fitted copy with another base solver, number of steps, span or tolerance, and the same correction.

        Parameters
        ----------
        base_solver : str, ButcherTableau or base solver, optional
            A base solver of the same order and number of stages as the fitted one. The correction need not serve it
            well: check with ``score``, or fit over a family of base solvers, with ``tableaus`` of
            :class:`~sklearn_hyper.MLPCorrection`.
        n_steps : int, optional
            Another number of steps. Learned coefficients serve a single number ("nonstationary", which "auto" stands
            for with states of more than four numbers). To change it after the fit, fit with ``fit_n_steps=(a, b)``, for
            which "auto" is "ab2".
        t_span : pair of float, optional
            Another span of time.
        step_rtol : float, optional
            Another tolerance, for adaptive steps. The correction serves all of them.

        Returns
        -------
        estimator of the same class
            It shares the correction and the Neural ODE's weights. This estimator is left as it is.

        Raises
        ------
        ValueError
            If the order or number of stages differs; the error names both. If learned coefficients are asked for
            another number of steps.

        Warns
        -----
        UserWarning
            If the correction was not fitted at the new step size, or not over the new base solver.
        """
        product = self._require_product()
        changed = self._with_product(
            product.with_solver(base_solver, n_steps, t_span, step_rtol=step_rtol, stacklevel=3)
        )
        if base_solver is not None:
            changed.base_solver, changed.order = base_solver, None
        changed.n_steps, changed.step_rtol = changed.fitted_.n_steps, changed.fitted_.settings.step_rtol
        return changed

    def without_correction(self) -> Self:
        """Return a fitted copy without the correction: the base solver alone, which the correction has to beat.

        Returns
        -------
        estimator of the same class
            Its ``with_solver`` takes any base solver and number of steps. Only "nonstationary" keeps its number of
            steps; to change that, name another base solver too.
        """
        return self._with_product(self._require_product().without_correction())

    def _with_product(self, fitted: FittedHypersolver) -> Self:
        changed = copy.copy(self)
        changed.fitted_ = fitted
        drop_calibration(changed)
        return changed

    # ------------------------------------------------------------------ leaving
    def to_module(self) -> HypersolvedODE:
        """Return an ``nn.Module`` that predicts and can be trained further: input map, unrolled steps, output map.

        It computes with the weights it holds, so training them changes its output. Its ``fold()`` returns the module
        for deployment and ``torch.export``: faster, and with the correction fixed. This estimator's own methods run
        such a folded module.

        Returns
        -------
        HypersolvedODE
            A copy in eval mode with frozen weights, on this estimator's device. It takes tensors of ``dtype_`` and
            returns tensors. They equal ``predict`` up to rounding; those of its ``fold()`` are equal bit for bit.

        Examples
        --------
        Fine-tune the correction alone; ``module.requires_grad_(True)`` would train the field and the maps as well.

        >>> import torch
        >>> from sklearn_hyper import HypersolverRegressor
        >>> x = torch.linspace(-1, 1, 40, dtype=torch.float64)[:, None]
        >>> fast = HypersolverRegressor(lambda t, z: -z, base_solver="euler", n_steps=2, max_epochs=5, random_state=0)
        >>> module = fast.fit(x.numpy()).to_module()
        >>> weights = module.correction.requires_grad_(True).parameters()
        >>> optimizer = torch.optim.Adam(weights, lr=1e-3)
        >>> losses = []
        >>> for _ in range(30):
        ...     optimizer.zero_grad()
        ...     losses.append((module(x) - x / torch.e).pow(2).mean())
        ...     losses[-1].backward()
        ...     _ = optimizer.step()
        >>> bool(losses[-1] < losses[0])
        True
        >>> deployed = module.fold()
        >>> torch.allclose(deployed(x), module(x))
        True
        """
        return self._require_product().to_module()

    def _describe_models(self, writer: Writer) -> dict[str, Any]:
        fitted = self._require_product()
        return {
            "fitted": describe_fitted(fitted, writer, self._drawn_rows()),
            "source": describe_source(self.neural_ode, writer),
        }

    def _read_models(self, described: Mapping[str, Any], reader: EstimatorReader) -> None:
        self.fitted_ = read_fitted(described["fitted"], reader)
        module = copy.deepcopy(self.fitted_.neural_ode)
        self.neural_ode = read_source(described["source"], module, self.preprocess_, reader)
        self._head = None  # of a skorch net, which a file does not hold

    def _drawn_rows(self) -> Tensor:
        rows = np.random.default_rng(0).normal(size=(_PARITY_ROWS, *self._input_shape))
        return self._to_tensor(rows, self.dtype_, "cpu")

    def export_onnx(self, path: str | os.PathLike[str], *, X: Any = None, preprocessed: bool = False) -> Path:
        """Write the fitted solver as an ONNX file, which runs without torch and without this package.

        The file takes ``X`` of shape (n_samples, ...) in ``dtype_``, with any number of rows. Its ``output`` is what
        ``predict`` gives. A classifier's file gives ``logits`` and ``probabilities`` instead. Its metadata hold the
        ``classes`` as a JSON list, in the order of the columns, and the ``threshold`` of a binary skorch net. Needs the
        ``onnx`` extra: ``pip install "sklearn-hyper[onnx]"``.

        Parameters
        ----------
        path : str or path
            The file to write. An older file is replaced only when the new one is complete.
        X : array-like of shape (n_samples, ...), optional
            Rows on which ONNX Runtime is compared with torch before the file is written. They may differ by 1e-4
            (float32) or 1e-7 (float64) of the largest output. By default, draws of a standard normal.
        preprocessed : bool, default False
            Steps of a Pipeline that were passed with the Neural ODE are not part of the file. True confirms that you
            know: the file then takes what ``preprocess_.transform(X)`` returns.

        Returns
        -------
        Path
            Where the file is.

        Raises
        ------
        ImportError
            If the extra is not installed.
        ValueError
            If the field, a map or the correction cannot be traced by torch or run by ONNX Runtime. If there are frozen
            steps and ``preprocessed`` is False. If the path's folder does not exist.
        RuntimeError
            If ONNX Runtime and torch disagree; no file is written then.
        """
        check_target(path)
        require_onnx()
        fitted = self._require_product()
        if self.preprocess_ is not None and not preprocessed:
            raise ValueError(
                f"the steps before the Neural ODE, {self.preprocess_!r}, cannot become part of the file, which would "
                "take their output. Pass preprocessed=True to say that you feed it preprocess_.transform(X)."
            )
        x = self._drawn_rows() if X is None else self._to_tensor(prepare_X(self, X), self.dtype_, "cpu")
        outputs, metadata = self._onnx_outputs()
        return fitted.export_onnx(
            path, x, wrap=self._wrap_for_onnx, outputs=outputs,
            metadata={"sklearn_hyper_version": __version__, **metadata},
        )  # fmt: skip

    def _wrap_for_onnx(self, module: nn.Module) -> nn.Module:
        return FirstOutput(module) if self._squeeze_output else module

    def _onnx_outputs(self) -> tuple[list[str], dict[str, str]]:
        """Return the names of a file's outputs, and its metadata."""
        return ["output"], {}


def warn_of_problems(fitted: FittedHypersolver) -> None:
    """Warn of the problems that a fit has found with its result."""
    for problem in fitted.problems:
        warnings.warn(problem, ConvergenceWarning, stacklevel=5)


def _wants_frame(estimator: Any) -> str | None:
    config = _get_output_config("transform", estimator)["dense"]
    return None if config == "default" else config
