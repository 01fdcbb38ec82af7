"""Every form in which a fitted Neural ODE may be handed to a hypersolver, resolved to a module."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline, make_pipeline
from torch import nn

from ..modules.neural_ode import NeuralODE


class FittedNeuralODE(NamedTuple):
    """A Neural ODE and, where it was an estimator's, the steps before it, its labels, and the shapes of X and y."""

    module: NeuralODE
    preprocess: Any = None
    classes: np.ndarray | None = None
    input_shape: tuple[int, ...] | None = None
    squeeze: bool = False


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
        before = [] if len(neural_ode.steps) == 1 else [neural_ode[:-1]]
        before += [] if inner.preprocess is None else [inner.preprocess]
        return inner._replace(preprocess=make_pipeline(*before) if before else None)
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
    raise NotFittedError(
        f"neural_ode is a {name} that is not fitted. Fit it first (a search with refit=True); if it was fitted, scikit-learn's clone has unfitted "
        "it (as a grid over neural_ode=[...] does): wrap it in sklearn.frozen.FrozenEstimator."
    )
