"""What a skorch net does to its module's output, reproduced here so that predictions equal the net's own."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from skorch import NeuralNet, NeuralNetBinaryClassifier, NeuralNetClassifier
from torch import Tensor, nn

from ..modules.serialization import DeviceFreeModule


def is_net(estimator: Any) -> bool:
    """Return whether an estimator is a skorch net."""
    return isinstance(estimator, NeuralNet)


def is_initialized(net: NeuralNet) -> bool:
    """Return whether a net has its module. A net with loaded weights has one, though it was never fitted."""
    return bool(net.initialized_)


def net_module(net: NeuralNet) -> nn.Module | None:
    """Return the module of an initialized net, without the wrapper of ``compile=True``."""
    module = vars(net).get("module_")
    return getattr(module, "_orig_mod", module)


def predicts_labels(net: NeuralNet) -> bool:
    """Return whether ``net.predict`` gives labels; that of other nets gives the same as ``predict_proba``."""
    return isinstance(net, (NeuralNetClassifier, NeuralNetBinaryClassifier))


class NetHead(DeviceFreeModule):
    """Turns the module's output into the net's probabilities (``predict_proba``), and these into its labels.

    The criterion says what the output means: logits for CrossEntropyLoss and BCEWithLogitsLoss, probabilities for
    NLLLoss and BCELoss. ``predict_nonlinearity`` may override that.
    """

    def __init__(self, net: NeuralNet):
        super().__init__()
        self.nonlinearity = _nonlinearity(net)
        binary = isinstance(net, NeuralNetBinaryClassifier)
        self.flat = binary  # skorch reshapes (n, 1) to (n,)
        self.threshold = float(net.threshold) if binary else None

    def forward(self, output: Tensor) -> Tensor:
        """Return the net's ``predict_proba`` from its module's output."""
        return self.nonlinearity(output.reshape(-1) if self.flat else output)

    def indices(self, probabilities: np.ndarray) -> np.ndarray:
        """Return the net's ``predict`` from its probabilities, as indices."""
        if self.threshold is None:
            return probabilities.argmax(axis=1)
        return (probabilities[:, 1] > self.threshold).astype(np.int64)


class NetOutput(DeviceFreeModule):
    """An output map, followed by what the net's ``predict`` does to its module's output."""

    def __init__(self, output_map: Callable[[Tensor], Tensor], net: NeuralNet):
        super().__init__()
        self.output_map = output_map
        self.nonlinearity = _nonlinearity(net)

    def forward(self, z: Tensor) -> Tensor:
        """Return what the net predicts from the terminal state."""
        return self.nonlinearity(self.output_map(z))


def _nonlinearity(net: NeuralNet) -> Callable[[Tensor], Tensor]:
    nonlinearity = copy.deepcopy(net._get_predict_nonlinearity())
    return nonlinearity.eval().requires_grad_(False) if isinstance(nonlinearity, nn.Module) else nonlinearity


def predictions(model: Any, name: str, rows: np.ndarray, condition: Mapping[str, Any] | None = None) -> np.ndarray:
    """Call a method of a model, such as ``predict``; do not warn that the rows have no feature names."""
    beside = {"condition": condition} if condition else {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="X does not have valid feature names", category=UserWarning)
        return np.asarray(getattr(model, name)(rows, **beside))


def net_labels(net: NeuralNet, rows: np.ndarray, indices: np.ndarray, n_classes: int) -> np.ndarray:
    """Return the labels that ``net.predict`` gives: indices of outputs, or ``classes_`` if it looks them up there."""
    numbers = np.arange(n_classes)
    if type(net).predict in (NeuralNetClassifier.predict, NeuralNetBinaryClassifier.predict):
        return numbers
    predicted = np.asarray(net.predict(rows))
    if len(net.classes_) == n_classes and np.array_equal(predicted, net.classes_[indices]):
        return net.classes_
    check_predictions(net, "predict", predicted, numbers[indices])
    return numbers


def check_predictions(model: Any, name: str, expected: Any, found: np.ndarray) -> None:
    """Refuse a model that overrides a method, such as ``predict``, so that the hypersolver would not follow it.

    Raises
    ------
    TypeError
        If the model's values differ from those that the hypersolver would give.
    """
    expected = np.asarray(expected)
    differ = _differ(expected, found)
    if not differ.any():
        return
    row = int(differ.argmax())
    module = "net.module_" if is_net(model) else "model.neural_ode_"
    raise TypeError(
        f"neural_ode is a {type(model).__name__} whose {name} gives {_shown(expected, row)} for row {row}, where its "
        f"module, and what a net's criterion and predict_nonlinearity make of outputs, give {_shown(found, row)}: it "
        f"has a {name} of its own (or infer), which cannot be taken over. Pass predict_nonlinearity= to a net instead, "
        f"or its module alone, neural_ode={module} (to a HypersolverClassifier with classes=[...]), and do the rest to "
        "the outputs yourself."
    )


def _differ(expected: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Return which rows differ by more than rounding and the reference's tolerance."""
    if expected.shape != found.shape:
        return np.ones(1, dtype=bool)
    if expected.dtype.kind in "fiub":
        largest = np.abs(expected).max(initial=0.0)
        same = np.isclose(found, expected, rtol=1e-3, atol=1e-3 * largest, equal_nan=True)
    else:
        same = found == expected
    return ~same.reshape(len(same), -1).all(axis=1)


def _shown(values: np.ndarray, row: int) -> str:
    return f"{np.array2string(values[row], precision=4, threshold=6)} (shape {values.shape})"
