"""What a fit has learned of its condition: drawn entries like it, and the way into files and back."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..modules.model_file import ModelFileError

NAME = "condition"
"""The field's keyword for a condition that has no name."""
FLOAT, INTEGER, CATEGORY = "float", "integer", "category"
TAKEN = ("t", "z", "x")
"""Names that a field's positional arguments have."""
_WRITABLE = (str, int, float, np.number, np.bool_)
_MOST_NUMBERS = 2**24
"""Numbers of a row's entry that a file may ask for: entries like it are drawn when it is exported."""


class Condition(NamedTuple):
    """What a fit has learned of one condition."""

    kind: str
    """"float", "integer" or "category"."""
    shape: tuple[int, ...]
    """Of a row's entry."""
    categories: NDArray[Any] | None = None
    """Values of a category: an entry is passed to the field as its index in them."""


DESCRIBED = dict[str, tuple[str, tuple[int, ...], np.ndarray | None]]
"""The type of ``condition_`` in a model file."""


def is_name(name: Any) -> bool:
    """Return whether a field can take a condition of this name."""
    return isinstance(name, str) and name.isidentifier() and name not in TAKEN


def read_conditions(described: Mapping[str, Any]) -> dict[str, Condition]:
    """Return ``condition_`` from what a model file holds.

    Raises
    ------
    ModelFileError
        If a name, kind, shape or list of categories is none that a fit learns.
    """
    found = {name: Condition(*value) for name, value in described.items()}
    for name, one in found.items():
        usual_shape = all(size >= 0 for size in one.shape) and math.prod(one.shape) <= _MOST_NUMBERS
        if not (is_name(name) and usual_shape and _are_usual(one.kind, one.categories)):
            raise ModelFileError(f"its description of the condition {name!r:.100} is wrong: {one!r:.300}")
    return found


def check_writable(learned: Mapping[str, Condition]) -> None:
    """Refuse categories that a model file cannot hold: it has text and numbers alone."""
    for name, one in learned.items():
        values = [] if one.categories is None else one.categories
        odd = next((value for value in values if not isinstance(value, _WRITABLE)), None)
        if odd is not None:
            raise ModelFileError(
                f"the categories of condition[{name!r}] are objects such as {odd!r}, and a model file holds text and "
                "numbers: fit with strings in their place, or use pickle."
            )


def _are_usual(kind: str, categories: NDArray[Any] | None) -> bool:
    """Return whether categories are those of the kind: different values of a list, or none."""
    if kind != CATEGORY:
        return kind in (FLOAT, INTEGER) and categories is None
    values = [] if categories is None or categories.ndim != 1 else categories.tolist()
    return len(values) > 0 and len(set(values)) == len(values) and all(value == value for value in values)


def count_labels(learned: Mapping[str, Condition]) -> dict[str, int]:
    """Return the number of categories of each condition that has some."""
    return {name: len(one.categories) for name, one in learned.items() if one.categories is not None}


def draw_conditions(learned: Mapping[str, Condition], n_rows: int) -> dict[str, NDArray[Any]]:
    """Return encoded entries to try a solver on: draws of a standard normal, zeros for integers, all categories."""
    generator, drawn = np.random.default_rng(1), {}
    for name, one in learned.items():
        shape = (n_rows, *one.shape)
        if one.kind == FLOAT:
            drawn[name] = generator.normal(size=shape)
        else:  # of an integer, 0 is most likely to be one
            n_values = 1 if one.categories is None else len(one.categories)
            drawn[name] = (np.arange(math.prod(shape)) % n_values).reshape(shape)
    return drawn


def list_conditions(learned: Mapping[str, Condition]) -> dict[str, str]:
    """Return metadata of an ONNX file that say what its inputs mean: a JSON list, empty without a condition."""
    if not learned:
        return {}
    listed = []
    for name, one in learned.items():
        listed.append({"name": name, "kind": one.kind, "shape": list(one.shape)})
        if one.categories is not None:
            listed[-1]["categories"] = one.categories.tolist()
    return {NAME: json.dumps(listed, default=str)}
