"""The ``neural_ode`` of a hypersolver in a model file: its estimator, or the module that the fit has copied."""

from __future__ import annotations

from typing import Any

from sklearn.pipeline import Pipeline

from ..modules.closed_list import Writer
from ..modules.model_file import ModelFileError
from ..training.skorch_nets import is_net
from ._base import TorchEstimator
from ._fitted_neural_ode import unwrap
from ._saving import EstimatorReader, describe_estimator, read_estimator


def describe_source(neural_ode: Any, writer: Writer) -> dict[str, Any] | None:
    """Describe what a hypersolver was fitted for; None if it is a module, which the fit holds a copy of.

    Raises
    ------
    ModelFileError
        If it is a skorch net, or a hypersolver with steps of its own before it.
    """
    innermost = unwrap(neural_ode)[0]
    if is_net(innermost):
        raise ModelFileError(
            f"neural_ode is a skorch net ({type(innermost).__name__}), whose settings a model file cannot hold. Fit "
            "for its module, net.module_, or use pickle."
        )
    if not isinstance(innermost, TorchEstimator):
        return None
    if vars(innermost).get("preprocess_") is not None:
        raise ModelFileError(
            "neural_ode is a hypersolver with steps of its own before it. Fit for its flow_, or use pickle."
        )
    return describe_estimator(innermost, writer)


def read_source(described: Any, module: Any, steps: Any, reader: EstimatorReader) -> Any:
    """Return what a hypersolver can be fitted for again: the estimator, after the steps before it, or the module."""
    innermost = module if described is None else read_estimator(described, reader)
    return innermost if steps is None else Pipeline([*steps.steps, ("neural_ode", innermost)])
