"""NeuralODEClassifier and NeuralODERegressor: Neural ODEs trained with skorch."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from sklearn.base import ClassifierMixin, RegressorMixin, _fit_context
from sklearn.metrics import accuracy_score, r2_score
from sklearn.utils._param_validation import Interval
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import assert_all_finite, check_array, check_consistent_length, column_or_1d
from torch import Tensor, nn

from ..hypersolvers.in_training import correct_in_training
from ..modules.closed_list import Writer
from ..modules.copies import check_saveable, trained_copies
from ..modules.described_modules import describe_neural_ode, read_neural_ode
from ..modules.field_probes import check_start, settle_parts
from ..modules.neural_ode import NeuralODE, check_neural_ode, check_precision
from ..modules.seeding import own_generator, seeded
from ..modules.vector_fields import Rescale
from ..numerics.row_errors import numbered_rows
from ..numerics.times import check_t_span
from ..training.batches import check_lone_rows
from ..training.callback_checks import LOSS_NET_RECORDS, check_monitors
from ..training.joint import check_joint
from ..training.losses import ObservedMSELoss, ScaledMSELoss
from ..training.nets import draw_seed
from ..training.neural_ode_fitting import TrainingSettings, build_ode_net, train_net
from ..training.solver_control import DOPRI5, check_training_solver, control_of, is_controlled, is_dopri5
from ..training.splits import split_rows
from ..training.timed_rows import Rows, TimedRows, apart
from ._base import (
    TRAINING_CONSTRAINTS,
    SolverAgreementWarning,
    TorchEstimator,
    check_device,
    check_output_map,
    dopri5_states,
    label_indices,
    module_dtype,
    refuse_no_labels,
    softmax,
    store_parameters,
)
from ._default_parts import default_field, default_input_map, default_output_map, no_field
from ._eval_times import check_row_times
from ._observations import check_held_out, check_observations, observed_r2, standardize
from ._saving import EstimatorReader

_AGREEMENT = 0.005
_RECORDED = ("epoch", "train_loss", "valid_loss", "joint_loss", "dur")


class _NeuralODEEstimator(TorchEstimator):
    """What the classifier and the regressor share: building, training and solving."""

    _parameter_constraints: dict = {
        **TRAINING_CONSTRAINTS,
        "vector_field": [None, callable],
        "input_map": [None, callable],
        "output_map": [None, callable],
        "t_span": "no_validation",
        "solver": "no_validation",
        "adjoint": ["boolean"],
        "joint": [Interval(Real, 0, None, closed="left")],
        "base_solver": "no_validation",
        "refit_every": [None, Interval(Integral, 1, None, closed="left")],
        "validation_fraction": [None, Interval(Real, 0, 1, closed="neither")],
    }

    def __init__(
        self,
        vector_field=None,
        *,
        input_map=None,
        output_map=None,
        t_span=(0.0, 1.0),
        solver="dopri5",
        n_steps=10,
        rtol=1e-4,
        atol=None,
        adjoint=False,
        joint=0.0,
        base_solver="euler",
        refit_every=None,
        max_epochs=10,
        lr=1e-2,
        batch_size=64,
        optimizer=torch.optim.AdamW,
        callbacks=None,
        validation_fraction=0.1,
        warm_start=False,
        device="cpu",
        random_state=None,
        verbose=0,
    ):
        store_parameters(self, locals())

    # ------------------------------------------------------------------ fit
    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: Any, y: Any) -> Any:
        """Train the Neural ODE.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, channels, height, width)
            Inputs, cast to the dtype of the modules that are passed. Where none is passed, modules are built in X's
            dtype for features and in float32 for images: float64 convolutions are several times slower and no more
            accurate.
        y : array-like of shape (n_samples,), or (n_samples, n_outputs) for a regressor
            Labels or targets.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If a layer that takes statistics over a batch (BatchNorm) would have to learn from a single row, by
            ``batch_size=1`` or for lack of rows. If a callback monitors what no epoch records.
        VectorFieldError
            If the field's signature, or the shape, dtype or device of its output, is wrong. If the field or a map is
            not finite for some rows of X; the error names them.
        ReferenceSolveError
            If dopri5 cannot solve the Neural ODE from some rows of X; the error names them.
        TrainingDivergedError
            If the training loss is no longer finite.
        KeyboardInterrupt
            After Ctrl-C, once the estimator holds the weights of the best finished epoch by ``valid_loss``
            (``train_loss`` where nothing is held out; with ``solver="auto"``, dopri5's loss on about a hundred training
            rows). If no epoch was finished, the estimator stays as it was.
        """
        return self._run_fit(X, y, None, partial=False)

    @_fit_context(prefer_skip_nested_validation=True)
    def _partial_fit(self, X: Any, y: Any, classes: Any = None, t_eval: Any = None) -> Any:
        return self._run_fit(X, y, classes, t_eval, partial=True)

    def _run_fit(self, X: Any, y: Any, classes: Any, t_eval: Any = None, *, partial: bool) -> Any:
        with self._fitting() as fitting:
            fitting.interrupted = self._fit(X, y, classes, t_eval, partial)
        return self

    def _fit(self, X: Any, y: Any, classes: Any, t_eval: Any, partial: bool) -> bool:
        check_training_solver(self.solver, between=t_eval is not None)
        check_joint(self.joint, self.solver, self.base_solver, self.refit_every, between=t_eval is not None)
        device = check_device(self.device)
        going_on = (partial or self.warm_start) and hasattr(self, "neural_ode_")
        if going_on and str(device) != self.device_:
            raise ValueError(
                f"device={self.device!r} cannot change in a warm start or partial_fit, where the module is on "
                f"{self.device_!r}; fit anew with warm_start=False."
            )
        if y is None:
            raise ValueError(f"{type(self).__name__} requires y to be passed, but the target y is None.")
        X = self._validate_X(X, reset=not going_on)
        check_consistent_length(X, y)
        times = None if t_eval is None else check_row_times(t_eval, len(X), check_t_span(self._span(going_on)))
        target = self._encode_y(y, classes, times, reset=not going_on)
        seed = draw_seed(self.random_state)
        train, valid = split_rows(None if partial else self.validation_fraction, len(X), seed)
        if times is not None and valid is not None:
            check_held_out(target[train], target[valid], self.validation_fraction)
        self._check_monitors(valid is not None, partial)
        with seeded(seed, device):
            if not going_on:
                self._build(X, device)
            x, t = (self._to_tensor(a, d, device) for a, d in ((X, self.dtype_), (target, self._target_dtype())))
            rows = x if times is None else TimedRows(x, self._to_tensor(times, torch.float64, device))
            net = self._net(len(train), None if valid is None else (rows[valid], t[valid]), partial, times is not None)
            self._check_lone_rows(net, rows[train])
            check_start(net.module_.neural_ode.eval(), x)
            with numbered_rows(train.tolist(), len(X)):
                train_net(net, rows[train], t[train], own_generator(seed), epochs=1 if partial else None)
        self.net_ = net
        self.neural_ode_ = net.module_.neural_ode.eval()
        self.neural_ode_.measure_size(x[train])
        self._keep_solver_records(net)
        self.history_ = [{k: row[k] for k in _RECORDED if k in row} for row in net.history]
        return net.interrupted_ or self._compare_solvers(net, rows, t, train, valid)

    def _span(self, going_on: bool) -> Any:
        """Return the span that a fit solves over; a warm start goes on with the one it began with."""
        return self.neural_ode_.t_span if going_on else self.t_span

    def _compare_solvers(self, net: Any, x: Rows, t: Tensor, train: np.ndarray, valid: np.ndarray | None) -> bool:
        """Compare the training solver with dopri5, where it is another; return whether Ctrl-C cut that short."""
        controlled = control_of(net) is not None
        if not controlled and (valid is None or is_dopri5(net.module_.settings.solver)):
            return False
        rows = train if valid is None else valid
        try:
            with numbered_rows(rows.tolist(), len(x)):
                if controlled:
                    self._certify(net.module_, x[rows], t[rows], valid is not None, stacklevel=7)
                else:
                    self._check_agreement(x[rows], t[rows].cpu().numpy())
        except KeyboardInterrupt:  # keep what has been trained, though its check was cut short
            return True
        return False

    def _build(self, X: np.ndarray, device: torch.device) -> None:
        """Set dtype and device, make the parts that the user left out, and check the whole on two rows."""
        field, input_map, output_map = trained_copies(self.vector_field, self.input_map, self.output_map)
        given = NeuralODE(no_field if field is None else field, input_map=input_map, output_map=output_map)
        check_precision(given)
        given_dtype = given.dtype
        dtype = module_dtype(torch.float32 if given_dtype is None and X.ndim > 2 else given_dtype, X)
        self.dtype_, self.device_ = dtype, str(device)
        given.to(device=device, dtype=dtype)
        x = self._to_tensor(X, dtype, device)

        def made(default: Callable[..., nn.Module], *arguments: Any) -> nn.Module:
            return default(*arguments).to(device=device, dtype=dtype)

        input_map = made(default_input_map, x) if input_map is None else input_map
        # In eval mode, a check moves no running statistics, and BatchNorm takes a single row.
        z = check_neural_ode(NeuralODE(no_field, input_map=input_map).eval(), x[:2])
        field = made(default_field, z, self.t_span) if field is None else field
        output_map = made(default_output_map, z, self._n_outputs()) if output_map is None else output_map
        module = NeuralODE(field, input_map=input_map, output_map=self._scaled(output_map, dtype), t_span=self.t_span)
        module = module.to(device).eval()
        output = check_output_map(module, check_neural_ode(module, x[:2]))
        settle_parts(module, x)
        module.register_hidden()  # a part may make its layers at its first call
        check_saveable(module)
        if output.ndim != 2 or output.shape[1] != self._n_outputs():
            raise ValueError(
                f"output_map must return a tensor of shape (n_samples, {self._n_outputs()}) for this y, got "
                f"{tuple(output.shape)}."
            )
        if not any(p.requires_grad for p in module.parameters()):
            raise ValueError(
                "vector_field, input_map and output_map hold no trainable parameters: there is nothing to fit."
            )
        self._module = module

    def _net(self, n_rows: int, valid: tuple[Rows, Tensor] | None, partial: bool, timed: bool) -> Any:
        """Return the net to train on ``n_rows`` rows, which may have times of their own."""
        goes_on = partial and vars(self).get("_net_is_partial", False)
        if goes_on and vars(self).get("_net_is_timed", False) == timed:
            return copy.deepcopy(self.net_)  # a failure leaves the estimator as it was
        self._net_is_partial, self._net_is_timed = partial, timed
        # A solver that changes as it goes ends with dopri5; partial_fit, which has no end, takes dopri5 throughout.
        solver = DOPRI5 if partial and is_controlled(self.solver) else self.solver
        settings = TrainingSettings.of(
            self.get_params(deep=False) | {"device": self.device_, "solver": solver, "refit": correct_in_training}
        )
        module = vars(self).pop("_module", None) or copy.deepcopy(self.neural_ode_)
        net = build_ode_net(
            module, self._criterion(timed), settings, valid, n_rows, scheduled=not partial,
            n_classes=self._n_classes(), timed=timed,
        )  # fmt: skip
        if goes_on:  # batches with times and without have nets of their own, and one count
            net.module_.solver.n_evaluations = self.net_.module_.solver.n_evaluations
        return net

    def _check_lone_rows(self, net: Any, x: Rows) -> None:
        if not net.learns_alone_:
            parts = "vector_field, input_map or output_map"
            check_lone_rows(net.module_, lambda module: module(*apart(x[:1])), len(x), net.batch_size, parts)
        net.learns_alone_ = net.learns_alone_ or len(x) == 1  # checked once, not in every partial_fit of one row

    def _check_monitors(self, has_valid: bool, partial: bool) -> None:
        recorded = LOSS_NET_RECORDS if has_valid else [name for name in LOSS_NET_RECORDS if name != "valid_loss"]
        remedy = "partial_fit holds no rows out" if partial else f"validation_fraction={self.validation_fraction}"
        check_monitors(self.callbacks, recorded, f"Monitor one of those ({remedy}).")

    def _check_agreement(self, x: Rows, y: np.ndarray) -> None:
        with torch.no_grad():
            trained = self._measure(self.net_.module_(*apart(x)).cpu().numpy(), y)
            exact = self._measure(self._dopri5(*apart(x)).cpu().numpy(), y)
        if abs(trained - exact) > _AGREEMENT:
            warnings.warn(
                f"the validation score is {trained:.4f} with the training solver {self.solver!r} "
                f"(n_steps={self.n_steps}) and {exact:.4f} with dopri5: this network has learned its solver's errors "
                "and is no Neural ODE. Raise n_steps, or train with solver='dopri5'.",
                SolverAgreementWarning,
                stacklevel=7,
            )

    # ------------------------------------------------------------------ saving
    def _describe_models(self, writer: Writer) -> dict[str, Any]:
        described = {"neural_ode": describe_neural_ode(self._require_fitted("neural_ode_"), writer)}
        return described | self._describe_hypersolver(writer)

    def _read_models(self, described: Mapping[str, Any], reader: EstimatorReader) -> None:
        self.neural_ode_ = read_neural_ode(described["neural_ode"], reader, frozen=False)
        self._read_hypersolver(described, reader)

    # ------------------------------------------------------------------ inference
    def _dopri5(self, x: Tensor, times: Tensor | None = None) -> Tensor:
        given = None if times is None else ~times.isnan()
        return self.neural_ode_.outputs(dopri5_states(self.neural_ode_, x, times=times), given)

    def _output(self, X: Any, t_eval: Any = None) -> np.ndarray:
        self._require_fitted("neural_ode_")
        X = self._validate_X(X, reset=False)
        times = None if t_eval is None else check_row_times(t_eval, len(X), self.neural_ode_.t_span)
        return self._in_batches(self._dopri5, X, times)


class NeuralODEClassifier(ClassifierMixin, _NeuralODEEstimator):
    r"""A trainable Neural ODE classifier.

    Logits are :math:`h_y(z(S))` with :math:`\dot z = f(s, z)`, :math:`z(s_0) = h_x(x)` (paper, eq. 1), trained by
    cross-entropy. Predictions are solved by dopri5, slowly and accurately; :class:`HypersolverClassifier` makes them
    fast.

    Parameters
    ----------
    vector_field : nn.Module, optional
        The field ``f(t, z)``. By default an :class:`MLPVectorField` for vector states and a :class:`ConvVectorField`
        for images.
    input_map : nn.Module, optional
        Map from X to the initial state. By default it standardises X and adds eight learned features (or seven
        channels).
    output_map : nn.Module, optional
        Map from the terminal state to one logit a class. By default one linear layer.
    t_span : pair of float, default (0.0, 1.0)
        Start and end of the time that the field is solved over.
    solver : "dopri5", "auto", "hypersolved", name of a fixed-step solver or ButcherTableau, default "dopri5"
        Solver that training differentiates. "auto" begins with a cheap fixed-step solver, and compares its loss with
        dopri5's on some training rows every so often. Where they differ by too much, it takes more steps or a higher
        order. The last 6 % of the optimizer steps are dopri5's, with a learning rate of their own. Held-out losses are
        dopri5's throughout. See ``solver_history_`` and ``agreement_``. "hypersolved" solves by ``n_steps`` steps of
        ``base_solver`` and a correction, which is refitted as the field moves, and ends with dopri5 like "auto". It was
        slower than "auto" wherever it was measured. With a fixed-step solver, ``fit`` compares its
        score with dopri5's on held-out rows and warns if they differ by more than half a point.
    n_steps : int, default 10
        Number of steps of a fixed-step ``solver``, of "hypersolved", and of those that ``joint`` makes fields for.
        dopri5 and "auto" ignore it otherwise.
    rtol : float, default 1e-4
        Relative tolerance of dopri5 in training. Predictions use 1e-6 in float32 and 1e-8 in float64, so that they do
        not depend on the batch.
    atol : float, optional
        Absolute tolerance of dopri5 in training, in the units of the states. By default ``rtol`` times their size: the
        RMS of every feature or channel over the batch.
    adjoint : bool, default False
        Compute gradients by the adjoint method, in constant memory, instead of backpropagating through dopri5.
    joint : float, default 0.0
        Weight of a loss that makes fields cheap to solve: the mean squared distance between ``n_steps`` steps of
        ``base_solver`` and the training's own solve, in units of the states' size. Both solves are differentiated. A
        hypersolver fitted afterwards with the same ``base_solver`` and ``n_steps`` has less left to correct, and
        dopri5 takes fewer evaluations. On digits with ``n_steps=1``, 3 is a good start. Needs ``solver="dopri5"`` or
        "auto". Held-out losses are without it.
    base_solver : name of a fixed-step solver or ButcherTableau, default "euler"
        What ``joint`` and ``solver="hypersolved"`` take ``n_steps`` steps of. Others ignore it.
    refit_every : int or None, default None
        Optimizer steps between refits of ``solver="hypersolved"``, which alone takes it. With None, a refit comes once
        the field has changed by a tenth, at states of a few rows.
    max_epochs : int, default 10
        Passes over the training rows.
    lr : float, default 1e-2
        Highest learning rate. A cosine takes it to zero, unless ``callbacks`` holds a skorch ``LRScheduler``. With
        ``solver="auto"`` a second cosine, from a fifth of it, is for the steps of dopri5 at the end.
    batch_size : int, default 64
        Most rows in an optimizer step: batches of an epoch have one size. Predictions keep no graph and take
        eight times as many rows at a time.
    optimizer : type, default torch.optim.AdamW
        Optimizer class; called with the parameters and ``lr``.
    callbacks : list of skorch callbacks, optional
        Callbacks of the training, which see ``valid_loss``: ``EarlyStopping()``, ``LRScheduler(...)``,
        ``Checkpoint(...)`` and so on. ``EpochScoring("accuracy", lower_is_better=False)`` scores predictions of the
        training solver; it sees labels as indices of ``classes_``.
    validation_fraction : float or None, default 0.1
        Share of the rows held out for ``valid_loss`` and for the check of a fixed-step solver. None holds none out.
    warm_start : bool, default False
        Start a new fit from the last weights.
    device : str, default "cpu"
        Device to train and predict on.
    random_state : int, RandomState or None
        The same value gives the same result. The global generators of torch and NumPy are left as they were. To ensure
        this, fits in threads of one process train in turn; processes train side by side.
    verbose : int, default 0
        1 shows a progress bar; 2 also prints a line an epoch.

    Attributes
    ----------
    neural_ode_ : NeuralODE
        The fitted module, in eval mode.
    classes_ : ndarray of shape (n_classes,)
        Sorted labels, in the order of the logits.
    net_ : skorch net
        The net that trained the module.
    history_ : list of dict
        One row an epoch: "epoch", "train_loss", "valid_loss" where rows are held out, "joint_loss" with ``joint``
        (without its weight), and "dur" in seconds.
    n_evaluations_ : int
        Evaluations of f in the training: batches, held-out rows and, with "auto", comparisons with dopri5. Calls of
        ``partial_fit`` add up.
    solver_history_ : list of dict
        With ``solver="auto"`` or "hypersolved" after ``fit``: a row a change of the solver. It has "epoch" and "step"
        (of the optimizer), "solver", "n_steps" (None for dopri5) and "why". Where the change came from a comparison,
        "gap" is how far the losses of the solver before and of dopri5 were apart, "allowed" how far they may be, "loss"
        is dopri5's, and "n_evaluations" are what its solve took. The gap is None at the start, and infinite where
        dopri5 failed. With "hypersolved": a row a refit, with "error" and "error_before": the mean error of states on
        rows that the refit held out, after it and before.
    hypersolver_ : FittedHypersolver or None
        With ``solver="hypersolved"`` after ``fit``: a hypersolver of the field that training ended with, on tensors.
        Pass the estimator to a :class:`HypersolverClassifier` for one on arrays. None after Ctrl-C.
    agreement_ : Bunch
        With ``solver="auto"`` or "hypersolved" after ``fit``: how well the solver that training ended with, which is
        dopri5 at ``rtol`` unless a callback ended it early, agrees with dopri5 as ``predict`` runs it. It is measured
        on the rows held out, or else on those trained on.

        - ``gap``: how far their losses are apart; ``certified``: whether it is at most 0.005;
        - ``error_p99``: 99th percentile over rows of the relative error of terminal states;
        - ``share_over``: at 95 % confidence, at most this share of rows has a larger error (Clopper and Pearson); nan
          where no rows were held out;
        - ``n_evaluations``: of dopri5 at ``rtol``, a solve; ``n_rows``, ``held_out``: the rows it was measured on.

        None after Ctrl-C.
    n_features_in_ : int
        Number of features of X; of images, the number of channels.

    Warns
    -----
    SolverAgreementWarning
        If a fixed-step training solver and dopri5 give different scores, or ``agreement_`` is not certified.

    References
    ----------
    Chen et al. (2018), *Neural Ordinary Differential Equations*, NeurIPS 31.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_hyper import NeuralODEClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> NeuralODEClassifier(max_epochs=10, random_state=0).fit(X, y).score(X, y) > 0.9
    True
    >>> fast = NeuralODEClassifier(solver="auto", max_epochs=10, random_state=0).fit(X, y)
    >>> fast.solver_history_[-1]["solver"], fast.agreement_.certified
    ('dopri5', True)
    """

    def partial_fit(self, X: Any, y: Any, classes: Any = None) -> NeuralODEClassifier:
        """Train for one more epoch on a batch of rows.

        With ``solver="auto"`` or "hypersolved" it trains through dopri5, because there is no end at which dopri5 could
        take over. Calls go on with the settings of the first: parameters that are set in between wait for a ``fit``.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
        y : array-like of shape (n_samples,)
        classes : array-like, optional
            All labels, needed on the first call unless y holds them all.

        Returns
        -------
        self
        """
        return self._partial_fit(X, y, classes)

    def _encode_y(self, y: Any, classes: Any, times: None, *, reset: bool) -> np.ndarray:
        y = column_or_1d(y, warn=True)
        assert_all_finite(y, input_name="y")
        check_classification_targets(y)
        if reset:
            self.classes_ = np.unique(y if classes is None else classes)
        unknown = np.setdiff1d(y, self.classes_)
        if len(unknown):
            raise ValueError(
                f"y holds labels {unknown.tolist()} that are not among classes_ {self.classes_.tolist()}; name all "
                "classes in the first partial_fit(X, y, classes=...), or fit anew with warm_start=False."
            )
        return np.searchsorted(self.classes_, y)

    def _target_dtype(self) -> torch.dtype:
        return torch.int64

    def _n_outputs(self) -> int:
        return len(self.classes_)

    def _n_classes(self) -> int | None:
        return len(self.classes_)

    def _criterion(self, timed: bool) -> nn.Module:
        return nn.CrossEntropyLoss()

    def _scaled(self, output_map: nn.Module, dtype: torch.dtype) -> nn.Module:
        return output_map

    def _measure(self, output: np.ndarray, y: np.ndarray) -> float:
        return float(accuracy_score(y, output.argmax(axis=1)))

    def predict(self, X: Any) -> np.ndarray:
        """Return the label with the largest logit.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)

        Returns
        -------
        ndarray of shape (n_samples,)

        Raises
        ------
        ValueError
            If probabilities of some rows are nan. The error names these rows and holds them in its attribute ``rows``.
        """
        labels = refuse_no_labels(label_indices(self._output(X)))
        return self.classes_[labels]

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the softmax of the logits.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
        """
        return softmax(self._output(X))


class NeuralODERegressor(RegressorMixin, _NeuralODEEstimator):
    r"""A trainable Neural ODE regressor.

    Predictions are :math:`h_y(z(S))` with :math:`\dot z = f(s, z)`, :math:`z(s_0) = h_x(x)` (paper, eq. 1), trained by
    mean squared error on standardised targets. The last layer of ``neural_ode_.output_map`` scales them back.
    Predictions are solved by dopri5, slowly and accurately; :class:`HypersolverRegressor` makes them fast.

    Trajectories are learned with ``t_eval``: ``fit(X, y, t_eval)`` takes targets :math:`h_y(z(t))` at several times,
    regular or not, the same for all rows or each row's own, and ``predict(X, t_eval)`` gives them at any others.
    Pipelines, searches and cross validation carry ``t_eval`` with ``sklearn.set_config(enable_metadata_routing=True)``
    and ``set_fit_request(t_eval=True)``, ``set_score_request(t_eval=True)``. They take rows of whatever is as long as
    X, so pass them times of each row's own, ``np.tile(t_eval, (len(X), 1))``.

    Parameters
    ----------
    vector_field : nn.Module, optional
        The field ``f(t, z)``. By default an :class:`MLPVectorField` for vector states and a :class:`ConvVectorField`
        for images.
    input_map : nn.Module, optional
        Map from X to the initial state. By default it standardises X and adds eight learned features (or seven
        channels).
    output_map : nn.Module, optional
        Map from the terminal state to the standardised targets. By default one linear layer.
    t_span : pair of float, default (0.0, 1.0)
        Start and end of the time that the field is solved over.
    solver : "dopri5", "auto", "hypersolved", name of a fixed-step solver or ButcherTableau, default "dopri5"
        Solver that training differentiates. "auto" begins with a cheap fixed-step solver, and compares its loss with
        dopri5's on some training rows every so often. Where they differ by too much, it takes more steps or a higher
        order. The last 6 % of the optimizer steps are dopri5's, with a learning rate of their own. Held-out losses are
        dopri5's throughout. See ``solver_history_`` and ``agreement_``. "hypersolved" solves by ``n_steps`` steps of
        ``base_solver`` and a correction, which is refitted as the field moves, and ends with dopri5 like "auto". It was
        slower than "auto" wherever it was measured. With a fixed-step solver, ``fit`` compares its
        score with dopri5's on held-out rows and warns if they differ by more than half a point.
    n_steps : int, default 10
        Number of steps of a fixed-step ``solver`` over the whole ``t_span``, of "hypersolved", and of those that
        ``joint`` makes fields for. dopri5 and "auto" ignore it otherwise. States at ``t_eval`` are interpolated between
        the steps, for at most one evaluation of f more.
    rtol : float, default 1e-4
        Relative tolerance of dopri5 in training. Predictions use 1e-6 in float32 and 1e-8 in float64, so that they do
        not depend on the batch. States at ``t_eval`` come from dopri5's own interpolation between its steps, whose
        error may be tens of times the tolerance.
    atol : float, optional
        Absolute tolerance of dopri5 in training, in the units of the states. By default ``rtol`` times their size: the
        RMS of every feature or channel over the batch.
    adjoint : bool, default False
        Compute gradients by the adjoint method, in constant memory, instead of backpropagating through dopri5. With
        ``t_eval``, memory grows by one evaluation of f a step.
    joint : float, default 0.0
        Weight of a loss that makes fields cheap to solve: the mean squared distance between ``n_steps`` steps of
        ``base_solver`` and the training's own solve, in units of the states' size. Both solves are differentiated. A
        hypersolver fitted afterwards with the same ``base_solver`` and ``n_steps`` has less left to correct, and
        dopri5 takes fewer evaluations. On digits with ``n_steps=1``, 3 is a good start. Needs ``solver="dopri5"`` or
        "auto". Held-out losses are without it. It has no say over states at ``t_eval``, and is refused there.
    base_solver : name of a fixed-step solver or ButcherTableau, default "euler"
        What ``joint`` and ``solver="hypersolved"`` take ``n_steps`` steps of. Others ignore it.
    refit_every : int or None, default None
        Optimizer steps between refits of ``solver="hypersolved"``, which alone takes it. With None, a refit comes once
        the field has changed by a tenth, at states of a few rows.
    max_epochs : int, default 10
        Passes over the training rows.
    lr : float, default 1e-2
        Highest learning rate. A cosine takes it to zero, unless ``callbacks`` holds a skorch ``LRScheduler``. With
        ``solver="auto"`` a second cosine, from a fifth of it, is for the steps of dopri5 at the end.
    batch_size : int, default 64
        Most rows in an optimizer step: batches of an epoch have one size. Predictions keep no graph and take
        eight times as many rows at a time.
    optimizer : type, default torch.optim.AdamW
        Optimizer class; called with the parameters and ``lr``.
    callbacks : list of skorch callbacks, optional
        Callbacks of the training, which see ``valid_loss``: ``EarlyStopping()``, ``LRScheduler(...)``,
        ``Checkpoint(...)`` and so on. ``EpochScoring("r2", lower_is_better=False)`` scores predictions of the training
        solver; with ``t_eval``, pass a function that takes targets of three axes, which may be nan.
    validation_fraction : float or None, default 0.1
        Share of the rows held out for ``valid_loss`` and for the check of a fixed-step solver. None holds none out.
    warm_start : bool, default False
        Start a new fit from the last weights.
    device : str, default "cpu"
        Device to train and predict on.
    random_state : int, RandomState or None
        The same value gives the same result. The global generators of torch and NumPy are left as they were. To ensure
        this, fits in threads of one process train in turn; processes train side by side.
    verbose : int, default 0
        1 shows a progress bar; 2 also prints a line an epoch.

    Attributes
    ----------
    neural_ode_ : NeuralODE
        The fitted module, in eval mode.
    net_ : skorch net
        The net that trained the module.
    history_ : list of dict
        One row an epoch: "epoch", "train_loss", "valid_loss" where rows are held out, and "dur" in seconds. Losses are
        in units of the targets' variance.
    n_evaluations_ : int
    solver_history_ : list of dict
    hypersolver_ : FittedHypersolver or None
    agreement_ : Bunch
        As those of :class:`NeuralODEClassifier`; with ``t_eval``, errors are those of a row's states at all its times.
    n_features_in_ : int
        Number of features of X; of images, the number of channels.

    Warns
    -----
    SolverAgreementWarning
        If a fixed-step training solver and dopri5 give different scores, or ``agreement_`` is not certified.

    References
    ----------
    Chen et al. (2018), *Neural Ordinary Differential Equations*, NeurIPS 31.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn_hyper import NeuralODERegressor
    >>> X, y = load_diabetes(return_X_y=True)
    >>> NeuralODERegressor(max_epochs=10, random_state=0).fit(X, y).score(X, y) > 0.4
    True

    Decays that start from X, each observed at three times of its own; the last row was observed twice:

    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> X = rng.uniform(1, 2, (80, 1))
    >>> times = np.sort(rng.uniform(0, 3, (80, 3)), axis=1)
    >>> times[-1, 2] = np.nan
    >>> y = X * np.exp(-times)
    >>> ode = NeuralODERegressor(t_span=(0, 3), max_epochs=20, batch_size=8, random_state=0).fit(X, y, times)
    >>> ode.predict([[1.5]], [0.0, 1.0, 2.0]).shape
    (1, 3)
    >>> ode.score(X, y, times) > 0.9
    True
    """

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: Any, y: Any, t_eval: Any = None) -> NeuralODERegressor:
        """Train the Neural ODE.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, channels, height, width)
            Inputs, cast to the dtype of the modules that are passed. Where none is passed, modules are built in X's
            dtype for features and in float32 for images: float64 convolutions are several times slower and no more
            accurate.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
            Targets at the end of ``t_span``. With ``t_eval``: targets at several times, of shape (n_samples, n_times)
            or (n_samples, n_times, n_outputs). They may be nan where nothing was observed, also of some outputs only,
            and are ignored where ``t_eval`` is nan. Every value that was observed has the same weight
            in its batch.
        t_eval : array-like of shape (n_times,) or (n_samples, n_times), optional
            Times of the targets: the same for all rows, or times of their own for each. They lie within ``t_span``, in
            its order; the start may be among them. A row with fewer times than others is padded with nan at its end.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If ``t_eval`` is of another shape, out of order, or outside ``t_span``; if y does not have a target for each
            of its times. If a layer that takes statistics over a batch (BatchNorm) would have to learn from a single
            row, by ``batch_size=1`` or for lack of rows. If a callback monitors what no epoch records.
        VectorFieldError
            If the field's signature, or the shape, dtype or device of its output, is wrong. If the field or a map is
            not finite for some rows of X; the error names them.
        ReferenceSolveError
            If dopri5 cannot solve the Neural ODE from some rows of X; the error names them.
        TrainingDivergedError
            If the training loss is no longer finite.
        KeyboardInterrupt
            After Ctrl-C, once the estimator holds the weights of the best finished epoch by ``valid_loss``
            (``train_loss`` where nothing is held out; with ``solver="auto"``, dopri5's loss on about a hundred training
            rows). If no epoch was finished, the estimator stays as it was.
        """
        return self._run_fit(X, y, None, t_eval, partial=False)

    def partial_fit(self, X: Any, y: Any, t_eval: Any = None) -> NeuralODERegressor:
        """Train for one more epoch on a batch of rows; the first batch sets the scaling of X and y.

        With ``solver="auto"`` or "hypersolved" it trains through dopri5, because there is no end at which dopri5 could
        take over. Calls go on with the settings of the first: parameters that are set in between wait for a ``fit``.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
            As in ``fit``.
        t_eval : array-like of shape (n_times,) or (n_samples, n_times), optional
            As in ``fit``. Batches may have different times, and as many of them as they like. Where a batch with times
            follows one without, or the other way round, the optimizer and ``history_`` begin anew.

        Returns
        -------
        self
        """
        return self._partial_fit(X, y, t_eval=t_eval)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def _encode_y(self, y: Any, classes: Any, times: np.ndarray | None, *, reset: bool) -> np.ndarray:
        if times is None:
            y = check_array(y, ensure_2d=False, allow_nd=True, dtype=np.float64, input_name="y")
            if y.ndim > 2:
                raise ValueError(
                    f"y must have shape (n_samples,) or (n_samples, n_outputs), got {y.shape}; if it holds targets at "
                    "several times, pass t_eval, these times."
                )
            y, squeeze = y.reshape(len(y), -1), y.ndim == 1
        else:
            y, squeeze = check_observations(y, times)
        if reset:
            self._squeeze_output = squeeze
            self._y_shift, self._y_scale = standardize(y)
        self._check_n_outputs(y)
        return y

    def _refuse_trajectories(self, y: Any) -> None:
        """Say where the times have gone, if y looks as if it had some: a search does not pass them on unasked."""
        self._require_fitted("neural_ode_")
        shape, n_outputs = np.shape(y), self._n_outputs()
        if len(shape) > 2 or (len(shape) == 2 and shape[1] != n_outputs):
            raise ValueError(
                f"y of shape {shape} without t_eval, for an estimator of {n_outputs} outputs at the end of t_span. If "
                "y holds targets at several times, pass these times: score(X, y, t_eval). Searches and cross "
                "validation pass them on with metadata routing enabled and set_fit_request(t_eval=True)"
                ".set_score_request(t_eval=True)."
            )

    def _check_n_outputs(self, y: np.ndarray) -> None:
        if y.shape[-1] != len(self._y_shift):
            raise ValueError(f"y has {y.shape[-1]} outputs, the first fit had {len(self._y_shift)}.")

    def _target_dtype(self) -> torch.dtype:
        return self.dtype_

    def _n_outputs(self) -> int:
        return len(self._y_shift)

    def _n_classes(self) -> int | None:
        return None

    def _criterion(self, timed: bool) -> nn.Module:
        return (ObservedMSELoss if timed else ScaledMSELoss)(torch.as_tensor(self._y_scale, dtype=self.dtype_))

    def _scaled(self, output_map: nn.Module, dtype: torch.dtype) -> nn.Module:
        scale, shift = (torch.as_tensor(v, dtype=dtype) for v in (self._y_scale, self._y_shift))
        return Rescale(output_map, scale, shift)

    def _measure(self, output: np.ndarray, y: np.ndarray) -> float:
        if y.ndim == 3:
            return observed_r2(y, output)
        return float(r2_score(y, output)) if len(y) > 1 else 1.0

    def predict(self, X: Any, t_eval: Any = None) -> np.ndarray:
        """Return the predicted targets: at the end of ``t_span``, or at other times.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
        t_eval : array-like of shape (n_times,) or (n_samples, n_times), optional
            Times within ``t_span``, as in ``fit``; they need not be those of the fit, which need not have had any.

        Returns
        -------
        ndarray of shape (n_samples,) or (n_samples, n_outputs)
            With ``t_eval``: of shape (n_samples, n_times) or (n_samples, n_times, n_outputs), nan where it is.

        Raises
        ------
        ValueError
            If ``t_eval`` is of another shape, out of order, or outside ``t_span``.
        """
        output = self._output(X, t_eval)
        return output[..., 0] if self._squeeze_output else output

    def score(self, X: Any, y: Any, t_eval: Any = None, sample_weight: Any = None) -> float:
        """Return R2: 1 for exact predictions, 0 for those of a constant.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
            With ``t_eval``: of shape (n_samples, n_times) or (n_samples, n_times, n_outputs), nan where nothing was
            observed.
        t_eval : array-like of shape (n_times,) or (n_samples, n_times), optional
            Times of the targets, as in ``fit``.
        sample_weight : array-like of shape (n_samples,), optional
            Weights of the rows, and so of all that was observed of them.

        Returns
        -------
        float
            The mean over outputs, as in :func:`sklearn.metrics.r2_score`; with ``t_eval``, over all values that were
            observed. An output with fewer than two of them does not count; nan if none has more.
        """
        if t_eval is None:
            self._refuse_trajectories(y)
            return super().score(X, y, sample_weight=sample_weight)
        prediction = self.predict(X, t_eval)
        times = check_row_times(t_eval, len(prediction), self.neural_ode_.t_span)
        observed, _ = check_observations(y, times)
        self._check_n_outputs(observed)
        return observed_r2(observed, prediction.reshape(observed.shape), sample_weight)
