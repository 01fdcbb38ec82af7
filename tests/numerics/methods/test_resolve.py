"""Methods are found by name, tableau, instance or order, and what cannot be found says why."""

import pickle

import pytest
from problems import BASE_SOLVERS, OwnTwoStep, named

from sklearn_hyper.numerics import AdamsBashforth, Nonstationary, RungeKutta, alpha_family, resolve_base_solver
from sklearn_hyper.numerics.methods import CANONICAL, DEFAULT
from sklearn_hyper.numerics.tableaus import TABLEAUS


@pytest.mark.parametrize("name", TABLEAUS)
def test_names_and_tableaus_select_the_same_method(name):
    solver = resolve_base_solver(name)
    assert solver == resolve_base_solver(TABLEAUS[name]) == RungeKutta(TABLEAUS[name])
    assert solver.name == name
    assert resolve_base_solver(solver, order=solver.order) is solver


def test_auto_without_an_order_takes_one_evaluation_a_step():
    solver = resolve_base_solver("auto")
    assert (solver.name, solver.order, solver.count_evaluations(7)) == (DEFAULT, 2, 7) == ("ab2", 2, 7)


@pytest.mark.parametrize(("order", "name"), [(1, "euler"), (2, "midpoint"), (3, "rk3"), (4, "rk4")])
def test_auto_is_the_canonical_method_of_the_order(order, name):
    solver = resolve_base_solver("auto", order)
    assert (solver.name, solver.order) == (name, order)
    assert CANONICAL[solver.order] == name


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            ("rk45",),
            ValueError,
            "'rk45' is unknown; valid names are "
            + ", ".join(sorted(TABLEAUS))
            + ", ab2, ab3, ab4, abm2_pec, abm2, 'auto' and, for estimators, 'nonstationary';",
        ),
        (("RK4",), ValueError, "'RK4' is unknown"),
        (("rk4", 2), ValueError, "order=2 contradicts base_solver='rk4', which has order 4"),
        ((alpha_family(0.7), 3), ValueError, "order=3 contradicts base_solver='alpha"),
        (("auto", 5), ValueError, "knows orders .1, 2, 3, 4., got order=5; pass a ButcherTableau"),
        *((("auto", order), ValueError, "order must be None or an integer from 1 to 5") for order in (0, 6, True, "2")),
        ((None,), TypeError, "must be a name .*euler.* a ButcherTableau or a numerics.Method, got NoneType"),
        ((2,), TypeError, "got int"),
    ],
)
def test_what_cannot_be_resolved_says_why(arguments, error, message):
    with pytest.raises(error, match=message):
        resolve_base_solver(*arguments)


@pytest.mark.parametrize("tableau", **named(BASE_SOLVERS))
def test_a_tableau_is_its_runge_kutta_method(tableau):
    assert resolve_base_solver(tableau) == resolve_base_solver(tableau, tableau.order) == RungeKutta(tableau)


def test_a_method_of_one_s_own_is_itself():
    own = OwnTwoStep()
    assert resolve_base_solver(own) is own and resolve_base_solver(own, 2) is own
    with pytest.raises(ValueError, match="order=3 contradicts base_solver='own two-step', which has order 2"):
        resolve_base_solver(own, 3)
    with pytest.raises(TypeError, match="got ABCMeta"):  # a class is no method
        resolve_base_solver(OwnTwoStep)


@pytest.mark.parametrize("order", [2, 3, 4])
def test_a_name_selects_the_multistep_method(order):
    solver = resolve_base_solver(f"ab{order}")
    assert solver == resolve_base_solver(f"ab{order}", order) == AdamsBashforth(order)
    assert (solver.name, solver.order, solver.n_stages) == (f"ab{order}", order, order)
    assert pickle.loads(pickle.dumps(solver)) == solver and len({solver, AdamsBashforth(order)}) == 1


def test_a_name_and_an_order_that_disagree_are_refused():
    with pytest.raises(ValueError, match="order=2 contradicts base_solver='ab3', which has order 3"):
        resolve_base_solver("ab3", 2)


def test_a_learned_method_has_no_name_before_it_is_learned():
    with pytest.raises(
        ValueError, match="'nonstationary' is learned by an estimator's fit; here pass its base_solver_"
    ):
        resolve_base_solver("nonstationary")
    learned = Nonstationary([(1.0,)], (0.0, 1.0))
    assert resolve_base_solver(learned) is learned
