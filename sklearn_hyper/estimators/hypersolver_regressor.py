"""HypersolverRegressor: a fitted Neural ODE in, a fast one out."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.base import is_classifier
from sklearn.utils import RegressorTags

from ..modules.neural_ode import NeuralODE
from ..numerics.reference import DEFAULT_TOLERANCE
from ..training.skorch_nets import NetOutput, check_predictions, predictions, predicts_labels
from ._base import store_parameters
from ._fitted_neural_ode import FittedNeuralODE
from ._given_targets import check_given_targets, spread, warn_of_targets
from ._hypersolver import Hypersolver


class HypersolverRegressor(Hypersolver):
    r"""Makes a fitted Neural ODE fast: learns the correction g of a cheap fixed-step solver.

    .. math::

        z_{k+1} = z_k + \epsilon \psi(s_k, x, z_k) + \epsilon^{p+1} g(\epsilon, s_k, z_k, \mathrm{stages}, x)
        \qquad \text{(eq. 5)}

    with psi the base solver of order p, and its evaluations of f, which g reads as well, the stages. g is trained on
    the residuals of dopri5 trajectories (eq. 6) and then, by default, fine-tuned through the unrolled solver; over
    learned coefficients, the default for states of more than four numbers, the second stage is all. A handful of steps
    then land where dopri5 lands.

    To scikit-learn it is a regressor, so that voting, stacking and inspection take it; :meth:`score` needs no labels,
    and is no R2.

    Parameters
    ----------
    neural_ode : estimator, Pipeline, search, skorch net, NeuralODE or callable
        The fitted Neural ODE. One of: a fitted :class:`NeuralODERegressor` or :class:`NeuralODEClassifier`; a fitted
        ``Pipeline`` or search that ends in one (its earlier steps are applied frozen, so that the field sees the
        coordinates it was trained in, and X is what they take); ``FrozenEstimator(...)``; a fitted skorch net whose
        module is a :class:`NeuralODE`, and then predict follows the net's, ``predict_nonlinearity`` included; a
        :class:`NeuralODE` module; or a vector field ``f(t, z)``, and then predict returns z(S). Never changed: fit
        works on a frozen copy, and clone shares it by reference.
    base_solver : str, ButcherTableau or "auto", default "auto"
        "euler", "midpoint", "heun", "ralston", "rk3", "rk4", "rk4_38", or a tableau of your own; the multistep methods
        "ab2", "ab3", "ab4", with one evaluation of f a step after their start-up; "nonstationary", whose coefficients
        and mesh are learned for ``n_steps`` first. "auto" is the canonical method of ``order`` where that is given.
        Without, it makes one evaluation of f a step: "ab2" ("euler" for a single step); for states of more than four
        numbers "nonstationary", unless ``fit_n_steps``, ``loss`` or ``finetune`` ask for other numbers of steps, for
        the states between, or for no training through the solver, which that does not serve.
    order : int, optional
        With ``base_solver="auto"``: 1 euler, 2 midpoint, 3 rk3, 4 rk4. Otherwise it must agree.
    n_steps : int, default 10
        K, steps of the solve. It costs K evaluations of f with "auto", K times its stages with a Runge-Kutta method.
    fit_n_steps : None, int or pair (a, b), default None
        Step sizes that g is fitted at. None: around ``n_steps``, fine-tuned at it (a specialist). An int k: exactly
        ``|S|/k``; with ``loss="residual", finetune=None`` this is the paper's recipe. A pair: log-uniform between
        ``|S|/b`` and ``|S|/a`` (a generalist).
    correction : "auto", spec or nn.Module, default "auto"
        "auto" chooses :class:`ConvCorrection` for states (c, h, w) and :class:`MLPCorrection` otherwise, sized so that
        MAC_g is at most a tenth of MAC_f. A module of your own has ``forward(eps, s, z, stages, x=None)`` and returns a
        tensor like z (start-up steps, the first of "ab2" and "nonstationary", hand it fewer stages); it is copied,
        scaled and bounded, and starts where you initialised it.
    loss : {"residual", "trajectory", "residual+trajectory"}, default "residual"
        First stage: residual fitting, trajectory fitting through the solver, or their sum, each in units of the base
        solver's error. With a "nonstationary" base solver the second stage, if any, takes the epochs of "residual" too:
        residuals would pull the states between, which that moves away from the trajectory, back to it.
    finetune : {"terminal", "trajectory", "output"} or None, default "terminal"
        Second stage, through the unrolled solver: on z(S), on all states, or on the output h_y(z(S)).
    rtol : float, default 1e-6
        Relative tolerance of the dopri5 reference, for targets and scores alike. One default for every base solver,
        order and n_steps, so that scores are comparable.
    atol : float, optional
        Its absolute tolerance, in the units of the states. Missing: ``rtol`` times their size, the RMS over the rows of
        the fit of every feature or channel.
    max_samples : int or "auto", default "auto"
        Rows used to fit, drawn at random: 2,000, or as many as keep the training set under one GiB. What counts is what
        a fit keeps: where residuals are a loss, all states and stages of about 49 times and 48 steps (with the float64
        states that noisy targets may ask for), or of ``n_steps`` with learned coefficients; otherwise states alone, and
        of learned coefficients those at the ends. ``n_samples_fit_`` tells how many it were.
    max_epochs : int, default 120
        Passes over the training states, split between the two stages (40 % and 60 %). The coefficients of a
        "nonstationary" base solver are learned before, in as many passes, at most 120, over 512 rows.
    lr : float, default 2e-2
        Highest learning rate of the first stage, half of it that of the second; a cosine takes it to zero within each.
        A skorch ``LRScheduler`` in ``callbacks`` replaces that. ``lr``, ``batch_size``, ``optimizer`` and ``callbacks``
        are those of g: coefficients are learned by Adam at 1e-2, which asks for no tuning, since they start at a
        classical method.
    batch_size : int, default 128
        Rows an optimizer step; predictions, which keep no graph, take eight times as many at a time.
    optimizer : type, default torch.optim.Adam
    callbacks : list of skorch callbacks, optional
        ``valid_loss`` is the last stage's loss on held-out rows in units of the base solver's. Those that score
        predictions (``EpochScoring``) are refused: what is trained computes its loss and predicts nothing.
    validation_fraction : float, default 0.1
        Share of the rows held out, for ``valid_loss`` (the best epoch's weights are kept) and ``delta_``.
    mape_floor : float, default 1e-2
        Smallest denominator of :meth:`score`'s MAPE, as a share of the reference outputs' size: of their RMS over the
        rows that are scored, by column (or channel).
    memory : str or joblib.Memory, optional
        Caches reference solves, keyed on weights, rows, times and tolerances: candidates of a grid search share them,
        but for those whose base solver has a mesh of its own ("nonstationary").
    warm_start : bool, default False
        Start a new fit from the last correction, which keeps its architecture: a changed ``correction`` takes effect
        with ``warm_start=False``.
    device : str, default "cpu"
    n_jobs : int, optional
        Reference solves run in parallel by joblib, in chunks of rows.
    random_state : int, RandomState or None
        Same value, same result, of fits in several threads too; torch's and NumPy's global generators are left as
        found.
    verbose : int, default 0
        1 shows progress bars for reference solves and training, 2 a line an epoch as well.

    Attributes
    ----------
    module_ : FoldedODE
        Input map, corrected steps and output map: what every method runs, with g folded into each step.
        :meth:`to_module` gives the module to train further.
    correction_ : BoundedCorrection or None
        g, scaled and bounded. None where the fit fell back to the base solver, with a warning, because no epoch was
        better on held-out rows without exceeding its largest error there.
    base_solver_ : BaseSolver
    order_ : int
        p.
    neural_ode_ : NeuralODE
        The frozen copy, in eval mode.
    delta_ : dict
        By fitted K, the largest and mean :math:`\|g - R\|_2` on held-out reference states (with the noise of these,
        where the fit was not on residuals): their local truncation error is at most ``delta_[K]["max"] * abs(eps) **
        (order_ + 1)`` (Theorem 1), that of start-up steps too. The base solver's where the fit fell back to it.
    errors_ : dict
        By fitted K, the mean and largest :math:`\|z_K - z(S)\|_2` on held-out rows, and the base solver's ("base_mean",
        "base_max"). At ``n_steps`` the largest never exceeds the base solver's.
    history_ : list of dict
        One row an epoch: its stage, train_loss, valid_loss (infinite where the largest error on held-out rows exceeded
        the base solver's).
    net_ : skorch net
        The net that trained g.
    n_samples_fit_ : int
        Rows that the fit has used, of those that ``max_samples`` lets it.
    n_features_in_ : int
    feature_names_in_ : ndarray of str
        The fitted estimator's; where it has none, or is a Pipeline, those of X.

    See Also
    --------
    HypersolverClassifier : The same, predicting labels.

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
        correction="auto",
        loss="residual",
        finetune="terminal",
        rtol=DEFAULT_TOLERANCE,
        atol=None,
        max_samples="auto",
        max_epochs=120,
        lr=2e-2,
        batch_size=128,
        optimizer=torch.optim.Adam,
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

    def _check_predictions(self, neural_ode: NeuralODE, rows: np.ndarray, resolved: FittedNeuralODE) -> None:
        model = resolved.checked
        if is_classifier(model):  # whose outputs are predicted here, as they are
            return
        outputs = self._in_batches(neural_ode, rows)
        check_predictions(
            model, "predict", predictions(model, "predict", rows), outputs[:, 0] if resolved.squeeze else outputs
        )

    def _check_y(self, neural_ode: NeuralODE, X: np.ndarray, y: Any) -> None:
        y = check_given_targets(y, len(X))
        if y is None:
            return
        width = self._in_batches(lambda x: neural_ode.output_map(neural_ode.input_map(x)), X[:1]).size
        if width == y.shape[1]:
            rows = spread(len(X))
            warn_of_targets(y[rows], self._rough_outputs(neural_ode, X[rows]).reshape(len(rows), -1))

    def predict(self, X: Any) -> np.ndarray:
        """Output of the hypersolved Neural ODE, h_y(z_K).

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)

        Returns
        -------
        ndarray of shape (n_samples, ...)
            z_K itself where the Neural ODE has no output map.
        """
        output = self._apply("forward", X)
        return output[:, 0] if self._squeeze_output else output

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Minus the MAPE of predict against dopri5: greater is better, 0 is perfect.

        Tools that call score (``cross_val_score``, searches, ``permutation_importance``, ``learning_curve``) therefore
        measure the solver, not the model, whatever y they are given: pass ``scoring="r2"``, say, to measure predictions
        of y.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
        y : ignored
            The reference is dopri5, not labels.
        sample_weight : array-like of shape (n_samples,), optional

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
        return self.neg_mape(X, sample_weight)
