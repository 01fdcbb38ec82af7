"""How a solve calls a user's field: inputs are bound, and neither side can overwrite the other's tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, is_grad_enabled
from torch.compiler import is_compiling


@dataclass(frozen=True)
class FieldInputs:
    """Inputs of a field besides time and state: x and a condition, as in ``f(t, z, x, **condition)``.

    They are not part of the state, so solvers do not step them. Either may be missing.

    Parameters
    ----------
    x : Tensor, optional
        Input of a data-controlled field (eq. 1), its third argument. Corrections read it too.
    condition : mapping of str to Tensor, optional
        Keyword arguments of the field: labels, contexts, guidance weights. A tensor has one entry per row. Any other
        value, and a 0-d tensor, is the same for all rows.

    Examples
    --------
    >>> import torch
    >>> inputs = FieldInputs(x=torch.ones(3, 2), condition={"label": torch.tensor([0, 1, 2])})
    >>> inputs.rows(torch.tensor([2, 0])).condition
    {'label': tensor([2, 0])}
    """

    x: Any = None
    condition: Mapping[str, Any] = field(default_factory=dict)

    def rows(self, rows: Any) -> FieldInputs:
        """Return the inputs of some of the rows."""
        return self.each(lambda tensor: tensor[rows] if tensor.ndim else tensor)

    def each(self, change: Callable[[Tensor], Tensor]) -> FieldInputs:
        """Return the inputs with every tensor changed, moved to another device for example."""
        if self.x is None and not self.condition:
            return self
        changed = {key: change(value) if isinstance(value, Tensor) else value for key, value in self.condition.items()}
        return FieldInputs(change(self.x) if isinstance(self.x, Tensor) else self.x, changed)

    @property
    def arguments(self) -> tuple[Any, ...]:
        """The positional arguments after t and z: x, or none."""
        return () if self.x is None else (self.x,)


_WRITES_SOMETIMES = (
    "vector_field writes into its argument z in some calls and not in others, so that no solver can trust its state: "
    "return a new tensor (no inplace=True, no z.add_, z[...] = or out=z), or begin with z = z.clone()."
)
NO_INPUTS = FieldInputs()
"""Inputs of a field f(t, z)."""


class ProtectedField:
    """Bind a field's inputs, and protect the solver's tensors from a field that works in place.

    An in-place activation as the first layer would overwrite the state from which the solver goes on. An ``f`` that
    returns the same buffer at each call would overwrite earlier stages. Copying at every call would be safe but slow.
    So the first call works on copies and shows whether ``f`` writes into z or its inputs. The second call shows whether
    ``f`` reuses its output. Later calls copy only what needs it. ``f`` is never called more often than the solver asks.

    Parameters
    ----------
    f : callable
        ``f(t, z)``; ``inputs`` are passed as further arguments.
    inputs : FieldInputs, optional
    """

    is_trusted = False
    """Whether an earlier solve has shown that the code needs no copies. Writes into z are noticed all the same."""

    def __init__(self, f: Callable[..., Tensor], inputs: FieldInputs = NO_INPUTS):
        self.given = self.f = f
        self.inputs = inputs
        self.has_inputs = inputs.x is not None or bool(inputs.condition)
        self.writes_z = self.writes_inputs = self.reuses_output = False
        self._watched: Tensor | None = None
        self._version, self._is_second = 0, True

    def calling(self, f: Callable[..., Tensor]) -> ProtectedField:
        """Call another field from now on, one of the same code as ``given``, and go on watching. Return this object."""
        self.f = f
        return self

    @property
    def is_harmless(self) -> bool:
        """Whether calls have been watched, and needed no copy."""
        watched = self._watched
        if watched is None or self.writes_z or self.writes_inputs or self.reuses_output:
            return False
        return not (watched.requires_grad and not is_grad_enabled())

    def __call__(self, t: Tensor, z: Tensor) -> Tensor:
        # Written out without helper functions: this runs at every evaluation, and a small field takes a few
        # microseconds.
        watched = self._watched
        if (watched is None and not self.is_trusted) or is_compiling() or z.is_inference():
            return self._evaluate_on_copies(t, z)
        version = z._version
        given = z.clone() if self.writes_z else z
        if self.has_inputs:
            inputs = self.inputs.each(Tensor.clone) if self.writes_inputs else self.inputs
            output = self.f(t, given, *inputs.arguments, **inputs.condition)
        else:
            output = self.f(t, given)
        if z._version != version:
            raise ValueError(_WRITES_SOMETIMES)
        if watched is not None:
            if watched._version != self._version:
                self.reuses_output = True
            elif self._is_second:
                self.reuses_output, self._is_second = shares_memory(output, watched), False
        if output.requires_grad and not is_grad_enabled():
            output = output.detach()
        return output.clone() if self.reuses_output else output

    def _evaluate_on_copies(self, t: Tensor, z: Tensor) -> Tensor:
        """Evaluate f on copies: in the first call, and in all calls where tensors do not record writes."""
        given, inputs = z.clone(), self.inputs.each(Tensor.clone)
        output: Any = self.f(t, given, *inputs.arguments, **inputs.condition)
        if not isinstance(output, Tensor):
            return output
        if not (is_compiling() or z.is_inference() or output.is_inference()):
            self.writes_z = is_written(given, z)
            self.writes_inputs = self.has_inputs and _is_any_written(inputs, self.inputs)
            self._watched, self._version = output, output._version
        # A field that differentiates inside may return a graph although gradients are off.
        return (output if is_grad_enabled() else output.detach()).clone()


def _is_any_written(copied: FieldInputs, original: FieldInputs) -> bool:
    pairs = [(copied.x, original.x), *((copied.condition[key], value) for key, value in original.condition.items())]
    return any(is_written(*pair) for pair in pairs)


def is_written(copied: Any, original: Any) -> bool:
    """Return whether a copy that was made for a call has been written to in that call."""
    if not isinstance(copied, Tensor) or copied.is_inference():
        return False
    if copied._version > 0:  # a fresh copy has version 0
        return True
    # Writes through NumPy or .data do not count in the version, so compare values. Not on a GPU: such writes are rare
    # there, and the comparison would wait for the device.
    if not copied.is_cpu or torch.equal(copied, original):
        return False
    return not torch.equal(copied.nan_to_num(), original.nan_to_num())


def shares_memory(first: Any, second: Tensor) -> bool:
    """Return whether two live tensors start at the same address in memory."""
    try:
        return first.data_ptr() == second.data_ptr() != 0
    except RuntimeError:  # tensors inside a torch.func transform have no address
        return False
