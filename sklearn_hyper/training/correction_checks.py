"""Check a correction before a fit, to refuse what would be trained wrongly or not at all."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from ..modules.corrections import BoundedCorrection, ModuleCorrection, ScaleSample, resolve_spec, user_part
from ..modules.field_probes import differ
from ..modules.seeding import seeded
from ..modules.user_code import find_hidden_modules, refuse_state_in_functions
from ..numerics.methods import Method
from ..numerics.protection import is_written
from ..numerics.residuals import Residual, compute_residuals
from ..numerics.stepping import FixedMesh
from .batches import check_lone_rows
from .correction_fit import net_inputs
from .errors import check_overflow
from .settings import FitSettings
from .tasks import Task

_PERTURBED, _NUDGED = 0.1, 1e-3
"""Standard deviations of probed weights: of a net, and of changes of a field, which a larger one may drive off."""
_OTHER_CORRECTION = "Mend the field, or take a correction beside it, such as correction=MLPCorrection()."
_CONTRACT = (
    "The contract of a correction is forward(eps, s, z, stages, x=None) -> tensor like z; start-up steps of 'ab2' to "
    "'ab4' and 'nonstationary' hand it fewer stages."
)


def check_correction(task: Task, method: Method, settings: FitSettings, n_rows: int = 2) -> None:
    """Build g and call it on a few rows, so that errors show before any solve.

    Parameters
    ----------
    task : Task
        A task of a few rows, on the device of the fit.
    method : Method
    settings : FitSettings
    n_rows : int
        Number of rows that the fit will train on.

    Raises
    ------
    ValueError
        If the correction fails, does not return a tensor like z, has nothing to train, or holds modules where
        ``parameters()`` does not find them. If it is random, mixes rows, or writes into its arguments. If it cannot
        learn from a single row and would have to. If it changes the field, and the field does not notice.
    """
    with torch.no_grad(), seeded(0, task.x.device):
        steps = _first_steps(task, method, settings.n_steps)
        for step in steps:
            check_overflow(step.target, method.name, settings.n_steps)
        last = steps[-1]
        spec = resolve_spec(settings.correction, last.z)
        if spec.learns_residuals:
            scales = [last._replace(kind=member.main_kind) for member in spec.method_family(method)]
        else:
            scales = steps
        x = task.inputs.x
        sample = ScaleSample(scales, x, task.neural_ode.t_span)
        (correction,) = spec.corrections([task.neural_ode], net_inputs(task, sample, method, settings), [sample])
        if not spec.learns_residuals:
            # It is no function of a step that could be called alone.
            _check_solve(task, correction, method, settings)
            return
        if settings.is_adaptive and settings.row_times and not correction.takes_row_steps:
            raise ValueError(
                f"row_times=True with correction={settings.correction!r}, which takes one step size for a whole batch. "
                "Leave row_times=None: rows then share their steps. Or take a net with takes_row_steps, such as "
                "MLPCorrection()."
            )
        # Not the bound around the net: it has not seen start-up steps yet.
        net = correction.net if isinstance(correction, BoundedCorrection) else correction
        user_module = user_part(net)
        if user_module is not None:
            check_parts(user_module)
        for step in (steps[0], last) if len(steps) > 1 else (last,):  # a start-up step and a full step
            _check_output(net, step, x, method, settings.correction)
        if user_module is not None:
            check_calls(net, user_module, last, x)
        arguments = (last.eps, last.time(), *_rows_of(last, x, slice(0, 1)), last.kind)
        check_lone_rows(net, lambda module: module(*arguments), n_rows, settings.batch_size, "correction")


def _first_steps(task: Task, method: Method, n_steps: int) -> list[Residual]:
    """Return the first steps of a solve, up to one of the main kind, all taken from the initial states."""
    ode, inputs = task.neural_ode, task.inputs
    z = ode.input_map(task.x.clone())
    grid = method.mesh(ode.t_span, n_steps)[: method.memory + 2]
    return compute_residuals(
        ode.vector_field, torch.stack([z] * len(grid)), grid, method,
        x=inputs.x, condition=inputs.condition, t_span=ode.t_span,
    )  # fmt: skip


def _check_solve(task: Task, correction: ModuleCorrection, method: Method, settings: FitSettings) -> None:
    """Refuse a correction that fails in a solve, or whose parameters do not reach the end of it."""
    ode, name = task.neural_ode, f"correction={settings.correction!r}"
    changed: Any = _without_zeros(correction, _NUDGED).requires_grad_(True)
    mesh = FixedMesh.of(method, ode.t_span, settings.n_steps)
    z = ode.input_map(task.x.clone())
    *_, base = mesh.iterate(ode.vector_field, z, None, task.inputs)
    with torch.enable_grad():
        try:
            *_, end = mesh.iterate(ode.vector_field, z, changed, task.inputs)
        except Exception as error:
            raise ValueError(f"{name} fails in a solve with {method.name!r}: {error}. {_OTHER_CORRECTION}") from error
        if torch.equal(end, base):
            raise ValueError(
                f"{name} changes nothing: with other parameters a solve ends where the base solver's does. A field "
                "that computes with copies of its weights, as tensors kept beside its parameters are, does not see "
                f"changes of them. {_OTHER_CORRECTION}"
            )
        parameters = [parameter for parameter in changed.parameters() if parameter.requires_grad]
        gradients = torch.autograd.grad(end.sum(), parameters, allow_unused=True) if end.requires_grad else ()
        if all(gradient is None for gradient in gradients):
            raise ValueError(
                f"{name} cannot learn: no gradient leads from the end of a solve to its parameters. Fields that "
                f"compute under torch.no_grad(), with .detach() or in NumPy have none. {_OTHER_CORRECTION}"
            )


def _check_output(net: nn.Module, step: Residual, x: Tensor | None, method: Method, correction: Any) -> None:
    z = step.z
    try:
        g = net(step.eps, step.time(), z.clone(), [stage.clone() for stage in step.stages], x, step.kind)
    except Exception as error:
        raise ValueError(
            f"correction={correction!r} fails on a step of {method.name!r} with {len(step.stages)} stages: {error}. "
            f"{_CONTRACT}"
        ) from error
    if not isinstance(g, Tensor) or (g.shape, g.dtype, g.device) != (z.shape, z.dtype, z.device):
        got = f"shape {tuple(g.shape)}, {g.dtype}" if isinstance(g, Tensor) else type(g).__name__
        raise ValueError(
            f"correction={correction!r} returns {got} for a state of shape {tuple(z.shape)}, {z.dtype}. {_CONTRACT}"
        )


def check_parts(net: nn.Module) -> None:
    """Refuse a net that computes with modules or tensors missing from its ``parameters()``.

    Raises
    ------
    ValueError
        If it holds modules in plain lists, dicts or objects.
    TypeError
        If its functions hold modules, or tensors that require gradients.
    """
    hidden = find_hidden_modules({"correction": net})
    if hidden:
        names = ", ".join(sorted({type(module).__name__ for module in hidden}))
        raise ValueError(
            f"{_name(net)} holds modules ({names}) in plain lists, dicts or objects, where parameters() does not find "
            "them: they would never be trained. Use nn.ModuleList or nn.ModuleDict, or make them attributes."
        )
    refuse_state_in_functions({"correction": net})


def check_calls(net: nn.Module, user_module: nn.Module, step: Residual, x: Tensor | None) -> None:
    """Refuse a net that has nothing to train, writes into its arguments, is random, or mixes the rows of a batch.

    Parameters
    ----------
    net : nn.Module
        A net that is known to return a tensor like z.
    user_module : nn.Module
        The user's part of it, which errors name.
    step : Residual
        The step that it is called with.
    x : Tensor or None
        Input of a data-controlled field.

    Raises
    ------
    ValueError
        If it does any of these.
    """
    if not any(True for _ in net.parameters()):
        raise ValueError(
            f"{_name(user_module)} has no parameters: there is nothing to fit. Give it layers or nn.Parameter "
            "attributes."
        )
    net, z = _without_zeros(net).eval(), step.z
    arguments = [z, *step.stages]
    given = [argument.clone() for argument in arguments]
    g = net(step.eps, step.time(), given[0], given[1:], x, step.kind).clone()
    for i, (before, after) in enumerate(zip(arguments, given, strict=True)):
        if is_written(after, before):
            raise ValueError(
                f"{_name(user_module)} writes in place into {'z' if i == 0 else f'stages[{i - 1}]'}, which the solver "
                "goes on with. Clone it first (z = z.clone()), or use operations that return a new tensor."
            )
    if differ(_alone(net, step, x, slice(None)), g):
        raise ValueError(
            f"{_name(user_module)} is random or keeps a state: two calls in eval mode with the same arguments give "
            "other values."
        )
    for row in {0, len(z) - 1}:
        if differ(_alone(net, step, x, slice(row, row + 1)), g[row : row + 1]):
            raise ValueError(
                f"{_name(user_module)} mixes the rows of a batch: in eval mode it gives other values for row {row} "
                f"alone than beside {len(z) - 1} more. Rows are solved and predicted in any batch: take means and "
                "norms over other axes than the first."
            )


def _name(net: nn.Module) -> str:
    return f"correction, a {type(net).__name__},"


def _without_zeros(net: nn.Module, size: float = _PERTURBED) -> nn.Module:
    """Return a copy in which no parameter is all zero, since a net with zero output would hide what it does."""
    net = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in net.parameters():
            if not parameter.any():
                parameter.normal_(std=size)
    return net


def _alone(net: nn.Module, step: Residual, x: Tensor | None, rows: slice) -> Tensor:
    z, stages, x = _rows_of(step, x, rows)
    return net(step.eps, step.time(), z.clone(), [stage.clone() for stage in stages], x, step.kind)


def _rows_of(step: Residual, x: Tensor | None, rows: slice) -> tuple[Tensor, list[Tensor], Tensor | None]:
    return step.z[rows], [stage[rows] for stage in step.stages], None if x is None else x[rows]
