"""What a correction knows of its base solver: where the stages lie, and how the method errs."""

import copy
import pickle

import pytest
import torch
from problems import DORMAND_PRINCE, LOGISTIC, largest
from torch import nn

from sklearn_hyper import ConvCorrection, MLPCorrection, alpha_family
from sklearn_hyper.modules.solver_binding import bind_solver, leading_error, make_view, solver_family, stage_spacings
from sklearn_hyper.numerics import compute_residuals, resolve_base_solver
from sklearn_hyper.numerics.tableaus import HEUN, MIDPOINT, RK4, RK4_38

ALPHAS = (-1.0, 0.05, 0.3, 0.5, 1.0, 2.0)
DOUBLE = torch.float64


class TwoStep:
    """Stands for a multistep method: two stages, of which one is remembered."""

    name, order, n_stages = "ab2", 2, 2

    def nodes(self, s, eps):
        return [s]

    def step(self, f, times, z, eps, history):
        raise NotImplementedError

    def count_evaluations(self, n_steps):
        return n_steps + 1


# --- spacings and errors --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", ALPHAS)
def test_spacings_are_the_nodes_of_the_later_stages(alpha):
    assert stage_spacings(resolve_base_solver(alpha_family(alpha))) == (alpha,)


@pytest.mark.parametrize(
    ("solver", "spacings"), [("euler", ()), ("rk4", (0.5, 0.5, 1.0)), ("rk4_38", (1 / 3, 2 / 3, 1.0))]
)
def test_spacings_of_named_methods(solver, spacings):
    assert stage_spacings(resolve_base_solver(solver)) == spacings


def test_a_stage_that_lies_at_s_or_is_remembered_has_spacing_one():
    assert stage_spacings(TwoStep()) == (1.0,)
    again = type(MIDPOINT)("again", 1, ((0, 0, 0), (0, 0, 0), (0, 0.5, 0)), (0, 0.5, 0.5), (0, 0, 0.5))
    assert stage_spacings(resolve_base_solver(again)) == (1.0, 0.5)


@pytest.mark.parametrize(
    ("solver", "full", "startup"),
    [("ab2", (-1.0,), ()), ("ab3", (-1.0, -2.0), (0.5,)), ("ab4", (-1.0, -2.0, -3.0), (0.5, 1.0))],
)
def test_remembered_stages_lie_before_the_step_and_start_up_stages_in_it(solver, full, startup):
    solver = resolve_base_solver(solver)
    assert stage_spacings(solver) == stage_spacings(solver, solver.n_stages) == full
    assert stage_spacings(solver, len(startup) + 1) == startup


@pytest.mark.parametrize("alpha", ALPHAS)
def test_leading_error_of_the_alpha_family_is_half_of_alpha(alpha):
    assert leading_error(resolve_base_solver(alpha_family(alpha))) == pytest.approx((alpha / 2, 0.0))


def test_leading_error_vanishes_against_the_conditions_of_a_higher_order():
    """rk4 seen as a method of order 3: its sums are those that the conditions of order 4 ask for."""
    for tableau in (RK4, RK4_38):
        third = resolve_base_solver(type(tableau)("third", 3, tableau.a, tableau.b, tableau.c))
        assert leading_error(third) == pytest.approx((1 / 4, 1 / 12))
    assert leading_error(resolve_base_solver(DORMAND_PRINCE))[0] != pytest.approx(1 / 6)


def test_the_residual_is_linear_in_the_leading_error_for_small_steps():
    def residual(alpha, eps):
        states = LOGISTIC.states((0.0, eps))
        return compute_residuals(LOGISTIC.f, states, (0.0, eps), alpha_family(alpha))[0].target

    for eps in (0.1, 0.01):
        low, middle, high = (residual(alpha, eps) for alpha in (0.25, 0.5, 1.0))
        on_the_line = low + (0.5 - 0.25) / (1.0 - 0.25) * (high - low)
        assert largest(middle - on_the_line) < 0.2 * eps * largest(high - low)


def test_a_method_without_tableau_cannot_be_read():
    with pytest.raises(ValueError, match=r"base_solver 'ab2' has no Butcher tableau.*tableaus=None"):
        leading_error(TwoStep())


# --- families -------------------------------------------------------------------------------------------------------


def test_a_family_is_the_base_solver_and_the_others_once():
    solver = resolve_base_solver("midpoint")
    family = solver_family(MLPCorrection(tableaus=["heun", "midpoint", alpha_family(0.3), HEUN]), solver)
    assert [member.name for member in family] == ["midpoint", "heun", "alpha(0.3)"]
    assert solver_family(MLPCorrection(), solver) == solver_family(nn.Linear(1, 1), solver) == [solver]


@pytest.mark.parametrize("spec", [MLPCorrection, ConvCorrection])
@pytest.mark.parametrize(
    ("tableaus", "message"),
    [
        (["rk4"], r"tableaus holds 'rk4' \(order 4, 4 stages\), but base_solver is 'midpoint' \(order 2, 2 stages\)"),
        ([MIDPOINT, "euler"], r"tableaus holds 'euler' \(order 1, 1 stages\), but base_solver is 'midpoint'"),
        (["hoin"], r"tableaus holds 'hoin': base_solver='hoin' is unknown; valid names are euler, heun"),
        ([0.3], r"tableaus holds 0\.3: base_solver must be a name .*got float"),
        ("heun", r"tableaus must be None or a list of names and ButcherTableaus, got 'heun'"),
        (MIDPOINT, r"tableaus must be None or a list of names and ButcherTableaus, got ButcherTableau"),
        ([], r"tableaus must be None or a list of names and ButcherTableaus, got \[\]"),
    ],
    ids=["order", "stages", "unknown", "number", "string", "one tableau", "empty"],
)
def test_wrong_families_are_refused(spec, tableaus, message):
    with pytest.raises(ValueError, match=f"{spec.__name__}.{message}"):
        solver_family(spec(tableaus=tableaus), resolve_base_solver("midpoint"))


def test_a_family_needs_methods_with_a_tableau():
    with pytest.raises(ValueError, match="'ab2' has no Butcher tableau"):
        solver_family(MLPCorrection(tableaus=["heun"]), TwoStep())


# --- views ----------------------------------------------------------------------------------------------------------


class Shifted(nn.Module):
    """A module with all that a view shares, and a number of its own."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2, dtype=DOUBLE)
        self.weight = nn.Parameter(torch.ones(2, dtype=DOUBLE))
        self.register_buffer("scale", torch.ones(2, dtype=DOUBLE))
        self.shift = 0.0

    def forward(self, z):
        return self.layer(z) * self.weight * self.scale + self.shift


def both():
    """A module and a view with another number."""
    module = Shifted()
    view = make_view(module)
    view.shift = 1.0
    return nn.ModuleList([module, view])


def in_step(pair):
    z = torch.randn(3, 2, dtype=pair[0].weight.dtype)
    return torch.equal(pair[1](z), pair[0](z) + 1)


def test_a_view_has_the_tensors_of_its_module_and_its_own_numbers():
    pair = both()
    assert in_step(pair) and len(list(pair.parameters())) == 3
    with torch.no_grad():
        pair[0].weight.add_(1)
        pair[1].scale.add_(1)
    assert in_step(pair) and pair[0].shift == 0


@pytest.mark.parametrize(
    "change",
    [
        lambda pair: pair.float(),
        lambda pair: nn.ModuleList([pair[0].float(), pair[1]]),
        lambda pair: nn.ModuleList([pair[0], pair[1].float()]),
        copy.deepcopy,
        lambda pair: pickle.loads(pickle.dumps(pair)),
        lambda pair: nn.ModuleList(copy.deepcopy(list(pair))),
    ],
    ids=["to", "module-to", "view-to", "deepcopy", "pickle", "list"],
)
def test_a_view_stays_one_with_its_module(change):
    pair = change(both())
    assert in_step(pair)
    with torch.no_grad():
        pair[1].weight.add_(1)
        pair[0].layer.bias.add_(1)
    assert in_step(pair) and len(list(pair.parameters())) == 3


def test_corrections_that_need_not_know_are_used_as_they_are():
    own = nn.Linear(1, 1)
    assert bind_solver(own, resolve_base_solver("heun")) is own
