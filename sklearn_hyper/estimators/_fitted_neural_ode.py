"""Every form in which a fitted Neural ODE may be handed to a hypersolver, resolved to a module."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from sklearn.base import MetaEstimatorMixin
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline, make_pipeline
from torch import nn

from ..modules.flow import Flow
from ..modules.neural_ode import NeuralODE
from .flows import ContinuousNormalizingFlow


class FittedNeuralODE(NamedTuple):
    """A Neural ODE and, where it was an estimator's, the steps before it, its labels, and the shapes of X and y."""

    module: NeuralODE
    preprocess: Any = None
    classes: np.ndarray | None = None
    input_shape: tuple[int, ...] | None = None
    squeeze: bool = False


class FittedFlow(NamedTuple):
    """A flow (or a bare field as a NeuralODE) and, where it was an estimator's, the steps before it and its trace."""

    flow: Flow | NeuralODE
    preprocess: Any = None
    trace: str = "auto"
    noise_seed: int | None = None


def resolve_flow(neural_ode: Any) -> FittedFlow:
    """Resolve ``neural_ode`` of a HypersolverDensity; see there for the accepted forms.

    Raises
    ------
    NotFittedError
        If it is, or ends in, an estimator that is not fitted.
    TypeError
        If it is none of the accepted forms.
    """
    if isinstance(neural_ode, FrozenEstimator):
        return resolve_flow(neural_ode.estimator)
    if isinstance(neural_ode, Pipeline):
        inner = resolve_flow(neural_ode.steps[-1][1])
        return inner._replace(preprocess=_steps_before(neural_ode, inner.preprocess))
    if hasattr(neural_ode, "best_estimator_"):
        return resolve_flow(neural_ode.best_estimator_)
    if isinstance(neural_ode, Flow):
        return FittedFlow(neural_ode)
    if hasattr(neural_ode, "flow_"):
        preprocess = getattr(neural_ode, "preprocess_", None)
        return FittedFlow(neural_ode.flow_, preprocess, trace=neural_ode.trace, noise_seed=neural_ode._noise_seed)
    if isinstance(neural_ode, ContinuousNormalizingFlow | MetaEstimatorMixin):
        raise _not_fitted(neural_ode)
    if callable(neural_ode) and not isinstance(neural_ode, type) and not hasattr(neural_ode, "fit"):
        return FittedFlow(resolve_neural_ode(neural_ode).module)
    raise TypeError(
        "neural_ode must be a fitted ContinuousNormalizingFlow, a fitted Pipeline or search that ends in one, "
        "FrozenEstimator(...), a NeuralODE without maps, or a bare vector field f(t, z); got "
        f"{neural_ode!r}."
    )


def _steps_before(pipeline: Pipeline, inner: Any) -> Any:
    """Everything a pipeline does before its last step, and then what that itself does first."""
    before = [] if len(pipeline.steps) == 1 else [pipeline[:-1]]
    before += [] if inner is None else [inner]
    return make_pipeline(*before) if before else None


def resolve_neural_ode(neural_ode: Any) -> FittedNeuralODE:
    """Resolve ``neural_ode``; see ``HypersolverRegressor`` for the accepted forms.

    Raises
    ------
    NotFittedError
        If it is, or ends in, an estimator that is not fitted.
    TypeError
        If it is none of the accepted forms.
    """
    if isinstance(neural_ode, FrozenEstimator):
        return resolve_neural_ode(neural_ode.estimator)
    if isinstance(neural_ode, Pipeline):
        inner = resolve_neural_ode(neural_ode.steps[-1][1])
        return inner._replace(preprocess=_steps_before(neural_ode, inner.preprocess))
    if isinstance(neural_ode, NeuralODE):
        return FittedNeuralODE(neural_ode)
    if isinstance(neural_ode, nn.Module) or (
        callable(neural_ode) and not isinstance(neural_ode, type) and not hasattr(neural_ode, "fit")
    ):
        return FittedNeuralODE(NeuralODE(neural_ode))
    if hasattr(neural_ode, "fit") and not isinstance(neural_ode, type):
        return _resolve_estimator(neural_ode)
    raise TypeError(
        "neural_ode must be a fitted NeuralODEClassifier or NeuralODERegressor, a fitted Pipeline or search that ends in "
        "one, FrozenEstimator(...), a fitted skorch net whose module is a NeuralODE, a NeuralODE module, or a vector "
        f"field f(t, z); got {neural_ode!r}."
    )


def _resolve_estimator(estimator: Any) -> FittedNeuralODE:
    name = type(estimator).__name__
    if hasattr(estimator, "best_estimator_"):
        return resolve_neural_ode(estimator.best_estimator_)
    if hasattr(estimator, "neural_ode_") and not hasattr(estimator, "module_"):
        return FittedNeuralODE(
            estimator.neural_ode_,
            classes=getattr(estimator, "classes_", None),
            input_shape=estimator._input_shape,
            squeeze=getattr(estimator, "_squeeze_output", False),
        )
    if isinstance(getattr(estimator, "module_", None), NeuralODE):  # a skorch net
        return FittedNeuralODE(estimator.module_, classes=getattr(estimator, "classes_", None))
    if hasattr(estimator, "module_"):
        raise TypeError(
            f"neural_ode is a {name} whose module is a {type(estimator.module_).__name__}, not a NeuralODE; wrap the "
            "vector field in sklearn_hyper.NeuralODE before training it."
        )
    raise _not_fitted(estimator)


def _not_fitted(estimator: Any) -> NotFittedError:
    return NotFittedError(
        f"neural_ode is a {type(estimator).__name__} that is not fitted. Fit it first (a search with refit=True); if it was "
        "fitted, scikit-learn's clone has unfitted it (as a grid over neural_ode=[...] does): wrap it in "
        "sklearn.frozen.FrozenEstimator."
    )
