"""A tableau is what it says it is, or it is not built."""

import dataclasses
import math
import pickle

import numpy as np
import pytest
from problems import BASE_SOLVERS, DORMAND_PRINCE, named

from sklearn_hyper.numerics import ButcherTableau, alpha_family
from sklearn_hyper.numerics.tableaus import HEUN, MIDPOINT, RALSTON, RK4, TABLEAUS, _order_conditions

NAMED = [*TABLEAUS.values(), DORMAND_PRINCE]


def _coefficients(tableau):
    """Every place in a (diagonal and above too), b and c."""
    n = tableau.n_stages
    return [
        *(("a", i, j) for i in range(n) for j in range(n)),
        *(("b", i) for i in range(n)),
        *(("c", i) for i in range(n)),
    ]


def _shifted(tableau, *shifts):
    """The tableau with some of its coefficients moved."""
    values = {"a": [list(row) for row in tableau.a], "b": list(tableau.b), "c": list(tableau.c)}
    for (name, *index), shift in shifts:
        row = values[name] if len(index) == 1 else values[name][index[0]]
        row[index[-1]] += shift
    return dataclasses.replace(tableau, **values)


@pytest.mark.parametrize("tableau", **named(NAMED))
def test_every_coefficient_matters_to_six_digits(tableau):
    for place in _coefficients(tableau):
        with pytest.raises(ValueError, match=r"implicit|inconsistent|is not of order"):
            _shifted(tableau, (place, 1e-6))


@pytest.mark.parametrize("tableau", **named([t for t in NAMED if t.n_stages > 1]))
def test_order_conditions_see_what_row_sums_do_not(tableau):
    """Move a and c together, or two weights in opposite directions: every sum still holds, the order does not."""
    n = tableau.n_stages
    together = [((("a", i, j), 1e-6), (("c", i), 1e-6)) for i in range(1, n) for j in range(i)]
    opposite = [((("b", i), 1e-6), (("b", i - 1), -1e-6)) for i in range(1, n)]
    for shifts in together + opposite:
        with pytest.raises(ValueError, match="is not of order"):
            _shifted(tableau, *shifts)


@pytest.mark.parametrize("tableau", **named(BASE_SOLVERS))
def test_the_stated_order_is_the_highest_the_coefficients_reach(tableau):
    for order in range(1, tableau.order + 1):
        assert dataclasses.replace(tableau, order=order).order == order
    with pytest.raises(ValueError, match=f"is not of order {tableau.order + 1}|order must be an integer from 1 to 5"):
        dataclasses.replace(tableau, order=tableau.order + 1)


def _graft(tree):
    """Every rooted tree (a sorted tuple of its subtrees) with one leaf more."""
    yield tuple(sorted((*tree, ())))
    for i, child in enumerate(tree):
        yield from (tuple(sorted((*tree[:i], grown, *tree[i + 1 :]))) for grown in _graft(child))


def _condition(tree, a):
    """A tree's number of nodes, its density and its elementary weight before b (Butcher 2016, sections 301-312)."""
    nodes, density, weight = 1, 1, np.ones(len(a))
    for child in tree:
        child_nodes, child_density, child_weight = _condition(child, a)
        nodes, density, weight = nodes + child_nodes, density * child_density, weight * (a @ child_weight)
    return nodes, density * nodes, weight


def test_order_conditions_are_those_of_the_rooted_trees():
    """One a tree with up to five nodes, 17 in all, evaluated on coefficients that satisfy none of them."""
    random = np.random.default_rng(0)
    a, b = np.tril(random.normal(size=(6, 6)), -1), random.normal(size=6)
    trees = {()}
    for _ in range(4):
        trees |= {grown for tree in trees for grown in _graft(tree)}
    expected = [(nodes, 1 / density, b @ weight) for nodes, density, weight in (_condition(tree, a) for tree in trees)]
    conditions = _order_conditions(tuple(map(tuple, a)), tuple(b), tuple(a.sum(axis=1)))
    actual = [(order, required, value) for order, _, value, required in conditions]
    assert len(actual) == 17
    np.testing.assert_allclose(sorted(actual), sorted(expected), rtol=1e-9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"a": [[0.5, 0.0], [0.5, 0.0]], "c": [0.5, 0.5]}, "is implicit: row 0"),
        ({"a": [[0, 0], [0, 1]]}, "is implicit: row 1"),
        ({"a": [[0, 0], [0.5, 0]]}, "inconsistent: row 1 of a sums to 0.5, c is 1"),
        ({"c": [0, math.nan]}, "inconsistent"),
        ({"b": [0.4, 0.6]}, "not of order 2: b.c = 0.6, required 0.5"),
        ({"b": [math.nan, 0.5]}, "not of order 2: sum b"),
        ({"b": [1.0]}, "a must be square and as long as b and c"),
        ({"c": [0.0]}, "a must be square"),
        ({"a": [[0, 0]]}, "a must be square"),
        ({"a": [[0], [1]]}, "a must be square"),
        ({"a": [], "b": [], "c": []}, "a must be square"),
        ({"b": None}, "tableau b must be a sequence of real numbers"),
        ({"a": [["no", 0], [1, 0]]}, "tableau a must be a sequence of real numbers"),
        *(({"order": order}, "order must be an integer from 1 to 5") for order in (0, 6, 2.0, True, "2", None)),
    ],
)
def test_invalid_tableaus_are_rejected_with_the_reason(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(HEUN, **changes)


def test_tableaus_are_values():
    """Frozen, hashable, equal by coefficients, the same after a pickle: fit to be a hyperparameter."""
    twin = ButcherTableau("heun", 2, [[0, 0], [1, 0]], [0.5, 0.5], [0, 1])
    assert twin == HEUN and hash(twin) == hash(HEUN) and len({twin, HEUN, RK4}) == 2
    assert pickle.loads(pickle.dumps(RK4)) == RK4
    with pytest.raises(dataclasses.FrozenInstanceError):
        twin.order = 1


@pytest.mark.parametrize(("alpha", "known"), [(1 / 2, MIDPOINT), (2 / 3, RALSTON), (1, HEUN)])
def test_alpha_family_contains_the_named_second_order_methods(alpha, known):
    tableau = alpha_family(alpha)
    assert (tableau.order, tableau.a, tableau.c) == (2, known.a, known.c)
    assert tableau.b == pytest.approx(known.b, abs=1e-15)


@pytest.mark.parametrize("alpha", [0, 0.0, -0.0, math.nan, math.inf, -math.inf])
def test_alpha_must_be_finite_and_not_zero(alpha):
    with pytest.raises(ValueError, match="alpha must be a finite number other than 0"):
        alpha_family(alpha)


@pytest.mark.parametrize(
    ("embedded", "message"),
    [
        ([1, 0, 0], r"embedded must be 2 weights, other than b, got \(1.0, 0.0, 0.0\)"),
        ([0.5, 0.5], "embedded must be 2 weights, other than b"),
        ([0.6, 0.3], "embedded is not of order 1: sum embedded = 0.9, required 1"),
        (["a", 1], "tableau embedded must be a sequence of real numbers"),
    ],
)
def test_weights_that_estimate_errors_are_of_the_order_below(embedded, message):
    arguments = {"order": 2, "a": [[0, 0], [1, 0]], "b": [0.5, 0.5], "c": [0, 1]}
    assert ButcherTableau("heun", embedded=[0.8, 0.2], **arguments).embedded == (0.8, 0.2)
    with pytest.raises(ValueError, match=message):
        ButcherTableau("heun", embedded=embedded, **arguments)
