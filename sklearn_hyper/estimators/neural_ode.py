"""NeuralODEClassifier and NeuralODERegressor: Neural ODEs trained with skorch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.base import ClassifierMixin, RegressorMixin, _fit_context
from sklearn.metrics import accuracy_score, r2_score
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import assert_all_finite, check_array, column_or_1d
from torch import nn

from ..modules.vector_fields import Rescale
from ..training.losses import ObservedMSELoss, ScaledMSELoss
from ._base import label_indices, refuse_no_labels, softmax
from ._eval_times import check_row_times
from ._observations import check_observations, observed_r2, standardize
from ._trainable_ode import TrainableODE


class NeuralODEClassifier(ClassifierMixin, TrainableODE):
    r"""A trainable Neural ODE classifier.

    Logits are :math:`h_y(z(S))` with :math:`\dot z = f(s, z)`, :math:`z(s_0) = h_x(x)` (paper, eq. 1), trained by
    cross-entropy. Predictions are solved by dopri5, slowly and accurately; :class:`HypersolverClassifier` makes them
    fast.

    Parameters
    ----------
    vector_field : nn.Module, optional
        The field ``f(t, z)``. By default an :class:`MLPVectorField` for vector states and a :class:`ConvVectorField`
        for images. A field that takes a condition is called ``f(t, z, name=...)``: see :meth:`fit`.
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
    condition_ : dict
        What the fit has learned of its condition, by name: ``kind`` ("float", "integer" or "category"), ``shape`` of a
        row's entry, and ``categories``. Empty without one.
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

    The default field embeds labels that are passed as a condition:

    >>> import numpy as np
    >>> group = np.arange(len(X)) % 2
    >>> flipped = np.where(group == 1, 2 - y, y)  # one group has its labels in reverse
    >>> by_group = NeuralODEClassifier(max_epochs=20, random_state=0).fit(X, flipped, condition={"group": group})
    >>> by_group.score(X, flipped, condition={"group": group}) > 0.9
    True
    """

    def partial_fit(self, X: Any, y: Any, classes: Any = None, *, condition: Any = None) -> NeuralODEClassifier:
        """Train for one more epoch on a batch of rows.

        With ``solver="auto"`` or "hypersolved" it trains through dopri5, because there is no end at which dopri5 could
        take over. Calls go on with the settings of the first: parameters that are set in between wait for a ``fit``.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
        y : array-like of shape (n_samples,)
        classes : array-like, optional
            All labels, needed on the first call unless y holds them all.
        condition : optional
            As in :meth:`fit`. The first batch sets its categories: a pandas Categorical names those that it lacks.

        Returns
        -------
        self
        """
        return self._partial_fit(X, y, classes=classes, condition=condition)

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

    def predict(self, X: Any, *, condition: Any = None) -> np.ndarray:
        """Return the label with the largest logit.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
        condition : optional
            As in :meth:`fit`: of the same names, shapes and kinds, one entry a row or one for all.

        Returns
        -------
        ndarray of shape (n_samples,)

        Raises
        ------
        ValueError
            If probabilities of some rows are nan. The error names these rows and holds them in its attribute ``rows``.
            If ``condition`` is missing or differs in names, length, shape or kind from that of the fit, or holds a new
            category.
        """
        labels = refuse_no_labels(label_indices(self._output(X, condition)))
        return self.classes_[labels]

    def predict_proba(self, X: Any, *, condition: Any = None) -> np.ndarray:
        """Return the softmax of the logits.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
        condition : optional
            As in :meth:`fit`: of the same names, shapes and kinds, one entry a row or one for all.

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
        """
        return softmax(self._output(X, condition))

    def score(self, X: Any, y: Any, sample_weight: Any = None, *, condition: Any = None) -> float:
        """Return the accuracy: the share of labels that are right.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
        y : array-like of shape (n_samples,)
        sample_weight : array-like of shape (n_samples,), optional
        condition : optional
            As in :meth:`fit`. Searches pass it to ``score`` after ``set_score_request(condition=True)``.

        Returns
        -------
        float
        """
        return float(accuracy_score(y, self.predict(X, condition=condition), sample_weight=sample_weight))


class NeuralODERegressor(RegressorMixin, TrainableODE):
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
        for images. A field that takes a condition is called ``f(t, z, name=...)``: see :meth:`fit`.
    input_map : nn.Module, optional
        Map from X to the initial state. By default it standardises X and adds eight learned features (or seven
        channels). A recurrent net that reads observations backwards, with ``t_eval``, makes a latent ODE (Rubanova et
        al., 2019), without its variational part.
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
    condition_ : dict
        What the fit has learned of its condition, by name: ``kind`` ("float", "integer" or "category"), ``shape`` of a
        row's entry, and ``categories``. Empty without one.
    n_features_in_ : int
        Number of features of X; of images, the number of channels.

    Warns
    -----
    SolverAgreementWarning
        If a fixed-step training solver and dopri5 give different scores, or ``agreement_`` is not certified.

    References
    ----------
    Chen et al. (2018), *Neural Ordinary Differential Equations*, NeurIPS 31.

    Rubanova et al. (2019), *Latent ODEs for Irregularly-Sampled Time Series*, NeurIPS 32.

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
    >>> ode.score(X, y, t_eval=times) > 0.9
    True
    """

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: Any, y: Any, t_eval: Any = None, *, condition: Any = None) -> NeuralODERegressor:
        """Train the Neural ODE.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, channels, height, width)
            Inputs, cast to the dtype of the modules that are passed. Where none is passed, modules are built in X's
            dtype for features and in float32 for images: float64 convolutions are several times slower and no more
            accurate. An ``input_map`` of yours may take any other shape, such as sequences (n_samples, length,
            channels). They have one length: pad them, and mark in a channel what is padding.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
            Targets at the end of ``t_span``. With ``t_eval``: targets at several times, of shape (n_samples, n_times)
            or (n_samples, n_times, n_outputs). They may be nan where nothing was observed, also of some outputs only,
            and are ignored where ``t_eval`` is nan. Every value that was observed has the same weight
            in its batch.
        t_eval : array-like of shape (n_times,) or (n_samples, n_times), optional
            Times of the targets: the same for all rows, or times of their own for each. They lie within ``t_span``, in
            its order; the start may be among them. A row with fewer times than others is padded with nan at its end.
        condition : dict, frame, structured array, array-like or number, optional
            What the field takes beside X, ``f(t, z, name=...)``, in the forms of :meth:`HypersolverRegressor.fit`: one
            entry a row, or one for all, at all of a row's times. Later calls need it too. A default field embeds
            strings and integers, which are labels then, and appends floats; it has vector states.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If ``t_eval`` is of another shape, out of order, or outside ``t_span``; if y does not have a target for each
            of its times. If a layer that takes statistics over a batch (BatchNorm) would have to learn from a single
            row, by ``batch_size=1`` or for lack of rows. If a callback monitors what no epoch records. If ``condition``
            has another length than X or missing values, or there is no default field that takes it.
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
        return self._run_fit(X, y, t_eval=t_eval, condition=condition)

    def partial_fit(self, X: Any, y: Any, t_eval: Any = None, *, condition: Any = None) -> NeuralODERegressor:
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
        condition : optional
            As in ``fit``. The first batch sets its categories: a pandas Categorical names those that it lacks.

        Returns
        -------
        self
        """
        return self._partial_fit(X, y, t_eval=t_eval, condition=condition)

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
                "y holds targets at several times, pass these times: score(X, y, t_eval=t_eval). Searches and cross "
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

    def predict(self, X: Any, t_eval: Any = None, *, condition: Any = None) -> np.ndarray:
        """Return the predicted targets: at the end of ``t_span``, or at other times.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
        t_eval : array-like of shape (n_times,) or (n_samples, n_times), optional
            Times within ``t_span``, as in ``fit``; they need not be those of the fit, which need not have had any.
        condition : optional
            As in :meth:`fit`: of the same names, shapes and kinds, one entry a row or one for all.

        Returns
        -------
        ndarray of shape (n_samples,) or (n_samples, n_outputs)
            With ``t_eval``: of shape (n_samples, n_times) or (n_samples, n_times, n_outputs), nan where it is.

        Raises
        ------
        ValueError
            If ``t_eval`` is of another shape, out of order, or outside ``t_span``. If ``condition`` is missing or
            differs in names, length, shape or kind from that of the fit, or holds a new category.
        """
        output = self._output(X, condition, t_eval)
        return output[..., 0] if self._squeeze_output else output

    def score(self, X: Any, y: Any, sample_weight: Any = None, *, t_eval: Any = None, condition: Any = None) -> float:
        """Return R2: 1 for exact predictions, 0 for those of a constant.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
            With ``t_eval``: of shape (n_samples, n_times) or (n_samples, n_times, n_outputs), nan where nothing was
            observed.
        sample_weight : array-like of shape (n_samples,), optional
            Weights of the rows, and so of all that was observed of them.
        t_eval : array-like of shape (n_times,) or (n_samples, n_times), optional
            Times of the targets, as in ``fit``.
        condition : optional
            As in ``fit``. Searches pass it to ``score`` after ``set_score_request(condition=True)``.

        Returns
        -------
        float
            The mean over outputs, as in :func:`sklearn.metrics.r2_score`; with ``t_eval``, over all values that were
            observed. An output with fewer than two of them does not count; nan if none has more.
        """
        if t_eval is None:
            self._refuse_trajectories(y)
            return float(r2_score(y, self.predict(X, condition=condition), sample_weight=sample_weight))
        prediction = self.predict(X, t_eval, condition=condition)
        times = check_row_times(t_eval, len(prediction), self.neural_ode_.t_span)
        observed, _ = check_observations(y, times)
        self._check_n_outputs(observed)
        return observed_r2(observed, prediction.reshape(observed.shape), sample_weight)
