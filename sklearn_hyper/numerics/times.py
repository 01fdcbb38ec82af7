"""Spans, step counts and meshes: what a user may pass, and the dtype in which f gets its time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

_FINE, _FINEST = 1e-5, 1e-6
"""Share of a span that the rounding of its times may reach: in the states' dtype, and in float64."""
# Half precision resolves no span so well; where a few of its steps do not cover a span, the states' own dtype will do.
_REACH = {
    dtype: max(_FINE / torch.finfo(dtype).eps, 4.0)
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
}
"""How many times its length a span may lie from zero, for its times to be of the states' dtype."""
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
    """Refuse times so far from zero that not even float64 tells the points of a solve between them apart."""
    far = max(abs(times[0]), abs(times[-1]))
    if not _EPS * far <= _FINEST * abs(times[-1] - times[0]) < math.inf:
        raise ValueError(
            f"{name} from {times[0]!r} to {times[-1]!r} lies so far from zero that float64 does not resolve it (its "
            "numbers are "
            f"{_EPS * far:.1g} apart there): measure time from the start of the span."
        )


def time_dtype(dtype: torch.dtype, times: Sequence[float]) -> torch.dtype:
    """The dtype in which f gets the time of a solve from the first to the last of ``times``.

    It is the states' own where that resolves the span to 1e-5 of it, else float64 (Unix times in float32 are 128
    seconds apart). A 0-d tensor of float64 leaves a float32 state's dtype as it is in arithmetic.
    """
    start, end = times[0], times[-1]
    return dtype if max(abs(start), abs(end)) <= _REACH[dtype] * abs(end - start) else torch.float64


def time_tensor(values: Any, like: Tensor, times: Sequence[float]) -> Tensor:
    """Times as f gets them, on the device of ``like``: a number as a 0-d tensor; of a solve as in :func:`time_dtype`."""
    dtype = time_dtype(like.dtype, times)
    return like.new_tensor(values) if dtype == like.dtype else like.new_tensor(values, dtype=dtype)


def check_n_steps(n_steps: Any, name: str = "n_steps") -> int:
    """Return ``n_steps`` as an int of at least 1 (NumPy integers pass, 2.0 and True do not)."""
    try:
        value = n_steps.__index__()
    except (AttributeError, TypeError):  # arrays have an __index__ that refuses
        value = 0
    if isinstance(n_steps, bool) or value < 1:
        raise ValueError(f"{name} must be an integer >= 1, got {n_steps!r}.")
    return int(value)


def uniform_grid(t_span: Any, n_steps: int) -> tuple[float, ...]:
    """The mesh s_0, ..., s_K of K equal steps; both ends are hit exactly."""
    start, end = check_t_span(t_span)
    n_steps = check_n_steps(n_steps)
    inner = (start + (end - start) * (k / n_steps) for k in range(1, n_steps))
    return (start, *inner, end)


def check_grid(grid: Sequence[float] | Tensor, t_span: Any = None, n_steps: int | None = None) -> tuple[float, ...]:
    """Validate a mesh of the user's own: finite, strictly monotone, in line with t_span and n_steps."""
    mesh = tuple(float(s) for s in grid)
    steps = [after - before for before, after in pairwise(mesh)]
    if not steps or not all(math.isfinite(s) for s in mesh) or not (min(steps) > 0 or max(steps) < 0):
        raise ValueError(f"grid must hold at least two finite, strictly monotone times, got {grid!r}.")
    if t_span is not None and check_t_span(t_span) != (mesh[0], mesh[-1]):
        raise ValueError(f"grid runs from {mesh[0]} to {mesh[-1]}, which contradicts t_span={t_span!r}.")
    if n_steps is not None and check_n_steps(n_steps) != len(steps):
        raise ValueError(f"grid has {len(steps)} steps, which contradicts n_steps={n_steps}.")
    return mesh
