"""What all our estimators share: the input check, tensors in and arrays out, devices, and persistence."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError
from sklearn.utils._param_validation import Interval
from sklearn.utils.validation import validate_data
from torch import Tensor, nn

from .. import __version__
from ..modules.neural_ode import NeuralODE, VectorFieldError
from ..modules.serialization import DeviceFree, pack, unpack
from ..numerics.reference import reference_solution

_INFERENCE_FACTOR = 8
"""Inference keeps no graph, so it takes this many times ``batch_size`` rows in the memory of training."""


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


class TorchEstimator(BaseEstimator):
    """A BaseEstimator whose fitted state is torch modules."""

    # ------------------------------------------------------------------ data in and out
    def _validate_X(self, X: Any, *, reset: bool) -> np.ndarray:
        """Check X (features or images) and return it as a float array; sets or checks its shape."""
        if isinstance(X, Tensor):
            X = X.detach().cpu().numpy()
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
        # torch.from_numpy warns of read-only memory and refuses negative strides.
        if not array.flags.writeable or any(stride < 0 for stride in array.strides):
            array = array.copy()
        return torch.from_numpy(array).to(device=device, dtype=dtype)

    def _in_batches(self, function: Callable[[Tensor], Tensor], X: np.ndarray) -> np.ndarray:
        """Apply a tensor function to rows of X, a bounded number at a time."""
        limit = _INFERENCE_FACTOR * self.batch_size
        # Not inference_mode: a field may differentiate inside (a Hamiltonian's does), which that forbids.
        with torch.no_grad():
            if len(X) <= limit:
                return function(self._to_tensor(X, self.dtype_, self.device_)).cpu().numpy()
            parts = [X[i : i + limit] for i in range(0, len(X), limit)]
            return np.concatenate([self._in_batches(function, part) for part in parts])

    # ------------------------------------------------------------------ fitting
    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """On any exception, Ctrl-C included, leave the estimator as it was."""
        before = dict(vars(self))
        try:
            yield
        except BaseException:
            vars(self).clear()
            vars(self).update(before)
            raise

    def _require_fitted(self, attribute: str) -> Any:
        # hasattr first: check_is_fitted builds the estimator's tags, which costs more than a small solve.
        if not hasattr(self, attribute):
            raise NotFittedError(
                f"This {type(self).__name__} instance is not fitted yet. Call 'fit' with appropriate arguments before "
                "using this estimator."
            )
        return getattr(self, attribute)

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
            if isinstance(value, nn.Module):
                value.to(device)
        net = vars(self).get("net_")
        if net is not None:
            net.device = self.device_
            net.module_.to(device)
            net.criterion_.to(device)
            # Loading casts the moments to their parameters' device.
            net.optimizer_.load_state_dict(net.optimizer_.state_dict())


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


def dopri5_states(neural_ode: NeuralODE, x: Tensor) -> Tensor:
    """Terminal states by dopri5, at a tolerance so tight that they do not depend on the batch."""
    tolerance = _PREDICT_TOLERANCE.get(x.dtype, 1e-6)
    z0 = neural_ode.input_map(x)
    return reference_solution(
        neural_ode.vector_field, z0, neural_ode.t_span, rtol=tolerance, atol=neural_ode.tolerance(None, tolerance, z0),
        x=neural_ode.control(x),
    )[-1]  # fmt: skip


def check_output_map(neural_ode: NeuralODE, z: Tensor) -> Tensor:
    """Run the output map once on a few states, or say that it fails."""
    with torch.no_grad():
        try:
            return neural_ode.output_map(z)
        except Exception as error:
            raise VectorFieldError(
                f"output_map fails on a state of shape {tuple(z.shape)} (batch first) and dtype {z.dtype}: {error}"
            ) from error


def softmax(logits: np.ndarray) -> np.ndarray:
    """Row-wise softmax, in the dtype of the logits."""
    return torch.softmax(torch.from_numpy(logits), dim=1).numpy()
