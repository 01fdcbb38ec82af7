"""HypersolverDensity: a fitted flow in, fast samples and fast log densities out."""

from __future__ import annotations

import copy
from dataclasses import replace
from numbers import Integral
from typing import Any, Unpack

import numpy as np
import torch
from sklearn.base import ClassNamePrefixFeaturesOutMixin, DensityMixin, TransformerMixin, _fit_context
from sklearn.utils._param_validation import Interval, StrOptions

from ..calibration import CalibrationRowsError
from ..calibration.measuring import OUTPUT, outputs_of
from ..hypersolvers import FittedHypersolver
from ..modules.copies import frozen_copy
from ..modules.flow import LogDensity
from ..modules.hypersolved_ode import FoldedODE
from ..modules.neural_ode import NeuralODE
from ..modules.seeding import seeded
from ..numerics.reference import DEFAULT_TOLERANCE
from ..numerics.units import feature_sizes
from ..reports import SolverReport
from ..training.callback_checks import LOSS_NET_RECORDS, check_monitors, refuse_checkpoints, refuse_scoring
from ..training.given_rows import apart
from ..training.nets import draw_seed
from ..training.references import digest
from ..training.splits import count_held_out
from ._base import (
    TorchEstimator,
    check_device,
    module_dtype,
    outside_inference_mode,
    store_parameters,
)
from ._calibrated import Asked, Wanted, answer, drop_calibration
from ._conditions import (
    count_entries,
    fit_transform,
    learn_condition,
    with_condition,
    with_drawn_entries,
)
from ._conformalizing import DensityCalibrationMixin
from ._derived import DensityDerivedMixin
from ._fitted_neural_ode import FittedFlow, resolve_flow
from ._flow_directions import check_directions, fit_direction, take_flow
from ._hypersolver import warn_of_problems
from ._hypersolver_parameters import HYPERSOLVER_CONSTRAINTS, fit_settings
from ._inputs import prepare_X, take_over, take_X
from ._refitting import describe_refit, refit_changes, require_correction
from .flows import TRACES, append_noise, check_base_states, draw_base, resolve_trace

_BASE_STATES, _EPOCH_STATES = 8000, 2000
"""Base draws are free, so an epoch takes some of many: new ones most of the time. Their references are solved once."""
_CHECKED_ROWS = 16


class HypersolverDensity(
    DensityCalibrationMixin,
    DensityDerivedMixin,
    ClassNamePrefixFeaturesOutMixin,
    DensityMixin,
    TransformerMixin,
    TorchEstimator,
):
    r"""Make a fitted flow fast in both directions: samples, and log densities with their log-determinant.

    Two corrections are learned for the steps of eq. 5, one for each direction:

    .. math::

        \text{sampling:}\quad \dot z = f(t, z), \; t_0 \to t_1
        \qquad
        \text{density:}\quad \frac{d}{dt} \begin{pmatrix} z \\ \log p \end{pmatrix} =
        \begin{pmatrix} f(t, z) \\ -\operatorname{tr} \partial f / \partial z \end{pmatrix}, \; t_1 \to t_0

    In the density direction, g corrects the state and its log density together. The density is that of *the flow of f*,
    as dopri5 computes it. It is not the exact density of this estimator's own samples.

    Parameters
    ----------
    neural_ode : estimator, Pipeline, search, NeuralODE or callable
        The flow, in one of these forms:

        - a fitted :class:`ContinuousNormalizingFlow`;
        - a fitted Pipeline or search that ends in one. Its earlier steps are applied frozen to X and undone on samples;
        - ``FrozenEstimator(...)`` around one of these;
        - with ``n_features``, a :class:`NeuralODE` without maps or a bare field ``f(t, z)``. Its ``t_span`` runs from
          base to data.
    base_distribution : torch.distributions.Distribution, optional
        p_0 of a bare field, with event shape (n_features,). By default the standard normal.
    n_features : int, optional
        Number of features of a bare field's state. By default that of X, where ``fit`` is given one.
    trace : {"auto", "exact", "rademacher", "gaussian"}, default "auto"
        How the trace is computed: see :class:`ContinuousNormalizingFlow`. "auto" is what the flow was set to. With
        Hutchinson's estimate, the reference and the hypersolver use the same noise for a row.
    base_solver, order, n_steps, fit_n_steps, loss, finetune, rtol, atol : optional
        The solver, in either direction: see :class:`HypersolverRegressor`. One evaluation of (f, trace) counts as one
        NFE; its matrix products count in MACs, backward passes included.
    correction : "auto", spec or nn.Module, default "auto"
        What is learned in either direction: see :class:`HypersolverRegressor`. An ``nn.Module`` is copied for each, so
        it has to take states of n_features and of n_features + 1 numbers.
    max_samples : int or "auto", default "auto"
        Number of base states for the sampling, and the largest number of rows of X for the density. "auto" draws 8,000
        base states, of which every epoch takes 2,000 at random, and up to 2,000 rows of X.
    extra_rows : None, "box", "worst", "between" or callable, default "between"
        Rows to train the density on beside X: see :class:`HypersolverRegressor`. Without any, the density may be wrong
        by tens of nats in gaps of the data, and not integrate to one. With Hutchinson's estimate, rows have their noise
        appended. Base states need none, since they are drawn at random already.
    callbacks : list of skorch callbacks, optional
        Callbacks of both trainings, the sampling first. Checkpoints are refused, because the two nets would share their
        files.
    max_epochs, lr, batch_size, optimizer, validation_fraction, mape_floor : optional
        Training and scores, for each direction: see :class:`HypersolverRegressor`.
    memory, warm_start, device, n_jobs, random_state, verbose : optional
        All else: see :class:`HypersolverRegressor`.

    Attributes
    ----------
    flow_ : Flow
        The frozen flow.
    sampler_ : FittedHypersolver
        The hypersolver of sampling, from base states to data. Its ``correction``, ``method``, ``errors``, ``delta`` and
        ``history`` are the attributes ``correction_``, ``base_solver_`` and so on of :class:`HypersolverRegressor`.
    density_ : FittedHypersolver or None
        The hypersolver of densities, on (z, log p). None after ``fit(X=None)``.
    module_ : FoldedODE
        ``sampler_.module``: the sampler as a folded module.
    n_features_in_ : int
        Number of features of X, or of the flow after ``fit(X=None)``.
    feature_names_in_ : ndarray of str
        Names of features of the fitted flow; those of X where it has none or is a Pipeline.

    See Also
    --------
    ContinuousNormalizingFlow : The flow itself, slow and accurate.

    Notes
    -----
    Behind a scaler y = (x - m) / s in a Pipeline, ``score_samples`` is the density of y:
    :math:`\log p_X(x) = \log p_Y(y) - \sum_i \log s_i`. Samples of a Pipeline passed as ``neural_ode`` are in x.

    References
    ----------
    Poli et al. (2020), *Hypersolvers*, section 4.2; Grathwohl et al. (2019), *FFJORD*.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_hyper import HypersolverDensity
    >>> def spread(t, z):  # stretches the standard normal by e
    ...     return z
    >>> X = np.random.default_rng(0).normal(scale=np.e, size=(200, 2))
    >>> fast = HypersolverDensity(spread, base_solver="heun", n_steps=2, max_epochs=30, random_state=0).fit(X)
    >>> fast.sample(2, random_state=0).shape
    (2, 2)
    >>> exact = -0.5 * (X**2).sum(axis=1) / np.e**2 - np.log(2 * np.pi) - 2
    >>> bool(abs(fast.score_samples(X) - exact).max() < 0.05)
    True
    """

    _model_parameters = ("neural_ode",)
    _parameter_constraints: dict = {
        **HYPERSOLVER_CONSTRAINTS,
        "base_distribution": [None, torch.distributions.Distribution],
        "n_features": [None, Interval(Integral, 1, None, closed="left")],
        "trace": [StrOptions(set(TRACES))],
    }

    def __init__(
        self,
        neural_ode,
        *,
        base_distribution=None,
        n_features=None,
        trace="auto",
        base_solver="auto",
        order=None,
        n_steps=10,
        fit_n_steps=None,
        correction="auto",
        loss="residual",
        finetune="terminal",
        rtol=DEFAULT_TOLERANCE,
        atol=None,
        max_samples="auto",
        extra_rows="between",
        max_epochs=120,
        lr=2e-2,
        batch_size=128,
        optimizer="auto",
        callbacks=None,
        validation_fraction=0.1,
        mape_floor=1e-2,
        memory=None,
        warm_start=False,
        device="cpu",
        n_jobs=None,
        random_state=None,
        verbose=0,
    ):
        store_parameters(self, locals())

    # ------------------------------------------------------------------ fit
    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: Any = None, y: Any = None, *, condition: Any = None) -> HypersolverDensity:
        """Fit the correction of sampling on draws of the base distribution, and that of densities on X.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), optional
            Data. With None only the sampling is fitted, and ``score_samples``, ``score`` and ``transform`` raise an
            error.
        y : ignored
        condition : dict, frame, structured array, array-like or number, optional
            Needed where the flow is conditional, in the forms of :meth:`HypersolverRegressor.fit`; of the names, shapes
            and categories of the flow's own fit. Base draws for the sampling get entries drawn from it. Without X it
            may have any number of entries.

        Returns
        -------
        self

        Raises
        ------
        NotFittedError
            If ``neural_ode`` is not fitted.
        TypeError
            If ``neural_ode`` is none of the accepted forms.
        ValueError
            If X does not have the features that the flow, or the steps before it, were fitted on: their number, names
            and order.
        VectorFieldError
            If the field's signature or output is wrong, or its divergence is unknown or not finite.
        ReferenceSolveError
            If dopri5 cannot solve the flow.
        KeyboardInterrupt
            After Ctrl-C, once the estimator holds what has been trained. That may be a sampler without its density:
            ``density_`` is None then, or what it was with ``warm_start`` and the same flow.
        """
        with self._fitting() as fitting:
            fitting.interrupted = self._fit(X, condition, dict(vars(self)) if self.warm_start else {})
        return self

    @_fit_context(prefer_skip_nested_validation=True)
    def refit(
        self,
        neural_ode: Any,
        X: Any = None,
        *,
        condition: Any = None,
        max_epochs: int | None = None,
        lr: float | None = None,
    ) -> HypersolverDensity:
        """Follow a flow that has been trained on: refit both corrections from what they are, in a few epochs.

        Parameters
        ----------
        neural_ode : estimator, Pipeline, search, NeuralODE or callable
            The flow as it is now, of the same architecture, in any form that ``fit`` takes. It becomes the parameter
            ``neural_ode``.
        X : array-like of shape (n_samples, n_features), optional
            Data, needed where densities have been fitted.
        condition : optional
            As in :meth:`fit`.
        max_epochs, lr : optional
            As in :meth:`HypersolverRegressor.refit`.

        Returns
        -------
        self
            ``sampler_.errors_before`` and ``sampler_.errors`` have the errors on held-out rows before and after, and so
            has ``density_``. A calibration is dropped.

        Raises
        ------
        NotFittedError
            If this hypersolver, or ``neural_ode``, is not fitted.
        ValueError
            If a direction has no correction to go on from, or none has been fitted. If the flow is of another
            architecture, which the error describes. If X is missing, or a value is wrong.
        TypeError, VectorFieldError, ReferenceSolveError, KeyboardInterrupt
            As :meth:`fit`.

        Examples
        --------
        >>> import numpy as np
        >>> from sklearn_hyper import HypersolverDensity
        >>> def spread(rate):
        ...     return lambda t, z: rate * z
        >>> X = np.random.default_rng(0).normal(scale=np.e, size=(200, 2))
        >>> fast = HypersolverDensity(spread(1.0), base_solver="heun", n_steps=2, max_epochs=30, random_state=0)
        >>> fast = fast.fit(X).refit(spread(1.1), X)
        >>> fast.density_.errors[2]["mean"] < fast.density_.errors_before[2]["mean"]
        True
        """
        previous = {"sampler_": self._require_fitted("sampler_"), "density_": self.density_}
        for fitted in previous.values():
            require_correction(fitted is None or fitted.correction is not None, type(self).__name__)
        if (X is None) != (self.density_ is None):
            what = "it has fitted none: call fit(X)" if X is not None else "its densities would be stale: pass X"
            raise ValueError(f"X={'None' if X is None else '...'} in refit of a {type(self).__name__}, and {what}.")
        changes = refit_changes(self, max_epochs, lr, _BASE_STATES)
        with self._fitting() as fitting:
            self.neural_ode = neural_ode
            fitting.interrupted = self._fit(X, condition, previous, changes)
        return self

    def _fit(self, X: Any, condition: Any, previous: dict[str, Any], changes: dict[str, Any] | None = None) -> bool:
        """Fit both directions, from earlier ones if there are; with ``changes`` of settings, refit them."""
        refuse_checkpoints(
            self.callbacks,
            "a HypersolverDensity fits two corrections, whose checkpoints would overwrite each other. Fit them apart, "
            "as HypersolverRegressor(flow.flow_.sampling()) and HypersolverRegressor(flow.flow_.density()), or without "
            "it.",
        )
        refuse_scoring(self.callbacks, "a hypersolver")
        check_monitors(self.callbacks, LOSS_NET_RECORDS, "Monitor one of those.")
        settings, seed = fit_settings(self, check_device(self.device)), draw_seed(self.random_state)
        X, fitted_flow = self._set_flow(X, seed)
        flow = self.flow_
        dtype = flow.dtype or (torch.float64 if X is None else module_dtype(None, X))
        rows = None if X is None else append_noise(X, self._noise, self._noise_seed)
        entries = self._entries(rows, condition, fitted_flow)
        rows = None if rows is None else entries
        if rows is not None:  # before the sampling direction is trained
            count_held_out(settings.validation_fraction, len(rows), at_least=1)
        is_auto = self.max_samples == "auto"
        n_base = _BASE_STATES if is_auto else int(self.max_samples)
        base = with_drawn_entries(draw_base(flow, n_base, dtype, seed), entries, seed)
        with seeded(seed, "cpu"):
            few_rows = None if rows is None else self._to_tensor(rows[:_CHECKED_ROWS], dtype, "cpu")
            check_directions(flow, self._density_ode(), self._to_tensor(base[:2], dtype, "cpu"), few_rows, settings)
        settings, refits = replace(settings, random_state=seed, **(changes or {})), changes is not None
        of_base, of_data = replace(settings, extra_rows=None), settings  # base states are drawn at random already
        sampler, interrupted = fit_direction(
            flow.sampling(), base, of_base, flow, previous.get("sampler_"), _EPOCH_STATES if is_auto else None,
            refits=refits,
        )  # fmt: skip
        if sampler is None:
            raise KeyboardInterrupt
        density = None
        if rows is not None and not interrupted:
            density_ode, before = self._density_ode(), previous.get("density_")
            density, interrupted = fit_direction(density_ode, rows, of_data, flow, before, refits=refits)
        if density is None and interrupted:
            density = self._kept_density(previous.get("density_"))
        for fitted in (sampler, density):
            if fitted is not None:
                warn_of_problems(fitted)
                if refits and self.verbose:
                    print(describe_refit(fitted, "sampling" if fitted is sampler else "densities"))
        self.sampler_, self.density_ = sampler, density
        drop_calibration(self)
        self.dtype_, self.device_ = dtype, settings.device
        self._n_features_out = flow.n_features
        return interrupted

    def _set_flow(self, X: Any, seed: int) -> tuple[np.ndarray | None, TorchEstimator | None]:
        """Store the flow, the steps before it and its noise; return X as the flow takes it, and its estimator."""
        resolved = resolve_flow(self.neural_ode)
        if X is None:
            self._take_no_X(resolved)
        else:
            X = take_X(self, X, resolved.estimator, resolved.preprocess, reset=True)
            if X.ndim != 2:
                raise ValueError(
                    f"X must be 2-dimensional, (n_samples, n_features), got shape {X.shape}; flatten images first."
                )
        vars(self).pop("condition_", None)
        self.flow_ = take_flow(resolved.flow, X, self.n_features, self.base_distribution)
        if X is None and "n_features_in_" not in vars(self):
            self.n_features_in_ = self.flow_.n_features
            self._input_shape = (self.n_features_in_,)
        self._noise = resolve_trace(resolved.trace if self.trace == "auto" else self.trace, self.flow_.n_features)
        self._noise_seed = seed if resolved.noise_seed is None else resolved.noise_seed
        if self.flow_.data_size is None and X is not None:
            self.flow_.data_size = tuple(feature_sizes(self._to_tensor(X, torch.float64, "cpu")).flatten().tolist())
        return X, resolved.estimator

    def _take_no_X(self, resolved: FittedFlow) -> None:
        """Without data, expect of X what the fitted flow, or the steps before it, were fitted on."""
        self.preprocess_, self._contract = copy.deepcopy(resolved.preprocess), None
        take_over(self, resolved.estimator)
        if self.preprocess_ is None:
            return
        for name in ("n_features_in_", "feature_names_in_"):
            vars(self).pop(name, None)
            if hasattr(self.preprocess_, name):
                setattr(self, name, getattr(self.preprocess_, name))

    def _entries(self, rows: np.ndarray | None, condition: Any, fitted: TorchEstimator | None = None) -> Any:
        """Return rows with their condition, as the flow's fit has learned it; without data, an entry a row of it."""
        rows = np.empty((count_entries(condition, 1), 0)) if rows is None else rows
        return learn_condition(self, condition, rows, reset=False, fitted=fitted)

    def _density_ode(self) -> NeuralODE:
        return self.flow_.density(hutchinson=self._noise is not None)

    def _kept_density(self, previous: FittedHypersolver | None) -> FittedHypersolver | None:
        """Return the density that a warm start keeps if Ctrl-C came before its turn; None if it is of another flow."""
        if previous is None or digest(previous.neural_ode) != digest(frozen_copy(self._density_ode())):
            return None
        return previous

    # ------------------------------------------------------------------ inference
    @property
    def module_(self) -> FoldedODE:
        return self.sampler_.module

    def _require_density(self) -> LogDensity:
        self._require_fitted("sampler_")
        if self.density_ is None:
            raise ValueError(
                "this HypersolverDensity was fitted for sampling only, by fit(X=None) or a fit that was interrupted "
                "before the densities' turn: call fit(X) with data for score_samples, score and transform."
            )
        return LogDensity(self.density_.module, self.flow_).eval()

    def _rows(self, X: Any, condition: Any) -> Any:
        return with_condition(self, condition, append_noise(prepare_X(self, X), self._noise, self._noise_seed))

    def sample(
        self, n_samples: int = 1, random_state: Any = None, *, condition: Any = None, **asked: Unpack[Asked]
    ) -> Any:
        """Draw samples: draw from the base distribution, and carry the draws to data by K corrected steps.

        Parameters
        ----------
        n_samples : int, default 1
            Number of samples. With a condition of several entries it is their number, and may be left out.
        random_state : int, RandomState or None
            Seeds the base draws. The same value gives the flow's own ``sample`` the same draws.
        condition : optional
            As in :meth:`fit`: one entry a sample or one for all, where the flow is conditional.
        **asked : optional
            ``return_bound``, ``coverage``, ``bound``, ``tol``, ``atol``, ``alpha``, ``route`` and ``return_info``:
            bounds on the 2-norm of the sample's error, and tolerances of it. As in
            :meth:`HypersolverRegressor.predict`. They need :meth:`conformalize`, and are in the flow's coordinates,
            those before the steps of a Pipeline are undone.

        Returns
        -------
        ndarray of shape (n_samples, n_features)
            In a tuple with the bound and the info, where those are asked for.

        Raises
        ------
        TypeError
            If there is no such keyword.
        NotCalibratedError, CalibrationRowsError, ValueError
            As :meth:`HypersolverRegressor.predict`.
        """
        flow = self._require_fitted("flow_")
        wanted = Wanted.of(self, "sample", asked)
        drawn = draw_base(flow, count_entries(condition, n_samples), self.dtype_, random_state)
        base = with_condition(self, condition, drawn)
        if wanted.is_plain:
            return self._undo_steps(self._in_batches(lambda rows: self.module_(*apart(rows)), base))
        x = self._to_tensor(base, self.dtype_, "cpu")
        with outside_inference_mode():
            try:
                ends, beside = answer(
                    vars(self).get("calibration_"), self.sampler_, x, OUTPUT, self.sampler_.map_output, wanted,
                    "base draws",
                )  # fmt: skip
            except CalibrationRowsError as error:
                raise CalibrationRowsError(
                    f"{error} Rows that samples are calibrated on are base draws: pass their number to conformalize as "
                    "n_samples."
                ) from error
            X = self._undo_steps(outputs_of(ends, self.sampler_.map_output))
        return (X, *beside) if beside else X

    def _undo_steps(self, X: np.ndarray) -> np.ndarray:
        if self.preprocess_ is None:
            return X
        if not hasattr(self.preprocess_, "inverse_transform"):
            raise ValueError(
                f"samples cannot be carried back through {self.preprocess_!r}, the steps before the flow: one of them "
                "has no inverse_transform. Pass the flow alone as neural_ode to sample in its own coordinates."
            )
        lost = np.isnan(X).any(axis=1)
        if not lost.any():
            return np.asarray(self.preprocess_.inverse_transform(X))
        # Steps may refuse nan. Rows that could not be solved stay nan, and do not cost the others.
        samples = np.asarray(self.preprocess_.inverse_transform(np.where(lost[:, None], 0.0, X).astype(X.dtype)))
        samples[lost] = np.nan
        return samples

    def score_samples(self, X: Any, *, condition: Any = None, **asked: Unpack[Asked]) -> Any:
        """Return the log density of every sample, in nats.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        condition : optional
            As in :meth:`fit`, one entry a row or one for all, where the flow is conditional.
        **asked : optional
            ``return_bound``, ``coverage``, ``bound``, ``tol``, ``atol``, ``alpha``, ``route`` and ``return_info``:
            bounds on the error of the log density, and tolerances of it. As in :meth:`HypersolverRegressor.predict`.
            They need :meth:`conformalize` with X. ``atol``, in nats, suits log densities better than ``tol``.

        Returns
        -------
        ndarray of shape (n_samples,)
            In a tuple with the bound and the info, where those are asked for.

        Raises
        ------
        TypeError
            If there is no such keyword.
        NotCalibratedError, CalibrationRowsError, ValueError
            As :meth:`HypersolverRegressor.predict`.
        """
        module = self._require_density()
        wanted = Wanted.of(self, "score_samples", asked)
        if wanted.is_plain:
            return self._in_batches(lambda rows: module(*apart(rows)), self._rows(X, condition))
        x = self._to_tensor(self._rows(X, condition), self.dtype_, "cpu")
        with outside_inference_mode():
            ends, beside = answer(
                vars(self).get("density_calibration_"), self.density_, x, OUTPUT, self._log_densities, wanted
            )
            densities = outputs_of(ends, self._log_densities)[:, 0]
        return (densities, *beside) if beside else densities

    def score(self, X: Any, y: Any = None, *, condition: Any = None) -> float:
        """Return the mean log density in nats; greater is better.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        y : ignored
        condition : optional
            As in :meth:`fit`, one entry a row or one for all, where the flow is conditional.

        Returns
        -------
        float
        """
        return float(np.mean(self.score_samples(X, condition=condition)))

    fit_transform = fit_transform

    def transform(self, X: Any, *, condition: Any = None) -> np.ndarray:
        """Carry data to the base space, by the density's solver.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        condition : optional
            As in :meth:`fit`, one entry a row or one for all, where the flow is conditional.

        Returns
        -------
        ndarray of shape (n_samples, n_features)
        """
        module = self._require_density()
        return self._in_batches(lambda rows: module.base_state(*apart(rows)), self._rows(X, condition))

    def inverse_transform(self, Z: Any, *, condition: Any = None) -> np.ndarray:
        """Carry base states to data, by the sampling solver.

        Parameters
        ----------
        Z : array-like of shape (n_samples, n_features)
        condition : optional
            As in :meth:`fit`, one entry a row or one for all, where the flow is conditional.

        Returns
        -------
        ndarray of shape (n_samples, n_features)
        """
        flow = self._require_fitted("flow_")
        rows = with_condition(self, condition, check_base_states(Z, flow.n_features))
        return self._undo_steps(self._in_batches(lambda rows: self.module_(*apart(rows)), rows))

    def solver_report(
        self,
        X: Any = None,
        *,
        condition: Any = None,
        n_samples: int = 1000,
        tolerance: float = 1e-5,
        random_state: Any = None,
    ) -> SolverReport:
        """Compare accuracy and cost with the base solver and dopri5: of sampling, or with X of densities.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), optional
            Data for a report on densities; errors are those of (z(t_0), log-determinant). By default the report is on
            sampling.
        condition : optional
            As in :meth:`fit`, where the flow is conditional. Without X, entries of it are drawn for the base draws.
        n_samples : int, default 1000
            Number of base draws to report on, timed as one batch. With X, the number of rows in the batch that is
            timed.
        tolerance : float, default 1e-5
            Tolerance of the dopri5 that is timed and listed, relative to the states' size.
        random_state : int, RandomState or None
            Seeds the base draws.

        Returns
        -------
        SolverReport
        """
        if X is not None:
            self._require_density()
            return self._report(self.density_, self._rows(X, condition), tolerance, n_samples)
        base = draw_base(self._require_fitted("flow_"), n_samples, self.dtype_, random_state)
        base = with_drawn_entries(base, self._entries(None, condition), 0)
        return self._report(self.sampler_, base, tolerance, n_samples)

    def _report(self, fitted: FittedHypersolver, rows: Any, tolerance: float, batch_size: int) -> SolverReport:
        with outside_inference_mode():
            x, beside = apart(self._to_tensor(rows, self.dtype_, self.device_))
            return fitted.report(
                x, condition=beside, tolerance=tolerance, mape_floor=self.mape_floor, batch_size=batch_size
            )

    def count_macs(self, X: Any, *, condition: Any = None) -> float:
        """Count the multiply-accumulates of f and g in a density solve of one sample; nan if f has none.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        condition : optional
            As in :meth:`fit`, one entry a row or one for all, where the flow is conditional.

        Returns
        -------
        float
        """
        self._require_density()
        row = self._to_tensor(self._rows(X, condition)[:1], self.dtype_, self.device_)
        return self.density_.module.count_macs(*apart(row))

    def count_evaluations(self, X: Any = None, *, condition: Any = None) -> int:
        """Count the evaluations of (f, trace) in a density solve.

        Parameters
        ----------
        X, condition : ignored
            They are the same from everywhere.

        Returns
        -------
        int
        """
        self._require_density()
        return self.density_.module.stepping.n_evaluations
