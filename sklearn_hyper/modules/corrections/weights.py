"""Corrections in the weights of f itself: each evaluation calls the field with weights of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from ...numerics.methods import Field, Method, StepPlan
from ...numerics.protection import ProtectedField
from ..serialization import copy_user_code, share_tensors
from .changes import Schedule
from .contract import ModuleCorrection, ScaleSample
from .field_module import FieldModule


def _is_training(f: Callable[..., Tensor]) -> bool:
    return isinstance(f, nn.Module) and f.training


class _LastField(threading.local):
    """A module to call the last field through, one for each thread. Copies and pickles of a correction leave it out.

    It shares the field's tensors and nothing else: while torch calls it with other weights, others may call the field.
    """

    field: Any = None
    module: FieldModule
    theta: Mapping[str, Tensor]
    tensors: Sequence[tuple[Mapping[str, Tensor | None], str, Tensor | None]]

    def is_of(self, f: Callable[..., Tensor]) -> bool:
        """Return whether the module is that of this field, in its present mode and with its present tensors.

        While ``torch.export`` traces, or ``torch.func.functional_call`` runs, a field holds other tensors than before
        and after.
        """
        if self.field is not f or _is_training(f) != _is_training(self.module.field):
            return False
        return all(holder.get(name) is tensor for holder, name, tensor in self.tensors)

    def take(self, f: Callable[..., Tensor]) -> None:
        """Make the module of another field."""
        given = FieldModule(f)
        self.field, self.module = f, share_tensors(given)
        self.theta = dict(self.module.named_parameters())
        holders = [holder for part in given.modules() for holder in (part._parameters, part._buffers)]
        self.tensors = [(holder, name, tensor) for holder in holders for name, tensor in holder.items()]

    def __reduce__(self) -> Any:
        return _LastField, ()


class FieldWeights(ModuleCorrection):
    r"""The field with weights :math:`\theta + \epsilon^p \Delta`, with a Delta of its own for every evaluation.

    Parameters
    ----------
    changes : sequence of nn.Module
        Delta, in parts.
    schedule : Schedule
        Which parts an evaluation takes.
    recomputes : bool, default False
        Whether a training keeps the states of a solve alone, and evaluates f again for its gradients. It takes a third
        more time, and a fraction of the memory.
    """

    def __init__(self, changes: Sequence[nn.Module], schedule: Schedule, *, recomputes: bool = False):
        super().__init__()
        self.changes, self.schedule, self.recomputes = nn.ModuleList(changes), schedule, recomputes
        self._last = _LastField()

    def merged(self, theta: Mapping[str, Tensor], plan: StepPlan, node: int) -> dict[str, Tensor]:
        """Return the weights of an evaluation by name, from those of the field."""
        parts, factor = self.schedule.of(plan, node)
        weights: dict[str, Tensor] = {}
        for change in self.changes:
            weights |= change(theta, parts, factor)
        return weights

    def _check_names(self, theta: Mapping[str, Tensor]) -> None:
        for change in self.changes:
            shapes: Any = change.shapes
            for name, shape in shapes.items():
                if name not in theta or theta[name].shape != shape:
                    found = f"one of shape {tuple(theta[name].shape)}" if name in theta else f"{sorted(theta)}"
                    raise ValueError(
                        f"the correction changes the weights of another field: it has a change of {name!r} of shape "
                        f"{tuple(shape)}, and this field has {found}. Fit one for this field, without a warm start."
                    )

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self._last = _LastField()  # a move may give a field other buffers
        return super()._apply(fn, recurse)

    def covers(self, method: Method) -> bool:
        return self.schedule.covers(method)

    def check_steps(self, plans: Sequence[StepPlan] | None) -> None:
        self.schedule.check(plans)

    def check_field(self, f: Callable[..., Tensor]) -> None:
        self._check_names(dict(FieldModule(f).named_parameters()))

    def field(self, f: ProtectedField, plan: StepPlan) -> Field:
        last, nodes = self._last, iter(range(len(plan.kind.nodes)))
        if not last.is_of(f.given):
            last.take(f.given)
            self._check_names(last.theta)
        module = last.module

        def bent(t: Tensor, z: Tensor, *arguments: Any, **condition: Any) -> Tensor:
            weights = self.merged(last.theta, plan, next(nodes))
            if not (self.recomputes and torch.is_grad_enabled()):
                return functional_call(module, weights, (t, z, *arguments), condition)
            return checkpoint(functional_call, module, weights, (t, z, *arguments), condition, use_reentrant=False)

        return f.calling(bent)

    def fold(self, plans: Sequence[StepPlan], f: Callable[..., Tensor] | None = None) -> ModuleCorrection:
        if f is None:
            return super().fold(plans)
        module = FieldModule(f)
        theta = dict(module.named_parameters())
        self._check_names(theta)
        evaluations = [(plan, node) for plan in plans for node in range(len(plan.kind.nodes))]
        with torch.no_grad():
            fields = [_with_weights(module, self.merged(theta, plan, node)) for plan, node in evaluations]
        return MergedFields(fields, [len(plan.kind.nodes) for plan in plans])


class MergedFields(ModuleCorrection):
    """Frozen copies of the field, one for each evaluation of a mesh, with the changes merged into their weights.

    Parameters
    ----------
    fields : sequence of FieldModule
    counts : sequence of int
        Evaluations in each step.
    """

    def __init__(self, fields: Sequence[FieldModule], counts: Sequence[int]):
        super().__init__()
        self.fields = nn.ModuleList(fields)
        ends = [0, *accumulate(counts)]
        # Plain lists of the bare fields: no look-up by name, and no call of the wrapper.
        self._by_step = [[one.field for one in fields[a:b]] for a, b in pairwise(ends)]
        self._last = len(self._by_step) - 1
        # Copies for protection take as long as a small field. After a solve that was watched they are not needed.
        self._is_harmless = False

    def field(self, f: ProtectedField, plan: StepPlan) -> Field:
        following = iter(self._by_step[plan.k])
        f.is_trusted = self._is_harmless

        def call(t: Tensor, z: Tensor) -> Tensor:
            output = f.calling(next(following))(t, z)
            if plan.k == self._last and not f.is_trusted:
                self._is_harmless = f.is_harmless
            return output

        return call


def _with_weights(module: FieldModule, weights: Mapping[str, Tensor]) -> FieldModule:
    copied = copy_user_code(module, "the field").requires_grad_(False).eval()
    parameters = dict(copied.named_parameters())
    for name, value in weights.items():
        parameters[name].data.copy_(value)
    return copied


class WeightsAndTerm(ModuleCorrection):
    """A correction in the weights of f, and a term g beside it.

    Parameters
    ----------
    weights : ModuleCorrection
        Changes the field.
    beside : ModuleCorrection
        Adds the term. It reads the stages of the changed field.
    """

    def __init__(self, weights: ModuleCorrection, beside: ModuleCorrection):
        super().__init__()
        self.weights, self.beside = weights, beside

    def field(self, f: ProtectedField, plan: StepPlan) -> Field:
        return self.weights.field(f, plan)

    def term(self, plan: StepPlan, s: Tensor, z: Tensor, stages: Sequence[Tensor], x: Any) -> Tensor | None:
        return self.beside.term(plan, s, z, stages, x)

    def covers(self, method: Method) -> bool:
        return self.weights.covers(method) and self.beside.covers(method)

    def check_steps(self, plans: Sequence[StepPlan] | None) -> None:
        self.weights.check_steps(plans)
        self.beside.check_steps(plans)

    def check_field(self, f: Callable[..., Tensor]) -> None:
        self.weights.check_field(f)
        self.beside.check_field(f)

    def fold(self, plans: Sequence[StepPlan], f: Callable[..., Tensor] | None = None) -> WeightsAndTerm:
        return WeightsAndTerm(self.weights.fold(plans, f), self.beside.fold(plans, f))

    def refit(self, sample: ScaleSample) -> WeightsAndTerm:
        return WeightsAndTerm(self.weights.refit(sample), self.beside.refit(sample))
