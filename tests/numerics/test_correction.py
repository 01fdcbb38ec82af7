"""The two things that a correction may do in a step: bend the field that is evaluated, and add a term."""

from itertools import pairwise

import pytest
import torch
from problems import ANY_MESH, FORCED, LEARNED, LOGISTIC, largest, mesh, named
from torch import nn

from sklearn_hyper.numerics import (
    Correction,
    CountedField,
    FixedMesh,
    RungeKutta,
    hypersolve,
    hypersolve_trajectory,
    resolve_base_solver,
)
from sklearn_hyper.numerics.correction import PlainTerm, StepTerms, as_correction
from sklearn_hyper.numerics.tableaus import TABLEAUS

SPAN = FORCED.t_span
ONE_STEP = tuple(map(RungeKutta, TABLEAUS.values()))


def bent(t, z):
    return FORCED.f(t, z) + torch.sin(3 * z) + t


class Bend(Correction):
    """Another field in some steps."""

    def __init__(self, *steps):
        self.steps = steps

    def field(self, f, plan):
        return bent if plan.k in self.steps else f


class BendAll(Correction):
    """f plus a constant times the step's size: what weights of f itself could do."""

    def field(self, f, plan):
        return lambda t, z: f(t, z) + plan.eps


class Push(Correction):
    """Adds to a step what depends on all that it is given."""

    def term(self, plan, s, z, stages, x):
        return plan.eps * z + s * stages[0] + plan.k


class Both(BendAll, Push):
    pass


def trajectory(method, correction=None, grid=None, f=FORCED.f):
    return hypersolve_trajectory(f, FORCED.z0, None, None, method, correction, grid=grid or mesh(SPAN, 4))


each_method = pytest.mark.parametrize("method", **named(ANY_MESH))


# --- nothing --------------------------------------------------------------------------------------------------------


@each_method
def test_a_correction_that_does_nothing_is_the_base_solver_bit_for_bit(method):
    assert torch.equal(trajectory(method, Correction()), trajectory(method))


# --- the field ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", range(4))
@pytest.mark.parametrize("method", **named(ONE_STEP))
def test_a_field_that_is_bent_in_one_step_changes_that_step_alone(method, k):
    """Before it the states are those of f, in it a step of the bent field, and then f goes on from there."""
    grid = mesh(SPAN, 4)
    states, plain = trajectory(method, Bend(k), grid), trajectory(method, None, grid)
    assert torch.equal(states[: k + 1], plain[: k + 1]) and not torch.equal(states[k + 1], plain[k + 1])
    step = hypersolve(bent, states[k], None, None, method, grid=grid[k : k + 2])
    assert largest(states[k + 1] - step) < 1e-14
    if k < 3:
        rest = hypersolve_trajectory(FORCED.f, states[k + 1], None, None, method, grid=grid[k + 1 :])
        assert largest(states[k + 1 :] - rest) < 1e-14


@each_method
def test_a_field_that_is_bent_in_every_step_is_another_field(method):
    """Also for a method that remembers: it remembers what it has evaluated."""
    assert torch.equal(trajectory(method, Bend(0, 1, 2, 3)), trajectory(method, f=bent))


def test_a_multistep_method_remembers_the_bent_field():
    grid, method = mesh(SPAN, 3), resolve_base_solver("ab2")
    states = trajectory(method, Bend(0), grid)
    eps = grid[1] - grid[0]
    here, before = (
        f(torch.tensor(s, dtype=torch.float64), z)
        for f, s, z in ((FORCED.f, grid[1], states[1]), (bent, grid[0], states[0]))
    )
    assert largest(states[2] - (states[1] + eps * (1.5 * here - 0.5 * before))) < 1e-13


@each_method
def test_bending_costs_no_evaluation(method):
    f = CountedField(FORCED.f)
    hypersolve(f, FORCED.z0, SPAN, 5, method, BendAll())
    assert f.n_evaluations == method.count_evaluations(5)


# --- the term -------------------------------------------------------------------------------------------------------


@each_method
def test_a_term_is_added_at_the_power_of_the_step_s_own_order(method):
    """Eq. 5, step by step: also in start-up steps, which are of a lower order."""
    grid, seen = mesh(SPAN, 4, "graded"), []

    class Noted(Push):
        def term(self, plan, s, z, stages, x):
            g = super().term(plan, s, z, stages, x)
            seen.append((plan, z, stages, g))
            return g

    states = trajectory(method, Noted(), grid)
    psi = {}
    for (plan, z, _, g), state, z_next in zip(seen, states, states[1:], strict=False):
        assert plan.kind == method.kind(plan.k) and torch.equal(z, state)
        psi[plan.k] = (z_next - z - plan.eps ** (plan.kind.order + 1) * g) / plan.eps
    if method.memory == 0:  # then a step's psi is that of the step alone
        for plan, z, stages, _ in seen:
            own = hypersolve(FORCED.f, z, None, None, method, grid=grid[plan.k : plan.k + 2])
            assert largest(z + plan.eps * psi[plan.k] - own) < 1e-13
            expected = sum(weight * stage for weight, stage in zip(method.tableau.b, stages, strict=True))
            assert largest(psi[plan.k] - expected) < 1e-12
    else:
        assert largest(psi[0] - (trajectory(method, None, grid)[1] - states[0]) / seen[0][0].eps) < 1e-12


def test_terms_may_be_left_out_in_some_steps():
    class Sometimes(Push):
        def term(self, plan, s, z, stages, x):
            return None if plan.k < 3 else super().term(plan, s, z, stages, x)

    states, plain = trajectory("heun", Sometimes()), trajectory("heun")
    assert torch.equal(states[:4], plain[:4]) and not torch.equal(states[4], plain[4])


@each_method
def test_field_and_term_compose(method):
    """The term reads the stages of the bent field: as if both had been given apart."""
    grid = mesh(SPAN, 4)
    eps = grid[1] - grid[0]
    both = trajectory(method, Both(), grid)
    apart = trajectory(method, Push(), grid, f=lambda t, z: FORCED.f(t, z) + eps)
    assert largest(both - apart) < 1e-13
    assert all(largest(both - trajectory(method, one, grid)) > 1e-3 for one in (None, Push(), BendAll()))


# --- what a user may pass as g --------------------------------------------------------------------------------------


def g(eps, s, z, stages, x):
    return eps * z + s * stages[0]


class Module(nn.Module):
    def forward(self, eps, s, z, stages, x=None):
        return g(eps, s, z, stages, x)


def test_what_may_be_passed_becomes_a_correction():
    assert as_correction(None, 3) is None
    own = Push()
    assert as_correction(own, 3) is own
    assert type(as_correction(g, 3)) is type(as_correction(Module(), 3)) is PlainTerm
    for terms in ([g] * 3, (g,) * 3, nn.ModuleList([Module()] * 3)):
        assert type(as_correction(terms, 3)) is StepTerms
    for wrong in ([], [g] * 2, nn.ModuleList([Module()] * 4)):
        with pytest.raises(ValueError, match=f"g holds {len(wrong)} corrections for 3 steps; pass one a step"):
            as_correction(wrong, 3)


@pytest.mark.parametrize("method", **named([*ONE_STEP, resolve_base_solver("ab3"), LEARNED]))
def test_a_callable_a_module_and_one_a_step_are_the_same(method):
    solve = (FORCED.f, FORCED.z0, SPAN, 3, method)
    expected = hypersolve_trajectory(*solve, g)
    for same in (Module(), [g] * 3, nn.ModuleList([Module()] * 3), PlainTerm(g)):
        assert torch.equal(hypersolve_trajectory(*solve, same), expected)


def test_a_sequence_holds_the_terms_of_its_steps_in_order():
    marks = [lambda eps, s, z, stages, x, k=k: torch.full_like(z, 10.0**k) for k in range(3)]
    states = FixedMesh.of(resolve_base_solver("euler"), (0.0, 3.0), 3).trajectory(
        lambda t, z: 0 * z, LOGISTIC.z0, as_correction(marks, 3)
    )
    assert [largest(after - before) for before, after in pairwise(states)] == [1.0, 10.0, 100.0]
