"""How a solve calls a user's field: its inputs bound, and neither side able to write into the other's tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, is_grad_enabled
from torch.compiler import is_compiling


@dataclass(frozen=True)
class FieldInputs:
    """What a field takes beside time and state, by row: ``f(t, z)``, ``f(t, z, x)``, ``f(t, z, **condition)`` or both.

    None of it is part of the state, so that no solver steps it.

    Parameters
    ----------
    x : Tensor, optional
        Input of a data-controlled field (eq. 1), its third argument. Corrections read it, too.
    condition : mapping of str to Tensor, optional
        Keyword arguments of the field: labels, contexts, guidance weights. A tensor has one entry a row; what is no
        tensor is the same for all rows.

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
        """The same for some of the rows."""
        return self.each(lambda tensor: tensor[rows])

    def each(self, change: Callable[[Tensor], Tensor]) -> FieldInputs:
        """The same with every tensor changed, to another device, say."""
        if self.x is None and not self.condition:
            return self
        changed = {key: change(value) if isinstance(value, Tensor) else value for key, value in self.condition.items()}
        return FieldInputs(change(self.x) if isinstance(self.x, Tensor) else self.x, changed)

    @property
    def arguments(self) -> tuple[Any, ...]:
        """What comes after t and z: x, or nothing."""
        return () if self.x is None else (self.x,)


NO_INPUTS = FieldInputs()
"""Of a field f(t, z)."""


class ProtectedField:
    """A field f(t, z), its inputs bound, that neither changes the solver's tensors nor has its own changed.

    An in-place activation as the first layer would overwrite the state that the solver goes on from; an ``f`` that
    returns one buffer would overwrite the stages before. The first call of a solve works on copies, and shows whether
    ``f`` writes into z or its inputs; the second whether it returns one buffer. All calls after that take copies of
    what needs them, and of nothing else. ``f`` is never called more often than asked.

    Parameters
    ----------
    f : callable
        ``f(t, z)``, and what ``inputs`` hold as further arguments.
    inputs : FieldInputs, optional
    """

    def __init__(self, f: Callable[..., Tensor], inputs: FieldInputs = NO_INPUTS):
        self.f, self.inputs = f, inputs
        self.has_inputs = inputs.x is not None or bool(inputs.condition)
        self.writes_z = self.writes_inputs = self.reuses_output = False
        self._watched: Tensor | None = None
        self._version, self._is_second = 0, True

    def __call__(self, t: Tensor, z: Tensor) -> Tensor:
        # Written out, without calls of its own: it runs at every evaluation, and a small field takes few microseconds.
        watched = self._watched
        if watched is None or is_compiling() or z.is_inference():
            return self._evaluate_on_copies(t, z)
        version = z._version
        given = z.clone() if self.writes_z else z
        if self.has_inputs:
            inputs = self.inputs.each(Tensor.clone) if self.writes_inputs else self.inputs
            output = self.f(t, given, *inputs.arguments, **inputs.condition)
        else:
            output = self.f(t, given)
        if z._version != version:
            raise ValueError(
                "vector_field writes into its argument z in some calls and not in others, so that no solver can trust "
                "its "
                "state: return a new tensor (no inplace=True, no z.add_, z[...] = or out=z), or begin with z = "
                "z.clone()."
            )
        if watched._version != self._version:
            self.reuses_output = True
        elif self._is_second:
            self.reuses_output, self._is_second = shares_memory(output, watched), False
        if output.requires_grad and not is_grad_enabled():
            output = output.detach()
        return output.clone() if self.reuses_output else output

    def _evaluate_on_copies(self, t: Tensor, z: Tensor) -> Tensor:
        """The first call of a solve; every one of tensors that do not tell whether they are written to."""
        given, inputs = z.clone(), self.inputs.each(Tensor.clone)
        output: Any = self.f(t, given, *inputs.arguments, **inputs.condition)
        if not isinstance(output, Tensor):
            return output
        if not (is_compiling() or z.is_inference() or output.is_inference()):
            self.writes_z = is_written(given, z)
            self.writes_inputs = self.has_inputs and _is_any_written(inputs, self.inputs)
            self._watched, self._version = output, output._version
        # One that differentiates inside may hand out a graph where none is wanted.
        return (output if is_grad_enabled() else output.detach()).clone()


def _is_any_written(copied: FieldInputs, original: FieldInputs) -> bool:
    pairs = [(copied.x, original.x), *((copied.condition[key], value) for key, value in original.condition.items())]
    return any(is_written(*pair) for pair in pairs)


def is_written(copied: Any, original: Any) -> bool:
    """Whether a copy, which was made for one call, has been written to in it."""
    if not isinstance(copied, Tensor) or copied.is_inference():
        return False
    if copied._version > 0:  # a fresh copy has the version 0
        return True
    # NumPy and .data write past versions. On a GPU, where neither is usual, comparing values would wait for it.
    if not copied.is_cpu or torch.equal(copied, original):
        return False
    return not torch.equal(copied.nan_to_num(), original.nan_to_num())


def shares_memory(one: Any, other: Tensor) -> bool:
    """Whether two tensors, both alive, begin at one place in memory."""
    try:
        return one.data_ptr() == other.data_ptr() != 0
    except RuntimeError:  # inside a transform of torch.func there is none to compare
        return False
