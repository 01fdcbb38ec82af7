"""What all our estimators share: the input check, tensors in and arrays out, devices, and persistence."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, clone
from sklearn.exceptions import NotFittedError
from sklearn.utils._param_validation import Interval
from sklearn.utils.validation import validate_data
from torch import Tensor, nn

from .. import __version__
from ..hypersolvers.fitted import FittedHypersolver
from ..modules.neural_ode import NeuralODE, VectorFieldError, call_part
from ..modules.serialization import DeviceFree, copy_user_code, pack, unpack
from ..numerics.reference import ReferenceSolveError
from ..numerics.row_errors import UndefinedOutputError
from ..training.nets import move_net
from ..training.references import FAILED_ROWS, lost_rows, solve_rows

_INFERENCE_FACTOR = 8
"""Inference keeps no graph, so it takes this many times ``batch_size`` rows in the memory of training."""


def outside_inference_mode() -> AbstractContextManager[Any]:
    """Where the caller is in ``torch.inference_mode``, which forbids a field to differentiate: leave it for a while."""
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
"""What every estimator that trains may be given; the others' constraints add to these."""


class VersionMismatchWarning(UserWarning):
    """An estimator was saved by another version of sklearn_hyper."""


class SolverAgreementWarning(UserWarning):
    """A Neural ODE trained with a fixed-step solver is another model under dopri5."""


class UnsolvedRowsWarning(RuntimeWarning):
    """Dopri5 could not solve the Neural ODE from some rows, whose results are nan."""


class Fitting:
    """What a fit tells at its end."""

    interrupted = False
    """Whether Ctrl-C ended it early, with something to keep."""


class TorchEstimator(BaseEstimator):
    """A BaseEstimator whose fitted state is torch modules."""

    _model_parameters: tuple[str, ...] = ()
    """Parameters that hold fitted models: cloned by reference, and not to be changed through this estimator."""

    # ------------------------------------------------------------------ data in and out
    def _validate_X(self, X: Any, *, reset: bool) -> np.ndarray:
        """Check X (features or images) and return it as a float array; sets or checks its shape."""
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
    def _to_tensor(array: np.ndarray, dtype: torch.dtype, device: torch.device | str) -> Tensor:
        # A copy, since a map may work in place on what it is given. (torch.from_numpy also warns of read-only memory
        # and refuses negative strides.)
        return torch.from_numpy(array.copy()).to(device=device, dtype=dtype)

    def _in_batches(self, function: Callable[[Tensor], Tensor], X: np.ndarray) -> np.ndarray:
        """Apply a tensor function to rows of X, a bounded number at a time."""
        limit = _INFERENCE_FACTOR * self.batch_size
        if (
            torch.is_inference_mode_enabled()
        ):  # a field may differentiate inside (a Hamiltonian's does), which that forbids
            with outside_inference_mode():
                return self._in_batches(function, X)
        with torch.no_grad():
            if len(X) <= limit:
                return function(self._to_tensor(X, self.dtype_, self.device_)).cpu().numpy()
            parts: list[np.ndarray] = []
            lost, failed = [], ""
            for i in range(0, len(X), limit):
                try:
                    parts.append(self._in_batches(function, X[i : i + limit]))
                except ReferenceSolveError as error:
                    lost, failed = [*lost, *(i + row for row in error.rows)], error.what
                    if len(lost) == i + error.n_rows >= FAILED_ROWS:  # the field's fault: do not try the others
                        lost = list(range(len(X)))
                        break
            if failed:
                raise ReferenceSolveError.of(failed, lost, len(X))
            return np.concatenate(parts)

    # ------------------------------------------------------------------ fitting
    @contextmanager
    def _fitting(self) -> Iterator[Fitting]:
        """On any exception, Ctrl-C included, leave the estimator as it was. Gradients are on, whatever they are outside.

        A Ctrl-C that leaves something to keep, as the fit says, is passed on once the state is right.
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
        # hasattr first: check_is_fitted builds the estimator's tags, which costs more than a small solve.
        if not hasattr(self, attribute):
            raise NotFittedError(
                f"This {type(self).__name__} instance is not fitted yet. Call 'fit' with appropriate arguments before "
                "using this estimator."
            )
        return getattr(self, attribute)

    # ------------------------------------------------------------------ parameters and copies
    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Parameters of this estimator; those *inside* a fitted model that it is given are not its to set.

        Parameters
        ----------
        deep : bool, default True
            Also the parameters of a correction spec, as ``correction__hidden``.

        Returns
        -------
        dict
        """
        own = super().get_params(deep=False)
        if not deep:
            return own
        nested = {
            f"{name}__{key}": inner
            for name, value in own.items()
            if name not in self._model_parameters and hasattr(value, "get_params") and not isinstance(value, type)
            for key, inner in value.get_params().items()
        }
        return own | nested

    def set_params(self, **params: Any) -> Any:
        """Set parameters; those of a fitted model (``neural_ode__*``) are refused, since changing it would unfit it.

        Parameters
        ----------
        **params : dict

        Returns
        -------
        self
        """
        for model in self._model_parameters:
            nested = [name for name in params if name.startswith(f"{model}__")]
            if nested:
                raise ValueError(
                    f"{', '.join(nested)}: the fitted {model} cannot be changed through the hypersolver. Fit another "
                    f"Neural ODE and search over {model}=[FrozenEstimator(...), ...]."
                )
        inner = [name for name in params if name.startswith("correction__")]
        if inner and isinstance(params.get("correction", vars(self).get("correction")), str):
            raise ValueError(
                f"{', '.join(inner)}: correction='auto' has no parameters; pass correction=MLPCorrection() or "
                "ConvCorrection(), "
                "whose parameters can be set and searched."
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
        """A copy; sklearn's own refuses modules that hold an activation of their last training step.

        A fitted model stays the *same*: sklearn's clone would unfit it, a deep copy would multiply it.
        """
        if name in self._model_parameters:
            return value
        is_code = callable(value) and not isinstance(value, type) and not hasattr(value, "get_params")
        return copy_user_code(value, name) if is_code else clone(value, safe=False)

    def __copy__(self) -> Any:
        # Shallow, without the trip through pickle that BaseEstimator's state would take.
        copied = type(self).__new__(type(self))
        vars(copied).update(vars(self))
        return copied

    # ------------------------------------------------------------------ persistence
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
        """Tensors were loaded on the CPU: move to the device of the fit, or say that it is missing."""
        try:
            device = check_device(self.device)
        except ValueError as error:
            warnings.warn(f"{error} The fitted estimator was loaded on the CPU instead.", UserWarning, stacklevel=3)
            device = torch.device("cpu")
        self.device_ = str(device)
        for value in vars(self).values():
            if isinstance(value, FittedHypersolver):
                value.move(device)
            elif isinstance(value, nn.Module):
                value.to(device)
        net = vars(self).get("net_")
        if net is not None:
            move_net(net, device)


def _as_array(tensor: Tensor) -> np.ndarray:
    """A tensor's values; NumPy lacks bfloat16, and no solver computes in half precision."""
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.is_floating_point() and tensor.element_size() < 4 else tensor).numpy()


def check_device(device: Any) -> torch.device:
    """Return a torch device that is there, or a ValueError that says which are."""
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
    """The dtype to compute in: the module's, or X's where the module has no tensors."""
    if dtype is not None:
        return dtype
    return torch.float32 if X.dtype == np.float32 else torch.float64


def store_parameters(estimator: Any, parameters: dict[str, Any]) -> None:
    """Store what ``__init__`` was given, ``locals()``, unchanged: all that scikit-learn lets it do."""
    vars(estimator).update({name: value for name, value in parameters.items() if name not in ("self", "__class__")})


def dopri5_states(neural_ode: NeuralODE, x: Tensor) -> Tensor:
    """Terminal states by dopri5, at a tolerance so tight that they do not depend on the batch."""
    tolerance = _PREDICT_TOLERANCE.get(x.dtype, 1e-6)
    states, failed = solve_rows(neural_ode, x, neural_ode.t_span, tolerance, None)
    if failed:
        raise ReferenceSolveError.of(failed, lost_rows(states), len(x))
    return states[-1]


def check_output_map(neural_ode: NeuralODE, z: Tensor) -> Tensor:
    """Run the output map once on a few states, or say what is wrong with it."""
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
            "digits. Return "
            "float32 or float64: no autocast, no .bfloat16() or .half() inside."
        )
    return output


def label_indices(logits: np.ndarray) -> np.ndarray:
    """Index of the largest logit by row; -1 where the probabilities are nan, whose argmax would be the first class."""
    indices = logits.argmax(axis=1)
    if not np.isfinite(logits).all():
        indices[np.isnan(softmax(logits)).any(axis=1)] = -1
    return indices


def refuse_no_labels(indices: np.ndarray, whose: str = "predict_proba gives nan") -> np.ndarray:
    """The indices, or an error that names the rows without a label."""
    if (indices < 0).any():
        raise UndefinedOutputError.of(
            f"there is no label, since {whose}", (indices < 0).nonzero()[0].tolist(), len(indices)
        )
    return indices


def softmax(logits: np.ndarray) -> np.ndarray:
    """Row-wise softmax, in the dtype of the logits."""
    return torch.softmax(torch.from_numpy(logits), dim=1).numpy()
