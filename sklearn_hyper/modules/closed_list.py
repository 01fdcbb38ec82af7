"""What a model file may name: settings and schedules of this library, written as JSON and built again from it.

Each class here is a dataclass. A file names it, gives its fields, and its own constructor checks them. No other class
can be named, and nothing is imported.
"""

from __future__ import annotations

import types
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, Union, get_args, get_origin, get_type_hints

import numpy as np
import torch
from torch import nn

from ..numerics.methods import AdamsBashforth, Method, Nonstationary, RungeKutta, StepKind
from ..numerics.methods.predictor_corrector import PredictorCorrector
from ..numerics.tableaus import ButcherTableau
from .corrections.changes import OwnWeights, SmoothWeights
from .corrections.layers import CorrectionLayout
from .corrections.reach import ReachCorrection
from .corrections.scales import ErrorRanges
from .corrections.specs import ConvCorrection, MLPCorrection
from .corrections.weight_spec import WeightCorrection
from .model_file import ModelFileError, TensorReader, TensorWriter
from .serialization import copy_user_code

CLASSES: dict[str, type] = {
    kind.__name__: kind
    for kind in (
        RungeKutta, ButcherTableau, AdamsBashforth, PredictorCorrector, Nonstationary, StepKind,
        OwnWeights, SmoothWeights, CorrectionLayout, ErrorRanges,
        MLPCorrection, ConvCorrection, ReachCorrection, WeightCorrection,
    )
}  # fmt: skip
"""Classes of values that a file may name."""
_HINTS = {kind: get_type_hints(kind) for kind in CLASSES.values()}
TYPES: dict[str, type] = {
    kind.__name__: kind
    for kind in (
        nn.SiLU, nn.Tanh, nn.Softplus, nn.PReLU,
        torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD, torch.optim.NAdam, torch.optim.RMSprop,
    )
}  # fmt: skip
"""Classes that stand for themselves: activations and optimizers."""
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in (torch.float32, torch.float64)}
TEMPLATES = ("vector_field", "input_map", "output_map", "correction", "base_solver", "base_distribution")
"""What a user supplies again when a file is loaded, by the name of the argument."""
_MOST_TEMPLATES = 16
"""Copies of a template that a file may ask for. A density takes six of its field."""


class Writer(TensorWriter):
    """Describes values in JSON, and collects their tensors.

    Parameters
    ----------
    types : mapping of str to type, optional
        Further classes that stand for themselves.
    """

    def __init__(self, types: Mapping[str, type] | None = None) -> None:
        super().__init__()
        self._types = {**TYPES, **(types or {})}

    def describe(self, value: Any, what: str, template: str | None = None) -> Any:
        """Return the description of a value.

        Parameters
        ----------
        value : object
        what : str
            Its name in errors.
        template : str, optional
            One of :data:`TEMPLATES`: what cannot be described is left to the user, who supplies it when loading.

        Raises
        ------
        ModelFileError
            If it cannot be described.
        """
        if value is None or isinstance(value, (bool, str)):
            return value
        if isinstance(value, (int, np.integer)):
            return int(value)
        if isinstance(value, (float, np.floating)):
            return float(value)
        if isinstance(value, np.bool_):
            return bool(value)
        if isinstance(value, list):
            return [self.describe(item, what) for item in value]
        if isinstance(value, tuple):
            return {"tuple": [self.describe(item, what) for item in value]}
        if isinstance(value, dict):
            pairs = [(self.describe(key, what), self.describe(item, what)) for key, item in value.items()]
            return {"dict": [list(pair) for pair in pairs]}
        if isinstance(value, np.ndarray):
            return self._array(value, what)
        if isinstance(value, torch.dtype) and value in DTYPES.values():
            return {"dtype": str(value).removeprefix("torch.")}
        if isinstance(value, torch.device):
            return str(value)
        if isinstance(value, type) and self._types.get(value.__name__) is value:
            return {"type": value.__name__}
        if is_dataclass(value) and type(value) is CLASSES.get(type(value).__name__):
            described = {
                one.name: self.describe(getattr(value, one.name), f"{what}.{one.name}")
                for one in fields(value)
                if one.init
            }
            return {"class": type(value).__name__, "fields": described}
        if template is not None:
            return {"template": template, "was": type(value).__name__}
        raise ModelFileError(
            f"{what}={value!r:.200} cannot be described in a model file: it takes numbers, text, lists and settings "
            "of this library. Set it to one of those, or use pickle."
        )

    def _array(self, value: np.ndarray, what: str) -> dict[str, Any]:
        if value.dtype.kind in "OU":
            items = [self.describe(item, what) for item in value.ravel().tolist()]
            if value.ndim == 1 and all(item is None or isinstance(item, (bool, int, float, str)) for item in items):
                return {"array": items, "dtype": value.dtype.str if value.dtype.kind == "U" else "O"}
        elif value.dtype.kind in "biuf" and value.dtype.itemsize <= 8:
            # Through bytes, because torch lacks some of NumPy's dtypes.
            dtype = value.dtype.newbyteorder("<")
            flat = torch.from_numpy(np.frombuffer(value.astype(dtype).tobytes(), np.uint8).copy())
            return {"array": self.add(flat, what), "dtype": dtype.str, "shape": list(value.shape)}
        raise ModelFileError(f"{what} is an array of dtype {value.dtype}, which a model file cannot hold; use pickle.")


class Reader:
    """Builds values again from their descriptions.

    Parameters
    ----------
    tensors : TensorReader
    templates : mapping of str to object
        What the user supplies, by name; None for what is not supplied.
    types : mapping of str to type, optional
        As those of the writer.
    """

    def __init__(
        self, tensors: TensorReader, templates: Mapping[str, Any], types: Mapping[str, type] | None = None
    ) -> None:
        self._tensors, self._types = tensors, {**TYPES, **(types or {})}
        self._templates = {name: value for name, value in templates.items() if value is not None}
        self._used: Counter[str] = Counter()

    def take(self, name: Any) -> torch.Tensor:
        """Return a copy of a tensor of the file."""
        return self._tensors.take(name)

    def supplied(self, name: str) -> bool:
        """Return whether the user supplies a template of this name, which then is used."""
        return name in self._templates

    def template(self, name: Any, was: Any = None) -> Any:
        """Return a copy of what the user supplies under a name."""
        if name not in TEMPLATES:
            raise ModelFileError(f"its description asks for a template {name!r:.100}, which there is not")
        if name not in self._templates:
            kind = f" (it was a {was})" if isinstance(was, str) and was.isidentifier() else ""
            raise ModelFileError(
                f"it holds a {name} that is not of this library{kind}: pass load(path, {name}=...), built by the same "
                "code as the saved one. Its weights come from the file"
            )
        self._used[name] += 1
        if self._used[name] > _MOST_TEMPLATES:
            raise ModelFileError(f"its description asks for more than {_MOST_TEMPLATES} copies of {name}")
        return copy_user_code(self._templates[name], name)

    def unused(self) -> list[str]:
        """Return the names of templates that were supplied and asked for by nothing."""
        return sorted(self._templates.keys() - self._used.keys())

    def read(self, described: Any, hint: Any = Any, what: str = "a value") -> Any:
        """Return a value from its description.

        Raises
        ------
        ModelFileError
            If it is not of the type that ``hint`` says, an annotation.
        """
        value = self._read(described)
        if not is_of(value, hint):
            raise ModelFileError(f"its description of {what} is wrong: {described!r:.100}")
        return value

    def _read(self, described: Any) -> Any:
        if described is None or isinstance(described, (bool, int, float, str)):
            return described
        if isinstance(described, list):
            return [self._read(item) for item in described]
        if "tuple" in described:
            return tuple(self._read(item) for item in described["tuple"])
        if "dict" in described:
            return {self._read(key): self._read(item) for key, item in described["dict"]}
        if "array" in described:
            return self._array(described)
        if "dtype" in described:
            return DTYPES[described["dtype"]]
        if "type" in described:
            return self._types[described["type"]]
        if "template" in described:
            return self.template(described["template"], described.get("was"))
        return self._build(CLASSES[described["class"]], described["fields"])

    def _build(self, kind: type, described: Mapping[str, Any]) -> Any:
        hints = _HINTS[kind]
        expected = {one.name for one in fields(kind) if one.init}
        if expected != set(described):
            raise ModelFileError(f"its description of a {kind.__name__} has the fields {sorted(described)!r:.200}")
        values = {name: self.read(described[name], hints[name], f"{kind.__name__}.{name}") for name in described}
        return kind(**values)

    def _array(self, described: Mapping[str, Any]) -> np.ndarray:
        items, dtype = described["array"], np.dtype(described["dtype"])
        if isinstance(items, list):
            if dtype.kind not in "OU" or not all(
                item is None or isinstance(item, (bool, int, float, str)) for item in items
            ):
                raise ModelFileError(f"its description holds an array of {described['dtype']!r:.100}")
            made = np.empty(len(items), dtype=object)
            made[:] = items
            return made if dtype.kind == "O" else np.array(items, dtype=str).reshape(len(items))
        if dtype.kind not in "biuf":
            raise ModelFileError(f"its description holds an array of {described['dtype']!r:.100}")
        data = self.take(items)
        return np.frombuffer(data.numpy().tobytes(), dtype).reshape(described["shape"]).copy()


def is_of(value: Any, hint: Any) -> bool:
    """Return whether a value is of the type that an annotation names."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if hint is None or hint is types.NoneType:
        return value is None
    if origin in (Union, types.UnionType):
        return any(is_of(value, one) for one in arguments)
    if hint in (int, float):
        return isinstance(value, (int, float) if hint is float else int) and not isinstance(value, bool)
    if origin is tuple:
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return isinstance(value, tuple) and all(is_of(item, arguments[0]) for item in value)
        return isinstance(value, tuple) and len(value) == len(arguments) and all(map(is_of, value, arguments))
    if origin in (list, Sequence):
        kinds = list if origin is list else (list, tuple)
        return isinstance(value, kinds) and all(is_of(item, arguments[0]) for item in value)
    if origin is dict:
        key, item = arguments
        return isinstance(value, dict) and all(is_of(k, key) and is_of(v, item) for k, v in value.items())
    if origin is Callable:
        return callable(value)
    return isinstance(value, hint)


def describe_method(method: Method | None, writer: Writer) -> Any:
    """Describe a method; one of the user's own is supplied again as ``base_solver``."""
    described = writer.describe(method, "base_solver", "base_solver")
    if isinstance(described, dict) and "template" in described and method is not None:
        described |= {"name": method.name, "order": int(method.order)}
    return described


def read_method(described: Any, reader: Reader) -> Method | None:
    """Return a method from its description."""
    method = reader.read(described, Method | None, "base_solver")
    if method is not None and "template" in described and (method.name, method.order) != (
        described["name"], described["order"],
    ):  # fmt: skip
        raise ModelFileError(
            f"base_solver={method.name!r} of order {method.order} was passed, and the saved one is "
            f"{described['name']!r} of order {described['order']}"
        )
    return method
