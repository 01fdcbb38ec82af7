"""What other packages are asked to do, and what they answer: values that travel between two interpreters."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn


@dataclass(frozen=True)
class TorchodeJob:
    """An adaptive solve.

    Parameters
    ----------
    method : "dopri5" or "tsit5"
    tolerance : float
    batches : tuple of int
        Given where milliseconds are asked for: of so many rows.
    """

    method: str
    tolerance: float
    batches: tuple[int, ...] = ()


@dataclass(frozen=True)
class TorchdynJob:
    """A solve by HyperEuler.

    Parameters
    ----------
    net : nn.Module
        g(t, z).
    n_steps : int
    batches : tuple of int
        As of :class:`TorchodeJob`.
    """

    net: nn.Module
    n_steps: int
    batches: tuple[int, ...] = ()


@dataclass(frozen=True)
class Answer:
    """What came of a job: terminal states by part and evaluations of f, or milliseconds by batch."""

    states: dict[str, Tensor] = field(default_factory=dict)
    nfe: float = 0.0
    milliseconds: dict[int, float] = field(default_factory=dict)


Job = TorchodeJob | TorchdynJob
