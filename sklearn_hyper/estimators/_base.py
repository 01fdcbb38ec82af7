"""What all our estimators share: the input check, tensors in and arrays out, devices, and persistence."""

from __future__ import annotations

import copy
import os
import pickle
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, clone
from sklearn.exceptions import NotFittedError
from sklearn.utils._param_validation import Interval
from sklearn.utils.validation import validate_data
from torch import Tensor, nn

from .. import __version__
from ..calibration import Calibration
from ..hypersolvers.described import describe_fitted, read_fitted
from ..hypersolvers.fitted import FittedHypersolver
from ..modules.closed_list import Writer
from ..modules.neural_ode import NeuralODE, VectorFieldError, call_part
from ..modules.serialization import DeviceFree, copy_user_code, pack, unpack
from ..numerics.adaptive_solve import StepLimitError
from ..numerics.reference import ReferenceSolveError
from ..numerics.row_errors import UndefinedOutputError
from ..training.given_rows import GivenRows, Inputs, apart, given, times_of
from ..training.nets import move_net
from ..training.references import FAILED_ROWS, lost_rows, solve_rows
from ..training.refit_control import RefitControl
from ..training.solver_control import CERTIFIED_GAP, control_of, measure_agreement
from ._fit_html import add_fit
from ._learned_conditions import draw_conditions
from ._saving import EstimatorReader, save_estimator

_COMPARED_ROWS = 16
"""Rows in a model file, whose states are compared when it is loaded, and on which an export is compared."""
_INFERENCE_FACTOR = 8
"""Inference keeps no graph, so that this many times ``batch_size`` rows fit in the memory of training."""


def outside_inference_mode() -> AbstractContextManager[Any]:
    """Return a context that leaves ``torch.inference_mode``, in which a field could not differentiate."""
    return torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext()


_PREDICT_TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-8}


TRAINING_CONSTRAINTS: dict = {
    "rtol": [Interval(Real, 0, None, closed="neither")],
    "atol": [None, Interval(Real, 0, None, closed="neither")],
    "max_epochs": [Interval(Integral, 1, None, closed="left")],
    "lr": [Interval(Real, 0, None, closed="neither")],
    "batch_size": [Interval(Integral, 1, None, closed="left")],
    "n_steps": [Interval(Integral, 1, None, closed="left")],
    "optimizer": [type],
    "callbacks": [None, list, tuple],
    "warm_start": ["boolean"],
    "device": [None, str, torch.device],
    "random_state": ["random_state"],
    "verbose": ["verbose"],
}
"""Constraints of the parameters that all estimators share; each adds its own."""


class VersionMismatchWarning(UserWarning):
    """An estimator was saved by another version of sklearn_hyper."""


class SolverAgreementWarning(UserWarning):
    """A Neural ODE trained with a fixed-step solver predicts something else under dopri5."""


class UnsolvedRowsWarning(RuntimeWarning):
    """Dopri5 could not solve the Neural ODE from some rows, whose results are nan."""


class Fitting:
    """What a fit reports when it ends."""

    interrupted = False
    """Whether Ctrl-C ended it early, with a result worth keeping."""


class TorchEstimator(BaseEstimator):
    """A BaseEstimator whose fitted state is torch modules."""

    _model_parameters: tuple[str, ...] = ()
    """Names of parameters that hold fitted models. They are cloned by reference and never changed from here."""

    # ------------------------------------------------------------------ data in and out
    def _validate_X(self, X: Any, *, reset: bool) -> np.ndarray:
        """Check X (features or images) and return it as a float array; with ``reset`` remember its shape."""
        if isinstance(X, Tensor):
            X = _as_array(X)
        shape = X.shape if hasattr(X, "shape") else np.asarray(X).shape
        images = len(shape) > 2
        X = validate_data(
            self, X, reset=reset, dtype=(np.float64, np.float32), ensure_2d=not images, allow_nd=images
        )  # fmt: skip
        shape = X.shape[1:]
        if reset:
            self._input_shape = shape
            self.n_features_in_ = shape[0]
        elif shape != self._input_shape:
            raise ValueError(
                f"X has samples of shape {shape}, but {type(self).__name__} was fitted on samples of shape "
                f"{self._input_shape}. X has {shape[0]} features, but {type(self).__name__} is expecting "
                f"{self._input_shape[0]} features as input."
            )
        return X

    @staticmethod
    def _to_tensor(array: Any, dtype: torch.dtype, device: torch.device | str) -> Any:
        if isinstance(array, GivenRows):
            return array.to(device, dtype)
        # Copied, because a map may change its input in place. torch.from_numpy also warns of read-only memory and
        # refuses negative strides.
        return torch.from_numpy(array.copy()).to(device=device, dtype=dtype)

    def _drawn_rows(self, shape: tuple[int, ...], n_rows: int = _COMPARED_ROWS) -> Any:
        """Return random rows of a shape, with entries of the condition that the fit has learned, on the CPU."""
        rows = np.random.default_rng(0).normal(size=(n_rows, *shape))
        condition = draw_conditions(vars(self).get("condition_") or {}, n_rows)
        return self._to_tensor(given(rows, condition), self.dtype_, "cpu")

    def _in_batches(
        self, function: Callable[..., Tensor], X: np.ndarray, times: np.ndarray | None = None
    ) -> np.ndarray:
        """Apply a tensor function to rows of X, a bounded number at a time, and to times, where there are some.

        Times for all rows, of one axis, go with every batch; times of the rows are split as the rows are.
        """
        limit = _INFERENCE_FACTOR * self.batch_size
        # A field may differentiate inside, as a Hamiltonian's does; inference mode forbids that.
        if torch.is_inference_mode_enabled():
            with outside_inference_mode():
                return self._in_batches(function, X, times)
        with torch.no_grad():
            if len(X) <= limit:
                x = self._to_tensor(X, self.dtype_, self.device_)
                given = () if times is None else (self._to_tensor(times, torch.float64, self.device_),)
                return function(x, *given).cpu().numpy()
            result = np.empty(0)
            lost, failed, kind = [], "", ReferenceSolveError
            for i in range(0, len(X), limit):
                own = times[i : i + limit] if times is not None and times.ndim > 1 else times
                try:
                    part = self._in_batches(function, X[i : i + limit], own)
                    if not len(result):  # all parts beside their concatenation would take twice the memory
                        result = np.empty((len(X), *part.shape[1:]), part.dtype)
                    result[i : i + limit] = part
                except (ReferenceSolveError, StepLimitError) as error:
                    lost, failed, kind = [*lost, *(i + row for row in error.rows)], error.what, type(error)
                    if len(lost) == i + error.n_rows >= FAILED_ROWS:  # the field is at fault: do not try the other rows
                        lost = list(range(len(X)))
                        break
            if failed:
                raise kind.of(failed, lost, len(X))
            return result

    # ------------------------------------------------------------------ fitting
    @contextmanager
    def _fitting(self) -> Iterator[Fitting]:
        """Restore the estimator on any exception, Ctrl-C included; switch gradients on inside.

        If the fit reports that Ctrl-C ended it with a result worth keeping, that state stays, and KeyboardInterrupt is
        raised at the end.
        """
        before, fitting = dict(vars(self)), Fitting()
        try:
            with torch.inference_mode(False), torch.enable_grad():
                yield fitting
        except BaseException:
            vars(self).clear()
            vars(self).update(before)
            raise
        if fitting.interrupted:
            raise KeyboardInterrupt

    def _require_fitted(self, attribute: str) -> Any:
        # Not check_is_fitted, which builds the estimator's tags: that costs more than a small solve.
        if not hasattr(self, attribute):
            raise NotFittedError(
                f"This {type(self).__name__} instance is not fitted yet. Call 'fit' with appropriate arguments before "
                "using this estimator."
            )
        return getattr(self, attribute)

    # ------------------------------------------------------------------ solvers of a training
    def _keep_solver_records(self, net: Any) -> None:
        """Take over which solvers a training used, and at what cost, instead of what the last fit left."""
        for name in ("solver_history_", "agreement_", "n_evaluations_", "hypersolver_"):
            vars(self).pop(name, None)
        solver, control = getattr(net.module_, "solver", None), control_of(net)
        if solver is not None:  # flow matching solves nothing
            self.n_evaluations_ = solver.n_evaluations
        if control is not None:
            self.solver_history_, self.agreement_ = control.history_, None
        if isinstance(control, RefitControl):
            self.hypersolver_ = control.fitted_

    def _certify(self, module: nn.Module, x: Inputs, y: Tensor | None, held_out: bool, stacklevel: int) -> None:
        """Compare the last solver of a training with dopri5 as ``predict`` runs it; warn where they disagree."""
        exact = dopri5_states(module.solver.ode, *apart(x), times=times_of(x))
        self.agreement_ = measure_agreement(module, x, y, exact, held_out)
        if not self.agreement_.certified:
            last = self.solver_history_[-1]
            how = f"solver={last['solver']!r}" + (f", n_steps={last['n_steps']}" if last["n_steps"] else "")
            warnings.warn(
                f"the loss is {self.agreement_.gap:.2g} away from dopri5's with the solver that training ended with "
                f"({how}, rtol={self.rtol:g}), and {CERTIFIED_GAP:g} are allowed: this fit is not certified. Lower "
                "rtol, or raise max_epochs; with EarlyStopping, which may end a training before dopri5 takes over, "
                "give it more patience.",
                SolverAgreementWarning,
                stacklevel=stacklevel,
            )

    # ------------------------------------------------------------------ parameters and copies
    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the parameters of this estimator, without those inside a fitted model that it was given.

        Parameters
        ----------
        deep : bool, default True
            Include the parameters of a correction spec, such as ``correction__hidden``.

        Returns
        -------
        dict
        """
        params = super().get_params(deep=False)
        if not deep:
            return params
        nested = {
            f"{name}__{key}": inner
            for name, value in params.items()
            if name not in self._model_parameters and hasattr(value, "get_params") and not isinstance(value, type)
            for key, inner in value.get_params().items()
        }
        return params | nested

    def set_params(self, **params: Any) -> Any:
        """Set parameters; refuse those of a fitted model (``neural_ode__*``), which a change would unfit.

        Parameters
        ----------
        **params : dict

        Returns
        -------
        self
        """
        nested = [name for name in params if name.startswith("neural_ode__")]
        if nested and "neural_ode" in self._model_parameters:
            raise ValueError(
                f"{', '.join(nested)}: the fitted neural_ode cannot be changed through the hypersolver. Fit another "
                "Neural ODE and search over neural_ode=[FrozenEstimator(...), ...]."
            )
        inner = [name for name in params if name.startswith("correction__")]
        if inner and isinstance(params.get("correction", vars(self).get("correction")), str):
            raise ValueError(
                f"{', '.join(inner)}: correction='auto' has no parameters; pass correction=MLPCorrection() or "
                "ConvCorrection(), whose parameters can be set and searched."
            )
        return super().set_params(**params)

    def __sklearn_clone__(self) -> Any:
        params = self.get_params(deep=False)
        copied = type(self)(**{name: self._clone_parameter(name, value) for name, value in params.items()})
        for name in ("_metadata_request", "_sklearn_output_config", "_skl_callbacks"):
            if name in vars(self):
                setattr(copied, name, copy.deepcopy(vars(self)[name]))
        return copied

    def _clone_parameter(self, name: str, value: Any) -> Any:
        """Copy a parameter for clone.

        Fitted models are shared instead: sklearn's clone would unfit them, and deep copies would multiply their memory.
        Code of the user is copied our way, because sklearn's clone refuses modules that hold an activation of their
        last training step.
        """
        if name in self._model_parameters:
            return value
        is_code = callable(value) and not isinstance(value, type) and not hasattr(value, "get_params")
        return copy_user_code(value, name) if is_code else clone(value, safe=False)

    def __copy__(self) -> Any:
        # Shallow. Without this method, copy.copy would go through __getstate__, which pickles everything.
        copied = type(self).__new__(type(self))
        vars(copied).update(vars(self))
        return copied

    # ------------------------------------------------------------------ in notebooks
    def _repr_html_inner(self) -> str:
        return add_fit(super()._repr_html_inner(), self)

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, str]:
        # What notebooks ask for first; scikit-learn makes it without _repr_html_.
        shown = super()._repr_mimebundle_(**kwargs)
        if "text/html" in shown:
            shown["text/html"] = add_fit(shown["text/html"], self)
        return shown

    # ------------------------------------------------------------------ persistence
    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the fitted estimator as numbers and a description, which ``sklearn_hyper.load`` reads.

        Unlike a pickle, the file runs nothing when it is loaded. It is a safetensors file. Modules of your own are
        supplied again when loading. The calibration, ``net_``, ``memory`` and metadata requests are not in the file.

        Parameters
        ----------
        path : str or path
            The file to write. An older file is replaced only when the new one is complete.

        Returns
        -------
        Path
            Where the file is.

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        ModelFileError
            If something cannot be described: callbacks, a generator as ``random_state``, a skorch net as
            ``neural_ode``, or an estimator of a class of your own.
        ValueError
            If the path's folder does not exist.
        OSError
            If the file cannot be written. What was there stays.

        Warns
        -----
        PersistenceWarning
            If there is a calibration, which is not part of the file.
        """
        return save_estimator(self, path)

    def _describe_models(self, writer: Writer) -> dict[str, Any]:
        """Describe the fitted models for a model file."""
        raise NotImplementedError

    def _read_models(self, described: Mapping[str, Any], reader: EstimatorReader) -> None:
        """Take the fitted models from a model file."""
        raise NotImplementedError

    def _describe_hypersolver(self, writer: Writer) -> dict[str, Any]:
        """Describe the hypersolver that a training left behind, where there is one."""
        fitted = vars(self).get("hypersolver_")
        if fitted is None:
            return {}
        shape = self._input_shape
        if fitted.neural_ode.n_unitless and fitted.neural_ode.data_controlled:
            shape = (2 * shape[0],)  # a density's rows with Hutchinson's noise beside them
        return {"hypersolver": describe_fitted(fitted, writer, *apart(self._drawn_rows(shape)))}

    def _read_hypersolver(self, described: Mapping[str, Any], reader: EstimatorReader) -> None:
        if "hypersolver" in described:
            self.hypersolver_ = read_fitted(described["hypersolver"], reader)

    def __getstate__(self) -> dict[str, Any]:
        try:
            packed = pack(super().__getstate__())
        except Exception as error:
            raise pickle.PicklingError(
                f"{type(self).__name__} cannot be pickled: {error}. Lambdas and classes of a notebook are fine; open "
                "files, locks and generators held by a vector field, a map or a callback are not: drop them, or define "
                "__getstate__ on the class that holds them."
            ) from error
        return {"sklearn_hyper_version": __version__, "packed": packed}

    __deepcopy__ = DeviceFree.__deepcopy__

    def __setstate__(self, state: dict[str, Any]) -> None:
        version = state.get("sklearn_hyper_version")
        if version != __version__:
            warnings.warn(
                f"{type(self).__name__} was saved by sklearn_hyper {version} and is loaded by {__version__}; it may "
                "behave differently. Refit it, or install the version that saved it.",
                VersionMismatchWarning,
                stacklevel=2,
            )
        super().__setstate__(unpack(state["packed"]))
        if hasattr(self, "device_"):
            self._restore_device()

    def _restore_device(self) -> None:
        """Move loaded tensors from the CPU to the device of the fit; warn if that device is missing."""
        try:
            device = check_device(self.device)
        except ValueError as error:
            warnings.warn(f"{error} The fitted estimator was loaded on the CPU instead.", UserWarning, stacklevel=3)
            device = torch.device("cpu")
        self.device_ = str(device)
        for name, value in list(vars(self).items()):
            if isinstance(value, FittedHypersolver):
                if value.device != device or value.settings.device != str(device):
                    setattr(self, name, value.to(device))
            elif isinstance(value, nn.Module):
                value.to(device)
            elif isinstance(value, Calibration) and device.type != "cpu":
                setattr(self, name, value.to(device))
        net = vars(self).get("net_")
        if net is not None:
            move_net(net, device)


def _as_array(tensor: Tensor) -> np.ndarray:
    """Return a tensor's values as an array. Half precision becomes float32: NumPy lacks bfloat16."""
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.is_floating_point() and tensor.element_size() < 4 else tensor).numpy()


def check_device(device: Any) -> torch.device:
    """Return the torch device, or raise a ValueError that lists those available."""
    try:
        resolved = torch.device("cpu" if device is None else device)
        torch.zeros(1, device=resolved).item()
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        available = ["cpu"] + ["cuda"] * torch.cuda.is_available() + ["mps"] * torch.backends.mps.is_available()
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"device={device!r} is not available here ({reason}); use one of {', '.join(available)}."
        ) from error
    return resolved


def module_dtype(dtype: torch.dtype | None, X: np.ndarray) -> torch.dtype:
    """Return the dtype to compute in: the module's, or X's where the module has no tensors."""
    if dtype is not None:
        return dtype
    return torch.float32 if X.dtype == np.float32 else torch.float64


def store_parameters(estimator: Any, parameters: dict[str, Any]) -> None:
    """Store the parameters that ``__init__`` was given, as its ``locals()``, unchanged as scikit-learn demands."""
    vars(estimator).update({name: value for name, value in parameters.items() if name not in ("self", "__class__")})


def dopri5_states(
    neural_ode: NeuralODE, x: Tensor, condition: Mapping[str, Any] | None = None, *, times: Tensor | None = None
) -> Tensor:
    """Return dopri5's terminal states, at a tolerance so tight that they do not depend on the batch.

    With ``times`` of shape (batch, n_times), padded with nan: the states (batch, n_times, ...) at these times.
    """
    tolerance = _PREDICT_TOLERANCE.get(x.dtype, 1e-6)
    asked = neural_ode.t_span if times is None else times
    states, failed = solve_rows(neural_ode, x, asked, tolerance, None, condition)
    if failed:
        raise ReferenceSolveError.of(failed, lost_rows(states), len(x))
    return states[-1] if times is None else states.movedim(0, 1)


def check_output_map(neural_ode: NeuralODE, z: Tensor) -> Tensor:
    """Return the output map of a few states, or raise an error that says what is wrong with it."""
    with torch.no_grad():
        output = call_part(neural_ode, "output_map", z)
    if not isinstance(output, Tensor) or output.ndim < 1 or len(output) != len(z) or not output.is_floating_point():
        got = f"shape {tuple(output.shape)}, {output.dtype}" if isinstance(output, Tensor) else type(output).__name__
        raise VectorFieldError(
            f"output_map must return a floating-point tensor of shape (batch, ...), got {got} for states of shape "
            f"{tuple(z.shape)}. Return one tensor with a row for every sample (torch.cat of several, dim=1)."
        )
    if output.element_size() < 4:
        raise VectorFieldError(
            f"output_map returns {output.dtype} for states of {z.dtype}, which rounds every output to two or three "
            "digits. Return float32 or float64: no autocast, no .bfloat16() or .half() inside."
        )
    return output


def label_indices(logits: np.ndarray) -> np.ndarray:
    """Return the index of the largest logit by row; -1 where probabilities are nan, whose argmax would be 0."""
    indices = logits.argmax(axis=1)
    if not np.isfinite(logits).all():
        indices[np.isnan(softmax(logits)).any(axis=1)] = -1
    return indices


def refuse_no_labels(indices: np.ndarray, whose: str = "predict_proba gives nan") -> np.ndarray:
    """Return the indices, or raise an error that names the rows without a label."""
    if (indices < 0).any():
        raise UndefinedOutputError.of(
            f"there is no label, since {whose}", (indices < 0).nonzero()[0].tolist(), len(indices)
        )
    return indices


def softmax(logits: np.ndarray) -> np.ndarray:
    """Compute the softmax of every row, in the dtype of the logits."""
    return torch.softmax(torch.from_numpy(logits), dim=1).numpy()
