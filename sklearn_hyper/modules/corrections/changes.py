"""How the weights of f change: by how much in each evaluation (schedules), and from what parameters (changes)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...numerics.methods import Method, StepKind, StepPlan
from ..seeding import own_generator
from .field_module import typical_size

Parts = Sequence[tuple[int, float]]
"""Which parts of the changes an evaluation adds up, each with its factor."""


# ---------------------------------------------------------------------- when the weights of an evaluation change
class Schedule(ABC):
    """How far the weights move in each evaluation: the parts that are added up, and the factor eps^p."""

    n_parts: int

    @abstractmethod
    def of(self, plan: StepPlan, node: int) -> tuple[Parts, Any]:
        """Return the parts of an evaluation, and the factor of their sum."""

    def covers(self, method: Method) -> bool:
        """Return whether the weights are fitted for methods like this one."""
        return True

    def check(self, plans: Sequence[StepPlan] | None) -> None:  # noqa: B027 - any steps will do
        """Refuse steps that there are no weights for. None stands for steps that depend on the state."""


@dataclass(frozen=True)
class OwnWeights(Schedule):
    """Weights for every evaluation of one mesh.

    Parameters
    ----------
    sizes : tuple of float
        eps of each step. There the factor is 1; at another span it is (eps / size)^p.
    kinds : tuple of StepKind
        Kind of each step.
    """

    sizes: tuple[float, ...]
    kinds: tuple[StepKind, ...]

    @classmethod
    def of_steps(cls, plans: Sequence[StepPlan]) -> OwnWeights:
        """Return the schedule of a mesh."""
        return cls(tuple(plan.eps for plan in plans), tuple(plan.kind for plan in plans))

    @property
    def n_parts(self) -> int:  # type: ignore[override]
        return sum(self._counts)

    @property
    def _counts(self) -> list[int]:
        return [len(kind.nodes) for kind in self.kinds]

    def of(self, plan: StepPlan, node: int) -> tuple[Parts, Any]:
        if plan.k >= len(self.sizes) or len(plan.kind.nodes) != self._counts[plan.k]:
            raise ValueError(f"step {plan.k} with {len(plan.kind.nodes)} evaluations: {self._fitted_for()}")
        factor = (plan.eps / self.sizes[plan.k]) ** plan.kind.order
        return [(sum(self._counts[: plan.k]) + node, 1.0)], factor

    def covers(self, method: Method) -> bool:
        return all(method.kind(k) == kind for k, kind in enumerate(self.kinds))

    def check(self, plans: Sequence[StepPlan] | None) -> None:
        counts = None if plans is None else [len(plan.kind.nodes) for plan in plans]
        if counts != self._counts:
            asked = "steps that depend on the state" if counts is None else _describe(counts)
            raise ValueError(f"{asked}: {self._fitted_for()}")

    def _fitted_for(self) -> str:
        return (
            f"the correction has weights of f for {_describe(self._counts)}, each its own, and none for these. Fit for "
            "them, or with fit_n_steps=(a, b), whose weights depend smoothly on the step."
        )


@dataclass(frozen=True)
class SmoothWeights(Schedule):
    r"""Weights for any number of steps: :math:`\Delta = \Delta_0 + \tau \Delta_1 + \epsilon \Delta_2`.

    :math:`\tau` is the time of the evaluation, from -1 to 1 over the span, and eps counts in units of the largest one.

    Parameters
    ----------
    t_span : pair of float
    largest : float
        Size of the largest step.
    """

    t_span: tuple[float, float]
    largest: float
    n_parts = 3

    def of(self, plan: StepPlan, node: int) -> tuple[Parts, Any]:
        start, end = self.t_span
        share = abs(plan.eps) / self.largest
        time = 2 * (plan.s + plan.kind.nodes[node] * plan.eps - start) / (end - start) - 1
        return [(0, 1.0), (1, time), (2, share)], share**plan.kind.order


def _describe(counts: Sequence[int]) -> str:
    return f"{len(counts)} steps with {sum(counts)} evaluations"


# ---------------------------------------------------------------------- the changes
class FullChanges(nn.Module):
    """Changes of whole tensors: for each a stack of matrices, or of vectors, with one for each part."""

    units: Tensor

    def __init__(self, tensors: Mapping[str, Tensor], n_parts: int, unit: float = 1.0):
        super().__init__()
        self.shapes = {name: tensor.shape for name, tensor in tensors.items()}
        self.changes = nn.ParameterList(
            torch.zeros(n_parts, *(t.flatten(1).shape if t.ndim > 1 else (t.numel(),))).to(t) for t in tensors.values()
        )
        self.register_buffer("units", torch.stack([unit * _unit(tensor, tensors) for tensor in tensors.values()]))

    def forward(self, theta: Mapping[str, Tensor], parts: Parts, factor: Any) -> dict[str, Tensor]:
        """Return the changed tensors by name."""
        changed = {}
        for name, change, unit in zip(self.shapes, self.changes, factor * self.units, strict=True):
            changed[name] = torch.addcmul(theta[name], _mix(change, parts).view(self.shapes[name]), unit)
        return changed


class LowRankChanges(nn.Module):
    """Changes of low rank: for each matrix a product of two thin ones, of which the first starts at zero."""

    units: Tensor

    def __init__(self, tensors: Mapping[str, Tensor], n_parts: int, rank: int, unit: float = 1.0):
        super().__init__()
        self.shapes = {name: tensor.shape for name, tensor in tensors.items()}
        generator = own_generator(0)
        ups, downs, units = [], [], []
        for tensor in tensors.values():
            n_out, n_in = tensor.flatten(1).shape
            ups.append(torch.zeros(n_parts, n_out, rank).to(tensor))
            downs.append((torch.randn(n_parts, rank, n_in, generator=generator)).to(tensor))
            units.append(unit * _unit(tensor, tensors))
        self.ups, self.downs = nn.ParameterList(ups), nn.ParameterList(downs)
        self.register_buffer("units", torch.stack(units))

    def forward(self, theta: Mapping[str, Tensor], parts: Parts, factor: float) -> dict[str, Tensor]:
        """Return the changed tensors by name."""
        changed = {}
        for name, up, down, unit in zip(self.shapes, self.ups, self.downs, self.units, strict=True):
            change = sum(weight * (up[i] @ down[i]) for i, weight in parts)
            changed[name] = theta[name] + (factor * unit) * change.view(self.shapes[name])
        return changed


def learning_unit(base_error: float) -> float:
    """Return how far weights move in a step of an optimizer, as a multiple of its learning rate and of their size.

    The error that is left says how far they have to move: it is proportional to it.
    """
    return 25 * min(base_error, 0.3)


def _mix(change: Tensor, parts: Parts) -> Tensor:
    (first, weight), *others = parts
    mixed = change[first] if weight == 1 else weight * change[first]
    for part, factor in others:
        mixed = mixed.add(change[part], alpha=factor)
    return mixed


def _unit(tensor: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
    """Return the size of a tensor's entries, by which its changes are scaled; the largest of all if they are zero."""
    size = typical_size(tensor)
    return size if size > 0 else torch.stack([typical_size(other) for other in tensors.values()]).max().clamp(min=1e-3)
