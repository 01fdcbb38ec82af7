"""Corrections in the weights of f itself: each evaluation calls the field with weights of its own."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from ...numerics.methods import Field, Method, StepKind, StepPlan
from ...numerics.protection import WRITES_SOMETIMES, FieldInputs, ProtectedField
from ...numerics.times import time_tensor
from ..seeding import own_generator
from ..serialization import DeviceFreeModule, copy_user_code, share_tensors
from ..user_code import find_hidden_modules
from .contract import ModuleCorrection, ScaleSample

Parts = Sequence[tuple[int, float]]
"""Which parts of the changes an evaluation adds up, each with its factor."""


class FieldModule(DeviceFreeModule):
    """Call a vector field, and name all parameters that it reaches, hidden ones too."""

    def __init__(self, field: Callable[..., Tensor]):
        super().__init__()
        self.field = field
        hidden = find_hidden_modules({"vector_field": field})
        if hidden:
            self.reached = nn.ModuleList(hidden)

    def forward(self, t: Tensor, z: Tensor, *arguments: Any, **condition: Any) -> Tensor:
        return self.field(t, z, *arguments, **condition)


def graph_bytes(f: Callable[..., Tensor], t_span: Any, z: Tensor, inputs: FieldInputs) -> int:
    """Count the bytes that autograd keeps of an evaluation of f, beside its weights; 0 where it cannot be hooked."""
    module, sizes = FieldModule(f), {}
    own = {parameter.untyped_storage().data_ptr() for parameter in (*module.parameters(), *module.buffers())}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    weights = {name: weight.detach().requires_grad_(True) for name, weight in changeable_weights(module).items()}
    arguments = (time_tensor(t_span[0], z, t_span), z.clone().requires_grad_(True), *inputs.arguments)
    try:
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            kept = functional_call(module, weights, arguments, dict(inputs.condition))
    except RuntimeError:
        return 0  # a field that differentiates by torch.func bears no hooks, and so no repeated evaluation either
    del kept
    return sum(sizes.values())


_WITHIN = 0.38
"""Where in its span a field is probed."""


def changeable_weights(module: nn.Module) -> dict[str, Tensor]:
    """Return the parameters that a change makes sense for: floating-point ones that hold numbers."""
    return {name: p for name, p in module.named_parameters() if p.is_floating_point() and p.numel()}


def answers_to_weights(f: Callable[..., Tensor], t_span: Any, z: Tensor, inputs: FieldInputs) -> bool:
    """Return whether a field computes other values with other weights, and gradients lead back to them.

    Not so without weights, in fields that compute with copies of them, and without autograd.
    """
    module = FieldModule(f)
    weights = {name: weight.detach() for name, weight in changeable_weights(module).items()}
    start, end = t_span
    time = time_tensor(
        start + _WITHIN * (end - start), z, t_span
    )  # weights may be multiplied by t, which is 0 at first
    with torch.enable_grad():
        other = {name: (1.01 * weight + 1e-3 * _size(weight)).requires_grad_(True) for name, weight in weights.items()}
        try:
            given, bent = (
                functional_call(module, used, (time, z.clone(), *inputs.arguments), dict(inputs.condition))
                for used in (weights, other)
            )
        except Exception:  # whatever it is that a user's field does not like about other weights
            return False
    return bent.requires_grad and not torch.equal(given.detach(), bent.detach())


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
    size = _size(tensor)
    return size if size > 0 else torch.stack([_size(other) for other in tensors.values()]).max().clamp(min=1e-3)


def _size(tensor: Tensor) -> Tensor:
    return tensor.detach().pow(2).mean().sqrt()


# ---------------------------------------------------------------------- the correction
def _mode(f: Callable[..., Tensor]) -> bool:
    return isinstance(f, nn.Module) and f.training


class _LastField(threading.local):
    """A module to call the last field through, one for each thread. Copies and pickles of a correction leave it out.

    It shares the field's tensors and nothing else: while torch calls it with other weights, others may call the field.
    """

    def __init__(self) -> None:
        self._field: Any = None
        self._module: FieldModule | None = None

    def module(self, f: Callable[..., Tensor]) -> FieldModule:
        if self._module is None or self._field is not f or _mode(f) != _mode(self._module.field):
            self._field, self._module = f, share_tensors(FieldModule(f))
        return self._module

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

    Attributes
    ----------
    recomputes : bool
        Whether a training keeps the states of a solve alone, and evaluates f again for its gradients. It takes a third
        more time, and a fraction of the memory.
    """

    def __init__(self, changes: Sequence[nn.Module], schedule: Schedule):
        super().__init__()
        self.changes, self.schedule = nn.ModuleList(changes), schedule
        self.recomputes = False
        self._last = _LastField()

    def merged(self, module: FieldModule, plan: StepPlan, node: int) -> dict[str, Tensor]:
        """Return the weights of an evaluation, by name."""
        theta = dict(module.named_parameters())
        self._check_names(theta)
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
        module, nodes = self._last.module(f.given), iter(range(len(plan.kind.nodes)))

        def bent(t: Tensor, z: Tensor, *arguments: Any, **condition: Any) -> Tensor:
            weights = self.merged(module, plan, next(nodes))
            if not (self.recomputes and torch.is_grad_enabled()):
                return functional_call(module, weights, (t, z, *arguments), condition)
            return checkpoint(functional_call, module, weights, (t, z, *arguments), condition, use_reentrant=False)

        return f.calling(bent)

    def fold(self, plans: Sequence[StepPlan], f: Callable[..., Tensor] | None = None) -> ModuleCorrection:
        if f is None:
            return super().fold(plans)
        module, fields = FieldModule(f), []
        for plan in plans:
            for node in range(len(plan.kind.nodes)):
                with torch.no_grad():
                    fields.append(_with_weights(module, self.merged(module, plan, node)))
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
        self._is_harmless = False

    def field(self, f: ProtectedField, plan: StepPlan) -> Field:
        fields = self._by_step[plan.k]
        if self._is_harmless and not is_compiling():
            return _checked(f, fields)
        following = iter(fields)

        def call(t: Tensor, z: Tensor) -> Tensor:
            output = f.calling(next(following))(t, z)
            if plan.k == len(self._by_step) - 1:
                # The whole solve has been watched. Copies for protection take as long as a small field.
                self._is_harmless = f.is_harmless
            return output

        return call


def _checked(protected: ProtectedField, fields: Sequence[Callable[..., Tensor]]) -> Field:
    """Return a call of fields that need no copies, which still notices if one writes into the state."""
    inputs, following = protected.inputs, iter(fields)

    def call(t: Tensor, z: Tensor) -> Tensor:
        f = next(following)
        if z.is_inference():
            return protected.calling(f)(t, z)
        version = z._version
        output = f(t, z, *inputs.arguments, **inputs.condition) if protected.has_inputs else f(t, z)
        if z._version != version:
            raise ValueError(WRITES_SOMETIMES)
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
