"""The rule takes the cheapest candidate that is accurate enough, and says so when there is none."""

import pickle

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from small_hypersolvers import make_classifier, make_regressor

from sklearn_hyper.evaluation import (
    agreement_scorer,
    cheapest_within,
    neg_macs_scorer,
    neg_mape_scorer,
    neg_nfe_scorer,
)

# The fits are as short as can be; whether they learn anything is not the question here.
pytestmark = pytest.mark.filterwarnings("ignore:no epoch was better than the base solver")

SCORING = {"agreement": agreement_scorer, "neg_mape": neg_mape_scorer, "neg_macs": neg_macs_scorer}


def results(scores, macs, metric="agreement", cost="neg_macs"):
    """What a search leaves behind, as far as the rule reads it."""
    return {
        "params": [{"n_steps": i} for i in range(len(scores))],
        f"mean_test_{metric}": np.array(scores, dtype=float),
        f"mean_test_{cost}": -np.array(macs, dtype=float),
    }


@pytest.mark.parametrize(("tolerance", "chosen"), [(0.2, 0), (0.05, 1), (0.01, 2), (0.002, 3)])
def test_a_tighter_tolerance_buys_a_dearer_solver(tolerance, chosen):
    assert cheapest_within(tolerance)(results([0.9, 0.96, 0.995, 0.999], [1, 2, 4, 8])) == chosen


def test_the_edge_of_the_tolerance_counts_as_within():
    assert 1 - 0.999 > 0.001  # in floating point
    assert cheapest_within(0.001)(results([0.999, 1], [1, 2])) == 0
    assert cheapest_within(0)(results([1 - 1e-6, 1], [1, 2])) == 1


@pytest.mark.parametrize(
    ("metric", "reference", "chosen"),
    [
        ("neg_mape", None, 2),  # of 0: a MAPE of at most 0.1
        ("accuracy", None, 1),  # of the best candidate, -0.05
        ("accuracy", -0.5, 0),
        ("neg_mape", -0.06, 1),
    ],
)
def test_the_reference_is_the_best_attainable_the_best_candidate_or_a_number(metric, reference, chosen):
    rule = cheapest_within(0.1, metric=metric, reference=reference)
    assert rule(results([-0.6, -0.14, -0.05], [1, 2, 3], metric)) == chosen


def test_equal_costs_go_to_the_better_score_and_equal_ones_to_the_first():
    assert cheapest_within(0.1)(results([0.95, 0.97, 0.99], [2, 2, 4])) == 1
    assert cheapest_within(0.1)(results([0.5, 0.97, 0.97], [1, 2, 2])) == 1


def test_a_candidate_that_was_not_measured_is_not_chosen():
    assert cheapest_within(0.1)(results([np.nan, -np.inf, 0.95, 0.99], [1, 1, 3, 2])) == 3
    assert cheapest_within(0.1)(results([0.99, 0.95, 0.96], [np.nan, 2, np.inf])) == 1


def test_where_none_is_good_enough_the_most_accurate_is_taken_with_a_warning():
    with pytest.warns(
        UserWarning, match=r"no candidate is within 0.01 of agreement 1; the best reaches 0.97.*n_steps': 2"
    ):
        assert cheapest_within(0.01)(results([0.9, np.nan, 0.97, 0.97], [1, 1, 3, 4])) == 2
    with pytest.warns(UserWarning, match="mean_test_neg_macs is finite for no candidate within the tolerance"):
        assert cheapest_within(0.1)(results([0.5, 0.95, 0.99], [1, np.nan, np.nan])) == 2


measurements = st.lists(
    st.tuples(st.sampled_from([0.5, 0.9, 0.99, 1.0, np.nan]), st.sampled_from([1.0, 2.0, 3.0])), min_size=1, max_size=8
)


@given(measurements, st.sampled_from([0.0, 0.01, 0.1]))
@pytest.mark.filterwarnings("ignore:no candidate is within")
def test_nobody_who_is_good_enough_is_cheaper_and_nobody_as_cheap_is_better(measured, tolerance):
    scores, macs = np.array(measured).T
    if np.isnan(scores).all():
        return
    chosen = cheapest_within(tolerance)(results(scores, macs))
    assert isinstance(chosen, int)
    good = scores >= 1 - tolerance - 1e-9
    if good.any():
        assert good[chosen] and macs[chosen] == macs[good].min()
        assert scores[chosen] == scores[good & (macs == macs[chosen])].max()
    else:
        assert scores[chosen] == np.nanmax(scores)


# --- errors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        ({"tolerance": "0.1 %"}, TypeError, "tolerance must be a number, got '0.1 %'"),
        ({"tolerance": True}, TypeError, "tolerance must be a number, got True"),
        ({"tolerance": -0.1}, ValueError, "tolerance must be at least 0, got -0.1"),
        ({"tolerance": np.nan}, ValueError, "tolerance must be finite, got nan"),
        ({"reference": "dopri5"}, TypeError, "reference must be a number, got 'dopri5'"),
        ({"reference": np.inf}, ValueError, "reference must be finite, got inf"),
        ({"metric": agreement_scorer}, TypeError, "metric must be a name in the search's scoring, got <function"),
        ({"cost": None}, TypeError, "cost must be a name in the search's scoring, got None"),
        ({"metric": "neg_macs"}, ValueError, "metric and cost must differ, got 'neg_macs' for both"),
    ],
)
def test_wrong_parameters_are_refused_before_the_search(params, error, message):
    with pytest.raises(error, match=message):
        cheapest_within(**{"tolerance": 0.1} | params)


@pytest.mark.parametrize(
    ("found", "missing"),
    [
        (results([1], [1], metric="accuracy"), "'agreement', only 'accuracy', 'neg_macs'"),
        (results([1], [1], cost="macs"), "'neg_macs', only 'agreement', 'macs'"),
        ({"params": [{}]}, "'agreement', only none"),
    ],
)
def test_a_name_that_the_search_lacks_is_an_error_that_lists_the_others(found, missing):
    with pytest.raises(ValueError, match=f"no scores named {missing}") as caught:
        cheapest_within(0.1)(found)
    assert caught.value.cv_results_ is found


def test_a_metric_that_failed_for_every_candidate_leaves_nothing_to_choose_by():
    found = results([np.nan, np.nan], [1, 2])
    with pytest.raises(
        ValueError, match=r"mean_test_agreement is finite for no candidate.*error_score='raise'"
    ) as caught:
        cheapest_within(0.1)(found)
    assert caught.value.cv_results_ is found


# --- in a search --------------------------------------------------------------------------------------------------


def search_of(estimator, grid, rule, **params):
    return GridSearchCV(estimator, grid, scoring=SCORING, refit=rule, cv=KFold(2), error_score="raise", **params)


def test_a_search_over_a_pipeline_refits_the_cheapest_one(X):
    """Hypersolved Heun at one step calls f twice, and so costs less than Euler at three."""
    grid = {"hypersolverclassifier__base_solver": ["euler", "heun"], "hypersolverclassifier__n_steps": [1, 3]}
    pipeline = make_pipeline(StandardScaler(), make_classifier(max_epochs=1, lr=1e-30))  # the base solvers alone
    search = search_of(pipeline, grid, cheapest_within(0.05)).fit(X)
    good = search.cv_results_["mean_test_agreement"] >= 0.95
    assert good.tolist() == [False, True, True, True]
    fitted = search.best_estimator_[-1].module_
    assert (fitted.base_solver.name, fitted.n_steps) == ("heun", 1)
    neg_macs = search.cv_results_["mean_test_neg_macs"]
    assert neg_macs_scorer(search, X) == neg_macs[search.best_index_] == neg_macs[good].max()


def test_the_rule_survives_clones_pickles_and_processes(X):
    rule = cheapest_within(0.05, metric="neg_mape", reference=-0.01)
    assert pickle.loads(pickle.dumps(rule)) == rule != cheapest_within(0.05, metric="neg_mape")
    pipeline = make_pipeline(StandardScaler(), make_classifier(max_epochs=1, lr=1e-30))  # the base solvers alone
    search = search_of(pipeline, {"hypersolverclassifier__n_steps": [1, 6]}, rule)
    parallel = clone(search).set_params(n_jobs=2)
    for each in (search, parallel):
        with pytest.warns(UserWarning, match=r"no candidate is within 0.05 of neg_mape -0.01"):
            each.fit(X)
        assert each.refit == rule and each.best_index_ == 1
    for name in SCORING:
        assert np.array_equal(*(each.cv_results_[f"mean_test_{name}"] for each in (search, parallel)))
    assert pickle.loads(pickle.dumps(parallel)).refit == rule


def test_another_choice_of_a_finished_search_needs_no_second_one(X):
    scoring = {"neg_mape": neg_mape_scorer, "neg_nfe": neg_nfe_scorer}
    search = GridSearchCV(make_regressor(), {"n_steps": [1, 4]}, scoring=scoring, refit=False, cv=2).fit(X)
    crude, fine = -search.cv_results_["mean_test_neg_mape"]
    assert crude > fine
    for tolerance, chosen in [(2 * crude, 0), ((crude + fine) / 2, 1)]:
        assert cheapest_within(tolerance, metric="neg_mape", cost="neg_nfe")(search.cv_results_) == chosen


def test_a_field_without_macs_is_told_to_count_evaluations(X):
    """In a search with scikit-learn's default error_score: the accurate solver is kept, and the reason is said."""
    search = GridSearchCV(
        make_regressor(lambda t, z: -z * z.abs(), max_epochs=1),
        {"n_steps": [1, 4]},
        scoring={"neg_mape": neg_mape_scorer, "neg_macs": neg_macs_scorer},
        refit=cheapest_within(10, metric="neg_mape"),
        cv=2,
    )
    with pytest.warns(UserWarning) as caught:
        search.fit(X)
    messages = " ".join(str(warning.message) for warning in caught)
    assert "score cost by neg_nfe_scorer" in messages
    assert "mean_test_neg_macs is finite for no candidate within the tolerance" in messages
    assert search.best_params_ == {"n_steps": 4}
