"""What "auto" stands for, and which methods can serve a fit at all."""

from dataclasses import replace

import pytest
from small_tasks import fit_settings

from sklearn_hyper import WeightCorrection, alpha_family
from sklearn_hyper.hypersolvers import choose_base_solver
from sklearn_hyper.hypersolvers.choose import auto_name, check_same_family
from sklearn_hyper.numerics import Method, Nonstationary, Step, StepKind, resolve_base_solver

SMALL, LARGE = 4, 5
"""Numbers in a state."""


@pytest.mark.parametrize(
    ("changes", "n_state", "name"),
    [
        ({}, SMALL, "ab2"),
        ({}, LARGE, "nonstationary"),
        ({"stepping": "adaptive"}, SMALL, "rk4"),
        ({"stepping": "adaptive"}, LARGE, "rk4"),
        ({"stepping": "adaptive", "order": 2}, LARGE, "midpoint"),
        ({"n_steps": 1}, SMALL, "euler"),
        ({"n_steps": 1}, LARGE, "euler"),
        ({"fit_n_steps": 1}, LARGE, "euler"),
        ({"fit_n_steps": 4}, LARGE, "nonstationary"),
        ({"fit_n_steps": 3}, LARGE, "ab2"),
        ({"fit_n_steps": (2, 8)}, LARGE, "ab2"),
        ({"loss": "trajectory"}, LARGE, "ab2"),
        ({"loss": "residual+trajectory"}, LARGE, "ab2"),
        ({"finetune": "output"}, LARGE, "nonstationary"),
        ({"finetune": "trajectory"}, LARGE, "ab2"),
        ({"finetune": None}, LARGE, "ab2"),
        ({"order": 1}, LARGE, "euler"),
        ({"order": 2}, LARGE, "midpoint"),
        ({"order": 3}, SMALL, "rk3"),
        ({"order": 4}, SMALL, "rk4"),
    ],
    ids=str,
)
def test_auto_stands_for(changes, n_state, name):
    choice = choose_base_solver(fit_settings(**{"base_solver": "auto", "n_steps": 4} | changes), n_state)
    assert choice.method.name == name
    assert (choice.coefficients is not None) == (name == "nonstationary")


def test_a_name_is_taken_as_it_is_whatever_the_state():
    for name in ("rk4", "ab3", alpha_family(0.3)):
        settings = fit_settings(base_solver=name, n_steps=4)
        assert auto_name(settings, LARGE) is name
        assert choose_base_solver(settings, LARGE).method == resolve_base_solver(name)


def test_learned_coefficients_are_planned_with_a_method_of_their_form():
    choice = choose_base_solver(fit_settings(base_solver="nonstationary", n_steps=3), SMALL)
    assert isinstance(choice.method, Nonstationary) and choice.method.n_steps == 3
    assert choice.coefficients.settings.n_steps == 3


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"base_solver": "ab2", "n_steps": 1}, ValueError, r"n_steps=1 with base_solver='ab2' makes start-up steps only; n_steps must reach 2, or use 'euler'"),
        ({"base_solver": "ab3", "n_steps": 2}, ValueError, r"n_steps=2 with base_solver='ab3'.*must reach 3, or use '\w+'"),
        ({"base_solver": "ab4", "fit_n_steps": (2, 3)}, ValueError, r"fit_n_steps=\(2, 3\) with base_solver='ab4'.*must reach 4"),
        ({"base_solver": "nonstationary", "fit_n_steps": (1, 4)}, ValueError, r"fit_n_steps=\(1, 4\) with base_solver='nonstationary', whose coefficients are made for n_steps=4 alone"),
        ({"base_solver": "heun", "order": 3}, ValueError, "order=3 contradicts"),
        ({"base_solver": "nonstationary", "order": 2}, ValueError, "order=2 contradicts"),
        ({"base_solver": "auto", "order": 5}, ValueError, "order"),
        ({"base_solver": "eulr"}, ValueError, "eulr"),
        ({"base_solver": 3}, TypeError, "got int"),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_serve_a_fit_is_refused(changes, error, message):
    with pytest.raises(error, match=message):
        choose_base_solver(fit_settings(**{"n_steps": 4} | changes), LARGE)


# ---------------------------------------------------------------------- taking over a correction
class OwnEuler(Method):
    name, order = "own euler", 1

    def kind(self, index):
        return StepKind(order=1, nodes=(0.0,), offsets=(0.0,))

    def step(self, f, times, z, eps, state):
        r = f(times[0], z)
        return Step(direction=r, stages=[r], state=state)


@pytest.mark.parametrize(("one", "other"), [("midpoint", "heun"), ("ralston", "heun"), (OwnEuler(), "euler")])
def test_methods_of_one_family_take_each_others_corrections(one, other):
    check_same_family(resolve_base_solver(one), resolve_base_solver(other), "no")


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        ("heun", "euler", r"'heun' \(order 2, 2 stages\) cannot take over .* for 'euler' \(order 1, 1 stages\); no"),
        ("midpoint", "ab2", r"'midpoint' \(order 2, 2 stages\).*'ab2' \(order 2, 2 stages, 1 start-up steps\)"),
        ("ab2", "midpoint", "1 start-up steps"),
        ("ab3", "ab2", "'ab3'"),
    ],
)
def test_methods_of_other_families_do_not(one, other, message):
    with pytest.raises(ValueError, match=message):
        check_same_family(resolve_base_solver(one), resolve_base_solver(other), "no")


def test_changed_weights_take_learned_coefficients_whatever_the_state():
    settings = fit_settings(base_solver="auto", n_steps=4, correction=WeightCorrection())
    assert choose_base_solver(settings, SMALL).method.name == "nonstationary"
    assert choose_base_solver(replace(settings, fit_n_steps=(2, 8)), SMALL).method.name == "ab2"
