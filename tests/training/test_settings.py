"""What a fit is told: phases of its training, what its losses need, and settings among others."""

import dataclasses
import inspect

import pytest
from small_tasks import fit_settings

from sklearn_hyper import HypersolverRegressor
from sklearn_hyper.hypersolvers import FitSettings, SolveSettings
from sklearn_hyper.numerics import resolve_base_solver
from sklearn_hyper.numerics.methods import compose_tableaus
from sklearn_hyper.training.settings import FINETUNE_LR, Phase

LEARNED = compose_tableaus([resolve_base_solver("midpoint").tableau] * 2)


@pytest.mark.parametrize(
    ("changes", "phases"),
    [
        ({"max_epochs": 120}, [(48, "residual"), (120, "terminal")]),
        ({"max_epochs": 10, "loss": "trajectory", "finetune": "output"}, [(4, "trajectory"), (10, "output")]),
        ({"max_epochs": 2}, [(1, "residual"), (2, "terminal")]),
        ({"max_epochs": 1}, [(1, "residual")]),
        ({"max_epochs": 7, "finetune": None}, [(7, "residual")]),
    ],
    ids=str,
)
def test_phases_split_the_epochs(changes, phases):
    assert fit_settings(**changes).phases == [Phase(*phase) for phase in phases]


@pytest.mark.parametrize("max_epochs", range(2, 30))
def test_every_phase_has_an_epoch(max_epochs):
    first, second = fit_settings(max_epochs=max_epochs).phases
    assert 1 <= first.last_epoch < second.last_epoch == max_epochs


def test_a_phase_of_two_losses_includes_both():
    phase = Phase(1, "residual+trajectory")
    assert phase.includes("residual") and phase.includes("trajectory") and not phase.includes("terminal")


def test_over_a_method_whose_states_between_leave_the_trajectory_residuals_give_way():
    settings = fit_settings(lr=0.02, finetune="output")
    assert settings.adapted_to(resolve_base_solver("ab2")) is settings
    changed = settings.adapted_to(LEARNED)
    assert (changed.loss, changed.finetune, changed.lr) == ("output", None, FINETUNE_LR * 0.02)
    for kept in (fit_settings(finetune=None), fit_settings(loss="trajectory")):
        assert kept.adapted_to(LEARNED) is kept


@pytest.mark.parametrize(
    ("changes", "needs"),
    [({}, False), ({"finetune": "output"}, False), ({"finetune": None}, True), ({"finetune": "trajectory"}, True),
     ({"loss": "trajectory"}, True), ({"loss": "residual+trajectory"}, True)],
    ids=str,
)  # fmt: skip
def test_a_method_of_one_mesh_needs_the_states_between_for_losses_of_theirs(changes, needs):
    assert fit_settings(**changes).needs_mesh(LEARNED) is needs
    assert fit_settings(**changes).needs_mesh(resolve_base_solver("euler"))  # which shares its mesh with all candidates


def test_settings_are_picked_from_among_others():
    values = {"rtol": 1e-3, "n_steps": 7, "neural_ode": None, "mape_floor": 0.1, "warm_start": True}
    assert SolveSettings.of(values) == SolveSettings(rtol=1e-3)
    assert FitSettings.of(values) == FitSettings(rtol=1e-3, n_steps=7)


def test_names_and_defaults_are_the_estimators():
    """Parameters of the estimator, or of its fit."""
    own, of_fit = (inspect.signature(getattr(HypersolverRegressor, name)).parameters for name in ("__init__", "fit"))
    parameters = {**own, **of_fit}
    for field in dataclasses.fields(FitSettings):
        expected = parameters[field.name].default
        assert field.default == (expected if field.name != "device" else expected or "cpu")


def test_adaptive_steps_ask_for_a_range_around_n_steps_and_for_residuals_alone():
    settings = fit_settings(stepping="adaptive", n_steps=10, max_epochs=10)
    assert (settings.fit_n_steps, settings.finetune, settings.phases) == ((2, 40), None, [Phase(10, "residual")])
    assert fit_settings(stepping="adaptive", n_steps=1).fit_n_steps == (1, 4)
    assert fit_settings(stepping="adaptive", fit_n_steps=(3, 5)).fit_n_steps == (3, 5)
