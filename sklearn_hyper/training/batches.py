"""Which rows a step of the optimizer learns from, and what cannot learn from a single one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn


class Batches:
    """Shuffled rows by the batch, each in one, and none alone: a layer like BatchNorm learns nothing from a single row.

    A last batch of one row joins the one before. Only ``batch_size=1``, or a single row, leaves rows alone.
    """

    def __init__(self, n_rows: int, batch_size: int, generator: torch.Generator | None = None):
        self.n_rows, self.batch_size, self.generator = n_rows, batch_size, generator

    def __len__(self) -> int:
        full, rest = divmod(self.n_rows, self.batch_size)
        return max(1, full + (rest > 1 or (rest == 1 and full == 0)))

    def __iter__(self) -> Iterator[list[int]]:
        parts = torch.randperm(self.n_rows, generator=self.generator).split(self.batch_size)
        if len(parts) > len(self):
            parts = (*parts[:-2], torch.cat(parts[-2:]))
        yield from (part.tolist() for part in parts)


def check_lone_rows(
    module: nn.Module, forward: Callable[[nn.Module], Any], n_rows: int, batch_size: int, parts: str
) -> None:
    """Refuse batches of a single row where a layer cannot learn from one, as BatchNorm cannot.

    Parameters
    ----------
    module : nn.Module
    forward : callable
        ``forward(module)`` calls it, or rather a copy of it, on one row.
    n_rows, batch_size : int
        Rows trained on, and rows a batch.
    parts : str
        Which parameters the module is made of, for the error.
    """
    if min(n_rows, batch_size) > 1 or not any(_may_need_rows(part) for part in module.modules()):
        return
    try:
        with torch.no_grad():
            forward(copy.deepcopy(module).train())
    except Exception as error:
        what, remedy = f"batch_size={batch_size}", "set batch_size to 2 or more"
        if n_rows == 1:
            what, remedy = "one row to train on", "give more rows"
        raise ValueError(
            f"{what}: a layer of {parts} cannot be trained on a batch of a single row ({error}), as none can that takes "
            f"statistics over a batch (BatchNorm does); {remedy}, or use a layer that takes them over each row (LayerNorm, "
            "GroupNorm)."
        ) from error


def _may_need_rows(part: nn.Module) -> bool:
    """Whether a module may fail on a single row in training: a normalisation over the batch, or one of the user's own."""
    own = not type(part).__module__.startswith(("torch.nn.", "sklearn_hyper."))
    return own or isinstance(part, nn.modules.batchnorm._BatchNorm)
