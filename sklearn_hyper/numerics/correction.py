"""The contract of a correction, as the stepping loop sees it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from .methods.method import Field, StepPlan
from .protection import ProtectedField


class Correction:
    """Base class of corrections. A correction may change a step in two ways, and by default does neither.

    A net that computes g overrides :meth:`term`. A correction in the weights of f itself overrides :meth:`field`. The
    loop calls both.
    """

    takes_row_steps = False
    """Whether eps and s of its term may hold one number per row, for rows that take different steps."""

    def field(self, f: ProtectedField, plan: StepPlan) -> Field:
        """Return the field that the method evaluates in this step."""
        return f

    def term(self, plan: StepPlan, s: Tensor, z: Tensor, stages: Sequence[Tensor], x: Any) -> Tensor | None:
        """Return g of eq. 5, which the loop multiplies by eps^(p+1) and adds. None adds nothing."""
        return None


class PlainTerm(Correction):
    """A callable ``g(eps, s, z, stages, x)``, the same for all steps."""

    def __init__(self, g: Callable[..., Tensor]):
        self.g = g

    def term(self, plan: StepPlan, s: Tensor, z: Tensor, stages: Sequence[Tensor], x: Any) -> Tensor:
        return self.g(plan.eps, s, z, stages, x)


class StepTerms(Correction):
    """Callables ``g(eps, s, z, stages, x)``, one per step."""

    def __init__(self, terms: Sequence[Callable[..., Tensor]]):
        self.terms = list(terms)

    def term(self, plan: StepPlan, s: Tensor, z: Tensor, stages: Sequence[Tensor], x: Any) -> Tensor:
        return self.terms[plan.k](plan.eps, s, z, stages, x)


def as_correction(g: Any, n_steps: int) -> Correction | None:
    """Return a user's g as a correction. g is None, a correction, a callable, or a sequence of a callable per step."""
    if g is None or isinstance(g, Correction):
        return g
    if not isinstance(g, (Sequence, nn.ModuleList)):
        return PlainTerm(g)
    if len(g) != n_steps:
        raise ValueError(f"g holds {len(g)} corrections for {n_steps} steps; pass one a step, or a single one for all.")
    return StepTerms(list(g))
