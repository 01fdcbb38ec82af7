"""Bounds by row: they cover at the stated rate, and say where they cannot."""

import numpy as np
import pytest
from calibrated import draw, errors_of, make_generalist, riccati_end

from sklearn_hyper import HypersolverRegressor
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
