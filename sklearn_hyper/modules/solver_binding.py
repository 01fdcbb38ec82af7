"""What a correction knows of the base solver it runs with, and the families of base solvers it may be fitted over."""

from __future__ import annotations

from typing import Any, TypeVar

from torch import nn

from ..numerics.base_solvers import BaseSolver, RungeKutta, resolve_base_solver

Module = TypeVar("Module", bound=nn.Module)


def bind_solver(correction: nn.Module, solver: BaseSolver) -> nn.Module:
    """The correction as it runs with a base solver; most of users' own need not know, and have no ``for_solver``."""
    return correction.for_solver(solver) if hasattr(correction, "for_solver") else correction  # type: ignore[operator]


def make_view(module: Module) -> Module:
    """Another face of a module: its parameters, buffers and children stay the module's own, also after ``to``."""
    view = type(module).__new__(type(module))
    view.__dict__.update(module.__dict__)
    return view


def stage_spacings(solver: BaseSolver, n_stages: int | None = None) -> tuple[float, ...]:
    """c_i of every stage but the first, in a step that hands out ``n_stages`` of them (None: any but a start-up step).

    Stages that a multistep method remembers lie before s: -1, -2, ... on a uniform mesh. 1 where a stage is taken at s
    itself, or where a solver of the user's own does not say.
    """
    if hasattr(solver, "stage_offsets"):
        offsets = solver.stage_offsets(n_stages)
    else:
        nodes = solver.nodes(0.0, 1.0)
        offsets = nodes if len(nodes) == solver.n_stages else [0.0] * solver.n_stages
    return tuple(offset or 1.0 for offset in offsets[1:])


def leading_error(solver: BaseSolver) -> tuple[float, float]:
    r"""How a method weighs two terms of its leading error: :math:`b \cdot c^p` and :math:`b \cdot A c^{p-1}`.

    The residual is linear in such weights as eps -> 0, and for p <= 2 there are no others. Unlike b, they stay small
    where a method comes close to numerical differentiation: in the alpha family they are alpha / 2 and 0.
    """
    if not isinstance(solver, RungeKutta):
        raise ValueError(
            f"base_solver {solver.name!r} has no Butcher tableau, and a correction fitted over tableaus needs to know it; "
            "pass a ButcherTableau, or fit with tableaus=None."
        )
    a, b, c = solver.tableau.a, solver.tableau.b, solver.tableau.c
    p = solver.order
    inner = [sum(weight * node ** (p - 1) for weight, node in zip(row, c, strict=True)) for row in a]
    return (
        sum(weight * node**p for weight, node in zip(b, c, strict=True)),
        sum(weight * value for weight, value in zip(b, inner, strict=True)),
    )


def solver_family(spec: Any, solver: BaseSolver) -> list[BaseSolver]:
    """The base solvers that a correction is fitted over: its own, then those of the spec's ``tableaus``."""
    tableaus = getattr(spec, "tableaus", None)
    if tableaus is None:
        return [solver]
    name = f"{type(spec).__name__}.tableaus"
    if not isinstance(tableaus, (list, tuple)) or not tableaus:
        raise ValueError(f"{name} must be None or a list of names and ButcherTableaus, got {tableaus!r}.")
    family = [solver]
    for tableau in tableaus:
        try:
            member = resolve_base_solver(tableau)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name} holds {tableau!r}: {error}") from error
        if (member.order, member.n_stages) != (solver.order, solver.n_stages):
            raise ValueError(
                f"{name} holds {member.name!r} (order {member.order}, {member.n_stages} stages), but base_solver is "
                f"{solver.name!r} (order {solver.order}, {solver.n_stages} stages); a correction covers base solvers of "
                "one order and number of stages."
            )
        if member not in family:
            family.append(member)
    for member in family:
        leading_error(member)  # raises for a method without a tableau
    return family
