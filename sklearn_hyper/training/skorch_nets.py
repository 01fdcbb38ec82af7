"""What a skorch net makes of its module's output: its conventions, taken over so that predictions are the net's own."""

from __future__ import annotations

import copy
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


def predicts_labels(net: NeuralNet) -> bool:
    """Whether ``net.predict`` gives labels: of any other net it gives what ``predict_proba`` does."""
    return isinstance(net, (NeuralNetClassifier, NeuralNetBinaryClassifier))


class NetHead(DeviceFreeModule):
    """From the module's output to the net's probabilities (``predict_proba``), and from these to its labels.

    The criterion says what the output means: logits for CrossEntropyLoss and BCEWithLogitsLoss, probabilities for NLLLoss
    and BCELoss; ``predict_nonlinearity`` may say otherwise.
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


def net_labels(net: NeuralNet, rows: np.ndarray, indices: np.ndarray, n_classes: int) -> np.ndarray:
    """The labels that ``net.predict`` gives: indices of outputs, or ``classes_`` where a predict of its own looks them up."""
    numbers = np.arange(n_classes)
    own = type(net).predict not in (NeuralNetClassifier.predict, NeuralNetBinaryClassifier.predict)
    predicted = np.asarray(net.predict(rows))
    if own and len(net.classes_) == n_classes and np.array_equal(predicted, net.classes_[indices]):
        return net.classes_
    check_predictions("predict", predicted, numbers[indices])
    return numbers


def check_predictions(name: str, expected: Any, found: np.ndarray) -> None:
    """Refuse a net with a method of its own that gives something else than its module, criterion and nonlinearity say.

    Raises
    ------
    TypeError
        If what the net gives and what would be given in its place differ.
    """
    expected = np.asarray(expected)
    if expected.shape == found.shape:
        if expected.dtype.kind not in "fiub":
            same = np.array_equal(expected, found)
        else:
            same = np.allclose(
                expected, found, rtol=1e-3, atol=1e-3 * np.abs(expected).max(initial=0.0), equal_nan=True
            )
        if same:
            return
    raise TypeError(
        f"neural_ode is a skorch net whose {name} gives {_first(expected)} for the first row, where its module, criterion and "
        f"predict_nonlinearity say {_first(found)}: it has a {name} (or infer) of its own, which cannot be taken over. Pass "
        "predict_nonlinearity= to the net instead, or wrap its module, neural_ode=net.module_ (a classifier's with "
        "classes=[...]), and do the rest to the outputs yourself."
    )


def _first(values: np.ndarray) -> str:
    return f"{np.array2string(values[:1], precision=4, threshold=6)} (shape {values.shape})"
