"""Load estimators from model files."""

from __future__ import annotations

import os
import warnings
from typing import Any

from sklearn.pipeline import Pipeline, make_pipeline

from .. import __version__
from ..modules.model_file import ModelFileError, one_error, read_model
from ..modules.neural_ode import PARTS, NeuralODE
from ._base import TorchEstimator, VersionMismatchWarning
from ._saving import EstimatorReader, read_estimator
from .flows import ContinuousNormalizingFlow
from .hypersolver_classifier import HypersolverClassifier
from .hypersolver_density import HypersolverDensity
from .hypersolver_regressor import HypersolverRegressor
from .neural_ode import NeuralODEClassifier, NeuralODERegressor

_KINDS: dict[str, type[TorchEstimator]] = {
    kind.__name__: kind
    for kind in (
        HypersolverRegressor, HypersolverClassifier, HypersolverDensity,
        NeuralODERegressor, NeuralODEClassifier, ContinuousNormalizingFlow,
    )
}  # fmt: skip
"""Estimators that a file may name."""


def load(
    path: str | os.PathLike[str],
    vector_field: Any = None,
    *,
    input_map: Any = None,
    output_map: Any = None,
    correction: Any = None,
    base_solver: Any = None,
    base_distribution: Any = None,
    preprocess: Any = None,
) -> Any:
    """Load an estimator that ``save`` has written. Nothing in the file is executed.

    A file holds numbers and a description. Classes of this library and some layers of torch are built again from it.
    Code of your own is not in the file: pass it here, built as it was. Its weights then come from the file.

    Parameters
    ----------
    path : str or path
        A file of ``save``.
    vector_field : nn.Module or callable, optional
        The field, if it is not of this library. It is copied, and its weights are those of the file. A whole
        :class:`NeuralODE` brings its maps along.
    input_map, output_map : nn.Module or callable, optional
        The maps, likewise.
    correction : nn.Module, optional
        The net of the correction, if it is your own: an object like ``correction_.net.module`` was.
    base_solver : Method, optional
        A base solver of your own class.
    base_distribution : torch.distributions.Distribution, optional
        The base distribution of a flow, if it had one.
    preprocess : Pipeline or transformer, optional
        The fitted steps before the Neural ODE, if it was passed in a Pipeline: what was in ``preprocess_``. They are
        taken as they are: a file cannot tell whether they are the same.

    Returns
    -------
    estimator
        Of the class that was saved. On the same machine it predicts the same bits. It can be fitted again. ``net_``,
        calibrations, callbacks and ``memory`` are not in the file.

    Raises
    ------
    ModelFileError
        If the file is none of ``save``, was damaged or changed, or needs code that was not passed. If a hypersolver
        computes other states or outputs with what was passed. Neural ODEs and flows by themselves are checked for the
        names and shapes of their tensors alone.
    OSError
        If there is no such file.

    Warns
    -----
    VersionMismatchWarning
        If another version of this library has written the file.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import numpy as np
    >>> import sklearn_hyper
    >>> X = np.linspace(-1, 1, 40)[:, None]
    >>> def decay(t, z):
    ...     return -z
    >>> fast = sklearn_hyper.HypersolverRegressor(decay, n_steps=2, max_epochs=5, random_state=0).fit(X)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = fast.save(pathlib.Path(folder) / "decay.safetensors")
    ...     again = sklearn_hyper.load(path, decay)
    >>> bool((again.predict(X) == fast.predict(X)).all())
    True
    """
    templates = {
        "vector_field": vector_field, "input_map": input_map, "output_map": output_map, "correction": correction,
        "base_solver": base_solver, "base_distribution": base_distribution,
    }  # fmt: skip
    if isinstance(vector_field, NeuralODE):
        templates |= {
            name: getattr(vector_field, name) for name in PARTS if name == "vector_field" or not templates[name]
        }
    if preprocess is not None and not isinstance(preprocess, Pipeline):
        preprocess = make_pipeline(preprocess)
    model, version, tensors = read_model(path)
    with one_error(path):
        reader = EstimatorReader(tensors, templates, _KINDS, preprocess)
        estimator = read_estimator(model, reader)
        unused = reader.unused() + (["preprocess"] if preprocess is not None and not reader.preprocesses else [])
        if unused:
            raise ModelFileError(f"{', '.join(unused)}: passed, and the file needs none. Leave it out")
    if version != __version__:
        warnings.warn(
            f"{type(estimator).__name__} was saved by sklearn_hyper {version:.50} and is loaded by {__version__}; it "
            "may behave differently. Refit it, or install the version that saved it.",
            VersionMismatchWarning,
            stacklevel=2,
        )
    return estimator
