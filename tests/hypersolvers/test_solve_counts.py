"""References are solved once, and as tightly as what is fitted needs."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from sklearn_hyper import NeuralODE
from sklearn_hyper.hypersolvers import FitSettings, Task, fit_hypersolver
from sklearn_hyper.numerics import ConditioningWarning

X = torch.from_numpy(np.random.default_rng(0).normal(size=(400, 5)).astype(np.float32))
LEARNED = {"base_solver": "nonstationary", "n_steps": 3}


def turn(t, z):
    return torch.tanh(3 * z.roll(1, 1))


def fit(x, previous=None, **params):
    settings = FitSettings(**{"max_epochs": 2, "random_state": 0} | params)
    return fit_hypersolver(Task(NeuralODE(turn).eval(), x), settings, previous)


@pytest.mark.parametrize("finetune", ["terminal", "output"])
@pytest.mark.parametrize("tolerance", [1e-6, 1e-3])
def test_learned_coefficients_take_one_solve_of_all_rows(solves, tolerance, finetune):
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConditioningWarning)
        fast = fit(X, **LEARNED, finetune=finetune, rtol=tolerance, atol=tolerance)
    few = 40 + 256  # those held out, and those that tell the scales
    assert solves == [(400, 2, torch.float32), (few, 4, torch.float32)]
    assert all(np.isfinite(value) for value in fast.delta[3].values())


@pytest.mark.parametrize("params", [{"finetune": "trajectory"}, {"finetune": None}, {"loss": "residual+trajectory"}])
@pytest.mark.filterwarnings("ignore::sklearn_hyper.numerics.residuals.ConditioningWarning")
def test_losses_between_the_ends_need_the_mesh_of_all_rows(solves, params):
    fit(X, **LEARNED, **params)
    assert [made[:2] for made in solves[:2]] == [(400, 2), (400, 4)]


@pytest.mark.parametrize("params", [{"loss": "residual"}, {"loss": "residual+trajectory", "finetune": None}])
def test_targets_are_solved_for_again_where_residuals_are_a_loss(solves, params):
    with pytest.warns(ConditioningWarning, match="solved for again in float64"):
        fit(X[:60], base_solver="heun", n_steps=4, rtol=1e-4, atol=1e-4, **params)
    assert [dtype for *_, dtype in solves] == [torch.float32, torch.float64]


@pytest.mark.parametrize(
    "params", [{"base_solver": "heun", "n_steps": 4, "loss": "trajectory"}, LEARNED], ids=["path", "learned"]
)
def test_no_other_fit_solves_again(solves, params):
    fast = fit(X[:60], **params, rtol=1e-3, atol=1e-3)
    assert {dtype for *_, dtype in solves} == {torch.float32}
    assert fast.errors[fast.n_steps]["max"] <= fast.errors[fast.n_steps]["base_max"]


@pytest.mark.filterwarnings("ignore::sklearn_hyper.numerics.residuals.ConditioningWarning")
def test_candidates_with_ordinary_base_solvers_share_a_cached_solve(solves, tmp_path):
    for n_steps, loss, seed in ((2, "residual", 0), (5, "trajectory", 1), (4, "residual", 2)):
        fit(
            X[:30].double(), base_solver="heun", n_steps=n_steps, loss=loss, max_epochs=1, random_state=seed,
            memory=str(tmp_path), rtol=1e-8, atol=1e-8,
        )  # fmt: skip
    assert len([made for made in solves if made[0] == 30]) == 1 + len({made for made in solves[1:]})


def test_the_coefficients_of_a_given_seed_do_not_depend_on_who_solved():
    """Ends that are solved for all rows are those of a solve of the few hundred that coefficients are learned from."""
    assert fit(X, **LEARNED).method == fit(X, **LEARNED, finetune="trajectory").method


def test_a_warm_start_keeps_its_coefficients(solves):
    fast = fit(X, **LEARNED)
    solves.clear()
    assert fit(X, fast, **LEARNED).method == fast.method
    assert [made[:2] for made in solves] == [(400, 2), (296, 4)]


def test_predictions_take_no_reference(solves):
    fast = fit(X[:60], **LEARNED, rtol=1e-3, atol=1e-3)
    n = len(solves)
    fast.solve(X), fast.predict(X), fast.trajectory(X)
    assert len(solves) == n
