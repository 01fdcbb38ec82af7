"""base_solver="nonstationary": coefficients are learned first, and a correction on top of them."""

import numpy as np
import pytest
import torch
from small_hypersolvers import make_regressor
from torch import nn

from sklearn_hyper import HypersolverRegressor
from sklearn_hyper.numerics import Nonstationary, hypersolve


class Bend(nn.Module):
    """A field that depends on time, and that two Euler steps miss."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[0.3, -2.0], [2.0, -0.2]], dtype=torch.float64))

    def forward(self, t, z):
        return torch.tanh(z @ self.weight.T) * (1 + t)


@pytest.fixture(scope="module")
def X():
    return np.random.default_rng(0).normal(size=(160, 2))


@pytest.fixture(scope="module")
def fitted(X):
    return make_regressor(Bend(), base_solver="nonstationary", n_steps=3, max_epochs=30).fit(X)


def error(hyper, X):
    return np.linalg.norm(hyper.predict(X) - hyper.reference(X), axis=1).mean()


def test_learned_coefficients_beat_the_classical_ones_and_g_beats_them(fitted, X):
    test = np.random.default_rng(1).normal(size=(200, 2))
    assert isinstance(fitted.base_solver_, Nonstationary) and fitted.base_solver_.n_steps == 3
    plain = fitted.without_correction()
    classical = min(error(plain.with_solver(name, n_steps=3), test) for name in ("euler", "ab2"))
    assert error(fitted, test) < error(plain, test) < 0.8 * classical


def test_three_steps_cost_three_evaluations(fitted, X):
    report = fitted.solver_report(X[:20])
    assert [row.nfe for row in report.rows[1:]] == [3, 3]


def test_the_mesh_is_its_own_and_the_solver_works_alone(fitted, X):
    solver, module = fitted.base_solver_, fitted.module_
    assert module.grid == pytest.approx(solver.shares)
    z = hypersolve(fitted.neural_ode_.vector_field, torch.from_numpy(X), (0.0, 1.0), 3, solver)
    np.testing.assert_allclose(z, fitted.without_correction().predict(X), rtol=1e-10, atol=1e-12)


def test_it_is_defined_for_its_number_of_steps_alone(fitted):
    with pytest.raises(ValueError, match="made for n_steps=3 alone, got n_steps=4"):
        fitted.with_solver(n_steps=4)
    with pytest.raises(ValueError, match=r"cannot take over the correction.*fit another hypersolver with 'euler'"):
        fitted.with_solver("euler")


def test_bad_combinations_are_refused_before_any_work(X):
    with pytest.raises(ValueError, match=r"fit_n_steps=\(1, 4\) with base_solver='nonstationary'.*n_steps=3 alone"):
        make_regressor(Bend(), base_solver="nonstationary", n_steps=3, fit_n_steps=(1, 4)).fit(X)
    with pytest.raises(ValueError, match="order=2 contradicts"):
        make_regressor(Bend(), base_solver="nonstationary", order=2).fit(X)


@pytest.mark.parametrize(("loss", "stages"), [("residual", ["terminal"]), ("trajectory", ["trajectory", "terminal"])])
def test_residuals_do_not_pull_the_states_between_back_and_other_losses_count(X, loss, stages):
    hyper = make_regressor(Bend(), base_solver="nonstationary", n_steps=3, loss=loss, max_epochs=4).fit(X)
    assert list(dict.fromkeys(row["stage"] for row in hyper.history_)) == stages


def test_same_seed_same_solver(X):
    one, other = (make_regressor(Bend(), base_solver="nonstationary", max_epochs=8).fit(X) for _ in range(2))
    assert one.base_solver_ == other.base_solver_
    np.testing.assert_array_equal(one.predict(X), other.predict(X))


def test_a_warm_start_keeps_the_coefficients_its_correction_belongs_to(X):
    hyper = make_regressor(Bend(), base_solver="nonstationary", max_epochs=8, warm_start=True).fit(X)
    solver = hyper.base_solver_
    assert hyper.fit(X).base_solver_ is solver


@pytest.mark.parametrize("base_solver", ["ab2", "ab3", "nonstationary"])
def test_solvers_with_history_fit_export_and_report(X, base_solver):
    hyper = HypersolverRegressor(Bend(), base_solver=base_solver, n_steps=4, max_epochs=20, random_state=0).fit(X)
    assert hyper.score(X) > hyper.without_correction().score(X)
    assert set(hyper.delta_) == set(hyper.errors_) == {4}
    row = hyper.errors_[4]
    assert row["max"] <= row["base_max"] and row["mean"] < row["base_mean"]
    x = torch.from_numpy(X[:8])
    exported = torch.export.export(hyper.to_module(), (x,)).module()
    torch.testing.assert_close(exported(x), hyper.to_module()(x))


def test_multistep_methods_need_a_step_beyond_their_start_up(X):
    with pytest.raises(ValueError, match=r"n_steps=2 with base_solver='ab3' makes start-up steps only.*must reach 3"):
        HypersolverRegressor(Bend(), base_solver="ab3", n_steps=2).fit(X)


def test_methods_of_one_order_but_another_start_up_do_not_swap(X):
    hyper = HypersolverRegressor(Bend(), base_solver="ab2", n_steps=3, max_epochs=15, random_state=0).fit(X)
    with pytest.raises(ValueError, match=r"'midpoint' \(order 2, 2 stages\).*'ab2' \(order 2, 2 stages, 1 start-up"):
        hyper.with_solver("midpoint")


def test_a_warm_start_from_another_kind_of_solver_is_refused_before_any_work(X):
    hyper = make_regressor(Bend(), base_solver="euler", n_steps=3, max_epochs=15, warm_start=True).fit(X)
    with pytest.raises(ValueError, match=r"'nonstationary' \(order 1, 2 stages, 2 start-up steps\) cannot take over"):
        hyper.set_params(base_solver="nonstationary").fit(X)
