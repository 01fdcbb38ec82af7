"""Resolve every form in which a fitted Neural ODE may be passed to a hypersolver to a module."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline, make_pipeline
from torch import nn

from ..modules.flow import Flow
from ..modules.neural_ode import NeuralODE
from ..training.skorch_nets import is_net, net_module
from ._accepted_forms import refusal
from ._base import TorchEstimator
from .flows import ContinuousNormalizingFlow
from .neural_ode import NeuralODEClassifier, NeuralODERegressor


class FittedNeuralODE(NamedTuple):
    """A Neural ODE with what surrounded it: its estimator or net, the steps before it, and its treatment of outputs."""

    module: NeuralODE
    preprocess: Any = None
    classes: np.ndarray | None = None
    squeeze: bool = False
    estimator: TorchEstimator | None = None
    net: Any = None
    checked: Any = None
    """A net, or an estimator that overrides ``predict``: its predictions are compared with the hypersolver's own."""


class FittedFlow(NamedTuple):
    """A flow (or a bare field) with what surrounded it: its estimator, the steps before it, its trace."""

    flow: Flow | NeuralODE
    preprocess: Any = None
    trace: str = "auto"
    noise_seed: int | None = None
    estimator: TorchEstimator | None = None


_ESTIMATORS = (NeuralODEClassifier, NeuralODERegressor)
_FLOWS = (
    "neural_ode must be a fitted ContinuousNormalizingFlow, a fitted Pipeline or search that ends in one, "
    "FrozenEstimator(...), a NeuralODE without maps, or a bare vector field f(t, z)"
)
_NEURAL_ODES = (
    "neural_ode must be a fitted NeuralODEClassifier or NeuralODERegressor, a fitted Pipeline or search that ends in "
    "one, FrozenEstimator(...), a fitted skorch net whose module is a NeuralODE, a NeuralODE module, or a vector "
    "field f(t, z)"
)


def resolve_flow(neural_ode: Any) -> FittedFlow:
    """Resolve ``neural_ode`` of a HypersolverDensity; see there for the accepted forms.

    Raises
    ------
    NotFittedError
        If it is, or ends in, an estimator that is not fitted.
    TypeError
        If it is none of the accepted forms. For a fitted estimator, the error says what to pass instead.
    """
    innermost, steps = unwrap(neural_ode)
    resolved = _accept_flow(innermost)
    if resolved is None:
        raise refusal(
            innermost, lambda part: _accept_flow(unwrap(part)[0]) is not None, ContinuousNormalizingFlow, _FLOWS
        )
    if resolved.preprocess is not None:
        steps.append(resolved.preprocess)
    return resolved._replace(preprocess=make_pipeline(*steps) if steps else None)


def _accept_flow(neural_ode: Any) -> FittedFlow | None:
    if isinstance(neural_ode, Flow):
        return FittedFlow(neural_ode)
    if isinstance(neural_ode, TorchEstimator):
        if not hasattr(neural_ode, "flow_"):
            return None
        steps = vars(neural_ode).get("preprocess_")  # a HypersolverDensity's
        return FittedFlow(
            neural_ode.flow_, steps, trace=neural_ode.trace, noise_seed=neural_ode._noise_seed,
            estimator=vars(neural_ode).get("_contract", neural_ode) if steps is not None else neural_ode,
        )  # fmt: skip
    return FittedFlow(_as_neural_ode(neural_ode)) if _is_field(neural_ode) else None


def resolve_neural_ode(neural_ode: Any) -> FittedNeuralODE:
    """Resolve ``neural_ode`` of the other hypersolvers; see ``HypersolverRegressor`` for the accepted forms.

    Raises
    ------
    NotFittedError
        If it is, or ends in, an estimator that is not fitted.
    TypeError
        If it is none of the accepted forms. For a fitted estimator, the error says what to pass instead.
    """
    innermost, steps = unwrap(neural_ode)
    resolved = _accept_neural_ode(innermost)
    if resolved is None:
        raise refusal(
            innermost, lambda part: _accept_neural_ode(unwrap(part)[0]) is not None, _ESTIMATORS, _NEURAL_ODES
        )
    return resolved._replace(preprocess=make_pipeline(*steps) if steps else None)


def _accept_neural_ode(neural_ode: Any) -> FittedNeuralODE | None:
    if isinstance(neural_ode, _ESTIMATORS):
        if not hasattr(neural_ode, "neural_ode_"):
            return None
        return FittedNeuralODE(
            neural_ode.neural_ode_,
            classes=getattr(neural_ode, "classes_", None),
            squeeze=getattr(neural_ode, "_squeeze_output", False),
            estimator=neural_ode,
            checked=neural_ode if _has_own_predict(neural_ode) else None,
        )
    if is_net(neural_ode):
        module = net_module(neural_ode)
        return FittedNeuralODE(module, net=neural_ode, checked=neural_ode) if isinstance(module, NeuralODE) else None
    return FittedNeuralODE(_as_neural_ode(neural_ode)) if _is_field(neural_ode) else None


def _has_own_predict(estimator: Any) -> bool:
    """Return whether the estimator is of a subclass that overrides ``predict`` or ``predict_proba``."""
    kind = next(kind for kind in _ESTIMATORS if isinstance(estimator, kind))
    return any(
        getattr(type(estimator), name, None) is not getattr(kind, name, None) for name in ("predict", "predict_proba")
    )


def unwrap(neural_ode: Any) -> tuple[Any, list[Any]]:
    """Return what FrozenEstimators, searches and Pipelines end in, and the steps before it."""
    steps = []
    while True:
        if isinstance(neural_ode, FrozenEstimator):
            neural_ode = neural_ode.estimator
        elif isinstance(neural_ode, Pipeline):
            if len(neural_ode.steps) > 1:
                steps.append(neural_ode[:-1])
            neural_ode = neural_ode.steps[-1][1]
        elif hasattr(neural_ode, "best_estimator_"):
            neural_ode = neural_ode.best_estimator_
        else:
            return neural_ode, steps


def _is_field(neural_ode: Any) -> bool:
    """Return whether it is a module or a function, and neither a class nor an estimator."""
    return isinstance(neural_ode, nn.Module) or (
        callable(neural_ode) and not isinstance(neural_ode, type) and not hasattr(neural_ode, "fit")
    )


def _as_neural_ode(neural_ode: Any) -> NeuralODE:
    return neural_ode if isinstance(neural_ode, NeuralODE) else NeuralODE(neural_ode)
