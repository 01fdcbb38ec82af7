"""What a fit finds out about a correction of the user's own before it starts: what would be trained wrongly, or not at all."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from ..modules.field_probes import differ
from ..modules.user_code import find_hidden_modules, refuse_state_in_functions
from ..numerics.protection import is_written
from ..numerics.residuals import Residual

_PERTURBED = 0.1


def is_own(net: Any) -> bool:
    """Whether a net is the user's, not of this package."""
    return isinstance(net, nn.Module) and not type(net).__module__.startswith("sklearn_hyper.")


def check_parts(net: nn.Module) -> None:
    """Refuse a net whose ``parameters()`` leave out some of what it computes with.

    Raises
    ------
    ValueError
        If it holds modules in plain lists, dicts or objects.
    TypeError
        If functions in it hold modules, or tensors that require gradients.
    """
    hidden = find_hidden_modules({"correction": net})
    if hidden:
        names = ", ".join(sorted({type(module).__name__ for module in hidden}))
        raise ValueError(
            f"{_name(net)} holds modules ({names}) in plain lists, dicts or objects, where parameters() does not find them: they "
            "would never be trained. Use nn.ModuleList or nn.ModuleDict, or make them attributes."
        )
    refuse_state_in_functions({"correction": net})


def check_calls(net: nn.Module, step: Residual, z: Tensor, x: Tensor | None) -> None:
    """Refuse a net that has nothing to train, writes into its arguments, is random, or mixes the rows of a batch.

    Parameters
    ----------
    net : nn.Module
        Checked to keep the contract of a correction.
    step : Residual
        Whose step size, time and stages it is called with.
    z, x : Tensor
        States of a few rows, and the input of a data-controlled field.

    Raises
    ------
    ValueError
    """
    if not any(True for _ in net.parameters()):
        raise ValueError(
            f"{_name(net)} has no parameters: there is nothing to fit. Give it layers or nn.Parameter attributes."
        )
    net = _without_zeros(net).eval()
    arguments = [z, *step.stages]
    given = [argument.clone() for argument in arguments]
    g = net(step.eps, step.time(), given[0], given[1:], x).clone()
    for i, (before, after) in enumerate(zip(arguments, given, strict=True)):
        if is_written(after, before):
            raise ValueError(
                f"{_name(net)} writes in place into {'z' if i == 0 else f'stages[{i - 1}]'}, which the solver goes on with. Clone "
                "it first (z = z.clone()), or use operations that return a new tensor."
            )
    if differ(_alone(net, step, z, x, slice(None)), g):
        raise ValueError(
            f"{_name(net)} is random or keeps a state: two calls in eval mode with the same arguments give other values."
        )
    for row in {0, len(z) - 1}:
        if differ(_alone(net, step, z, x, slice(row, row + 1)), g[row : row + 1]):
            raise ValueError(
                f"{_name(net)} mixes the rows of a batch: in eval mode it gives other values for row {row} alone than beside "
                f"{len(z) - 1} more. Rows are solved and predicted in any batch: take means and norms over other axes than the "
                "first."
            )


def _name(net: nn.Module) -> str:
    return f"correction, a {type(net).__name__},"


def _without_zeros(net: nn.Module) -> nn.Module:
    """A copy in which no parameter is all zero: a net that begins at zero would hide what it does."""
    net = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in net.parameters():
            if not parameter.any():
                parameter.normal_(std=_PERTURBED)
    return net


def _alone(net: nn.Module, step: Residual, z: Tensor, x: Tensor | None, rows: slice) -> Tensor:
    stages = [stage[rows].clone() for stage in step.stages]
    return net(step.eps, step.time(), z[rows].clone(), stages, None if x is None else x[rows])
