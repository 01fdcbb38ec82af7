"""What has to hold of every fit: the properties that the suite checks, and a tally of what it has checked."""

from __future__ import annotations

import io
import pickle
import random
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import joblib
import numpy as np
import pandas as pd
import torch
from hypothesis import note
from reference_solves import recorded_solves
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from torch import nn

from sklearn_hyper.estimators._base import SolverAgreementWarning
from sklearn_hyper.numerics import ConditioningWarning

TALLY: Counter[str] = Counter()
"""Examples by what became of them."""

# What a short fit may say of itself. Any other warning is an error, as everywhere in the tests.
_ALLOWED = (ConvergenceWarning, ConditioningWarning, SolverAgreementWarning)


@contextmanager
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        for category in _ALLOWED:
            warnings.simplefilter("ignore", category)
        yield


# ---------------------------------------------------------------------- what must be left alone
def _bytes(tensor: torch.Tensor | None) -> Any:
    return None if tensor is None else (tensor.dtype, tensor.detach().numpy().tobytes(), tensor.requires_grad)


def _of_modules(modules: list[nn.Module]) -> list[Any]:
    return [
        (
            {name: _bytes(tensor) for name, tensor in (*root.named_parameters(), *root.named_buffers())},
            {name: _bytes(parameter.grad) for name, parameter in root.named_parameters()},
            [(name, module.training) for name, module in root.named_modules()],
        )
        for root in modules
    ]


def _of_rows(X: Any) -> Any:
    if isinstance(X, pd.DataFrame):
        return X.to_numpy().tobytes(), list(X.columns)
    if isinstance(X, list):
        return repr(X)
    if isinstance(X, torch.Tensor):
        return _bytes(X)
    return X.tobytes(), X.strides, X.flags.writeable


def _of_generators() -> Any:
    return torch.get_rng_state().numpy().tobytes(), repr(np.random.get_state()), random.getstate()


@contextmanager
def nothing_touched(modules: list[nn.Module], *arrays: Any) -> Iterator[None]:
    """The caller's arrays, modules and generators are, byte for byte, as they were: also where an error is raised."""

    def look() -> dict[str, Any]:
        return {
            "modules": _of_modules(modules),
            "arrays": [_of_rows(X) for X in arrays],
            "generators": _of_generators(),
        }

    before = look()
    try:
        yield
    finally:
        after = look()
        touched = [name for name in before if before[name] != after[name]]
        assert not touched, f"touched: {', '.join(touched)}"


# ---------------------------------------------------------------------- fits and refusals
def fit_or_refuse(fit: Callable[[], Any], may_refuse: bool) -> Any:
    """The fitted estimator; None where the fit was refused, before any solve, by an error of ours that says what to do."""
    with recorded_solves() as solves:
        try:
            with quiet():
                fitted = fit()
        except (TypeError, ValueError) as error:
            if not may_refuse:
                raise
            note(f"refused: {error}")
            assert not solves, f"refused after {len(solves)} solves: {error}"
            assert len(str(error)) > 60, f"too short to say what to do: {error}"
            TALLY["refused"] += 1
            return None
    TALLY["fitted"] += 1
    return fitted


def rows_of(X: Any, index: Any) -> Any:
    """Some of the rows, in the form that X has."""
    if isinstance(X, pd.DataFrame):
        return X.iloc[index]
    if isinstance(X, list):
        return [X[k] for k in index]
    return X[index]


def check_predictions(predict: Callable[[Any], np.ndarray], X: Any, tolerance: float) -> np.ndarray:
    """Deterministic, finite, and the same for a row whatever stands beside it."""
    n = len(X)
    first = predict(X)
    assert np.array_equal(predict(X), first)
    assert len(first) == n
    if first.dtype.kind == "f":
        assert np.isfinite(first).all()
    order = list(range(n))[::-1]
    scale = np.abs(first).max() if first.dtype.kind == "f" else None
    for index in (order, [n // 2]):
        some = predict(rows_of(X, index))
        if scale is None:
            continue  # labels may tie
        assert some.dtype == first.dtype
        np.testing.assert_allclose(some, first[index], rtol=0, atol=tolerance * scale)
    return first


def check_copies(model: Any, predict: Callable[[Any], np.ndarray]) -> None:
    """Pickle and joblib give equal predictions."""
    expected = predict(model)
    assert np.array_equal(predict(pickle.loads(pickle.dumps(model))), expected)
    buffer = io.BytesIO()
    joblib.dump(model, buffer)
    buffer.seek(0)
    assert np.array_equal(predict(joblib.load(buffer)), expected)


def check_refit(model: Any, fit: Callable[[Any], Any], predict: Callable[[Any], np.ndarray]) -> None:
    """A clone, fitted anew, predicts the same bit for bit."""
    with quiet():
        again = fit(clone(model))
    assert np.array_equal(predict(again), predict(model))


def largest(array: Any) -> float:
    """The largest 2-norm of a row."""
    flat = np.asarray(array, dtype=np.float64).reshape(len(array), -1)
    return float(np.sqrt((flat**2).sum(axis=1)).max())
