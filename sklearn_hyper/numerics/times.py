"""Checks of spans, step counts and meshes, and the dtype in which f gets its time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

_FINE, _FINEST = 1e-5, 1e-6
"""Largest rounding of times, as a share of the span: in the states' dtype, and in float64."""
# Half precision rounds more coarsely than _FINE on any span, so it gets a separate limit: 4 times the span's length.
_REACH = {
    dtype: max(_FINE / torch.finfo(dtype).eps, 4.0)
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
}
"""How far from zero a span may lie, in multiples of its length, for its times to have the states' dtype."""
_EPS = torch.finfo(torch.float64).eps


def check_t_span(t_span: Any) -> tuple[float, float]:
    """Return ``t_span`` as two Python floats, or say what is wrong with it."""
    try:
        start, end = (float(value) for value in t_span)
    except (TypeError, ValueError) as error:
        raise ValueError(f"t_span must be a pair of numbers (start, end), got {t_span!r}.") from error
    if not (math.isfinite(start) and math.isfinite(end)):
        raise ValueError(f"t_span must be finite, got {t_span!r}.")
    if start == end:
        raise ValueError(f"t_span must have two different ends, got {t_span!r}.")
    check_resolution("t_span", (start, end))
    return start, end


def check_resolution(name: str, times: Sequence[float]) -> None:
    """Refuse times so far from zero that even float64 cannot tell the points of a solve apart."""
    far = max(abs(times[0]), abs(times[-1]))
    if not _EPS * far <= _FINEST * abs(times[-1] - times[0]) < math.inf:
        raise ValueError(
            f"{name} from {times[0]!r} to {times[-1]!r} lies so far from zero that float64 does not resolve it (its "
            f"numbers are {_EPS * far:.1g} apart there): measure time from the start of the span."
        )


def time_dtype(dtype: torch.dtype, times: Sequence[float]) -> torch.dtype:
    """Return the dtype in which f gets time in a solve from the first to the last of ``times``.

    It is the states' dtype if that resolves the span to 1e-5 of its length, else float64. Unix times, for example, are
    128 seconds apart in float32. A 0-d float64 tensor does not change the dtype of float32 states in arithmetic.
    """
    start, end = times[0], times[-1]
    return dtype if max(abs(start), abs(end)) <= _REACH[dtype] * abs(end - start) else torch.float64


def time_tensor(values: Any, like: Tensor, times: Sequence[float]) -> Tensor:
    """Return times as f gets them: on the device of ``like``, in the dtype that :func:`time_dtype` gives for ``times``.

    A single number becomes a 0-d tensor.
    """
    dtype = time_dtype(like.dtype, times)
    return like.new_tensor(values) if dtype == like.dtype else like.new_tensor(values, dtype=dtype)


def check_n_steps(n_steps: Any, name: str = "n_steps") -> int:
    """Return ``n_steps`` as an int of at least 1. NumPy integers are accepted, 2.0 and True are not."""
    try:
        value = n_steps.__index__()
    except (AttributeError, TypeError):  # an array's __index__ raises TypeError
        value = 0
    if isinstance(n_steps, bool) or value < 1:
        raise ValueError(f"{name} must be an integer >= 1, got {n_steps!r}.")
    return int(value)


def uniform_grid(t_span: Any, n_steps: int) -> tuple[float, ...]:
    """Return the mesh s_0, ..., s_K of K equal steps, with exact ends."""
    start, end = check_t_span(t_span)
    n_steps = check_n_steps(n_steps)
    inner = (start + (end - start) * (k / n_steps) for k in range(1, n_steps))
    return (start, *inner, end)


def check_grid(grid: Sequence[float] | Tensor, t_span: Any = None, n_steps: int | None = None) -> tuple[float, ...]:
    """Return a user's mesh as floats. Check that it is finite, strictly monotone and agrees with t_span and n_steps."""
    mesh = tuple(float(s) for s in grid)
    steps = [after - before for before, after in pairwise(mesh)]
    if not steps or not all(math.isfinite(s) for s in mesh) or not (min(steps) > 0 or max(steps) < 0):
        raise ValueError(f"grid must hold at least two finite, strictly monotone times, got {grid!r}.")
    if t_span is not None and check_t_span(t_span) != (mesh[0], mesh[-1]):
        raise ValueError(f"grid runs from {mesh[0]} to {mesh[-1]}, which contradicts t_span={t_span!r}.")
    if n_steps is not None and check_n_steps(n_steps) != len(steps):
        raise ValueError(f"grid has {len(steps)} steps, which contradicts n_steps={n_steps}.")
    return mesh
