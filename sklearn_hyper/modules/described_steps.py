"""Learned sizes of steps in model files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from .closed_list import Reader, Writer, is_of
from .described_modules import describe_state, read_state
from .learned_steps import LearnedSteps
from .model_file import ModelFileError

_MOST_POWER = 16


def describe_steps(steps: LearnedSteps | None, writer: Writer) -> dict[str, Any] | None:
    """Describe what proposes steps, with its tensors."""
    if steps is None:
        return None
    plain = {name: getattr(steps, name) for name in ("t_span", "eps_range", "power")}
    return {"plain": writer.describe(plain, "steps"), "state": describe_state(steps, "steps", writer)}


def read_steps(described: Mapping[str, Any] | None, reader: Reader) -> LearnedSteps | None:
    """Return what proposes steps from its description, frozen and in eval mode."""
    if described is None:
        return None
    plain = reader.read(described["plain"], dict[str, Any], "steps")
    (start, end), (low, high), power = plain["t_span"], plain["eps_range"], plain["power"]
    if not (
        is_of([start, end, low, high], list[float])
        and all(map(math.isfinite, (start, end, high)))
        and start != end
        and 0 < low < high
        and is_of(power, int)
        and 0 < power <= _MOST_POWER
    ):
        raise ModelFileError(f"its description of steps is wrong: {plain!r:.200}")
    shape = reader.take(described["state"]["sizes"]).shape
    with torch.device("meta"):
        steps = LearnedSteps((start, end), (low, high), power, torch.empty(shape))
    read_state(steps, described["state"], "steps", reader)
    return steps.eval().requires_grad_(False)
