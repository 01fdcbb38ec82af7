"""What a skorch net makes of its module's output: its conventions, taken over so that predictions are the net's own."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from skorch import NeuralNet, NeuralNetBinaryClassifier, NeuralNetClassifier
from torch import Tensor, nn

from ..modules.serialization import DeviceFreeModule


def is_net(estimator: Any) -> bool:
    """Whether an estimator is a skorch net."""
    return isinstance(estimator, NeuralNet)


def is_initialized(net: NeuralNet) -> bool:
    """Whether a net has its module; a net whose weights were loaded is initialized, too, though never fitted."""
    return bool(net.initialized_)


def net_module(net: NeuralNet) -> nn.Module | None:
    """The module of an initialized net, as it was before ``compile=True`` wrapped it."""
    module = vars(net).get("module_")
    return getattr(module, "_orig_mod", module)


def predicts_labels(net: NeuralNet) -> bool:
    """Whether ``net.predict`` gives labels: of any other net it gives what ``predict_proba`` does."""
    return isinstance(net, (NeuralNetClassifier, NeuralNetBinaryClassifier))


class NetHead(DeviceFreeModule):
    """From the module's output to the net's probabilities (``predict_proba``), and from these to its labels.

    The criterion says what the output means: logits for CrossEntropyLoss and BCEWithLogitsLoss, probabilities for
    NLLLoss and BCELoss; ``predict_nonlinearity`` may say otherwise.
    """

    def __init__(self, net: NeuralNet):
        super().__init__()
        self.nonlinearity = _nonlinearity(net)
        binary = isinstance(net, NeuralNetBinaryClassifier)
        self.flat = binary  # skorch reshapes (n, 1) to (n,)
        self.threshold = float(net.threshold) if binary else None

    def forward(self, output: Tensor) -> Tensor:
        """The net's ``predict_proba`` of its module's output."""
        return self.nonlinearity(output.reshape(-1) if self.flat else output)

    def indices(self, probabilities: np.ndarray) -> np.ndarray:
        """The net's ``predict`` of its probabilities."""
        if self.threshold is None:
            return probabilities.argmax(axis=1)
        return (probabilities[:, 1] > self.threshold).astype(np.int64)


class NetOutput(DeviceFreeModule):
    """An output map, and then what the net's ``predict`` does to its module's output."""

    def __init__(self, output_map: Callable[[Tensor], Tensor], net: NeuralNet):
        super().__init__()
        self.output_map = output_map
        self.nonlinearity = _nonlinearity(net)

    def forward(self, z: Tensor) -> Tensor:
        """What the net predicts from the terminal state."""
        return self.nonlinearity(self.output_map(z))


def _nonlinearity(net: NeuralNet) -> Callable[[Tensor], Tensor]:
    nonlinearity = copy.deepcopy(net._get_predict_nonlinearity())
    return nonlinearity.eval().requires_grad_(False) if isinstance(nonlinearity, nn.Module) else nonlinearity


def predictions(model: Any, name: str, rows: np.ndarray) -> np.ndarray:
    """What ``model.predict``, say, gives; rows have lost their names, which is of no matter here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="X does not have valid feature names", category=UserWarning)
        return np.asarray(getattr(model, name)(rows))


def net_labels(net: NeuralNet, rows: np.ndarray, indices: np.ndarray, n_classes: int) -> np.ndarray:
    """The labels that ``net.predict`` gives: indices of outputs, or ``classes_`` where a predict of its own looks them up."""
    numbers = np.arange(n_classes)
    if type(net).predict in (NeuralNetClassifier.predict, NeuralNetBinaryClassifier.predict):
        return numbers
    predicted = np.asarray(net.predict(rows))
    if len(net.classes_) == n_classes and np.array_equal(predicted, net.classes_[indices]):
        return net.classes_
    check_predictions(net, "predict", predicted, numbers[indices])
    return numbers


def check_predictions(model: Any, name: str, expected: Any, found: np.ndarray) -> None:
    """Refuse a model with a method of its own that gives something else than what is taken over of it.

    Raises
    ------
    TypeError
        If what the model gives and what would be given in its place differ.
    """
    expected = np.asarray(expected)
    differ = _differ(expected, found)
    if not differ.any():
        return
    row = int(differ.argmax())
    module = "net.module_" if is_net(model) else "model.neural_ode_"
    raise TypeError(
        f"neural_ode is a {type(model).__name__} whose {name} gives {_shown(expected, row)} for row {row}, where its "
        "module, and "
        f"what a net's criterion and predict_nonlinearity make of outputs, give {_shown(found, row)}: it has a {name} "
        "of its own "
        "(or infer), which cannot be taken over. Pass predict_nonlinearity= to a net instead, or its module alone, "
        "neural_ode="
        f"{module} (to a HypersolverClassifier with classes=[...]), and do the rest to the outputs yourself."
    )


def _differ(expected: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Which rows differ by more than rounding and the reference's tolerance."""
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
