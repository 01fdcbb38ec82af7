"""Fields of the user's that write into what they are given, or hand out one buffer again and again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, is_grad_enabled
from torch.compiler import is_compiling

FieldOfState = Callable[[Tensor, Tensor], Tensor]


class ProtectedField:
    """A field f(t, z), its input x bound, that neither changes the solver's tensors nor has its own changed.

    An in-place activation as the first layer would overwrite the state that the solver goes on from; an ``f`` that returns one
    buffer would overwrite the stages before. The first call of a solve works on copies, and shows whether ``f`` writes into
    z or x; the second whether it returns one buffer. All calls after that take copies of what needs them, and of nothing else.
    ``f`` is never called more often than asked.

    Parameters
    ----------
    f : callable
        ``f(t, z)`` or, with ``x``, ``f(t, z, x)``.
    x : Tensor, optional
        Input of a data-controlled field.
    """

    def __init__(self, f: Callable[..., Tensor], x: Any = None):
        self.f, self.x = f, x
        self.writes_z = self.writes_x = self.reuses_output = False
        self._watched: Tensor | None = None
        self._version, self._is_second = 0, True

    def __call__(self, t: Tensor, z: Tensor) -> Tensor:
        # Written out, without calls of its own: it runs at every evaluation, and a small field takes few microseconds.
        watched = self._watched
        if watched is None or is_compiling() or z.is_inference():
            return self._evaluate_on_copies(t, z)
        version, x = z._version, self.x
        given = z.clone() if self.writes_z else z
        output = self.f(t, given) if x is None else self.f(t, given, x.clone() if self.writes_x else x)
        if z._version != version:
            raise ValueError(
                "vector_field writes into its argument z in some calls and not in others, so that no solver can trust its "
                "state: return a new tensor (no inplace=True, no z.add_, z[...] = or out=z), or begin with z = z.clone()."
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
        given, x = z.clone(), _copy(self.x)
        output: Any = self.f(t, given) if x is None else self.f(t, given, x)
        if not isinstance(output, Tensor):
            return output
        if not (is_compiling() or z.is_inference() or output.is_inference()):
            self.writes_z, self.writes_x = is_written(given, z), is_written(x, self.x)
            self._watched, self._version = output, output._version
        # One that differentiates inside may hand out a graph where none is wanted.
        return (output if is_grad_enabled() else output.detach()).clone()


def _copy(x: Any) -> Any:
    return x.clone() if isinstance(x, Tensor) else x


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
