"""Fits of HypersolverRegressor and HypersolverClassifier against dopri5, closed forms and their base solvers."""

import numpy as np
import pytest
import torch
from scipy.linalg import expm
from sklearn.base import clone
from skorch.callbacks import EarlyStopping
from small_hypersolvers import A, Swirl, base_score, make_learner, make_regressor, spiral
from torch import nn

from sklearn_hyper import (
    HypersolverRegressor,
    MLPCorrection,
    NeuralODE,
)
from sklearn_hyper.metrics import local_truncation_error
from sklearn_hyper.modules import MLPVectorField
from sklearn_hyper.modules.corrections.weights import FieldWeights
from sklearn_hyper.numerics import ConditioningWarning, compute_residuals, hypersolve, reference_solution


def weights(module):
    return {name: value.numpy().tobytes() for name, value in module.state_dict().items()}


# ---------------------------------------------------------------------- what it is for
def test_a_fit_beats_its_base_solver_and_lands_near_the_closed_form(X):
    hyper = make_learner(spiral, n_steps=4, max_epochs=60).fit(X[:60])
    held_out = X[60:]
    exact = held_out @ expm(A).T
    np.testing.assert_allclose(hyper.reference(held_out), exact, atol=1e-5)
    np.testing.assert_allclose(hyper.predict(held_out), exact, atol=0.05)
    assert hyper.score(held_out) > 0.2 * base_score(hyper, held_out)


@pytest.mark.parametrize("loss", ["residual", "trajectory", "residual+trajectory"])
@pytest.mark.parametrize("finetune", [None, "terminal", "trajectory", "output"])
def test_every_loss_beats_the_base_solver(X, loss, finetune):
    hyper = make_learner(loss=loss, finetune=finetune).fit(X)
    assert hyper.score(X) > 0.8 * base_score(hyper, X)
    assert [row["stage"] for row in hyper.history_][::9] == [loss, finetune or loss]


@pytest.mark.parametrize("fit_n_steps, fitted", [(None, [2]), (3, [3]), ((1, 4), [1, 2, 3, 4])])
def test_step_sizes_that_are_fitted(X, fit_n_steps, fitted):
    hyper = make_regressor(fit_n_steps=fit_n_steps).fit(X)
    assert sorted(hyper.delta_) == fitted and hyper.module_.n_steps == 2
    assert all(0 < bounds["mean"] <= bounds["max"] for bounds in hyper.delta_.values())


def test_local_error_stays_within_delta_on_held_out_states(X):
    """Theorem 1's premise. All rows but a tenth are held out, so delta_ is a maximum over nine tenths of these."""
    hyper = make_learner(n_steps=4, validation_fraction=0.9).fit(X)
    field, grid = hyper.neural_ode_.vector_field, hyper.module_.grid
    with torch.no_grad():
        states = reference_solution(field, torch.from_numpy(X), grid, rtol=1e-9, atol=1e-9)
        for k in range(4):
            step = (
                hypersolve(field, states[k], None, None, "euler", hyper.correction_, grid=grid[k : k + 2]) - states[k]
            )
            error = local_truncation_error(states[k], states[k + 1], step)
            assert np.mean(error <= hyper.delta_[4]["max"] * 0.25**2 * (1 + 1e-3)) >= 0.9


@pytest.mark.parametrize("base_solver", ["ab2", "ab3"])
def test_delta_bounds_start_up_steps_too(X, base_solver):
    """Their order is lower, so that the same power of eps asks for a larger constant."""
    hyper = make_learner(base_solver=base_solver, n_steps=4, validation_fraction=0.9, max_epochs=30).fit(X)
    field, module = hyper.neural_ode_.vector_field, hyper.module_
    with torch.no_grad():
        states = reference_solution(field, torch.from_numpy(X), module.grid, rtol=1e-9, atol=1e-9)
        for r in compute_residuals(field, states, module.grid, module.base_solver):
            missing = r.target - hyper.correction_(r.eps, r.z.new_tensor(r.s), r.z, r.stages)
            error = r.eps ** (r.order + 1) * torch.linalg.vector_norm(missing, dim=1).numpy()
            assert np.mean(error <= hyper.delta_[4]["max"] * r.eps ** (hyper.order_ + 1) * (1 + 1e-3)) >= 0.9


def test_an_untrained_correction_is_the_base_solver_exactly(X):
    hyper = make_regressor(lr=1e-300, max_epochs=1, finetune=None)
    with pytest.warns(UserWarning, match="no epoch was better than the base solver"):
        hyper.fit(X)
    assert hyper.score(X) == base_score(hyper, X)


def test_a_fit_that_falls_back_reports_the_base_solver(X):
    hyper = make_regressor(lr=1e3, max_epochs=1, finetune=None)
    with pytest.warns(UserWarning, match="falls back to it: correction_ is None"):
        hyper.fit(X)
    errors = hyper.errors_[2]
    assert (errors["max"], errors["mean"]) == (errors["base_max"], errors["base_mean"])
    assert hyper.delta_[2]["max"] > 0 and hyper.correction_ is None


def test_a_good_correction_that_training_only_spoils_is_kept(X):
    good = make_learner().fit(X)
    kept = make_learner(correction=good.correction_.net, lr=1e3, max_epochs=1).fit(X)
    assert kept.score(X) == pytest.approx(good.score(X), rel=0.2)


def test_a_correction_has_to_take_start_up_steps_too(X):
    class TwoStages(nn.Module):
        def forward(self, eps, s, z, stages, x=None):
            return stages[0] - stages[1]

    with pytest.raises(ValueError, match=r"fails on a step of 'ab2' with 1 stages: .*start-up steps .* fewer stages"):
        make_regressor(base_solver="ab2", correction=TwoStages()).fit(X)


@pytest.mark.parametrize(("base_solver", "pair"), [("ab3", (1, 2)), ("ab4", [2, 3])])
def test_a_range_of_start_up_steps_alone_is_refused(X, base_solver, pair):
    with pytest.raises(ValueError, match=r"fit_n_steps=.* makes start-up steps only; fit_n_steps must reach [34]"):
        make_regressor(base_solver=base_solver, n_steps=4, fit_n_steps=pair).fit(X)


def test_a_matrix_gate_does_not_take_the_nets_budget(X):
    torch.manual_seed(0)
    starved, fed = (
        make_regressor(
            MLPVectorField(4, hidden=hidden).double(), base_solver="ab2", max_epochs=20, rtol=1e-9, atol=1e-9
        )
        .fit(np.hstack([X, X]))
        .correction_.net.layout
        for hidden in (64, 256)
    )
    assert not starved.has_matrix_gate and starved.hidden > 5 and fed.has_matrix_gate


def test_delta_is_measured_on_what_the_targets_were_made_of(X):
    params = {"base_solver": "rk4", "n_steps": 20, "finetune": None, "max_epochs": 20}
    with pytest.warns(ConditioningWarning, match="solved for again in float64"):
        single = make_regressor(Swirl().float(), **params).fit(X.astype(np.float32))
    exact = make_regressor(Swirl(), rtol=1e-12, atol=1e-12, **params).fit(X)
    # Noise alone would be of order 1e-6 / eps^5 = 3.
    assert single.delta_[20]["max"] == pytest.approx(exact.delta_[20]["max"], rel=0.2)
    assert single.delta_[20]["max"] < 0.5


def test_targets_keep_their_noise_where_the_field_does_not_run_in_float64(X):
    matrix = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    with pytest.warns(ConditioningWarning, match="does not run in float64"):
        fast = make_regressor(lambda t, z: torch.tanh(z @ matrix), base_solver="rk4").fit(X.astype(np.float32))
    assert np.isfinite(fast.score(X))


def test_ill_conditioned_targets_are_solved_for_again(X):
    with pytest.warns(ConditioningWarning, match=r"order 4.*A lower order or fewer steps"):
        hyper = make_regressor(base_solver="rk4", n_steps=10).fit(X)
    assert hyper.dtype_ == torch.float64 and hyper.score(X) > -1e-4


# ---------------------------------------------------------------------- the base solver that is chosen
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize(("n_steps", "name"), [(1, "euler"), (3, "nonstationary")])
def test_the_default_base_solver_takes_one_evaluation_a_step(X, n_steps, name):
    fast = make_regressor(base_solver="auto", n_steps=n_steps).fit(X)
    assert (fast.base_solver_.name, fast.base_solver_.count_evaluations(n_steps)) == (name, n_steps)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize(
    ("params", "name"),
    [
        ({}, "nonstationary"),
        ({"n_steps": 1}, "euler"),
        ({"fit_n_steps": (2, 3)}, "ab2"),
        ({"finetune": "trajectory"}, "ab2"),
        ({"loss": "trajectory"}, "ab2"),
        ({"order": 2}, "midpoint"),
    ],
    ids=str,
)
def test_the_default_for_large_states_learns_coefficients_where_these_serve(params, name):
    X = np.random.default_rng(0).uniform(-1, 1, (30, 5))
    fast = HypersolverRegressor(lambda t, z: -(z**3), **{"n_steps": 2, "max_epochs": 1, "random_state": 0} | params)
    assert fast.fit(X).base_solver_.name == name
    if name == "nonstationary":
        with pytest.raises(
            ValueError, match=r"made for n_steps=2 alone, got n_steps=3; fit it anew, or .*base_solver='ab2'"
        ):
            fast.with_solver(n_steps=3)


def test_a_fit_at_one_step_needs_a_base_solver_that_is_one_there(X):
    assert (
        make_regressor(base_solver="auto", n_steps=3, fit_n_steps=1, finetune=None).fit(X).base_solver_.name == "euler"
    )
    with pytest.raises(
        ValueError, match=r"fit_n_steps=1 with base_solver='ab2' makes start-up steps only.*or use 'euler'"
    ):
        make_regressor(base_solver="ab2", n_steps=3, fit_n_steps=1).fit(X)


# ---------------------------------------------------------------------- fitting on and on
def test_warm_start_continues_from_the_last_correction(X):
    hyper = make_learner(warm_start=True, finetune=None).fit(X)
    best = min(row["valid_loss"] for row in hyper.history_)
    assert hyper.set_params(max_epochs=1, lr=1e-6).fit(X).history_[0]["valid_loss"] == pytest.approx(best, rel=1e-3)
    with pytest.raises(ValueError, match=r"'heun' \(order 2, 2 stages\) cannot take over.*warm_start=False"):
        hyper.set_params(base_solver="heun").fit(X)


def test_a_warm_start_goes_on_in_the_dtype_of_its_rows(X):
    fast = make_learner(lambda t, z: torch.sin(z), warm_start=True).fit(X)
    assert fast.fit(X.astype(np.float32)).predict(X.astype(np.float32)).dtype == np.float32


def test_a_warm_start_keeps_what_auto_stood_for(X):
    params = {"base_solver": "auto", "n_steps": 3, "max_epochs": 20, "batch_size": 8, "warm_start": True}
    fast = make_regressor(**params).fit(X)
    with pytest.raises(ValueError, match=r"'nonstationary' is made for n_steps=3 alone, got n_steps=4"):
        fast.set_params(n_steps=4).fit(X)
    assert isinstance(fast.set_params(n_steps=3).fit(X).correction_, FieldWeights)
    fast = make_regressor(**params, fit_n_steps=(2, 4)).fit(X)
    fast.set_params(n_steps=4).fit(X)
    assert fast.base_solver_.name == "ab2"
    with pytest.raises(ValueError, match=r"n_steps=1 with base_solver='ab2' makes start-up steps only"):
        fast.set_params(n_steps=1).fit(X)


def test_a_correction_of_the_users_own_is_copied(X):
    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            self.map = nn.Linear(4, 2, dtype=torch.float64)

        def forward(self, eps, s, z, stages, x=None):
            return self.map(torch.cat([z, stages[0]], dim=1))

    own = Linear()
    before = weights(own)
    hyper = make_learner(correction=own).fit(X)
    assert hyper.score(X) > base_score(hyper, X)
    assert weights(own) == before and own.training


def test_a_specs_parameters_are_the_hypersolvers(X):
    hyper = make_regressor(correction=MLPCorrection(hidden=4)).set_params(correction__hidden=6)
    assert hyper.get_params()["correction__hidden"] == 6
    assert hyper.fit(X).correction_.net.layout.hidden == 6


def test_clone_shares_the_neural_ode_and_is_unfitted(digits_ode, digits_hyper):
    copied = clone(digits_hyper)
    assert copied.neural_ode is digits_ode and not hasattr(copied, "module_")
    with pytest.raises(ValueError, match="neural_ode__lr: the fitted neural_ode cannot be changed"):
        copied.set_params(neural_ode__lr=1.0)
    assert not any(name.startswith("neural_ode__") for name in copied.get_params(deep=True))


def test_the_users_module_is_only_read(X):
    class Noisy(Swirl):
        def __init__(self):
            super().__init__()
            self.norm, self.dropout = nn.BatchNorm1d(2, dtype=torch.float64), nn.Dropout(0.5)

        def forward(self, t, z):
            return super().forward(t, self.dropout(self.norm(z)))

    ode = NeuralODE(Noisy())
    before, attributes = weights(ode), {name: set(vars(module)) for name, module in ode.named_modules()}
    hyper = HypersolverRegressor(ode, base_solver="euler", n_steps=2, max_epochs=2, random_state=0).fit(X)
    hyper.predict(X), hyper.score(X), hyper.solver_report(X)
    assert weights(ode) == before == weights(hyper.neural_ode_)
    assert all(module.training for module in ode.modules()) and not any(m.training for m in hyper.module_.modules())
    assert all(p.requires_grad and p.grad is None for p in ode.parameters())
    assert {name: set(vars(module)) for name, module in ode.named_modules()} == attributes


def test_same_random_state_same_result_and_global_generators_as_found(X):
    states = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    one, two, other = (make_regressor(random_state=seed).fit(X).predict(X) for seed in (1, 1, 2))
    make_regressor(random_state=None, max_samples=40).fit(X)
    np.testing.assert_array_equal(one, two)
    assert not np.allclose(one, other, rtol=1e-12)
    assert torch.equal(states[0], torch.random.get_rng_state()) and (states[1] == np.random.get_state()[1]).all()


def test_early_stopping_ends_a_fit_quietly(X):
    hyper = make_learner(max_epochs=100, callbacks=[EarlyStopping(patience=2, threshold=10)]).fit(X)
    assert len(hyper.history_) < 10 and hyper.score(X) > base_score(hyper, X)


def test_one_reference_solve_a_fit_and_none_in_predict(X, solves):
    hyper = make_regressor(max_samples=50).fit(X)
    assert [solve.n_rows for solve in solves] == [50]
    hyper.predict(X), hyper.transform(X), hyper.trajectory(X)
    assert len(solves) == 1
