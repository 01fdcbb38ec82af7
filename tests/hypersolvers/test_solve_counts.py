"""References are solved once, and as tightly as what is fitted needs."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from sklearn_hyper import HypersolverRegressor
from sklearn_hyper.numerics import ConditioningWarning
from sklearn_hyper.training import references

X = np.random.default_rng(0).normal(size=(400, 5)).astype(np.float32)
LEARNED = {"base_solver": "nonstationary", "n_steps": 3, "max_epochs": 2, "random_state": 0}

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def turn(t, z):
    return torch.tanh(3 * z.roll(1, 1))


@pytest.fixture
def solves(monkeypatch):
    """(rows, times, dtype) of every reference solve."""
    made, original = [], references.reference_solution

    def counted(f, z0, times, **how):
        made.append((len(z0), len(times), z0.dtype))
        return original(f, z0, times, **how)

    monkeypatch.setattr(references, "reference_solution", counted)
    return made


@pytest.mark.parametrize("finetune", ["terminal", "output"])
@pytest.mark.parametrize("tolerance", [1e-6, 1e-3])
def test_learned_coefficients_take_one_solve_of_all_rows(solves, tolerance, finetune):
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConditioningWarning)
        fast = HypersolverRegressor(turn, **LEARNED, finetune=finetune, rtol=tolerance, atol=tolerance).fit(X)
    few = 40 + 256  # those held out, and those that tell the scales
    assert solves == [(400, 2, torch.float32), (few, 4, torch.float32)]
    assert all(np.isfinite(value) for value in fast.delta_[3].values())


@pytest.mark.parametrize("params", [{"finetune": "trajectory"}, {"finetune": None}, {"loss": "residual+trajectory"}])
@pytest.mark.filterwarnings("ignore::sklearn_hyper.numerics.residuals.ConditioningWarning")
def test_losses_between_the_ends_need_the_mesh_of_all_rows(solves, params):
    HypersolverRegressor(turn, **LEARNED, **params).fit(X)
    assert [made[:2] for made in solves[:2]] == [(400, 2), (400, 4)]


@pytest.mark.parametrize("params", [{"loss": "residual"}, {"loss": "residual+trajectory", "finetune": None}])
def test_targets_are_solved_for_again_where_residuals_are_a_loss(solves, params):
    with pytest.warns(ConditioningWarning, match="solved for again in float64"):
        HypersolverRegressor(turn, base_solver="heun", n_steps=4, max_epochs=2, rtol=1e-4, atol=1e-4, **params).fit(
            X[:60]
        )
    assert [dtype for *_, dtype in solves] == [torch.float32, torch.float64]


@pytest.mark.parametrize("loss", ["trajectory", "residual"])
def test_no_other_fit_solves_again(solves, loss):
    params = {"loss": loss, "finetune": "terminal", "max_epochs": 2, "random_state": 0}
    if loss == "residual":
        params |= LEARNED
    fast = HypersolverRegressor(turn, **{"base_solver": "heun", "n_steps": 4, **params}, rtol=1e-3, atol=1e-3).fit(
        X[:60]
    )
    assert {dtype for *_, dtype in solves} == {torch.float32}
    assert fast.errors_[fast.n_steps]["max"] <= fast.errors_[fast.n_steps]["base_max"]


@pytest.mark.filterwarnings("ignore::sklearn_hyper.numerics.residuals.ConditioningWarning")
def test_candidates_with_ordinary_base_solvers_share_a_cached_solve(solves, tmp_path):
    for n_steps, loss, seed in ((2, "residual", 0), (5, "trajectory", 1), (4, "residual", 2)):
        HypersolverRegressor(
            turn, base_solver="heun", n_steps=n_steps, loss=loss, max_epochs=1, random_state=seed,
            memory=str(tmp_path), rtol=1e-8, atol=1e-8,
        ).fit(X[:30].astype(float))  # fmt: skip
    assert len([made for made in solves if made[0] == 30]) == 1 + len({made for made in solves[1:]})


def test_the_coefficients_of_a_given_seed_do_not_depend_on_who_solved():
    """Ends that are solved for all rows are those of a solve of the few hundred that coefficients are learned from."""
    shared = HypersolverRegressor(turn, **LEARNED).fit(X)
    alone = HypersolverRegressor(turn, **LEARNED | {"finetune": "trajectory"}).fit(X)
    assert shared.base_solver_ == alone.base_solver_


def test_a_warm_start_keeps_its_coefficients(solves):
    fast = HypersolverRegressor(turn, **LEARNED, warm_start=True).fit(X)
    before, solves[:] = fast.base_solver_, []
    assert fast.fit(X).base_solver_ == before
    assert [made[:2] for made in solves] == [(400, 2), (296, 4)]
