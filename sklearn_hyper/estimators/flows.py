"""ContinuousNormalizingFlow: a trainable density, sampled and evaluated by dopri5."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from sklearn.base import ClassNamePrefixFeaturesOutMixin, DensityMixin, TransformerMixin, _fit_context
from sklearn.utils import check_array
from sklearn.utils._param_validation import Interval, StrOptions
from torch import Tensor

from ..hypersolvers.in_training import correct_in_training
from ..modules.closed_list import Writer
from ..modules.conditioned_fields import ConditionedMLPField
from ..modules.copies import check_saveable, trained_copies
from ..modules.described_modules import describe_flow, read_flow
from ..modules.field_probes import check_start, settle_parts
from ..modules.flow import Flow, check_base_distribution, check_divergence
from ..modules.neural_ode import NeuralODE, check_neural_ode
from ..modules.seeding import own_generator, seeded
from ..modules.vector_fields import MLPVectorField, Standardize
from ..numerics.row_errors import numbered_rows
from ..numerics.times import check_n_steps
from ..numerics.units import is_constant
from ..training.callback_checks import LOSS_NET_RECORDS, check_monitors, refuse_scoring
from ..training.flow_fitting import FlowSettings, build_flow_net, check_matching, check_rows_apart, row_noise
from ..training.given_rows import Inputs, apart, given
from ..training.joint import check_joint
from ..training.nets import draw_seed
from ..training.neural_ode_fitting import train_net
from ..training.solver_control import check_training_solver, control_of, is_auto, is_dopri5, is_hypersolved
from ..training.splits import split_rows
from ._base import (
    TRAINING_CONSTRAINTS,
    SolverAgreementWarning,
    TorchEstimator,
    check_device,
    dopri5_states,
    module_dtype,
    store_parameters,
)
from ._conditions import (
    ConditionError,
    count_entries,
    fit_transform,
    learn_condition,
    with_condition,
)
from ._learned_conditions import count_labels
from ._saving import EstimatorReader

TRACES = ("auto", "exact", "rademacher", "gaussian")
_EXACT_UP_TO = 16
_CHECKED_ROWS = 16
_AGREEMENT_NATS = 0.02
_HIDDEN, _DEPTH = 128, 3


class ContinuousNormalizingFlow(ClassNamePrefixFeaturesOutMixin, DensityMixin, TransformerMixin, TorchEstimator):
    r"""A density model that a Neural ODE transports from a simple base distribution (CNF, FFJORD).

    .. math::

        \log p(x) = \log p_0(z(t_0)) - \int_{t_0}^{t_1} \operatorname{tr} \frac{\partial f}{\partial z}\, dt
        - \sum_i \log \sigma_i,
        \qquad \dot z = f(t, z), \quad z(t_1) = (x - \mu) / \sigma

    mu and sigma are X's means and standard deviations, measured by ``fit`` so that data in any units train well. Their
    log-determinant is part of ``score_samples``. Samples and densities are computed by dopri5, slowly and accurately;
    :class:`HypersolverDensity` makes both fast.

    Parameters
    ----------
    vector_field : nn.Module, optional
        The field ``f(t, z)`` in standardised coordinates; t is a 0-d tensor, z has shape (batch, n_features). ``fit``
        trains a copy. By default an :class:`MLPVectorField` with three layers of 128. For a conditional density it
        takes the condition as keyword arguments, ``f(t, z, label=...)``. The default one embeds strings and integers,
        which are labels then, and appends floats.
    base_distribution : torch.distributions.Distribution, optional
        p_0, with event shape (n_features,) and a density everywhere; it computes in its own dtype. By default the
        standard normal.
    t_span : pair of float, default (0.0, 1.0)
        Times (t_0, t_1), from base to data. Sampling runs forward in time, densities in reverse.
    objective : {"flow_matching", "likelihood"}, default "flow_matching"
        "flow_matching" regresses f on straight paths. It solves nothing in training, so it is fast and never stiff.
        "likelihood" maximises the mean log likelihood through the solver (FFJORD): better densities, at tens of times
        the cost. To improve a flow, train by "flow_matching" first and then by "likelihood" with ``warm_start=True``.
    trace : {"auto", "exact", "rademacher", "gaussian"}, default "auto"
        How ``score_samples`` and the likelihood compute the trace. "exact" takes n_features backward passes an
        evaluation. The others are Hutchinson's estimate :math:`e^\top J e`, which takes one, with noise e of that
        distribution that is fixed over a solve. "auto" is exact up to 16 features and "rademacher" above.
        ``set_params(trace="exact")`` also works on a fitted flow.
    kinetic, jacobian : float, default 0.0
        Weights of RNODE's penalties :math:`\int \|f\|^2` and :math:`\int \|J\|_F^2` on the likelihood, with time as a
        share of the span. They make fields that need fewer evaluations. Only for ``objective="likelihood"``.
    solver : "dopri5", "auto", "hypersolved", name of a fixed-step solver or ButcherTableau, default "dopri5"
        Solver that the likelihood is trained through. "auto" begins with a cheap fixed-step solver, raises it where its
        loss differs from dopri5's, and ends with dopri5. "hypersolved" solves by corrected steps: see
        :class:`NeuralODEClassifier`; flow matching refuses it. Held-out losses are dopri5's throughout. With a
        fixed-step solver, ``fit`` compares the held-out likelihood with dopri5's and warns if they differ by more than
        0.02 nats.
    n_steps : int, default 10
        Number of steps of a fixed-step ``solver``, of "hypersolved", and of those that ``joint`` makes fields for.
        dopri5 and "auto" ignore it otherwise.
    rtol : float, default 1e-4
        Relative tolerance of dopri5 in training. Samples and densities use 1e-6 in float32 and 1e-8 in float64.
    atol : float, optional
        Absolute tolerance of dopri5 in training, in the field's coordinates (standardised data). By default ``rtol``
        times the size of the states, which is 1.
    adjoint : bool, default False
        Compute gradients by the adjoint method, in constant memory, instead of backpropagating through dopri5.
    joint : float, default 0.0
        Weight of a loss that makes fields cheap to solve: the mean squared distance between ``n_steps`` steps of
        ``base_solver`` and the training's own solve, in units of the states' size. Both solves are differentiated. A
        hypersolver fitted afterwards with the same ``base_solver`` and ``n_steps`` has less left to correct, and
        dopri5 takes fewer evaluations. Needs ``objective="likelihood"``, and ``solver="dopri5"`` or "auto". Held-out
        losses are without it.
    base_solver : name of a fixed-step solver or ButcherTableau, default "euler"
        What ``joint`` and ``solver="hypersolved"`` take ``n_steps`` steps of. Others ignore it.
    refit_every : int or None, default None
        Optimizer steps between refits of ``solver="hypersolved"``, which alone takes it. With None, a refit comes once
        the field has changed by a tenth, at states of a few rows.
    max_epochs : int, default 200
        Passes over the training rows. The default suits flow matching; an epoch of likelihood costs so much more that 5
        to 20 are usual.
    lr : float, default 5e-3
        Highest learning rate. A cosine takes it to zero, unless ``callbacks`` holds a skorch ``LRScheduler``. With
        ``solver="auto"`` a second cosine, from a fifth of it, is for the steps of dopri5 at the end.
    batch_size : int, default 128
        Rows in an optimizer step. Inference takes eight times as many at a time.
    optimizer : type, default torch.optim.AdamW
        Optimizer class; called with the parameters and ``lr``.
    callbacks : list of skorch callbacks, optional
        Callbacks of the training, which see ``valid_loss``. ``Checkpoint(...)`` and ``LoadInitState(...)`` make a long
        training resumable. Those that score predictions (``EpochScoring``) are refused, because the training computes a
        loss and predicts nothing.
    validation_fraction : float or None, default 0.1
        Share of the rows held out. The weights of the epoch with the lowest held-out loss are kept; with None, the last
        ones.
    warm_start : bool, default False
        Start a new fit from the last weights, mu and sigma. ``vector_field``, ``base_distribution`` and ``t_span`` stay
        as they were, too.
    device : str, default "cpu"
        Device to train and predict on.
    random_state : int, RandomState or None
        The same value gives the same result. The global generators of torch and NumPy are left as they were. To ensure
        this, fits in threads of one process train in turn; processes train side by side.
    verbose : int, default 0
        1 shows a progress bar; 2 also prints a line an epoch.

    Attributes
    ----------
    flow_ : Flow
        Field, span, scaling and base distribution as one module.
    neural_ode_ : NeuralODE
        The Neural ODE from base to data, which sampling solves.
    net_ : skorch net
        The net that trained the flow.
    history_ : list of dict
        One row an epoch: ``train_loss``, ``valid_loss`` where rows are held out, and ``dur`` in seconds. ``joint`` adds
        ``joint_loss``, without its weight. Likelihood
        through dopri5 adds ``nfe``: evaluations of (f, trace) in a training solve, without the adjoint's own.
    n_evaluations_ : int
        Likelihood only: evaluations of (f, trace) in the training, on batches, held-out rows and in comparisons.
    solver_history_ : list of dict
        Likelihood with ``solver="auto"`` or "hypersolved" only: a row a change of the solver, as in
        :class:`NeuralODEClassifier`.
    hypersolver_ : FittedHypersolver or None
        Likelihood with ``solver="hypersolved"`` only: a hypersolver of the density direction, ``flow_.density()``.
    agreement_ : Bunch
        Likelihood with ``solver="auto"`` or "hypersolved" only: how well the last solver of the training agrees with
        dopri5, as in :class:`NeuralODEClassifier`; losses are in nats.
    condition_ : dict
        What the fit has learned of its condition, by name: ``kind`` ("float", "integer" or "category"), ``shape`` of a
        row's entry, and ``categories``. Empty without one.
    n_features_in_ : int
        Number of features of X.
    feature_names_in_ : ndarray of str
        Names of the features of X, where it has them.

    Warns
    -----
    StiffFlowWarning
        If a solve in likelihood training takes more than 150 evaluations, and three times those of the first epoch.
    SolverAgreementWarning
        If a fixed-step training solver and dopri5 give different held-out likelihoods, or ``agreement_`` is not
        certified.

    See Also
    --------
    HypersolverDensity : The same density, many times faster.

    Notes
    -----
    A scaler in front of the flow changes the coordinates that the density refers to. For y = (x - m) / s, :math:`\log
    p_X(x) = \log p_Y(y) - \sum_i \log s_i`, and a Pipeline's ``score_samples`` is log p_Y. No scaler is needed: the
    flow standardises X by itself and accounts for it.

    A long training can be interrupted without loss. Ctrl-C keeps the best weights so far, and ``warm_start=True`` lets
    the next fit continue from them. Checkpoints protect from a crash: one is written in every epoch that lowers the
    held-out loss. The next fit, also in another process, loads it where there is one and trains for another
    ``max_epochs``:

    >>> import tempfile
    >>> from skorch.callbacks import Checkpoint, LoadInitState
    >>> from sklearn.datasets import make_moons
    >>> from sklearn_hyper import ContinuousNormalizingFlow
    >>> X, _ = make_moons(200, noise=0.05, random_state=0)
    >>> folder = tempfile.TemporaryDirectory()
    >>> def resumable():
    ...     checkpoint = Checkpoint(dirname=folder.name)
    ...     callbacks = [checkpoint, LoadInitState(checkpoint)]
    ...     return ContinuousNormalizingFlow(max_epochs=20, callbacks=callbacks, random_state=2)
    >>> first = resumable().fit(X)  # imagine that it was killed at the end
    >>> second = resumable().fit(X)
    >>> len(second.history_) > 20, bool(second.score(X) > first.score(X))
    (True, True)
    >>> folder.cleanup()

    References
    ----------
    Chen et al. (2018), *Neural Ordinary Differential Equations*; Grathwohl et al. (2019), *FFJORD*; Finlay et al.
    (2020), *How to Train Your Neural ODE*; Lipman et al. (2023), *Flow Matching for Generative Modeling*.

    Examples
    --------
    >>> from sklearn.datasets import make_moons
    >>> from sklearn_hyper import ContinuousNormalizingFlow
    >>> X, _ = make_moons(500, noise=0.05, random_state=0)
    >>> flow = ContinuousNormalizingFlow(max_epochs=40, random_state=0).fit(X)
    >>> flow.sample(3, random_state=0).shape
    (3, 2)
    >>> bool(flow.score(X) > -2.5)  # mean log likelihood in nats; a Gaussian's is about -1.9
    True

    A density for each of several labels:

    >>> X, moon = make_moons(500, noise=0.05, random_state=0)
    >>> both = ContinuousNormalizingFlow(max_epochs=40, random_state=0).fit(X, condition={"moon": moon})
    >>> upper = both.sample(100, random_state=0, condition={"moon": 0})
    >>> lower = both.sample(100, random_state=0, condition={"moon": 1})
    >>> bool(upper[:, 1].mean() > lower[:, 1].mean())
    True
    >>> bool(both.score(X, condition={"moon": moon}) > both.score(X, condition={"moon": 1 - moon}))
    True
    """

    _parameter_constraints: dict = {
        **TRAINING_CONSTRAINTS,
        "vector_field": [None, callable],
        "base_distribution": [None, torch.distributions.Distribution],
        "t_span": "no_validation",
        "objective": [StrOptions({"flow_matching", "likelihood"})],
        "trace": [StrOptions(set(TRACES))],
        "kinetic": [Interval(Real, 0, None, closed="left")],
        "jacobian": [Interval(Real, 0, None, closed="left")],
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
        base_distribution=None,
        t_span=(0.0, 1.0),
        objective="flow_matching",
        trace="auto",
        kinetic=0.0,
        jacobian=0.0,
        solver="dopri5",
        n_steps=10,
        rtol=1e-4,
        atol=None,
        adjoint=False,
        joint=0.0,
        base_solver="euler",
        refit_every=None,
        max_epochs=200,
        lr=5e-3,
        batch_size=128,
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
    def fit(self, X: Any, y: Any = None, *, condition: Any = None) -> ContinuousNormalizingFlow:
        """Train the flow.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Data. They are cast to the dtype of ``vector_field`` where one is passed; otherwise X sets the dtype.
        y : ignored
        condition : dict, frame, structured array, array-like or number, optional
            What the density is conditional on, in the forms of :meth:`HypersolverRegressor.fit`. Later calls need it
            too. mu and sigma are those of all X.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If a feature of X is constant, since such data have no density. If a callback scores predictions, or
            monitors what no epoch records.
        VectorFieldError
            If the field's signature or the shape of its output is wrong, or its divergence is unknown or not finite. If
            the field is not finite for some rows of X; the error names them.
        ReferenceSolveError
            If dopri5 cannot solve the field from some rows of X; the error names them.
        TrainingDivergedError
            If the training loss is no longer finite, or if training makes the field need more than 3,000 evaluations a
            solve.
        KeyboardInterrupt
            After Ctrl-C, once the estimator holds the weights of the best finished epoch by ``valid_loss``
            (``train_loss`` where nothing is held out). If no epoch was finished, the estimator stays as it was.
        """
        with self._fitting() as fitting:
            fitting.interrupted = self._fit(X, condition)
        return self

    def _fit(self, X: Any, condition: Any) -> bool:
        check_training_solver(self.solver)
        check_joint(self.joint, self.solver, self.base_solver, self.refit_every)
        device = check_device(self.device)
        refuse_scoring(self.callbacks, "a flow")
        warm = copy.deepcopy(self.flow_) if self.warm_start and hasattr(self, "flow_") else None
        X = self._validate_rows(X, reset=warm is None)
        rows = learn_condition(self, condition, X, reset=warm is None, labels=self.vector_field is None)
        seed = draw_seed(self.random_state)
        if len(X) < 2:
            raise ValueError(f"a density needs at least 2 samples, got n_samples={len(X)} (1 sample).")
        train, valid = split_rows(self.validation_fraction, len(X), seed)
        self._check_monitors(valid is not None)
        with seeded(seed, device):
            if warm is None:
                self.dtype_ = module_dtype(_dtype_of(self.vector_field), X)
            self.device_ = str(device)
            rows = self._to_tensor(rows, self.dtype_, device)
            x, beside = apart(rows)
            self._check_unused()
            _check_varies(x)
            flow = (self._build(x, beside) if warm is None else warm.to(device)).train()
            row_times = self._check(flow, x, beside)
            data_end = NeuralODE(flow.vector_field, input_map=flow.scaler, t_span=flow.t_span[::-1])
            check_start(data_end.eval(), x, condition=beside)
            flow.train()
            generator = own_generator(seed)
            held_out = None if valid is None else rows[valid]
            settings = self._settings(flow.n_features, row_times)
            net = build_flow_net(flow, settings, held_out, len(train), generator)
            with numbered_rows(train.tolist(), len(X)):
                train_net(net, rows[train], None, generator)
            net.module_.generator = None  # no longer drawn from, so it need not be pickled with the estimator
        self.net_ = net
        self._keep_solver_records(net)
        self.flow_ = flow.eval()
        self.neural_ode_ = flow.sampling().eval()
        self._noise_seed = seed
        self._n_features_out = self.n_features_in_
        keys = ("train_loss", "valid_loss", "joint_loss", "nfe", "dur")
        self.history_ = [
            {"epoch": row["epoch"], **{key: float(row[key]) for key in keys if key in row}} for row in net.history
        ]
        return net.interrupted_ or self._compare_solvers(net, rows, train, valid)

    def _compare_solvers(self, net: Any, x: Inputs, train: np.ndarray, valid: np.ndarray | None) -> bool:
        """Compare the training solver with dopri5, where it is another; return whether Ctrl-C cut that short."""
        controlled = control_of(net) is not None
        if not controlled and (valid is None or self.objective != "likelihood" or is_dopri5(self.solver)):
            return False
        rows = train if valid is None else valid
        try:
            with numbered_rows(rows.tolist(), len(x)):
                if controlled:
                    inputs = self._to_tensor(self._solver_rows(x[rows]), x.dtype, x.device)
                    self._certify(net.module_, inputs, None, valid is not None, stacklevel=6)
                else:
                    self._check_agreement(x[rows])
        except KeyboardInterrupt:  # keep what has been trained, though its check was cut short
            return True
        return False

    def _check_monitors(self, has_valid: bool) -> None:
        recorded = {*LOSS_NET_RECORDS} - (set() if has_valid else {"valid_loss"})
        if self.objective == "likelihood" and is_dopri5(self.solver):
            recorded.add("nfe")
        check_monitors(
            self.callbacks, recorded, f"Monitor one of those (validation_fraction={self.validation_fraction})."
        )

    def _check_unused(self) -> None:
        """Refuse options that the objective or solver would silently not use."""
        likelihood = self.objective == "likelihood"
        unused = [
            name for name in ("kinetic", "jacobian", "joint", "adjoint") if getattr(self, name) and not likelihood
        ]
        if is_hypersolved(self.solver) and not likelihood:
            unused.append(f"solver={self.solver!r}")
        if unused:
            raise ValueError(
                f"{' and '.join(unused)}: only used by objective='likelihood'; flow matching solves nothing in "
                "training."
            )
        if self.adjoint and not (is_dopri5(self.solver) or is_auto(self.solver)):
            raise ValueError(f"adjoint=True needs solver='dopri5' or 'auto', got solver={self.solver!r}.")

    def _validate_rows(self, X: Any, *, reset: bool) -> np.ndarray:
        X = self._validate_X(X, reset=reset)
        if X.ndim != 2:
            raise ValueError(
                f"X must be 2-dimensional, (n_samples, n_features), got shape {X.shape}; flatten images first."
            )
        return X

    def _solver_rows(self, x: Inputs) -> Any:
        """Return rows of a training as its solver takes them: with noise, where the trace is estimated."""
        own, condition = apart(x)
        noisy = append_noise(own.cpu().numpy(), resolve_trace(self.trace, self.n_features_in_), self._noise_seed)
        return given(noisy, condition)

    def _build(self, x: Tensor, condition: Mapping[str, Tensor]) -> Flow:
        shape: dict[str, Any] = {"hidden": _HIDDEN, "depth": _DEPTH, "t_span": self.t_span}
        if self.vector_field is None and condition:
            field: Any = ConditionedMLPField(x.shape[1], condition, count_labels(self.condition_), **shape)
        elif self.vector_field is None:
            field = MLPVectorField(x.shape[1], **shape)
        else:
            (field,) = trained_copies(self.vector_field)  # a user's module is only read
        # In float64, where the squares of small units do not underflow.
        shift, scale = x.double().mean(dim=0), x.double().std(dim=0, unbiased=False)
        flow = Flow(
            field, n_features=x.shape[1], t_span=self.t_span, scaler=Standardize(shift, scale),
            base_distribution=copy.deepcopy(self.base_distribution),
        ).to(device=x.device, dtype=x.dtype)  # fmt: skip
        if not any(parameter.requires_grad for parameter in flow.parameters()):
            raise ValueError(
                f"vector_field={self.vector_field!r} holds no trainable parameters: there is nothing to fit. Pass an "
                "nn.Module with parameters that require gradients, or None for a field made to the data's width."
            )
        return flow

    def _check(self, flow: Flow, x: Tensor, condition: dict[str, Any]) -> bool:
        """Check the field; return whether flow matching may call it with a time of its own for every row."""
        check_base_distribution(flow)
        check_rows_apart(flow)
        ode = NeuralODE(flow.vector_field, input_map=flow.scaler, t_span=flow.t_span)
        few = given(x, condition)[:_CHECKED_ROWS]
        check_neural_ode(ode, *apart(few[:2]))
        check_divergence(flow, *apart(few))
        row_times = self.objective != "flow_matching" or check_matching(flow, few[:2])
        settle_parts(ode, x, condition, differentiates=self.objective == "likelihood")
        flow.vector_field = ode.vector_field
        check_saveable(ode, stacklevel=6)
        return row_times

    def _settings(self, n_features: int, row_times: bool) -> FlowSettings:
        resolved = {
            "noise": resolve_trace(self.trace, n_features),
            "row_times": row_times,
            "refit": correct_in_training,
            "device": self.device_,
            "n_steps": check_n_steps(self.n_steps),
        }
        return FlowSettings.of(self.get_params(deep=False) | resolved)

    def _check_agreement(self, x: Inputs) -> None:
        rows = self._solver_rows(x)
        ode = self.flow_.density(hutchinson=self.net_.module_.settings.noise is not None)
        trained = float(np.mean(self._in_batches(self.net_.module_.log_prob, rows)))
        exact = float(np.mean(self._in_batches(lambda x: self.flow_.log_prob(dopri5_states(ode, *apart(x))), rows)))
        if not abs(trained - exact) <= _AGREEMENT_NATS:
            warnings.warn(
                f"the held-out log likelihood is {trained:.3f} nats with the training solver {self.solver!r} "
                f"(n_steps={self.n_steps}) and {exact:.3f} with dopri5: raise n_steps, or train with solver='dopri5'.",
                SolverAgreementWarning,
                stacklevel=6,
            )

    # ------------------------------------------------------------------ saving
    def _describe_models(self, writer: Writer) -> dict[str, Any]:
        flow = self._require_fitted("flow_")
        return {"flow": describe_flow(flow, writer)} | self._describe_hypersolver(writer)

    def _read_models(self, described: Mapping[str, Any], reader: EstimatorReader) -> None:
        self.flow_ = read_flow(described["flow"], reader)
        self.neural_ode_ = self.flow_.sampling().eval()
        self._read_hypersolver(described, reader)

    # ------------------------------------------------------------------ inference
    def sample(self, n_samples: int = 1, random_state: Any = None, *, condition: Any = None) -> np.ndarray:
        """Draw samples: draw from the base distribution, and carry the draws to data by dopri5.

        Parameters
        ----------
        n_samples : int, default 1
            Number of samples. With a condition of several entries it is their number, and may be left out.
        random_state : int, RandomState or None
            Seeds the draws of the base distribution.
        condition : optional
            As in :meth:`fit`: one entry a sample or one for all, where the flow is conditional.

        Returns
        -------
        ndarray of shape (n_samples, n_features)
        """
        flow = self._require_fitted("flow_")
        n_samples = count_entries(condition, n_samples)
        return self._forward(draw_base(flow, n_samples, self.dtype_, random_state), condition)

    def _forward(self, Z: np.ndarray, condition: Any) -> np.ndarray:
        ode = self.neural_ode_
        return self._in_batches(
            lambda rows: ode.output_map(dopri5_states(ode, *apart(rows))), with_condition(self, condition, Z)
        )

    def score_samples(self, X: Any, *, condition: Any = None) -> np.ndarray:
        """Return the log density of every sample, in nats.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        condition : optional
            As in :meth:`fit`, one entry a row or one for all, where the flow is conditional.

        Returns
        -------
        ndarray of shape (n_samples,)
            Exact up to the solver's tolerance with the exact trace, and unbiased with Hutchinson's. Its noise is drawn
            from the seed of the fit and the row itself: a row has one density in any batch, and another fit may give
            another. Compare means over many rows, or single rows with ``trace="exact"``.
        """
        self._require_fitted("flow_")
        X = self._validate_rows(X, reset=False)
        kind = resolve_trace(self.trace, X.shape[1])
        ode = self.flow_.density(hutchinson=kind is not None)
        return self._in_batches(
            lambda rows: self.flow_.log_prob(dopri5_states(ode, *apart(rows))),
            with_condition(self, condition, append_noise(X, kind, self._noise_seed)),
        )

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
        """Carry data to the base space: return z(t_0).

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        condition : optional
            As in :meth:`fit`, one entry a row or one for all, where the flow is conditional.

        Returns
        -------
        ndarray of shape (n_samples, n_features)
        """
        flow = self._require_fitted("flow_")
        ode = NeuralODE(
            flow.vector_field, input_map=flow.scaler, t_span=flow.t_span[::-1], state_size=flow.data_size
        )  # fmt: skip
        rows = with_condition(self, condition, self._validate_rows(X, reset=False))
        return self._in_batches(lambda rows: dopri5_states(ode, *apart(rows)), rows)

    def inverse_transform(self, Z: Any, *, condition: Any = None) -> np.ndarray:
        """Carry base states to data; undo :meth:`transform` up to the solver's tolerance.

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
        return self._forward(check_base_states(Z, flow.n_features), condition)


def _check_varies(x: Tensor) -> None:
    exact = x.double()
    constant = torch.nonzero(is_constant(exact.std(dim=0), exact.mean(dim=0).abs(), x.dtype)).ravel().tolist()
    if constant:
        raise ValueError(
            f"X is singular: feature{'s' * (len(constant) > 1)} {', '.join(map(str, constant))} constant, so X has no "
            "density. Drop such columns, with sklearn.feature_selection.VarianceThreshold() for example."
        )


def resolve_trace(trace: str, n_features: int) -> str | None:
    """Return the distribution of Hutchinson's noise, or None for the exact trace."""
    if trace == "auto":
        trace = "exact" if n_features <= _EXACT_UP_TO else "rademacher"
    return None if trace == "exact" else trace


def append_noise(X: np.ndarray, kind: str | None, seed: int) -> np.ndarray:
    """Return X with Hutchinson's noise as further columns, where ``kind`` is not None."""
    return X if kind is None else np.hstack([X, row_noise(kind, X, seed).astype(X.dtype)])


def check_base_states(Z: Any, n_features: int) -> np.ndarray:
    """Check base states and return them as a float array; names of columns do not matter, unlike X's."""
    if isinstance(Z, Tensor):
        Z = Z.detach().cpu().numpy()
    Z = check_array(Z, dtype=(np.float64, np.float32), input_name="Z")
    if Z.shape[1] != n_features:
        raise ValueError(f"Z has {Z.shape[1]} features, but the base distribution's samples have {n_features}.")
    return Z


def draw_base(flow: Flow, n_samples: Any, dtype: torch.dtype, random_state: Any) -> np.ndarray:
    """Draw base samples; refuse an ``n_samples`` that is no positive integer."""
    n_samples = check_n_steps(n_samples, "n_samples")
    if isinstance(random_state, Mapping):
        raise ConditionError(
            f"random_state has the entries {list(random_state)}; pass a condition by its name, condition=."
        )
    return flow.sample_base(n_samples, dtype, own_generator(draw_seed(random_state))).numpy()


def _dtype_of(vector_field: Any) -> torch.dtype | None:
    return None if vector_field is None else NeuralODE(vector_field).dtype
