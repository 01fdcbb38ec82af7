"""Estimators in model files: parameters, and what fit has learned, as a description of closed lists."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.utils import Bunch

from ..hypersolvers.described import TYPES, check_jobs
from ..modules.closed_list import TEMPLATES, Reader, Writer, is_of
from ..modules.copies import PersistenceWarning
from ..modules.described_modules import describe_module, describe_state, read_module, read_state
from ..modules.model_file import ModelFileError, TensorReader, write_model
from ._learned_conditions import DESCRIBED, check_writable, read_conditions

_PARTS = ("vector_field", "input_map", "output_map")
_NOT_WRITTEN = ("memory", "neural_ode")
"""A cache is unpickled, so its place is not taken from a file. The Neural ODE is described with the fit."""
_CONTRACT: dict[str, Any] = {
    "n_features_in_": int,
    "feature_names_in_": np.ndarray,
    "_input_shape": tuple[int, ...],
}
_LEARNED: dict[str, Any] = {
    **_CONTRACT,
    "dtype_": torch.dtype,
    "device_": str,
    "classes_": np.ndarray,
    "history_": list[dict[str, Any]],
    "solver_history_": list[dict[str, Any]],
    "agreement_": dict[str, Any] | None,
    "n_evaluations_": int,
    "_squeeze_output": bool,
    "_n_features_out": int,
    "_y_shift": np.ndarray,
    "_y_scale": np.ndarray,
    "_noise": str | None,
    "_noise_seed": int,
    "_sklearn_output_config": dict[str, str],
    "condition_": DESCRIBED,
}
"""Attributes that hold numbers and text, and their types. An estimator has some of them."""


class EstimatorReader(Reader):
    """A reader that also knows which estimators a file may name, and the steps before a Neural ODE."""

    def __init__(
        self, tensors: TensorReader, templates: Mapping[str, Any], kinds: Mapping[str, type], preprocess: Any
    ) -> None:
        super().__init__(tensors, templates, TYPES)
        self.kinds, self.preprocess, self.preprocesses = kinds, preprocess, False


def save_estimator(estimator: Any, path: str | os.PathLike[str]) -> Path:
    """Write a fitted estimator to a model file; see :meth:`HypersolverRegressor.save`."""
    if vars(estimator).get("calibration_") is not None:
        warnings.warn(
            "the calibration is not part of a model file: call conformalize again after load, or use pickle.",
            PersistenceWarning,
            stacklevel=3,
        )
    writer = Writer(types=TYPES)
    model = describe_estimator(estimator, writer)
    return write_model(path, model, writer.tensors)


def describe_estimator(estimator: Any, writer: Writer) -> dict[str, Any]:
    """Describe a fitted estimator of this library with its tensors."""
    kind = type(estimator)
    if kind is not _listed_kind(kind):
        raise ModelFileError(
            f"{kind.__name__} is a class of your own, which a model file cannot name: it takes those of sklearn_hyper. "
            "Use pickle."
        )
    models = estimator._describe_models(writer)  # first, for it refuses what is not fitted
    check_writable(vars(estimator).get("condition_", {}))
    learned = {name: writer.describe(vars(estimator)[name], name) for name in _LEARNED if name in vars(estimator)}
    described = {
        "estimator": kind.__name__,
        "params": {name: _describe_parameter(name, value, writer) for name, value in _parameters(estimator).items()},
        "learned": learned,
        "models": models,
    }
    if "preprocess_" in vars(estimator):
        described["contract"] = _describe_contract(estimator._contract, writer)
        described["preprocesses"] = estimator.preprocess_ is not None
    return described


def read_estimator(described: Mapping[str, Any], reader: EstimatorReader) -> Any:
    """Return an estimator from its description, on the device of its fit."""
    kind = reader.kinds[described["estimator"]]
    names = set(kind._get_param_names()) - set(_NOT_WRITTEN)
    if set(described["params"]) != names:
        raise ModelFileError(
            f"its description of a {kind.__name__} has other parameters: {sorted(described['params'])}"
        )
    params = {name: _read_parameter(name, value, reader) for name, value in described["params"].items()}
    if "neural_ode" in kind._get_param_names():
        params["neural_ode"] = None
    estimator = kind(**params)
    estimator._validate_params()
    for name, value in described["learned"].items():
        setattr(estimator, name, reader.read(value, _LEARNED[name], name))
    estimator.condition_ = read_conditions(vars(estimator).get("condition_", {}))
    if vars(estimator).get("agreement_") is not None:
        estimator.agreement_ = Bunch(**estimator.agreement_)
    if "contract" in described:
        estimator._contract = _read_contract(described["contract"], reader)
        estimator.preprocess_ = _supplied_steps(described["preprocesses"], reader)
    estimator._read_models(described["models"], reader)
    estimator._restore_device()
    return estimator


def _listed_kind(kind: type) -> type | None:
    """Return the class itself, or its nearest parent, that is an estimator of this library."""
    here = __name__.rpartition(".")[0]
    return next((one for one in kind.__mro__ if one.__module__.rpartition(".")[0] == here), None)


# ---------------------------------------------------------------------- parameters
def _parameters(estimator: Any) -> dict[str, Any]:
    return {name: value for name, value in estimator.get_params(deep=False).items() if name not in _NOT_WRITTEN}


def _describe_parameter(name: str, value: Any, writer: Writer) -> Any:
    if name == "callbacks" and value:
        raise ModelFileError(
            f"callbacks={value!r:.200} is code, which a model file does not hold. Call set_params(callbacks=None) "
            "before save; what has been fitted stays. Or use pickle."
        )
    if name in _PARTS and value is not None:
        described = describe_module(value, name, writer)
        if "template" not in described:
            described["state"] = describe_state(value, name, writer)
        return described
    return writer.describe(value, name, name if name in TEMPLATES else None)


def _read_parameter(name: str, described: Any, reader: Reader) -> Any:
    if name in _PARTS and described is not None:
        module = read_module(described, name, reader)
        if "template" not in described:
            read_state(module, described["state"], name, reader)
        return module
    value = reader.read(described, Any, name)
    if name == "n_jobs":
        check_jobs(value)
    return value


# ---------------------------------------------------------------------- what X has to be
def _describe_contract(contract: Any, writer: Writer) -> Any:
    if contract is None:
        return None
    kind = _listed_kind(type(contract))
    assert kind is not None
    learned = {name: writer.describe(vars(contract)[name], name) for name in _CONTRACT if name in vars(contract)}
    return {"estimator": kind.__name__, "learned": learned}


def _read_contract(described: Any, reader: EstimatorReader) -> Any:
    if described is None:
        return None
    kind = reader.kinds[described["estimator"]]
    contract = kind.__new__(kind)
    vars(contract).update(dict.fromkeys(kind._get_param_names()))
    for name, value in described["learned"].items():
        setattr(contract, name, reader.read(value, _CONTRACT[name], name))
    return contract


def _supplied_steps(needed: Any, reader: EstimatorReader) -> Any:
    if not is_of(needed, bool):
        raise ModelFileError("its description does not say whether there are steps before the Neural ODE")
    if needed and reader.preprocess is None:
        raise ModelFileError(
            "there were fitted steps before the Neural ODE, which are not part of the file: pass "
            "load(path, preprocess=...), the fitted steps that were in its attribute preprocess_"
        )
    reader.preprocesses = reader.preprocesses or needed
    return reader.preprocess if needed else None
