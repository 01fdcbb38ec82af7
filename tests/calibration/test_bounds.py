"""Bounds by row: they cover at the stated rate, and say where they cannot."""

import warnings

import numpy as np
import pytest
import torch
from calibrated import Cubic, Riccati, draw, errors_of, make_generalist, riccati_end
from torch import nn

from sklearn_hyper import HypersolverRegressor, NeuralODE
from sklearn_hyper.calibration import CalibrationRowsError, UnusualRowsWarning

X = draw(4000, 2)


@pytest.mark.filterwarnings("ignore::sklearn_hyper.calibration.UnusualRowsWarning")
@pytest.mark.parametrize("how", ["learned", "verified"])
@pytest.mark.parametrize("coverage", [0.8, 0.9, 0.99])
def test_bounds_hold_for_the_stated_share_of_new_rows(general, how, coverage):
    """The rate varies with the calibration rows by sqrt(c (1 - c) / n); five such deviations are allowed."""
    z, bound = general.predict(X, return_bound=True, coverage=coverage, bound=how)
    np.testing.assert_array_equal(z, general.predict(X))
    holds = (errors_of(z, X) <= bound).mean()
    assert holds > coverage - 5 * np.sqrt(coverage * (1 - coverage) / 1000)
    assert np.median(bound / errors_of(z, X)) < 10


def test_a_wider_coverage_has_wider_bounds(general):
    inside = draw(1000, 3, 0.4, 1.3)
    widths = {
        (how, coverage): np.median(general.predict(inside, return_bound=True, coverage=coverage, bound=how)[1])
        for how in ("learned", "verified")
        for coverage in (0.8, 0.99)
    }
    for how in ("learned", "verified"):
        assert widths[how, 0.8] < widths[how, 0.99]


def test_a_bound_does_not_depend_on_the_batch(general):
    inside = draw(50, 3, 0.4, 1.3)
    _, bound = general.predict(inside, return_bound=True)
    alone = np.concatenate([general.predict(row[None], return_bound=True)[1] for row in inside[:5]])
    np.testing.assert_allclose(alone, bound[:5], rtol=1e-6)


def test_rows_far_from_the_calibration_have_no_bound_and_are_named(general):
    far = np.concatenate([draw(3, 4, 0.4, 1.3), draw(2, 4, 30, 31)])
    with pytest.warns(UnusualRowsWarning, match="2 of 5 rows of X \\(rows 3, 4\\)"):
        _, bound, info = general.predict(far, return_bound=True, return_info=True)
    assert np.isinf(bound[3:]).all() and np.isfinite(bound[:3]).all()
    assert info.unusual.tolist() == [False, False, False, True, True]


def test_a_verified_bound_holds_far_away_too(general):
    far = draw(200, 4, 1.6, 2)
    z, bound = general.predict(far, return_bound=True, bound="verified")
    assert (errors_of(z, far) <= bound).mean() > 0.95


def test_states_and_trajectories_have_bounds_of_their_own(general):
    inside = draw(300, 5, 0.4, 1.3)
    z, bound = general.transform(inside, return_bound=True)
    assert (errors_of(z, inside) <= bound).mean() > 0.95
    states, path_bound = general.trajectory(inside, return_bound=True)
    truth = np.stack([inside / (1 + share * inside) for share in (0, 0.5, 1)], axis=1)
    largest = np.linalg.norm(states - truth, axis=2).max(axis=1)
    assert (largest <= path_bound).mean() > 0.95


def test_an_identity_as_output_gives_one_bound_for_states_and_outputs(general):
    inside = draw(20, 5, 0.4, 1.3)
    np.testing.assert_allclose(
        general.predict(inside, return_bound=True)[1], general.transform(inside, return_bound=True)[1], rtol=1e-9
    )


def test_info_states_the_cost_of_the_solver_itself(general):
    _, info = general.predict(X[:7], return_info=True)
    assert info.n_evaluations.tolist() == [2] * 7
    assert set(info.solver) == {"hyper-euler K=2"}


def test_a_coverage_beyond_the_rows_says_how_many_are_needed(general):
    with pytest.raises(CalibrationRowsError, match=r"needs 9,999 rows to calibrate on, and conformalize had 1,000\."):
        general.predict(X, return_bound=True, coverage=0.9999)


def test_adaptive_steps_are_calibrated_too():
    adaptive = make_generalist(base_solver="rk4", stepping="adaptive", fit_n_steps=(1, 8), step_rtol=1e-2, max_epochs=5)
    adaptive.fit(draw(200, 0)).conformalize(draw(400, 1))
    inside = draw(500, 5, 0.4, 1.3)
    z, bound, info = adaptive.predict(inside, return_bound=True, coverage=0.9, return_info=True)
    assert (np.linalg.norm(z - adaptive.reference(inside), axis=1) <= bound).mean() > 0.8
    assert info.n_evaluations[0] == np.ceil(adaptive.count_evaluations(draw(400, 1)[:256]))
    states, path_bound = adaptive.trajectory(inside, return_bound=True, coverage=0.9)
    assert states.shape == (500, 3, 2) and path_bound.shape == (500,)
    loose = adaptive.predict(inside, tol=1e-2, alpha=0.05)
    assert (errors_of(loose, inside) > 1e-2 * np.linalg.norm(riccati_end(inside), axis=1)).mean() <= 0.1


@pytest.mark.filterwarnings("ignore:The reference's noise", "ignore:no epoch was better")
def test_errors_of_rounding_have_bounds_of_rounding():
    """A field of zeros is solved exactly, but for dopri5's own rounding in single precision."""
    still = HypersolverRegressor(lambda t, z: 0 * z, base_solver="euler", n_steps=2, max_epochs=2, random_state=0)
    still.fit(draw(60, 0).astype(np.float32))
    _, bound = still.conformalize(draw(300, 1).astype(np.float32)).predict(
        draw(200, 2).astype(np.float32), return_bound=True
    )
    assert np.median(bound) < 1e-4


def test_a_verified_bound_of_a_row_that_dopri5_cannot_solve_is_infinite(general):
    _, bound = general.predict(np.array([[-5.0, 1.0], [1.0, 1.0]]), return_bound=True, bound="verified")
    assert np.isinf(bound[0]) and np.isfinite(bound[1])


def test_a_solver_that_is_the_dearest_of_all_is_verified_by_dopri5():
    dear = HypersolverRegressor(Riccati(), base_solver="rk4", n_steps=40, max_epochs=2, rtol=1e-9, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # forty steps leave little to correct
        dear.fit(draw(60, 0)).conformalize(draw(300, 1))
    inside = draw(50, 5, 0.4, 1.3)
    z, bound, info = dear.predict(inside, return_bound=True, bound="verified", return_info=True)
    assert (info.n_evaluations > 160).all()
    assert (errors_of(z, inside) <= bound).all()


@pytest.mark.parametrize("size", [1e1, 1e3, 1e30])
@pytest.mark.parametrize("how", ["learned", "verified"])
def test_one_outlying_row_of_the_calibration_widens_no_other_bound(size, how):
    hypersolver = make_generalist(max_epochs=5).fit(draw(100, 0))
    inside, rows = draw(200, 5, 0.4, 1.3), draw(500, 1)
    asked = {"return_bound": True, "coverage": 0.9, "bound": how}
    _, before = hypersolver.conformalize(rows).predict(inside, **asked)
    rows[7] = size
    with np.errstate(over="ignore"):
        _, after = hypersolver.conformalize(rows).predict(inside, **asked)
    assert np.median(after) < 3 * np.median(before)


class RefusesNan(nn.Module):
    """An output map that takes no undefined states."""

    def forward(self, z):
        if not z.isfinite().all():
            raise FloatingPointError("undefined state")
        return z.sum(dim=1, keepdim=True)


def test_an_output_map_never_sees_states_that_are_not_finite():
    ode = NeuralODE(Cubic(), output_map=RefusesNan())
    fit = HypersolverRegressor(ode, base_solver="rk4", n_steps=12, max_epochs=2, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit.fit(draw(100, 0, high=1)).conformalize(draw(500, 1))  # levels of few steps overflow
    new = draw(100, 3, high=1)
    y = fit.predict(new, tol=1e-2, alpha=0.05)
    truth = (new / np.sqrt(1 + 16 * new**2)).sum(axis=1, keepdims=True)
    assert (np.abs(y - truth) < 1e-2 * np.abs(truth)).mean() > 0.9


@pytest.mark.parametrize("given", ["fit", "levels", "warm start"])
def test_rows_that_any_fit_has_seen_are_refused(given):
    rows, first = draw(200, 0), draw(200, 1)
    if given == "levels":
        fit, levels = make_generalist(max_epochs=2).fit(first), [make_generalist(max_epochs=2).fit(rows)]
    else:
        fit, levels = make_generalist(max_epochs=2, warm_start=True).fit(rows), []
    if given == "warm start":
        fit.fit(first)
    with pytest.raises(CalibrationRowsError, match="200 of 200 rows of X were fitted on"):
        fit.conformalize(rows, levels=levels)


@pytest.mark.parametrize("place", ["itself", "a level"])
def test_adaptive_steps_that_rows_share_cannot_be_calibrated(place):
    """There, a row's result depends on its batch."""

    def field(t, z):
        return -z * z * (1 + torch.sin(4 * t))

    settings = {"base_solver": "rk4", "n_steps": 2, "fit_n_steps": (1, 8), "max_epochs": 2, "random_state": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shared = HypersolverRegressor(field, stepping="adaptive", **settings).fit(draw(80, 0))
        fixed = HypersolverRegressor(field, **settings).fit(draw(80, 0))
    one, levels = (shared, []) if place == "itself" else (fixed, [shared])
    with pytest.raises(ValueError, match=r"all rows of a batch share.*row_times=True"):
        one.conformalize(draw(100, 1), levels=levels)


class Rated(nn.Module):
    """z' = -x_1 z: the rate is an input beside the state."""

    def forward(self, t, z, x):
        return -x[:, 1:2] * z


class First(nn.Module):
    def forward(self, x):
        return x[:, :1]


@pytest.fixture(scope="module")
def rated():
    ode = NeuralODE(Rated(), input_map=First(), data_controlled=True)
    fit = HypersolverRegressor(ode, base_solver="heun", n_steps=2, max_epochs=5, random_state=0)
    return fit.fit(draw(100, 0)).conformalize(draw(600, 1))


@pytest.mark.parametrize("how", [{}, {"route": True}, {"bound": "verified"}])
def test_inputs_that_the_field_reads_beside_the_state_make_rows_unusual(rated, how):
    far = draw(200, 3, 0.4, 1.3) * [1, 6]
    z, info = rated.predict(far, tol=1e-2, alpha=0.02, return_info=True, **how)
    truth = far[:, :1] * np.exp(-far[:, 1:])
    assert (np.abs(z - truth) > 1.1e-2 * np.abs(truth)).mean() <= 0.03
    assert info.unusual.mean() > 0.9


@pytest.mark.parametrize("share", [1.0, 0.5, 0.1])
def test_extra_rows_of_a_function_count_as_fitted(share):
    """Half of them, or a tenth, among the rows of the calibration are as many too many."""
    pool = draw(200, 7)
    fit = make_generalist(max_epochs=2, extra_rows=lambda X, n, random_state: pool[:n]).fit(draw(200, 0))
    n = int(180 * share)
    with pytest.raises(CalibrationRowsError, match=f"{n} of 180 rows of X were fitted on"):
        fit.conformalize(np.concatenate([pool[:n], draw(180 - n, 8)]))


class Narrow(nn.Module):
    """A logarithm, which states below 0.05 have none of."""

    def forward(self, z):
        return (z - 0.05).log()


def test_an_output_that_is_not_finite_has_no_bound():
    ode = NeuralODE(lambda t, z: -0.7 * z, output_map=Narrow())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit = HypersolverRegressor(ode, base_solver="euler", n_steps=1, max_epochs=1, random_state=0)
        fit.fit(draw(100, 0, 0.5, 1)).conformalize(draw(300, 1, 0.5, 1))
        y, bound = fit.predict(np.array([[0.05, 0.8], [0.6, 0.7]]), return_bound=True, coverage=0.5)
    assert not np.isfinite(y[0]).all() and np.isinf(bound[0]) and np.isfinite(bound[1])


@pytest.mark.parametrize("how", ["learned", "verified"])
def test_info_counts_what_a_bound_took(general, how, monkeypatch):
    seen = []
    field = type(general.neural_ode_.vector_field)
    forward = field.forward
    monkeypatch.setattr(field, "forward", lambda self, t, z: seen.append(len(z)) or forward(self, t, z))
    inside = draw(100, 6, 0.4, 1.3)
    _, _, info = general.predict(inside, return_bound=True, bound=how, return_info=True)
    assert sum(seen) == info.n_evaluations.sum()


@pytest.mark.parametrize(("n_known", "refused"), [(4, False), (7, True), (30, True)])
def test_one_row_in_twenty_may_equal_a_fitted_one(n_known, refused):
    rows = draw(100, 0)
    fit = make_generalist(max_epochs=2).fit(rows)
    mixed = np.concatenate([rows[:n_known], draw(100 - n_known, 1)])
    if refused:
        with pytest.raises(CalibrationRowsError, match=f"{n_known} of 100 rows"):
            fit.conformalize(mixed)
    else:
        fit.conformalize(mixed)
