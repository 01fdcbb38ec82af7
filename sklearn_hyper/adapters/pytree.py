"""States that are tuples, lists or dicts of tensors, nested: packed into rows for the solve, and unpacked again."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .contract import Adapter


class PytreeField(Adapter):
    """A field ``f(t, state)`` whose state is a tuple, list or dict of tensors, nested, or a tensor of any shape.

    torchdiffeq solves such states as they are. Estimators take one array with a row a sample. So a state is packed: the
    numbers of a sample, one leaf after the other, are a row. The solver sees rows, and the field its own structure.

    Parameters
    ----------
    field : nn.Module or callable
        ``field(t, state)`` returns derivatives in the structure of the state. Conditions, and the input of a
        data-controlled Neural ODE, go to it as they are, and dicts of any kind as ``dict``. It is copied and frozen.
    example : tuple, list or dict of Tensor or ndarray, nested
        A state, of one sample or more: every leaf has shape (n, ...), samples first. Only structure and shapes are
        kept.
    conditions : iterable of str, default ()
        Names of keyword arguments that every call has to pass.

    Raises
    ------
    TypeError
        If the example holds something else, or as :class:`Adapter`.
    ValueError
        If the example has no leaf, a leaf without an axis of samples, or leaves of different numbers of samples.

    Examples
    --------
    A second-order equation: position and velocity, each of shape (n, 2).

    >>> import torch
    >>> from sklearn_hyper import HypersolverRegressor, NeuralODE
    >>> from sklearn_hyper.adapters import PytreeField
    >>> class Spring(torch.nn.Module):
    ...     def forward(self, t, state):
    ...         q, v = state
    ...         return v, -q
    >>> q, v = torch.randn(100, 2), torch.randn(100, 2)
    >>> field = PytreeField(Spring(), example=(q, v))
    >>> fast = HypersolverRegressor(field, base_solver="heun", n_steps=4, max_epochs=5, random_state=0)
    >>> X = field.pack((q, v))
    >>> q_end, v_end = field.unpack(fast.fit(X).predict(X))
    >>> q_end.shape
    (100, 2)
    """

    def __init__(self, field: Callable[..., Any], example: Any, *, conditions: Iterable[str] = ()):
        super().__init__(field, conditions=conditions)
        self.structure, self.width = _structure_of(example)

    def pack(self, state: Any) -> Tensor:
        """Return the rows of a state, of shape (n, width).

        Parameters
        ----------
        state : tuple, list or dict of Tensor or ndarray, nested
            Of the example's structure and shapes, with any number n of samples.

        Raises
        ------
        TypeError, ValueError
            If its structure or a shape is another, or leaves have different dtypes. The error names the leaf.
        """
        return self._pack(state, "state", None)

    def unpack(self, z: Any) -> Any:
        """Return the state of rows, in the example's structure. Its leaves are views of z.

        Parameters
        ----------
        z : Tensor or ndarray of shape (..., width)
            Rows of :meth:`pack`, predictions, or trajectories of shape (n, n_times, width).

        Raises
        ------
        ValueError
            If its last axis has another length.
        """
        if z.shape[-1] != self.width:
            raise ValueError(
                f"z has shape {tuple(z.shape)}, and the last axis of packed states has {self.width} numbers: pass "
                "what pack gave, or a solver's states of it."
            )
        return _map(lambda leaf: z[..., leaf.start : leaf.end].reshape(*z.shape[:-1], *leaf.shape), self.structure)

    def velocity(self, t: Tensor, z: Tensor, *inputs: Tensor, **condition: Any) -> Tensor:
        state = self.unpack(z)
        return self._pack(self.model(t, state, *inputs, **condition), "the field's output", z.shape[0])

    def _pack(self, state: Any, what: str, n: int | None) -> Tensor:
        rows: list[Tensor] = []
        for place, leaf, value in _pairs(self.structure, state, what, ""):
            if value.ndim == 0 or tuple(value.shape[1:]) != leaf.shape:
                raise ValueError(
                    f"{what}{place} has shape {tuple(value.shape)}; like the example's it must be (n, "
                    f"{', '.join(map(str, leaf.shape))}), samples first."
                )
            n = value.shape[0] if n is None else n  # len() would fix the batch of an exported file
            if value.shape[0] != n or (rows and value.dtype != rows[0].dtype):
                raise ValueError(
                    f"{what}{place} has {len(value)} samples of {value.dtype}; all leaves must have the same number "
                    f"and dtype, here {n} of {rows[0].dtype if rows else value.dtype}."
                )
            rows.append(value.reshape(n, math.prod(leaf.shape)))
        return torch.cat(rows, dim=1)

    def extra_repr(self) -> str:
        return f"width={self.width}, structure={self.structure}"


@dataclass(frozen=True)
class Leaf:
    """A tensor of a state: its shape in a sample, and the columns that it has in a row."""

    shape: tuple[int, ...]
    start: int
    end: int

    def __repr__(self) -> str:
        return f"({', '.join(map(str, self.shape))})"


def _is_array(value: Any) -> bool:
    """Return whether a value is a tensor or a NumPy array."""
    return isinstance(value, Tensor) or hasattr(value, "__array_interface__")


def _structure_of(example: Any) -> tuple[Any, int]:
    """Return an example with leaves in the place of tensors, and the number of columns of all."""
    end, n_samples = 0, set()

    def leaf_of(value: Tensor) -> Leaf:
        nonlocal end
        shape = tuple(value.shape[1:])
        start, end = end, end + math.prod(shape)
        n_samples.add(len(value))
        return Leaf(shape, start, end)

    def visit(value: Any, place: str) -> Any:
        if isinstance(value, (tuple, list, dict)):
            return _rebuilt(value, [visit(part, place + key) for key, part in _parts(value)])
        if not _is_array(value):
            raise TypeError(
                f"example{place} is {value!r}; a state is a tuple, list or dict of tensors, nested, or a tensor. What "
                "does not change in time goes into the field, or is a condition."
            )
        if value.ndim == 0:
            raise ValueError(f"example{place} has no axis of samples: every leaf must have shape (n, ...).")
        return leaf_of(value)

    structure = visit(example, "")
    if len(n_samples) != 1:
        raise ValueError(
            f"example has leaves with {sorted(n_samples)} samples: all must have the same number, in their first axis."
            if n_samples
            else f"example={example!r} holds no tensor."
        )
    return structure, end


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the parts of a tuple, list or dict, with their place in brackets."""
    items = value.items() if isinstance(value, Mapping) else enumerate(value)
    return ((f"[{key!r}]", part) for key, part in items)


def _rebuilt(like: Any, parts: list[Any]) -> Any:
    """Return new parts in a container like another one."""
    if isinstance(like, dict):
        return dict(zip(like, parts, strict=True))
    return like._make(parts) if hasattr(like, "_make") else type(like)(parts)  # named tuples take their fields apart


def _map(function: Callable[[Leaf], Any], structure: Any) -> Any:
    if isinstance(structure, Leaf):
        return function(structure)
    return _rebuilt(structure, [_map(function, part) for _, part in _parts(structure)])


def _pairs(structure: Any, state: Any, what: str, place: str) -> Iterator[tuple[str, Leaf, Tensor]]:
    """Yield the place, the leaf and the tensor of every leaf of a state; refuse another structure."""
    if isinstance(structure, Leaf):
        if not _is_array(state):
            raise TypeError(f"{what}{place} is a {type(state).__name__}; where the example has a tensor, pass one.")
        # Copied, since torch takes no arrays with negative strides, and warns of read-only ones.
        yield place, structure, state if isinstance(state, Tensor) else torch.as_tensor(state.copy())
        return
    keys = list(structure) if isinstance(structure, dict) else len(structure)
    if isinstance(structure, dict):
        fits = isinstance(state, Mapping) and set(state) == set(structure)
    else:  # a list in a tuple's place says as much
        fits = isinstance(state, (tuple, list)) and len(state) == len(structure)
    if not fits:
        found = sorted(map(str, state)) if isinstance(state, Mapping) else type(state).__name__
        expected = f"a dict with the keys {keys}" if isinstance(structure, dict) else f"a tuple or list of {keys}"
        raise TypeError(f"{what}{place} must be {expected}, like the example; got {found}.")
    for key in structure if isinstance(structure, dict) else range(len(structure)):
        yield from _pairs(structure[key], state[key], what, f"{place}[{key!r}]")
