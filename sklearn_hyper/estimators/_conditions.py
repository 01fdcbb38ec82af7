"""Conditions: check what a field takes beside X, and turn it into one entry a row, as fit has learned to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import TransformerMixin
from torch import Tensor

from ..training.given_rows import GivenRows, apart, given
from ._base import TorchEstimator
from ._learned_conditions import CATEGORY, FLOAT, INTEGER, NAME, Condition, is_name

_NUMBERS = (bool, int, float, np.number, np.bool_)
_SHOWN = 5
"""Values that an error shows."""


class ConditionError(ValueError):
    """A condition is missing, has another name, length, shape or kind than the fit's, or a category is new."""


@dataclass(frozen=True)
class LearnedCondition:
    """The condition of some rows as a fit has learned it: one that is passed to fits of parts of them.

    All of these then have the same categories, whatever rows they get.
    """

    learned: Mapping[str, Condition]
    entries: Mapping[str, NDArray[Any]]

    def rows(self, rows: Any) -> LearnedCondition:
        """Return the condition of some of the rows."""
        return LearnedCondition(self.learned, {name: entries[rows] for name, entries in self.entries.items()})

    @classmethod
    def of(cls, condition: Any, n_rows: int, owner: TorchEstimator, fitted: TorchEstimator | None) -> LearnedCondition:
        """Learn a condition of as many rows; ``owner`` remembers it, and ``fitted`` is as in `learn_condition`.

        Raises
        ------
        ConditionError
        """
        rows = learn_condition(owner, condition, np.empty((n_rows, 0)), reset=True, fitted=fitted)
        return cls(owner.condition_, apart(rows)[1])


def fit_transform(self: Any, X: Any, y: Any = None, *, condition: Any = None, **fit_params: Any) -> Any:
    """Fit, and transform the same rows.

    Parameters
    ----------
    X : array-like
    y : array-like, optional
        As in ``fit``.
    condition : optional
        As in ``fit``; the rows are transformed with it too.
    **fit_params : optional
        Other arguments of ``fit``.

    Returns
    -------
    array
        As ``transform`` returns.
    """
    if condition is None:
        return TransformerMixin.fit_transform(self, X, y, **fit_params)
    return self.fit(X, y, condition=condition, **fit_params).transform(X, condition=condition)


def learn_condition(
    estimator: TorchEstimator,
    condition: Any,
    X: Any,
    *,
    reset: bool,
    labels: bool = False,
    fitted: TorchEstimator | None = None,
) -> Any:
    """Check the condition of a fit, remember it as ``condition_``, and return X with it; X alone where there is none.

    Parameters
    ----------
    estimator : TorchEstimator
    condition : mapping, frame, structured array, array-like, number or None
    X : array of shape (n, ...)
    reset : bool
        Whether to forget the condition of an earlier fit. A warm start requires the same again.
    labels : bool, default False
        Whether integers are categories too, so that later calls refuse new ones.
    fitted : TorchEstimator, optional
        The estimator of the Neural ODE that is fitted for. Where there is one, its condition is required: the field
        has learned its categories.

    Raises
    ------
    ConditionError
    """
    if isinstance(condition, LearnedCondition):
        estimator.condition_ = dict(condition.learned)
        return given(X, condition.entries)
    if fitted is not None and "condition_" in vars(fitted):
        estimator.condition_ = vars(fitted)["condition_"]
        return with_condition(fitted, condition, X)
    if not reset and "condition_" in vars(estimator):
        return with_condition(estimator, condition, X)
    values = {name: _expand(name, value, len(X)) for name, value in _by_name(condition).items()}
    estimator.condition_ = {name: _learn(name, *value, labels) for name, value in values.items()}
    return _encoded(estimator, values, X)


def with_condition(estimator: TorchEstimator, condition: Any, X: Any) -> Any:
    """Return X with its condition as the fit has learned it; X alone if the fit had none.

    Raises
    ------
    ConditionError
    """
    learned = vars(estimator).get("condition_") or {}
    if isinstance(condition, LearnedCondition):
        return given(X, condition.entries)
    if condition is None and not learned:
        return X
    values = _by_name(condition)
    _check_names(values, learned, type(estimator).__name__)
    return _encoded(estimator, {name: _expand(name, value, len(X)) for name, value in values.items()}, X)


def raw_condition(estimator: TorchEstimator, rows: Any) -> dict[str, Any]:
    """Return the condition of encoded rows as a user passes it, with categories in place of their codes."""
    learned: Mapping[str, Condition] = vars(estimator).get("condition_") or {}
    return {
        name: np.asarray(value) if learned[name].categories is None else learned[name].categories[np.asarray(value)]
        for name, value in apart(rows)[1].items()
    }


def refuse_condition(estimator: TorchEstimator, what: str, instead: str) -> None:
    """Refuse what does not take the condition that a fit had.

    Raises
    ------
    ConditionError
    """
    learned = vars(estimator).get("condition_")
    if learned:
        raise ConditionError(
            f"{what} takes X alone, and this {type(estimator).__name__} was fitted with the condition "
            f"{_names(learned)}; {instead}."
        )


def count_entries(condition: Any, n_samples: Any) -> Any:
    """Return how many samples to draw: the entries of a condition, where a single one is asked for."""
    if condition is None or isinstance(n_samples, bool) or not isinstance(n_samples, Integral) or n_samples != 1:
        return n_samples  # checked by what draws
    return max((np.shape(value)[0] for value in _by_name(condition).values() if np.ndim(value)), default=1)


def with_drawn_entries(base: NDArray[Any], rows: Any, seed: int) -> Any:
    """Return base draws, each with the condition of a row that is drawn at random; base draws alone without one."""
    if not isinstance(rows, GivenRows):
        return base
    drawn = np.random.default_rng(seed).integers(len(rows), size=len(base))
    return given(base, rows[drawn].condition)


# ---------------------------------------------------------------------- names
def _by_name(condition: Any) -> dict[str, Any]:
    """Return a condition's values by name: a frame's columns, a structured array's fields, or one value."""
    if condition is None:
        return {}
    if isinstance(condition, np.ndarray) and condition.dtype.names is not None:
        found: dict[Any, Any] = {name: condition[name] for name in condition.dtype.names}
    elif isinstance(condition, Mapping):
        found = dict(condition)
    elif hasattr(condition, "columns"):
        names = list(condition.columns)
        if len(set(names)) < len(names):
            raise ConditionError(f"condition has the columns {names}, some of them twice; rename them.")
        found = {name: condition[name] for name in names}
    else:
        return {NAME: condition}
    if not found:
        raise ConditionError("condition is empty; pass {name: one entry a row}, or leave it out.")
    if not all(map(is_name, found)):
        raise ConditionError(
            f"condition must name the field's keyword arguments, such as {{'label': y}}, got the names {list(found)}; "
            "rename them. t, z and x are taken by its positional arguments."
        )
    return found


def _check_names(values: Mapping[str, Any], learned: Mapping[str, Condition], kind: str) -> None:
    missing, unknown = sorted(set(learned) - set(values)), sorted(set(values) - set(learned))
    if not learned:
        raise ConditionError(
            f"condition has {_names(unknown)}, but this {kind} was fitted without a condition: fit with it, or leave "
            "it out."
        )
    if missing or unknown:
        got = f"got {_names(sorted(values))}" if values else "got None"
        search = "" if values else " A search scores with it after set_score_request(condition=True)."
        if unknown == [NAME]:
            got += ", the name of a value that is passed without one"
        raise ConditionError(
            f"condition must have {_names(learned)}, as in fit of this {kind}, {got}; pass condition= with these "
            f"names, one entry a row of X or one for all.{search}"
        )


def _names(names: Any) -> str:
    return ", ".join(map(repr, names))


# ---------------------------------------------------------------------- values
def _expand(name: str, value: Any, n_rows: int) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Return an array with an entry for each row, and the categories that its dtype lists, if it does."""
    categories = getattr(getattr(value, "dtype", None), "categories", None)
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        value = value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
    try:
        array = np.asarray(value)
    except (ValueError, TypeError) as error:  # rows of several lengths
        raise ConditionError(f"condition[{name!r}] cannot be read as an array: {error}.") from error
    if array.ndim == 0 and array.dtype == object:  # a set, a generator, a sparse matrix
        raise ConditionError(
            f"condition[{name!r}] is of type {type(value).__name__}, which is neither a number, a string nor an array "
            "of them; pass a list or an array, such as matrix.toarray() of a sparse matrix."
        )
    if np.ma.is_masked(value):
        raise ConditionError(f"condition[{name!r}] masks {np.ma.count_masked(value)} values; fill them in.")
    array = _plain(array)
    if array.ndim == 0:
        array = array[None]
    if len(array) == 1 and n_rows != 1:
        array = np.repeat(array, n_rows, axis=0)
    if len(array) != n_rows:
        raise ConditionError(
            f"condition[{name!r}] has {len(array)} entries for {n_rows} rows of X; pass one a row, or one for all "
            "(a number, or an array of shape (1, ...)). Where cross-validation cuts X, pass a frame or a structured "
            "array: scikit-learn does not cut a dict."
        )
    return array, None if categories is None else np.asarray(categories)


def _plain(array: NDArray[Any]) -> NDArray[Any]:
    """Return an array of objects that are all numbers as numbers: as categories, each would be a kind of its own."""
    if array.dtype == object and all(isinstance(value, _NUMBERS) for value in array.ravel()):
        return np.array(array.tolist()).reshape(array.shape)
    return array


def _learn(name: str, array: NDArray[Any], categories: NDArray[Any] | None, labels: bool) -> Condition:
    kind = _kind_of(name, array)
    kind = CATEGORY if labels and kind == INTEGER else kind
    shape = array.shape[1:]
    if categories is None and kind != CATEGORY:
        return Condition(kind, shape)
    if categories is None:
        _refuse_missing(name, array)
        try:
            categories = np.unique(array)
        except TypeError as error:
            raise ConditionError(
                f"condition[{name!r}] mixes types that have no order ({error}); use strings."
            ) from error
    return Condition(CATEGORY, shape, categories)


def _kind_of(name: str, array: NDArray[Any]) -> str:
    if array.dtype.kind in "iub":
        return INTEGER
    if array.dtype.kind == "f":
        return FLOAT
    if array.dtype.kind in "OUST":
        return CATEGORY
    raise ConditionError(
        f"condition[{name!r}] has dtype {array.dtype}, which no field takes: use numbers, or strings for categories."
    )


def _encoded(estimator: TorchEstimator, values: Mapping[str, tuple[NDArray[Any], NDArray[Any] | None]], X: Any) -> Any:
    learned: Mapping[str, Condition] = estimator.condition_
    # In the order of the fit, so that results do not depend on the order of a dict.
    return given(X, {name: _encode(name, values[name][0], one) for name, one in learned.items()})


def _encode(name: str, array: NDArray[Any], learned: Condition) -> NDArray[Any]:
    """Return floats in float64 and the rest in int64; a tensor of them gets the field's dtype later."""
    shape = array.shape[1:]
    if shape != learned.shape:
        raise ConditionError(
            f"condition[{name!r}] has entries of shape {shape}, and had entries of shape {learned.shape} in fit."
        )
    if learned.kind == CATEGORY:
        return _codes(name, array, learned)
    kind = _kind_of(name, array)
    if kind == CATEGORY or (learned.kind == INTEGER and kind == FLOAT):
        raise ConditionError(
            f"condition[{name!r}] has dtype {array.dtype}, and was of kind {learned.kind!r} in fit; pass the same kind."
        )
    if learned.kind == INTEGER:
        if array.dtype.kind == "u" and array.max() > np.iinfo(np.int64).max:
            raise ConditionError(f"condition[{name!r}] holds {array.max()}, too large for int64; use strings.")
        return array.astype(np.int64)
    if not np.isfinite(array).all():
        raise ConditionError(
            f"condition[{name!r}] holds nan or infinity in {int((~np.isfinite(array)).sum())} places; fill them in, or "
            "leave those rows out."
        )
    return array.astype(np.float64)


def _refuse_missing(name: str, array: NDArray[Any]) -> None:
    # Not value != value alone, which pandas' NA answers by another NA.
    n_missing = sum(
        value is None or type(value).__name__ == "NAType" or value != value for value in array.ravel().tolist()
    )
    if n_missing:
        raise ConditionError(
            f"condition[{name!r}] lacks {n_missing} values (None or nan); give them a category of their own."
        )


def _codes(name: str, array: NDArray[Any], learned: Condition) -> NDArray[np.int64]:
    assert learned.categories is not None
    _refuse_missing(name, array)
    known = {value: code for code, value in enumerate(learned.categories.tolist())}
    flat = array.ravel().tolist()
    new = list(dict.fromkeys(value for value in flat if value not in known))
    if new:
        more = f" and {len(new) - _SHOWN} more" if len(new) > _SHOWN else ""
        raise ConditionError(
            f"condition[{name!r}] holds {_names(new[:_SHOWN])}{more}, not among the {len(known)} categories of the fit "
            f"({_names(list(known)[:_SHOWN])}{', ...' if len(known) > _SHOWN else ''}); fit with rows of them."
        )
    return np.array([known[value] for value in flat], dtype=np.int64).reshape(array.shape)
