"""MNIST and CIFAR-10 for the benchmarks: the images, the Neural ODEs of section 4.1, and a trained one kept on disk.

    python examples/benchmarks/images.py --images mnist --data FOLDER

trains the model that the image benchmarks share and puts it into their cache. ``FOLDER`` (or SKLEARN_HYPER_DATA) has
mnist.npz and cifar10_subset.npz; without either the images come from OpenML.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from _results import data_file, fitted, parser
from sklearn.datasets import fetch_openml, load_digits
from sklearn.model_selection import train_test_split
from torch import nn

from sklearn_hyper import NeuralODEClassifier
from sklearn_hyper.modules import AugmentedInput, ConvVectorField


class Images(NamedTuple):
    """Float32 images in [0, 1] of shape (n, channels, height, width), and their labels."""

    X_train: np.ndarray
    y_train: np.ndarray
    X_test: np.ndarray
    y_test: np.ndarray


_FILES = {"mnist": "mnist.npz", "cifar": "cifar10_subset.npz"}
_OPENML = {"mnist": ("mnist_784", 60_000, (28, 28, 1)), "cifar": ("CIFAR_10", 50_000, (3, 32, 32))}


def load_images(name: str, folder: str | None = None) -> Images:
    """The images from a file, or from OpenML where neither ``folder`` nor SKLEARN_HYPER_DATA is set."""
    if folder is None and "SKLEARN_HYPER_DATA" not in os.environ:
        return _fetch_images(name)
    with np.load(data_file(_FILES[name], folder)) as file:
        parts = {key: file[key] for key in ("x_train", "y_train", "x_test", "y_test")}
    return Images(
        _channels_first(parts["x_train"]), parts["y_train"].astype(int),
        _channels_first(parts["x_test"]), parts["y_test"].astype(int),
    )  # fmt: skip


def load_all_digits() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's digits as images; their pixels go from 0 to 16, as they come."""
    X, y = load_digits(return_X_y=True)
    return X.reshape(-1, 1, 8, 8).astype(np.float32), y


def load_digit_images(seed: int) -> Images:
    """scikit-learn's digits, split at random."""
    X, y = load_all_digits()
    X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=450, stratify=y, random_state=seed)
    return Images(X_train, y_train, X_test, y_test)


def _fetch_images(name: str) -> Images:
    dataset, n_train, shape = _OPENML[name]
    X, y = fetch_openml(dataset, version=1, return_X_y=True, as_frame=False)
    X = X.reshape(-1, *shape)
    X, y = (X / 255).astype(np.float32) if shape[0] == 3 else _channels_first(X), y.astype(int)
    return Images(X[:n_train], y[:n_train], X[n_train:], y[n_train:])


def _channels_first(x: np.ndarray) -> np.ndarray:
    x = x[..., None] if x.ndim == 3 else x
    return np.ascontiguousarray((x / 255).astype(np.float32).transpose(0, 3, 1, 2))


def _mnist_patches() -> NeuralODEClassifier:
    """The paper's field on 4 x 4 patches: 2.2 million multiply-accumulates instead of 36, for a CPU."""
    return NeuralODEClassifier(
        ConvVectorField(32, hidden=46, depth=2),
        input_map=AugmentedInput(
            nn.Conv2d(16, 16, 3, padding=1), nn.Sequential(nn.PixelUnshuffle(4), nn.BatchNorm2d(16))
        ),
        rtol=1e-2, atol=1e-2, max_epochs=4, lr=5e-3, batch_size=128, validation_fraction=0.05,
    )  # fmt: skip


def _cifar_patches() -> NeuralODEClassifier:
    """4 x 4 patches as 24 channels, 1.5 million multiply-accumulates."""
    return NeuralODEClassifier(
        ConvVectorField(24, hidden=32, depth=2),
        input_map=nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 24, 4, stride=4)),
        output_map=nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(384, 10)),
        rtol=1e-2, atol=1e-2, max_epochs=5, lr=4e-3, batch_size=64, validation_fraction=0.05,
    )  # fmt: skip


def _mnist_paper() -> NeuralODEClassifier:
    """The paper's architecture at full resolution: 35.7 million multiply-accumulates an evaluation of f."""
    return NeuralODEClassifier(
        ConvVectorField(32, hidden=46, depth=2, activation="softplus"),
        input_map=AugmentedInput(nn.Conv2d(1, 31, 3, padding=1), nn.BatchNorm2d(1)),
        output_map=nn.Sequential(nn.AvgPool2d(28), nn.Flatten(), nn.Linear(32, 10)),
        rtol=1e-3, atol=1e-3, max_epochs=10, lr=3e-3, batch_size=128, validation_fraction=0.05,
    )  # fmt: skip


def _cifar_paper() -> NeuralODEClassifier:
    """41.5 million multiply-accumulates an evaluation of f."""
    return NeuralODEClassifier(
        ConvVectorField(20, hidden=50, depth=2, activation="softplus"),
        input_map=nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 20, 3, padding=1)),
        output_map=nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(80, 10)),
        rtol=1e-3, atol=1e-3, max_epochs=20, lr=3e-3, batch_size=128, validation_fraction=0.05,
    )  # fmt: skip


def _mnist_full() -> NeuralODEClassifier:
    """The paper's field at full resolution, with a head that learns from a few thousand images."""
    return _mnist_paper().set_params(
        output_map=nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(1568, 10)), rtol=1e-2, atol=1e-2, max_epochs=8
    )


def _cifar_full() -> NeuralODEClassifier:
    return _cifar_paper().set_params(
        output_map=nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(1280, 10)), rtol=1e-2, atol=1e-2,
        max_epochs=12,
    )  # fmt: skip


class Recipe(NamedTuple):
    """How a model is built, and on how many training images it is trained."""

    build: Callable[[], NeuralODEClassifier]
    n_train: int


RECIPES = {
    ("mnist", "patches"): Recipe(_mnist_patches, 30_000),
    ("cifar", "patches"): Recipe(_cifar_patches, 6_000),
    ("mnist", "full"): Recipe(_mnist_full, 6_000),
    ("cifar", "full"): Recipe(_cifar_full, 6_000),
    ("mnist", "paper"): Recipe(_mnist_paper, 60_000),
    ("cifar", "paper"): Recipe(_cifar_paper, 50_000),
}


def trained_model(
    name: str, images: Images, cache: str | Path, *, architecture: str = "patches", device: str = "cpu"
) -> NeuralODEClassifier:
    """The trained classifier of these images, from the cache where it has one."""
    recipe = RECIPES[name, architecture]

    def train() -> NeuralODEClassifier:
        torch.manual_seed(0)  # the modules of a recipe draw their weights when they are made
        model = recipe.build().set_params(device=device, random_state=0, verbose=2)
        return model.fit(images.X_train[: recipe.n_train], images.y_train[: recipe.n_train])

    return fitted(cache, f"{name}-{architecture}", train)


def add_image_options(options: Any) -> None:
    """What the scripts on images share."""
    options.add_argument("--images", choices=["mnist", "cifar"], default="mnist")
    options.add_argument(
        "--data", help="folder of mnist.npz and cifar10_subset.npz; default SKLEARN_HYPER_DATA, OpenML"
    )
    options.add_argument(
        "--architecture", choices=["patches", "paper"], default="patches",
        help="the paper's runs at full resolution, 16 times the work: for a GPU, with --device cuda",
    )  # fmt: skip
    options.add_argument("--device", default="cpu")


def main() -> None:
    options = parser(__doc__, "images.json")
    add_image_options(options)
    arguments = options.parse_args()
    images = load_images(arguments.images, arguments.data)
    model = trained_model(
        arguments.images, images, arguments.cache, architecture=arguments.architecture, device=arguments.device
    )  # fmt: skip
    seconds = sum(row["dur"] for row in model.history_)
    print(f"trained in {seconds:.0f} s, test accuracy {model.score(images.X_test, images.y_test):.4f}")


if __name__ == "__main__":
    main()
