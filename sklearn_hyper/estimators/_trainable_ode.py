"""What NeuralODEClassifier and NeuralODERegressor share: building, training and solving."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from sklearn.base import _fit_context
from sklearn.utils._param_validation import Interval
from sklearn.utils.validation import check_consistent_length
from torch import Tensor, nn

from ..hypersolvers.in_training import correct_in_training
from ..modules.closed_list import Writer
from ..modules.copies import check_saveable, trained_copies
from ..modules.described_modules import describe_neural_ode, read_neural_ode
from ..modules.field_probes import check_start, settle_parts
from ..modules.neural_ode import NeuralODE, check_neural_ode, check_precision
from ..modules.seeding import own_generator, seeded
from ..numerics.row_errors import numbered_rows
from ..numerics.times import check_t_span
from ..training.batches import check_lone_rows
from ..training.callback_checks import LOSS_NET_RECORDS, check_monitors
from ..training.given_rows import Inputs, apart, given, named, times_of
from ..training.joint import check_joint
from ..training.nets import draw_seed
from ..training.neural_ode_fitting import TrainingSettings, build_ode_net, train_net
from ..training.solver_control import DOPRI5, check_training_solver, control_of, is_controlled, is_dopri5
from ..training.splits import split_rows
from ._base import (
    TRAINING_CONSTRAINTS,
    SolverAgreementWarning,
    TorchEstimator,
    check_device,
    check_output_map,
    dopri5_states,
    module_dtype,
    store_parameters,
)
from ._conditions import learn_condition, with_condition
from ._default_parts import default_field, default_input_map, default_output_map, no_field
from ._eval_times import check_row_times
from ._learned_conditions import count_labels
from ._observations import check_held_out
from ._saving import EstimatorReader

_AGREEMENT = 0.005
_RECORDED = ("epoch", "train_loss", "valid_loss", "joint_loss", "dur")


class TrainableODE(TorchEstimator):
    """Base of the trainable estimators: a subclass says what targets are, and measures outputs against them."""

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
    def fit(self, X: Any, y: Any, *, condition: Any = None) -> Any:
        """Train the Neural ODE.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, channels, height, width)
            Inputs, cast to the dtype of the modules that are passed. Where none is passed, modules are built in X's
            dtype for features and in float32 for images: float64 convolutions are several times slower and no more
            accurate.
        y : array-like of shape (n_samples,), or (n_samples, n_outputs) for a regressor
            Labels or targets.
        condition : dict, frame, structured array, array-like or number, optional
            What the field takes beside X, ``f(t, z, name=...)``, in the forms of :meth:`HypersolverRegressor.fit`.
            Later calls need it too. A default field embeds strings and integers, which are labels then, and appends
            floats; it has vector states.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If a layer that takes statistics over a batch (BatchNorm) would have to learn from a single row, by
            ``batch_size=1`` or for lack of rows. If a callback monitors what no epoch records. If ``condition`` has
            another length than X or missing values, or there is no default field that takes it.
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
        return self._run_fit(X, y, condition=condition)

    @_fit_context(prefer_skip_nested_validation=True)
    def _partial_fit(self, X: Any, y: Any, **beside: Any) -> Any:
        return self._run_fit(X, y, **beside, partial=True)

    def _run_fit(
        self, X: Any, y: Any, *, condition: Any, classes: Any = None, t_eval: Any = None, partial: bool = False
    ) -> Any:
        with self._fitting() as fitting:
            fitting.interrupted = self._fit(X, y, condition, classes, t_eval, partial)
        return self

    def _fit(self, X: Any, y: Any, condition: Any, classes: Any, t_eval: Any, partial: bool) -> bool:
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
        rows = learn_condition(self, condition, X, reset=not going_on, labels=self.vector_field is None)
        times = None if t_eval is None else check_row_times(t_eval, len(X), check_t_span(self._span(going_on)))
        target = self._encode_y(y, classes, times, reset=not going_on)
        seed = draw_seed(self.random_state)
        train, valid = split_rows(None if partial else self.validation_fraction, len(X), seed)
        if times is not None and valid is not None:
            check_held_out(target[train], target[valid], self.validation_fraction)
        self._check_monitors(valid is not None, partial)
        with seeded(seed, device):
            if not going_on:
                self._build(rows, device)
            rows = self._to_tensor(given(*apart(rows), times), self.dtype_, device)
            t, (x, beside) = self._to_tensor(target, self._target_dtype(), device), apart(rows)
            net = self._net(len(train), None if valid is None else (rows[valid], t[valid]), partial, times is not None)
            self._check_lone_rows(net, rows[train])
            check_start(net.module_.neural_ode.eval(), x, condition=beside)
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

    def _compare_solvers(self, net: Any, x: Inputs, t: Tensor, train: np.ndarray, valid: np.ndarray | None) -> bool:
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

    def _build(self, rows: Any, device: torch.device) -> None:
        """Set dtype and device, make the parts that the user left out, and check the whole on two rows."""
        field, input_map, output_map = trained_copies(self.vector_field, self.input_map, self.output_map)
        given = NeuralODE(no_field if field is None else field, input_map=input_map, output_map=output_map)
        check_precision(given)
        given_dtype = given.dtype
        dtype = module_dtype(torch.float32 if given_dtype is None and rows.ndim > 2 else given_dtype, rows)
        self.dtype_, self.device_ = dtype, str(device)
        given.to(device=device, dtype=dtype)
        rows = self._to_tensor(rows, dtype, device)
        x, beside = apart(rows)

        def made(default: Callable[..., nn.Module], *arguments: Any) -> nn.Module:
            return default(*arguments).to(device=device, dtype=dtype)

        input_map = made(default_input_map, x) if input_map is None else input_map
        # In eval mode, a check moves no running statistics, and BatchNorm takes a single row.
        z = check_neural_ode(NeuralODE(no_field, input_map=input_map).eval(), x[:2])
        field = made(default_field, z, self.t_span, beside, count_labels(self.condition_)) if field is None else field
        output_map = made(default_output_map, z, self._n_outputs()) if output_map is None else output_map
        module = NeuralODE(field, input_map=input_map, output_map=self._scaled(output_map, dtype), t_span=self.t_span)
        module = module.to(device).eval()
        output = check_output_map(module, check_neural_ode(module, *apart(rows[:2])))
        settle_parts(module, x, beside)
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

    def _net(self, n_rows: int, valid: tuple[Inputs, Tensor] | None, partial: bool, timed: bool) -> Any:
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
            n_classes=self._n_classes(),
        )  # fmt: skip
        if goes_on:  # batches with times and without have nets of their own, and one count
            net.module_.solver.n_evaluations = self.net_.module_.solver.n_evaluations
        return net

    def _check_lone_rows(self, net: Any, x: Inputs) -> None:
        if not net.learns_alone_:
            parts = "vector_field, input_map or output_map"
            check_lone_rows(net.module_, lambda module: module(**named(x[:1])), len(x), net.batch_size, parts)
        net.learns_alone_ = net.learns_alone_ or len(x) == 1  # checked once, not in every partial_fit of one row

    def _check_monitors(self, has_valid: bool, partial: bool) -> None:
        recorded = LOSS_NET_RECORDS if has_valid else [name for name in LOSS_NET_RECORDS if name != "valid_loss"]
        remedy = "partial_fit holds no rows out" if partial else f"validation_fraction={self.validation_fraction}"
        check_monitors(self.callbacks, recorded, f"Monitor one of those ({remedy}).")

    def _check_agreement(self, x: Inputs, y: np.ndarray) -> None:
        with torch.no_grad():
            trained = self._measure(self.net_.module_(**named(x)).cpu().numpy(), y)
            exact = self._measure(self._dopri5(x).cpu().numpy(), y)
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
    def _dopri5(self, rows: Inputs) -> Tensor:
        times = times_of(rows)
        states = dopri5_states(self.neural_ode_, *apart(rows), times=times)
        return self.neural_ode_.outputs(states, None if times is None else ~times.isnan())

    def _output(self, X: Any, condition: Any, t_eval: Any = None) -> np.ndarray:
        self._require_fitted("neural_ode_")
        rows = with_condition(self, condition, self._validate_X(X, reset=False))
        times = None if t_eval is None else check_row_times(t_eval, len(rows), self.neural_ode_.t_span)
        return self._in_batches(self._dopri5, given(*apart(rows), times))
