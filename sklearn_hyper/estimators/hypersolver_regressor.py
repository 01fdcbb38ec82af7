"""HypersolverRegressor: a fitted Neural ODE in, a fast one out."""

from __future__ import annotations

from typing import Any

from sklearn.base import is_classifier
from sklearn.utils import RegressorTags

from ..calibration.measuring import OUTPUT, outputs_of
from ..modules.neural_ode import NeuralODE
from ..numerics.reference import DEFAULT_TOLERANCE
from ..training.given_rows import apart
from ..training.skorch_nets import NetOutput, check_predictions, predicts_labels
from ._base import store_parameters
from ._calibrated import Wanted
from ._fitted_neural_ode import FittedNeuralODE
from ._given_targets import check_given_targets, spread, warn_of_targets
from ._hypersolver import Hypersolver


class HypersolverRegressor(Hypersolver):
    r"""Make a fitted Neural ODE fast: learn a correction g for a cheap fixed-step solver.

    .. math::

        z_{k+1} = z_k + \epsilon \psi(s_k, x, z_k) + \epsilon^{p+1} g(\epsilon, s_k, z_k, \mathrm{stages}, x)
        \qquad \text{(eq. 5)}

    Here psi is the base solver, of order p. The stages are its evaluations of f in the step, and g reads them too. g is
    trained on the residuals of dopri5 trajectories (eq. 6), then fine-tuned through the unrolled solver. With learned
    coefficients, the default for states of more than four numbers, the fine-tuning is the only phase. A handful of
    steps then land where dopri5 lands.

    To scikit-learn it is a regressor, so voting, stacking and inspection accept it. Its :meth:`score` needs no labels
    and is not R2: it compares with dopri5.

    Parameters
    ----------
    neural_ode : estimator, Pipeline, search, skorch net, NeuralODE or callable
        The fitted Neural ODE, in one of these forms:

        - a fitted :class:`NeuralODERegressor` or :class:`NeuralODEClassifier`;
        - a fitted ``Pipeline`` or search that ends in one. Its earlier steps are applied frozen, so X is what they
          take, and the field sees the coordinates it was trained in;
        - ``FrozenEstimator(...)`` around one of these;
        - a fitted skorch net whose module is a :class:`NeuralODE`. ``predict`` then follows the net's, including
          ``predict_nonlinearity``;
        - a :class:`NeuralODE` module;
        - a vector field ``f(t, z)``. ``predict`` then returns z(S).

        It is never changed: ``fit`` works on a frozen copy, and ``clone`` shares it by reference.
    base_solver : str, ButcherTableau or "auto", default "auto"
        The method that g corrects: a Runge-Kutta method ("euler", "midpoint", "heun", "ralston", "rk3", "rk4", "rk4_38"
        or a tableau of your own), a multistep method ("ab2", "ab3", "ab4"), or "nonstationary". Multistep methods
        evaluate f once a step after their start-up. "nonstationary" first learns its coefficients and mesh for
        ``n_steps``.

        "auto" with ``order`` is the canonical Runge-Kutta method of that order. Without ``order`` it evaluates f once a
        step: "euler" for a single step, else "nonstationary". It is "ab2" where f is a formula with states of up to
        four numbers, and where "nonstationary" does not serve: if ``fit_n_steps`` asks for other numbers of steps, or
        if ``loss`` or ``finetune`` ask for the states between the ends or for no training through the solver.
    order : int, optional
        Order of the base solver. With ``base_solver="auto"``: 1 is euler, 2 midpoint, 3 rk3, 4 rk4. With any other base
        solver it must be that solver's order.
    n_steps : int, default 10
        K, the number of steps of a solve. A solve costs K evaluations of f with "auto" (without ``order``), and K times
        its stages with a Runge-Kutta method.
    fit_n_steps : None, int or pair (a, b), default None
        Step sizes that g is fitted at. None makes a specialist: step sizes around that of ``n_steps``, fine-tuned at
        exactly that one. An int k fits exactly ``|S|/k``; with ``loss="residual", finetune=None`` this is the paper's
        recipe. A pair makes a generalist: step sizes log-uniform between ``|S|/b`` and ``|S|/a``. Set a pair to change
        the number of steps after the fit.
    stepping : {"fixed", "adaptive"}, default "fixed"
        "fixed" takes ``n_steps`` steps, the same for all rows. "adaptive" chooses each step by its estimated error,
        which is the correction itself: :math:`\epsilon^{p+1} g` estimates the error of the base step, and costs no
        evaluation of f. It pays where dynamics vary much along a trajectory or between rows, and where the accuracy is
        to be set after the fit. It needs a Runge-Kutta base solver ("auto" is "rk4" here) and a net g, fitted over a
        range of step sizes: ``fit_n_steps`` None is the pair (``n_steps`` / 4, 4 ``n_steps``) then. No step is longer
        than the longest fitted one. ``n_steps`` is the number of equal distances at which :meth:`trajectory` gives
        states, and at which ``errors_`` and ``delta_`` are measured; the base solver has to be stable there. It
        cannot be exported.
    step_rtol : float, default 1e-3
        Tolerance of an adaptive step, relative to the state, beside the same share of the states' size. It bounds the
        error of the *base* step: the corrected solution is usually more accurate. It is another one than ``rtol``,
        which is that of the reference. ``with_solver(step_rtol=...)`` changes it after the fit.
    step_controller : {"pi", "learned"}, default "pi"
        What chooses adaptive steps. "pi" goes by the estimated errors of the steps before. "learned" fits a small net
        beside g, on held-out rows: it knows the error that a *corrected* step from a state has, and proposes the step
        whose error is ``step_rtol``. Few steps are then repeated to find their size. It took 4 to 40 % fewer
        evaluations than "pi" to the same error, for rows like those of the fit; for rows unlike them "pi" is safer.
        ``step_rtol`` is then the mean error of a step, and bounds none. After ``with_solver(base_solver=...)`` steps
        are chosen by "pi".
    row_times : bool or None, default None
        Whether the field takes a vector of times, one a row, so that each row can have adaptive steps of its own. None:
        each row has its own if the field does not depend on time (it has the same values at 33 times); otherwise all
        rows of a batch share their steps, which are as short as the worst row needs. True: the field takes a vector,
        which is checked on a few rows. ``t.reshape(-1, 1)`` in a field of vectors serves one time and many alike.
        False: rows share their steps.
    correction : "auto", spec or nn.Module, default "auto"
        What is learned. "auto" is :class:`WeightCorrection`, weights of f's own for each evaluation, if f has weights,
        ``base_solver`` is "auto" without ``order``, and one number of steps and its end are asked for. (On images whose
        f is large enough, with a :class:`ReachCorrection` beside it.) It then serves ``n_steps`` alone. Otherwise
        "auto" is a net g: :class:`ConvCorrection` for states of shape (c, h, w) and :class:`MLPCorrection` for others,
        sized so that MAC_g is at most a tenth of MAC_f. A module of your own has ``forward(eps, s, z, stages, x=None)``
        and returns a tensor like z. It is copied, scaled and bounded, and training starts from your initialisation. The
        start-up steps, the first ones of "ab2" and "nonstationary", pass it fewer stages.
    loss : {"residual", "trajectory", "residual+trajectory"}, default "residual"
        Loss of the first phase: fitting residuals, fitting trajectories through the solver, or the sum of both. Each is
        in units of the base solver's error. With a "nonstationary" base solver, ``finetune`` (if any) takes the epochs
        of "residual" too: that method moves the states between the ends off the trajectory, and residuals would pull
        them back.
    finetune : {"terminal", "trajectory", "output"} or None, default "terminal"
        Loss of the second phase, which trains through the unrolled solver: on z(S), on all states (or those at the
        ``t_eval`` of :meth:`fit`), or on the output h_y(z(S)). None skips this phase. With adaptive steps there is
        none: it would train through equal ones, and take g away from the residuals, by which it estimates errors.
    rtol : float, default 1e-6
        Relative tolerance of the dopri5 reference, for both targets and scores. The default is the same for every base
        solver, order and ``n_steps``, so that scores are comparable.
    atol : float, optional
        Absolute tolerance of the reference, in the units of the states. By default ``rtol`` times the states' size: the
        RMS of every feature or channel over the rows of the fit.
    max_samples : int or "auto", default "auto"
        Number of rows used to fit, drawn at random. "auto" is 2,000, or as many as keep the training set under one GiB.
        With a residual loss, the set holds all states and stages of about 49 times and 48 steps; with learned
        coefficients, of ``n_steps`` steps. Noisy targets add float64 states. Otherwise it holds states alone; with
        learned coefficients, only those at the ends. ``n_samples_fit_`` is the number used.
    extra_rows : None, "box", "worst", "between" or callable, default None
        Rows to train on beside X, as many again, where errors on unusual rows matter. They come from the range of X and
        its fringe; held-out rows stay rows of X. "box" draws evenly from the box around X, which reaches a tenth of its
        range beyond it: for inputs of a few features, whose numbers may be combined. "worst" draws twice as many, and
        keeps the half with the larger errors of the base solver; on images it moves rows of X at random, by .3 of each
        number's standard deviation. "between" draws a quarter as many as X, from the lines through pairs of its rows:
        for data with gaps, of any number of features. A function gets ``(X, n, random_state)``, X being rows as the
        Neural ODE takes them, and returns rows like these. Rows that dopri5 cannot solve are left out, and so are those
        from which the base solver errs by more than a state's size. An epoch takes as many rows as without them, so
        that only their reference solves cost time.
    max_epochs : int, default 120
        Passes over the training states: 40 % for the first phase, 60 % for the second. The coefficients of a
        "nonstationary" base solver are learned before, in as many passes (at most 120) over 512 rows.
    lr : float, default 2e-2
        Highest learning rate of the first phase; the second uses half of it. A cosine takes it to zero within each
        phase, unless ``callbacks`` holds a skorch ``LRScheduler``, which replaces that schedule. ``lr``,
        ``batch_size``, ``optimizer`` and ``callbacks`` concern the correction: coefficients are first learned by Adam
        at 1e-2, which needs no tuning because they start at a classical method.
    batch_size : int, default 128
        Rows in an optimizer step. Predictions keep no graph and take eight times as many rows at a time.
    optimizer : "auto" or type, default "auto"
        Optimizer of the correction; called with its parameters and ``lr``. "auto": ``torch.optim.Adam`` for a net,
        and :class:`sklearn_hyper.training.soap.Soap` for changes of weights, which ends with errors up to three times
        smaller after as many epochs (but Adam for a single step on images).
    callbacks : list of skorch callbacks, optional
        Callbacks of the training, which see ``valid_loss``: the last phase's loss on held-out rows, in units of the
        base solver's. Callbacks that score predictions (``EpochScoring``) are refused, because what is trained computes
        its loss and predicts nothing.
    validation_fraction : float, default 0.1
        Share of the rows held out for ``valid_loss``, ``errors_`` and ``delta_``. The weights of the epoch with the
        lowest ``valid_loss`` are kept.
    mape_floor : float, default 1e-2
        Smallest denominator of the MAPE in :meth:`score`, so that values near zero do not dominate it. It is a share of
        the reference outputs' size: their RMS over the scored rows, by column or channel.
    memory : str or joblib.Memory, optional
        Cache of reference solves, keyed on weights, rows, times and tolerances. Candidates of a grid search then share
        their solves, except those with "nonstationary", which has a mesh of its own.
    warm_start : bool, default False
        Start a new fit from the last correction. It keeps its architecture, so a changed ``correction`` takes effect
        only with ``warm_start=False``.
    device : str, default "cpu"
        Device to train and predict on.
    n_jobs : int, optional
        Number of joblib jobs that solve references in parallel, in chunks of rows.
    random_state : int, RandomState or None
        The same value gives the same result, also for fits in several threads. The global generators of torch and NumPy
        are left as they were.
    verbose : int, default 0
        1 shows progress bars of reference solves and training; 2 also prints a line an epoch.

    Attributes
    ----------
    module_ : FoldedODE
        Input map, corrected steps and output map, with g folded into each step: what every method runs.
        :meth:`to_module` gives a module that can be trained further.
    correction_ : ModuleCorrection or None
        g, scaled and bounded. None where the fit fell back to the base solver, with a warning. It does so if no epoch
        beat the base solver on held-out rows. Epochs whose largest error there exceeds the base solver's count if no
        other is better, with a mean of at most half its mean, and of the worst twentieth of rows at most twice its.
    base_solver_ : Method
        The base solver of the fit, with its coefficients learned.
    order_ : int
        Order p of the base solver.
    neural_ode_ : NeuralODE
        The frozen copy that was fitted for, in eval mode.
    delta_ : dict
        Largest ("max") and mean ("mean") :math:`\|g - R\|_2` on held-out reference states, by fitted K. The local
        truncation error of every step from these states, start-up steps included, is at most ``delta_[K]["max"] *
        abs(eps) ** (order_ + 1)`` (Theorem 1). It includes the noise of the reference states where the fit was not on
        residuals. It is the base solver's where the fit fell back to it.
    errors_ : dict
        Mean ("mean") and largest ("max") :math:`\|z_K - z(S)\|_2` on held-out rows, by fitted K, and the base solver's
        ("base_mean", "base_max"). At ``n_steps`` a fit warns where the largest error exceeds the base solver's.
    refit_ : dict
        After :meth:`refit`: ``errors_`` of the correction as it was ("before") and as it is ("after"), for the Neural
        ODE as it is now, on the same held-out rows.
    history_ : list of dict
        One row an epoch, with "epoch", "train_loss", "valid_loss", "dur" in seconds, and "stage", the loss of its
        phase. ``valid_loss`` is infinite, or between 0.999 and 1, where the largest error on held-out rows
        exceeded the base solver's: see ``correction_``.
    net_ : skorch net
        The net that trained g.
    condition_ : dict
        What the fit has learned of its condition, by name: ``kind`` ("float", "integer" or "category"), ``shape`` of a
        row's entry, and ``categories``. Empty without one.
    n_samples_fit_ : int
        Number of rows used to fit, at most ``max_samples``.
    n_features_in_ : int
        Number of features of X.
    feature_names_in_ : ndarray of str
        Names of features of the fitted estimator; those of X where it has none or is a Pipeline.

    See Also
    --------
    HypersolverClassifier : Predicts labels in the same way.

    References
    ----------
    Poli et al. (2020), *Hypersolvers: Toward Fast Continuous-Depth Models*, NeurIPS 33.

    Examples
    --------
    >>> import numpy as np, torch
    >>> from sklearn_hyper import HypersolverRegressor
    >>> def pendulum(t, z):
    ...     return torch.stack([z[:, 1], -torch.sin(z[:, 0])], dim=1)
    >>> X = np.random.default_rng(0).uniform(-1, 1, (200, 2))
    >>> fast = HypersolverRegressor(pendulum, n_steps=2, max_epochs=60, random_state=0).fit(X)
    >>> fast.score(X) > -0.02  # minus the MAPE against dopri5, with two evaluations of f
    True
    """

    def __init__(
        self,
        neural_ode,
        *,
        base_solver="auto",
        order=None,
        n_steps=10,
        fit_n_steps=None,
        stepping="fixed",
        step_rtol=1e-3,
        step_controller="pi",
        row_times=None,
        correction="auto",
        loss="residual",
        finetune="terminal",
        rtol=DEFAULT_TOLERANCE,
        atol=None,
        max_samples="auto",
        extra_rows=None,
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

    def __sklearn_tags__(self) -> Any:
        # Without RegressorMixin, whose score is R2 against labels.
        tags = super().__sklearn_tags__()
        tags.estimator_type = "regressor"
        tags.regressor_tags = RegressorTags(poor_score=True)  # nothing is learned from y
        tags.target_tags.required = False
        tags.target_tags.multi_output = True
        return tags

    def _follow_net(self, neural_ode: NeuralODE, net: Any) -> NeuralODE:
        if net is not None and not predicts_labels(net):
            neural_ode.output_map = NetOutput(neural_ode.output_map, net)
        return neural_ode

    def _check_predictions(self, neural_ode: NeuralODE, rows: Any, resolved: FittedNeuralODE) -> None:
        model = resolved.checked
        if is_classifier(model):  # predict gives logits here, which its own predict does not
            return
        outputs = self._own_outputs(neural_ode, rows)
        check_predictions(
            model, "predict", self._predictions(model, "predict", rows), outputs[:, 0] if resolved.squeeze else outputs
        )

    def _check_y(self, neural_ode: NeuralODE, X: Any, y: Any) -> None:
        y = check_given_targets(y, len(X))
        if y is None:
            return
        width = self._in_batches(lambda rows: neural_ode.output_map(neural_ode.input_map(apart(rows)[0])), X[:1]).size
        if width == y.shape[1]:
            rows = spread(len(X))
            warn_of_targets(y[rows], self._rough_outputs(neural_ode, X[rows]).reshape(len(rows), -1))

    def predict(
        self,
        X: Any,
        *,
        condition: Any = None,
        t_eval: Any = None,
        return_bound: bool = False,
        coverage: float = 0.99,
        bound: str = "learned",
        tol: float | None = None,
        atol: float | None = None,
        alpha: float = 0.01,
        route: bool = False,
        return_info: bool = False,
    ) -> Any:
        r"""Return the output of the hypersolved Neural ODE, h_y(z_K), with a bound or to a tolerance if asked.

        All but X, ``condition`` and ``t_eval`` needs a calibration: see :meth:`conformalize`.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
        condition : optional
            As in :meth:`fit`: of the same names, shapes and kinds, one entry a row or one for all.
        t_eval : array-like of shape (n_times,) or (n_samples, n_times), optional
            Times of the outputs, for all rows or for each its own, padded with nan: ``predict(X, t_eval=...)`` is
            ``trajectory(X, output=True, t_eval=...)``. By default the end of ``t_span``.
        return_bound : bool, default False
            Return ``(output, bound)``. The bound of a row is on the 2-norm of its error against dopri5. The learned
            bound of a row unlike those of the calibration is infinite.
        coverage : float, default 0.99
            The share of rows whose bound is to hold, between 0 and 1. It is aimed at and measured, not guaranteed: see
            :meth:`conformalize`.
        bound : {"learned", "verified"}, default "learned"
            "learned" predicts the error from the run itself, at no evaluation. "verified" solves each row again, more
            accurately: by dopri5 where it is unlike those of the calibration. With ``tol``, "verified" climbs the
            ladder until two levels agree, which holds longer where inputs drift.
        tol : float, optional
            Relative tolerance: keep :math:`\|\hat y - y\|_2 \le \mathrm{tol} \, \|y\|_2 + \mathrm{atol}` for all
            but a share ``alpha`` of rows. By default, one solver serves all rows: the cheapest one that the calibration
            certifies. Rows unlike those of the calibration go to dopri5. If nothing cheaper is certified, all do.
        atol : float, optional
            Absolute tolerance, in units of the output. By default 0. One of the two may be 0, beside a positive other.
        alpha : float, default 0.01
            Largest share of rows over the tolerance. The certificate holds with a confidence of 90 % over calibration
            rows (89 % with ``route=True``), for one tolerance and one policy: not for the best of several that were
            tried.
        route : bool, default False
            Choose a solver for each row, from a run of the cheapest one. It pays where f is expensive. Where one solver
            for all takes no more evaluations on calibration rows, and keeps the tolerance on both halves of them, that
            one serves: ``info.policy`` is then "one".
        return_info : bool, default False
            Return also a ``Bunch`` of arrays by row: ``n_evaluations`` of f, name of the ``solver``, and ``unusual``,
            whether the row is unlike those of the calibration. With a tolerance also ``policy``, how solvers were
            chosen: "one" for all rows, "routed" or "verified".

        Returns
        -------
        ndarray of shape (n_samples, ...), or (n_samples, n_times, ...) with ``t_eval``
            z_K itself where the Neural ODE has no output map. In a tuple with the bound and the info, where those are
            asked for.

        Raises
        ------
        NotCalibratedError
            If anything is asked for that needs a calibration, and this solver has none.
        CalibrationRowsError
            If the calibration has too few rows for ``coverage`` or ``alpha``; the error says how many are needed.
        ValueError
            If ``condition`` is missing or differs in names, length, shape or kind from that of the fit, or holds a new
            category. If a value is out of its range or has no effect, or two contradict each other. ``coverage`` needs
            ``return_bound``; ``alpha`` and ``route`` need a tolerance; ``bound`` needs either. If ``t_eval`` is wrong,
            or given with any of these: see :meth:`trajectory`.

        Warns
        -----
        UnsolvedRowsWarning
            If rows go to dopri5 that it cannot solve. Their results are nan.
        UnusualRowsWarning
            If more than 2 % of rows are unlike those of the calibration, so that their bound is infinite.

        Examples
        --------
        >>> import numpy as np, torch
        >>> from sklearn_hyper import HypersolverRegressor
        >>> X = np.random.default_rng(0).uniform(0.5, 1.5, (1000, 1))
        >>> fast = HypersolverRegressor(lambda t, z: -z * z, n_steps=2, max_epochs=20, random_state=0).fit(X[:200])
        >>> z, bound = fast.conformalize(X[200:800]).predict(X[800:], return_bound=True, coverage=0.9)
        >>> truth = X[800:] / (1 + X[800:])
        >>> bool((np.abs(z - truth)[:, 0] <= bound).mean() > 0.8)
        True
        >>> z, info = fast.predict(X[800:], tol=1e-3, alpha=0.05, return_info=True)
        >>> bool((np.abs(z - truth) <= 1e-3 * truth).mean() >= 0.9)
        True
        """
        wanted = Wanted(return_bound, coverage, bound, tol, atol, alpha, route, return_info)
        if t_eval is not None:
            if not wanted.is_plain:
                raise ValueError(
                    "t_eval with a bound, a tolerance or return_info: these are of the output at the end of t_span. "
                    "Leave t_eval out, or them."
                )
            return self._states_at(X, t_eval, output=True, condition=condition)
        if wanted.is_plain:
            output = self._apply("forward", X, condition)
            return output[:, 0] if self._squeeze_output else output
        ends, beside = self._answer(X, OUTPUT, wanted, condition=condition)
        output = outputs_of(ends, self._final_outputs)
        output = output[:, 0] if self._squeeze_output else output
        return (output, *beside) if beside else output

    def score(self, X: Any, y: Any = None, sample_weight: Any = None, *, condition: Any = None) -> float:
        """Return minus the MAPE of ``predict`` against dopri5: greater is better, 0 is perfect.

        Tools that call ``score`` therefore measure the solver, not the model, whatever y they are given. This holds for
        ``cross_val_score``, searches, ``permutation_importance`` and ``learning_curve``. To measure predictions of y,
        pass a scorer to them, such as ``scoring="r2"``.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
        y : ignored
            The reference is dopri5, not labels.
        sample_weight : array-like of shape (n_samples,), optional
        condition : optional
            As in :meth:`fit`. Searches pass it to ``score`` after ``set_score_request(condition=True)``.

        Returns
        -------
        float

        Raises
        ------
        ReferenceSolveError
            If dopri5 cannot solve some rows of X; it names them.
        ValueError
            If the output map of dopri5's states is not finite for some rows of X; it names them.
        """
        return self.neg_mape(X, sample_weight, condition=condition)
