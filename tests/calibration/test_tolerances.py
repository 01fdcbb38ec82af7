"""Tolerances are kept for all but the stated share of rows, at a cost that is counted."""

import copy
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from calibrated import Cubic, draw, errors_of, make_generalist, riccati_end
from torch import nn

from sklearn_hyper import HypersolverRegressor, NeuralODE
from sklearn_hyper.calibration import CalibrationRowsError, Tolerance
from sklearn_hyper.calibration.ladder import _SAFETIES, Ladder, _hard_errors
from sklearn_hyper.calibration.levels import Starts
from sklearn_hyper.calibration.measuring import measure
from sklearn_hyper.estimators import UnsolvedRowsWarning

X = draw(3000, 2)
SIZES = np.linalg.norm(riccati_end(X), axis=1)
POLICIES = [{}, {"route": True}, {"bound": "verified"}]
by_policy = pytest.mark.parametrize("policy", POLICIES, ids=["one for all", "routed", "verified"])


@by_policy
@pytest.mark.parametrize("tol", [1e-1, 1e-2, 1e-3, 1e-5])
def test_a_relative_tolerance_is_kept(general, policy, tol):
    z, info = general.predict(X, tol=tol, alpha=0.02, return_info=True, **policy)
    errors = np.linalg.norm(z - general.reference(X), axis=1)
    assert (errors > tol * SIZES).mean() <= 0.03
    assert (info.n_evaluations >= 1).all()


@by_policy
def test_an_absolute_tolerance_is_kept(general, policy):
    z = general.predict(X, atol=2e-3, alpha=0.02, **policy)
    assert (errors_of(z, X) > 2e-3).mean() <= 0.03


@by_policy
def test_a_looser_tolerance_costs_no_more(general, policy):
    costs = [
        general.predict(X, tol=tol, alpha=0.02, return_info=True, **policy)[1].n_evaluations.mean()
        for tol in (1e-1, 1e-2, 1e-3, 1e-6)
    ]
    assert costs == sorted(costs)
    assert costs[0] < 6 < costs[-1]


@by_policy
def test_a_tolerance_that_nothing_cheap_keeps_is_dopri5s(general, policy):
    """At the tolerance of conformalize, which need not be that of the fit."""
    exact = copy.copy(general).set_params(rtol=1e-11).conformalize(draw(1000, 1))
    z, info = exact.predict(X, tol=1e-9, return_info=True, **policy)
    assert "dopri5" in info.solver
    assert (errors_of(z, X) > 1e-9 * SIZES).mean() <= 0.02


@by_policy
@pytest.mark.parametrize("asked", [{"tol": 1e-9}, {"atol": 1e-9}, {"tol": 1e-12, "atol": 1e-12}])
def test_a_tolerance_that_the_references_do_not_keep_is_refused(general, policy, asked):
    with pytest.raises(ValueError, match=r"below rtol=1e-06.*set_params\(rtol=...\) and call conformalize"):
        general.predict(X[:50], **asked, **policy)


@by_policy
def test_a_row_gets_the_same_answer_alone(general, policy):
    inside = draw(40, 3, 0.4, 1.3)
    z, info = general.predict(inside, tol=1e-2, alpha=0.02, return_info=True, **policy)
    for i in (0, 17, 39):
        alone, one = general.predict(inside[i : i + 1], tol=1e-2, alpha=0.02, return_info=True, **policy)
        np.testing.assert_allclose(alone[0], z[i], rtol=1e-9)
        assert (one.solver[0], one.n_evaluations[0]) == (info.solver[i], info.n_evaluations[i])


@pytest.mark.parametrize("policy", POLICIES[:2], ids=["one for all", "routed"])
def test_rows_far_away_go_to_dopri5(general, policy):
    far = np.concatenate([draw(5, 4, 0.4, 1.3), draw(5, 4, 30, 40)])
    z, info = general.predict(far, tol=1e-1, return_info=True, **policy)
    assert (info.solver == "dopri5").tolist() == [False] * 5 + [True] * 5
    np.testing.assert_allclose(z[5:], riccati_end(far[5:]), rtol=1e-5)


@pytest.mark.parametrize("scale", [1.2, 1.5, 2.0])
def test_verified_answers_keep_a_tolerance_where_inputs_drift(general, scale):
    drifted = scale * X
    z = general.predict(drifted, tol=1e-2, alpha=0.02, bound="verified")
    sizes = np.linalg.norm(riccati_end(drifted), axis=1)
    assert (errors_of(z, drifted) > 1e-2 * sizes).mean() <= 0.03


def test_states_have_tolerances_too(general):
    z = general.transform(X, tol=1e-2, alpha=0.02)
    assert (errors_of(z, X) > 1e-2 * SIZES).mean() <= 0.03


def test_evaluations_are_those_that_were_made(general, monkeypatch):
    """Each policy's count against rows times calls of the field itself."""
    seen = []
    field = type(general.neural_ode_.vector_field)
    forward = field.forward
    monkeypatch.setattr(field, "forward", lambda self, t, z: seen.append(len(z)) or forward(self, t, z))
    inside = draw(200, 6, 0.4, 1.3)
    for policy in POLICIES:
        seen.clear()
        _, info = general.predict(inside, tol=3e-2, alpha=0.02, return_info=True, **policy)
        assert sum(seen) == info.n_evaluations.sum()


def test_too_few_rows_for_a_certificate_say_how_many_are_needed():
    few = make_generalist(max_epochs=2).fit(draw(60, 0)).conformalize(draw(200, 1))
    with pytest.raises(CalibrationRowsError, match=r"alpha=0.01 needs 230 rows.*100 are left.*at least 460 rows"):
        few.predict(X, tol=1e-2)
    assert (errors_of(few.predict(X, tol=1e-2, alpha=0.05), X) > 1e-2 * SIZES).mean() <= 0.1


def test_other_hypersolvers_become_levels():
    """A specialist for five steps serves a tolerance that two steps do not keep."""
    two, five = (make_generalist(n_steps=k, fit_n_steps=None).fit(draw(200, 0)) for k in (2, 5))
    tol = 1.5 * np.quantile(errors_of(five.predict(X), X) / SIZES, 0.99)
    alone = two.conformalize(draw(1000, 1)).predict(X, tol=tol, alpha=0.02, return_info=True)[1]
    _, info = two.conformalize(draw(1000, 1), levels=[five]).predict(X, tol=tol, alpha=0.02, return_info=True)
    assert "hyper-euler K=5" in info.solver
    assert info.n_evaluations.mean() < alone.n_evaluations.mean()


@by_policy
def test_rows_that_not_even_dopri5_solves_are_nan_and_named(general, policy):
    """z' = -z^2 leaves every bound from z = -5 on."""
    rows = np.concatenate([draw(3, 6, 0.4, 1.3), [[-5.0, 1.0]]])
    with pytest.warns(UnsolvedRowsWarning, match=r"1 of 4 rows of X \(row 3\)"):
        z, info = general.predict(rows, tol=1e-1, alpha=0.02, return_info=True, **policy)
    assert np.isnan(z[3]).any() and np.isfinite(z[:3]).all()
    assert info.solver[3] == "dopri5"


@pytest.fixture(scope="module")
def cubic():
    """A solver of 24 steps, and a ladder in which cheaper levels overflow."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 24 steps leave little to correct
        return (
            HypersolverRegressor(Cubic(), base_solver="rk4", n_steps=24, max_epochs=5, rtol=1e-9, random_state=0)
            .fit(draw(200, 0))
            .conformalize(draw(1000, 1))
        )


@by_policy
def test_a_level_that_overflows_is_not_certified(cubic, policy):
    new = draw(2000, 3)
    truth = new / np.sqrt(1 + 16 * new**2)
    z = cubic.predict(new, tol=1e-2, alpha=0.02, **policy)
    errors = np.linalg.norm(z - truth, axis=1)
    assert (errors <= 1e-2 * np.linalg.norm(truth, axis=1)).mean() >= 0.97
    assert np.isfinite(z).all()


@by_policy
def test_one_level_and_dopri5_are_a_ladder_too(cubic, policy):
    """Where all cheaper levels overflow."""
    one = copy.copy(cubic).conformalize(draw(1000, 1, low=5, high=6))
    z = one.predict(draw(50, 3, low=5, high=6), tol=1e-2, alpha=0.02, **policy)
    assert np.isfinite(z).all()


@pytest.mark.parametrize("f", [torch.sqrt, torch.log, lambda z: 1 / z.clamp(min=0).sqrt()])
def test_levels_of_fields_that_are_nan_somewhere_are_accepted(f):
    """Fields are probed at states that no solve reaches, where roots are nan."""

    def field(t, z):
        return -0.1 * f(z + 1)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one, four = (
            HypersolverRegressor(field, base_solver="euler", n_steps=k, max_epochs=2, random_state=0).fit(draw(60, 0))
            for k in (1, 4)
        )
        one.conformalize(draw(300, 1, 0.4, 3), levels=[four])
    assert one.calibration_.n_rows == 300


@pytest.mark.parametrize("atol", [1e-3, 1e-2, 1e-1])
def test_a_loose_atol_of_the_references_is_seen(general, atol):
    loose = copy.copy(general).set_params(atol=atol).conformalize(draw(1000, 1))
    with pytest.raises(ValueError, match=f"atol={atol}"):
        loose.predict(X[:50], tol=1e-6)


@pytest.mark.parametrize("share", [0.005, 0.02, 0.2])
def test_the_best_of_levels_that_all_overflow_somewhere_is_kept(share):
    errors = np.full((3, 1000), 1e-3)
    for level, lost in enumerate((0.95, 0.92, share)):
        errors[level, : int(1000 * lost)] = np.inf
    hard = _hard_errors(errors)
    assert np.isfinite(hard[2]) and np.isinf(hard[:2]).all()


def test_values_that_overflow_have_no_tolerance():
    assert Tolerance(0.1, 1.0).limit(np.array([1.0, np.inf, np.nan])).tolist() == [1.1, -np.inf, -np.inf]


class Half(nn.Module):
    """An output that tells nothing of the state's second half."""

    def forward(self, z):
        return z[:, :1]


@pytest.mark.parametrize("kind", ["state", "output"])
@by_policy
def test_states_and_outputs_have_ladders_of_their_own(kind, policy):
    """One evaluation is exact in the output, which is at rest, and not in the state."""

    def field(t, z):
        return -(z**2) * torch.tensor([0.0, 1.0], dtype=z.dtype)

    ode = NeuralODE(field, output_map=Half())
    fit = HypersolverRegressor(ode, base_solver="euler", n_steps=1, fit_n_steps=(1, 8), max_epochs=10, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an output at rest leaves nothing to correct
        fit.fit(draw(200, 0)).conformalize(draw(1000, 1))
    inside = draw(300, 3, 0.4, 1.3)
    call = fit.transform if kind == "state" else fit.predict
    values, info = call(inside, tol=3e-2, alpha=0.05, return_info=True, **policy)
    truth = inside / (1 + inside * [0, 1])
    truth = truth if kind == "state" else truth[:, :1]
    assert (np.linalg.norm(values - truth, axis=1) > 3e-2 * np.linalg.norm(truth, axis=1)).mean() <= 0.06
    if kind == "state" or "bound" not in policy:  # two levels must agree, and the output's ladder has one
        assert info.n_evaluations.mean() < (4 if kind == "output" else 25)


@pytest.mark.parametrize("policy", ["routed", "verified"])
@pytest.mark.parametrize("tol", [1e-1, 1e-2, 1e-3])
def test_what_is_certified_is_what_is_done(general, policy, tol):
    """On the rows that certify, each policy at work takes the solver that the certificate counted."""
    rows = draw(1000, 1)
    order = np.random.default_rng(0).permutation(1000)[500:]
    ladder, tolerance = general.calibration_.ladders["output"], Tolerance(tol, 0.0)
    limit, usual = tolerance.limit(ladder._sizes), np.zeros(500, dtype=bool)
    certified = {"routed": ladder.safety, "verified": ladder.agreement}[policy](tolerance, 0.05)
    solve = {"routed": ladder.solve_routed, "verified": ladder.solve_verified}[policy]
    starts = Starts.of(general.fitted_, torch.from_numpy(rows[order]))
    answer = solve(general.fitted_, starts, usual, tolerance, 0.05, general._final_outputs)
    truth = general.reference(rows[order])
    over = np.linalg.norm(answer.ends.numpy() - truth, axis=1) > limit
    place = _SAFETIES.tolist().index(certified)
    np.testing.assert_array_equal(over, ladder_violations(ladder, policy, tolerance)[place])


def costs_on_new_rows(estimator, rows, tol):
    """Mean evaluations of one solver for all, and of routing as it is certified, on rows that are all usual."""
    ladder, tolerance = estimator.calibration_.ladders["output"], Tolerance(tol, 0.0)
    starts, usual = Starts.of(estimator.fitted_, torch.from_numpy(rows)), np.zeros(len(rows), dtype=bool)
    rest = estimator.fitted_, starts, usual
    fixed = ladder.solve_fixed(*rest, ladder.fixed_level(tolerance, 0.05), estimator._final_outputs)
    routed = ladder.solve_routed(*rest, tolerance, 0.05, estimator._final_outputs)
    return fixed.n_evaluations.mean(), routed.n_evaluations.mean()


@pytest.mark.parametrize("tol", [3e-1, 1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 1e-4])
def test_routing_gives_way_where_one_solver_for_all_is_cheaper(general, tol):
    rows = draw(1000, 5)
    fixed, routed = costs_on_new_rows(general, rows, tol)
    _, info = general.predict(rows, tol=tol, alpha=0.05, route=True, return_info=True)
    assert info.policy in ("one", "routed")
    cost = info.n_evaluations.mean()
    assert cost <= routed + 0.5  # unusual rows go to dopri5
    if info.policy == "one":
        assert len(np.unique(info.solver[~info.unusual])) == 1
    else:
        assert routed < fixed + 0.5


@pytest.mark.parametrize("lost", [1, 10, 100])
def test_routing_gives_way_to_a_level_that_passes_on_both_halves(general, lost):
    """The better of two certificates is worth less than one, so that a second opinion is needed."""
    n = 500
    errors = np.stack([np.full(n, 1e-3), np.full(n, 1e-4)])
    learned = errors.copy()
    learned[0, :lost] = 1.0
    ladder = copy.copy(general.calibration_.ladders["output"])
    ladder.levels = [replace(ladder.levels[0], n_evaluations=cost) for cost in (4, 16)]
    ladder._learned_sizes, ladder._learned_errors = np.ones(n), learned
    ladder._sizes, ladder._errors, ladder._predicted, ladder._seen_sizes = (
        np.ones(n),
        errors,
        1 + errors,
        np.ones((1, n)),
    )
    ladder._last_cost, ladder._certified = 32.0, {}
    assert ladder.fixed_level(Tolerance(1e-2, 0.0), 0.05) == 0
    assert ladder.level_instead(Tolerance(1e-2, 0.0), 0.05) == (0 if lost <= 10 else 1)


@pytest.mark.parametrize(("router", "pays"), [("exact", True), ("blind", False), ("timid", False)])
def test_what_a_router_knows_decides_whether_it_pays(general, router, pays):
    """One tenth of rows need eight evaluations, the others one."""
    n, costs = 500, [1, 8, 16]
    hard = np.arange(n) % 10 == 0
    errors = np.stack([np.where(hard, 1.0, 1e-3), np.full(n, 1e-3), np.full(n, 1e-4)])
    predicted = {"exact": errors, "blind": np.repeat(errors[:, :1], n, axis=1), "timid": 1e3 + 0 * errors}[router]
    ladder = copy.copy(general.calibration_.ladders["output"])
    ladder.levels = [replace(ladder.levels[0], n_evaluations=cost) for cost in costs]
    ladder._learned_sizes, ladder._learned_errors = np.ones(n), errors
    ladder._sizes, ladder._errors, ladder._predicted, ladder._seen_sizes = (
        np.ones(n),
        errors,
        predicted,
        np.ones((1, n)),
    )
    ladder._last_cost, ladder._certified = 32.0, {}
    assert (ladder.level_instead(Tolerance(1e-2, 0.0), 0.05) is None) == pays


@by_policy
def test_info_names_the_policy(general, policy):
    _, info = general.predict(X[:50], tol=1e-2, alpha=0.05, return_info=True, **policy)
    if not policy:
        assert info.policy == "one"
    elif "bound" in policy:
        assert info.policy == "verified"
    else:
        ladder = general.calibration_.ladders["output"]
        assert info.policy == ("routed" if ladder.level_instead(Tolerance(1e-2, 0.0), 0.05) is None else "one")
    assert "policy" not in general.predict(X[:50], return_info=True)[1]


@pytest.mark.parametrize("tol", [[0.1], [0.1, 1e-2], [0.3, 1e-2, 1e-3]])
def test_a_report_says_where_routing_gave_way(general, tol):
    names = [row.solver for row in general.solver_report(X[:100], tol=tol, alpha=0.05, route=True)][-len(tol) :]
    ladder = general.calibration_.ladders["output"]
    pays = [ladder.level_instead(Tolerance(one, 0.0), 0.05) is None for one in tol]
    assert names == [f"tol={one:g}" + ", one solver" * (not pay) for one, pay in zip(tol, pays, strict=True)]
    plain = [row.solver for row in general.solver_report(X[:100], tol=tol, alpha=0.05)][-len(tol) :]
    assert plain == [f"tol={one:g}" for one in tol]


def ladder_violations(ladder, policy, tolerance):
    """The rows over a tolerance that the certificate of each safety counts."""
    seen = []
    ladder._certified.clear()
    original = ladder._last_certified
    try:
        ladder._last_certified = lambda name, tolerance, alpha, violations: seen.extend(violations())
        {"routed": ladder.safety, "verified": ladder.agreement}[policy](tolerance, 0.05)
    finally:
        ladder._last_certified = original
        del ladder._last_certified
    return seen


@pytest.mark.parametrize("half", ["learns", "certifies"])
def test_nothing_is_chosen_on_the_rows_that_certify(half):
    """Their errors may be anything, and levels and routers stay the same; those of the other half change them."""
    rows = torch.from_numpy(draw(400, 1))
    fit = make_generalist(max_epochs=5).fit(draw(100, 0)).fitted_
    measured = measure(fit, rows, fit.map_output, [], fit.settings)
    changed = measured._replace(errors={kind: errors.copy() for kind, errors in measured.errors.items()})
    index = getattr(measured, half)
    for errors in changed.errors.values():
        errors[:, index] = errors[::-1, index]
    one, other = (Ladder(m, "output", fit.map_output, fit.settings) for m in (measured, changed))
    described = measured.runs[0].described
    same = [level.name for level in one.levels] == [level.name for level in other.levels]
    same = same and np.array_equal(one._router.predict(described), other._router.predict(described))
    assert same == (half == "certifies")


class Growing(nn.Module):
    """z' = z^2, whose solution 1 / (1 / z - t) leaves every bound from z = 1 on."""

    def forward(self, t, z):
        return z * z


@by_policy
def test_rows_that_adaptive_steps_do_not_get_through_from_do_not_cost_the_others(policy):
    fit = HypersolverRegressor(
        Growing(), base_solver="rk4", stepping="adaptive", n_steps=2, fit_n_steps=(1, 8), max_epochs=3, random_state=0
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit.fit(draw(100, 0, 0.1, 0.5)).conformalize(draw(500, 1, 0.1, 0.5))
    rows = draw(30, 2, 0.15, 0.45)
    rows[17] = 3.0
    with pytest.warns(UnsolvedRowsWarning, match=r"1 of 30 rows of X \(row 17\)"):
        z = fit.predict(rows, tol=1e-2, alpha=0.05, **policy)
    others = np.arange(30) != 17
    np.testing.assert_allclose(z[others], 1 / (1 / rows[others] - 1), rtol=3e-2)
    with pytest.warns(UnsolvedRowsWarning, match="1 of 1 rows"):
        assert np.isnan(fit.predict(rows[17:18], tol=1e-2, alpha=0.05, **policy)).all()
