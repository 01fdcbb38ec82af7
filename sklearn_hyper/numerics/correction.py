"""What a hypersolver changes in a step of its base method, as the stepping loop sees it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from .methods.method import Field, StepPlan


class Correction:
    """Two things that a correction may do in a step; either may be left as it is here, doing nothing.

    A net that computes g overrides :meth:`term`. A correction in the weights of f itself overrides :meth:`field`. The
    loop does not know which it has.
    """

    def field(self, f: Field, plan: StepPlan) -> Field:
        """The field that the method evaluates in this step."""
        return f

    def term(self, plan: StepPlan, s: Tensor, z: Tensor, stages: Sequence[Tensor], x: Any) -> Tensor | None:
        """g of eq. 5, which the loop multiplies by eps^(p+1) and adds. None: nothing is added."""
        return None


class PlainTerm(Correction):
    """A callable ``g(eps, s, z, stages, x)``, the same for all steps."""

    def __init__(self, g: Callable[..., Tensor]):
        self.g = g

    def term(self, plan: StepPlan, s: Tensor, z: Tensor, stages: Sequence[Tensor], x: Any) -> Tensor:
        return self.g(plan.eps, s, z, stages, x)


class StepTerms(Correction):
    """Callables ``g(eps, s, z, stages, x)``, one a step."""

    def __init__(self, terms: Sequence[Callable[..., Tensor]]):
        self.terms = list(terms)

    def term(self, plan: StepPlan, s: Tensor, z: Tensor, stages: Sequence[Tensor], x: Any) -> Tensor:
        return self.terms[plan.k](plan.eps, s, z, stages, x)


def as_correction(g: Any, n_steps: int) -> Correction | None:
    """Turn what a user may pass as g into a correction: None, a correction, a callable, or a callable for every step."""
    if g is None or isinstance(g, Correction):
        return g
    if not isinstance(g, (Sequence, nn.ModuleList)):
        return PlainTerm(g)
    if len(g) != n_steps:
        raise ValueError(f"g holds {len(g)} corrections for {n_steps} steps; pass one a step, or a single one for all.")
    return StepTerms(list(g))
