"""``condition=`` beside X: what a field takes as keyword arguments goes with its row, whatever form it comes in."""

import functools
import pickle

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import sklearn
import torch
from sklearn.model_selection import GridSearchCV, KFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from small_hypersolvers import ROUGH_FITS, ToLogits

from sklearn_hyper import HypersolverClassifier, HypersolverRegressor, NeuralODE, load
from sklearn_hyper.calibration import CalibrationRowsError
from sklearn_hyper.estimators._conditions import ConditionError
from sklearn_hyper.modules import MLPVectorField, VectorFieldError

pytestmark = ROUGH_FITS
KINDS = np.array(["slow", "turning", "fast"])
RATES = {"fast": 1.8, "slow": 0.4, "turning": -0.7}


def decay(t, z, *, rate):
    """Linear in z, with a closed form for each rate."""
    return -rate.reshape(-1, 1) * z


def decay_of_kind(t, z, *, kind):
    """Kinds are indices in their sorted values."""
    return -z.new_tensor([RATES[name] for name in sorted(RATES)])[kind].reshape(-1, 1) * z


def pushed(t, z, *, matrix, kind):
    """A matrix and a label for every row."""
    return torch.einsum("nij,nj->ni", matrix, torch.tanh(z)) * (1 + kind[:, None])


def make(field, **params):
    return HypersolverRegressor(
        field, **{"base_solver": "heun", "n_steps": 3, "max_epochs": 30, "random_state": 0} | params
    )


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    return rng.uniform(0.5, 1.5, (900, 2)), rng.uniform(0.5, 2, 900)


@pytest.fixture(scope="module")
def fast(rows):
    X, rate = rows
    return make(decay).fit(X[:200], condition={"rate": rate[:200]})


@pytest.fixture(scope="module")
def calibrated(rows):
    X, rate = rows
    return (
        make(decay)
        .fit(X[:200], condition={"rate": rate[:200]})
        .conformalize(X[200:700], condition={"rate": rate[200:700]})
    )


def truth(X, rate):
    return X * np.exp(-np.asarray(rate).reshape(-1, 1))


# ---------------------------------------------------------------------- a row is solved with its condition
def test_a_field_linear_in_z_has_its_closed_form_for_every_rate(fast, rows):
    X, rate = rows[0][200:300], rows[1][200:300]
    np.testing.assert_allclose(fast.predict(X, condition={"rate": rate}), truth(X, rate), atol=5e-3)
    np.testing.assert_allclose(fast.reference(X, condition={"rate": rate}), truth(X, rate), rtol=1e-5)
    assert fast.score(X, condition={"rate": rate}) > 0.1 * fast.without_correction().score(X, condition={"rate": rate})


@pytest.mark.parametrize("method", ["predict", "transform", "trajectory", "reference"])
def test_permuted_rows_give_permuted_results(fast, rows, method):
    X, rate = rows[0][:40], rows[1][:40]
    order = np.random.default_rng(1).permutation(40)
    one = getattr(fast, method)(X, condition={"rate": rate})[order]
    np.testing.assert_allclose(one, getattr(fast, method)(X[order], condition={"rate": rate[order]}), rtol=1e-6)


def test_batches_cut_conditions_with_their_rows(rows):
    """A batch of inference is eight times ``batch_size`` rows: 8 here."""
    X, rate = rows[0][:60], rows[1][:60]
    fast = make(decay, batch_size=1, max_epochs=1, max_samples=20).fit(X, condition={"rate": rate})
    each = [fast.predict(X[i : i + 1], condition={"rate": rate[i : i + 1]})[0] for i in range(60)]
    np.testing.assert_allclose(fast.predict(X, condition={"rate": rate}), each, rtol=1e-6)


@pytest.mark.parametrize("correction", ["auto", "net"])
def test_a_condition_that_all_rows_share_is_that_of_a_field_with_it_built_in(rows, correction):
    X, params = rows[0][:80], {"max_epochs": 3}
    if correction == "auto":
        params |= {"base_solver": "auto"}
    conditioned = make(decay, **params).fit(X, condition={"rate": 0.9})
    plain = make(functools.partial(decay, rate=torch.tensor(0.9)), **params).fit(X)
    np.testing.assert_allclose(conditioned.predict(X, condition={"rate": 0.9}), plain.predict(X), rtol=1e-5)
    assert conditioned.errors_[3]["mean"] == pytest.approx(plain.errors_[3]["mean"], rel=1e-3, abs=1e-9)


# ---------------------------------------------------------------------- forms
@pytest.mark.parametrize(
    "form",
    [
        lambda rate: {"rate": rate.tolist()},
        lambda rate: {"rate": torch.from_numpy(rate)},
        lambda rate: {"rate": pd.Series(rate, index=range(100, 100 + len(rate)))},
        lambda rate: pd.DataFrame({"rate": rate}),
        lambda rate: rate.astype([("rate", float)]),
    ],
    ids=["lists", "tensor", "series", "frame", "structured"],
)
def test_all_forms_mean_the_same(fast, rows, form):
    X, rate = rows[0][:30], rows[1][:30]
    np.testing.assert_array_equal(fast.predict(X, condition=form(rate)), fast.predict(X, condition={"rate": rate}))


def test_a_single_array_is_the_argument_condition(rows):
    def by_condition(t, z, *, condition):
        return decay(t, z, rate=condition)

    X, rate = rows[0][:80], rows[1][:80]
    fast = make(by_condition).fit(X, condition=rate)
    np.testing.assert_allclose(fast.predict(X, condition=rate), truth(X, rate), atol=5e-3)
    np.testing.assert_array_equal(fast.predict(X, condition=1.2), fast.predict(X, condition=np.full(80, 1.2)))


def test_one_entry_for_all_rows_is_repeated(fast, rows):
    X = rows[0][:30]
    expected = fast.predict(X, condition={"rate": np.full(30, 1.3)})
    for one in (1.3, np.array([1.3]), torch.tensor([1.3], dtype=torch.float64)):
        np.testing.assert_array_equal(fast.predict(X, condition={"rate": one}), expected)


def test_categories_are_indices_in_the_sorted_values_of_the_fit(rows):
    X, kinds = rows[0][:90], KINDS[np.arange(90) % 3]
    fast = make(decay_of_kind, max_epochs=60).fit(X, condition={"kind": kinds})
    assert fast.condition_["kind"].categories.tolist() == ["fast", "slow", "turning"]
    expected = truth(X, [RATES[kind] for kind in kinds])
    np.testing.assert_allclose(fast.reference(X, condition={"kind": kinds}), expected, rtol=1e-5)
    as_categories = pd.DataFrame({"kind": pd.Categorical(kinds)})
    np.testing.assert_array_equal(fast.predict(X, condition=as_categories), fast.predict(X, condition={"kind": kinds}))
    slow = fast.reference(X, condition={"kind": "slow"})  # a batch without the other kinds has the same indices
    np.testing.assert_allclose(slow, truth(X, [0.4]), rtol=1e-5)


def test_categories_of_a_dtype_count_though_no_row_has_them(rows):
    X = rows[0][:60]
    kinds = pd.Categorical(KINDS[np.arange(60) % 2], categories=sorted(RATES))
    fast = make(decay_of_kind, max_epochs=3).fit(X, condition=pd.DataFrame({"kind": kinds}))
    np.testing.assert_allclose(fast.reference(X, condition={"kind": "fast"}), truth(X, [1.8]), rtol=1e-5)


def test_entries_of_any_shape(rows):
    rng, X = np.random.default_rng(0), rows[0][:100]
    condition = {"matrix": rng.normal(size=(100, 2, 2)), "kind": rng.integers(2, size=100)}
    fast = make(pushed, base_solver="rk4").fit(X, condition=condition)
    assert fast.condition_["matrix"].shape == (2, 2) and fast.condition_["kind"].kind == "integer"
    for row in range(3):
        own = functools.partial(
            pushed, matrix=torch.from_numpy(condition["matrix"][row])[None], kind=torch.tensor(condition["kind"][[row]])
        )
        exact = NeuralODE(own)(torch.from_numpy(X[[row]]), rtol=1e-8)
        np.testing.assert_allclose(fast.reference(X, condition=condition)[[row]], exact.numpy(), rtol=1e-4)


def test_floats_have_the_dtype_of_the_field_and_integers_are_int64(rows):
    seen = set()

    def looks(t, z, *, rate, kind):
        seen.add((rate.dtype, kind.dtype, rate.shape == (len(z), 3), kind.shape == (len(z),)))
        return -z * rate[:, :1] - 0 * kind[:, None]

    X = rows[0][:40].astype(np.float32)
    condition = {"rate": np.ones((40, 3)), "kind": np.arange(40, dtype=np.int16)}
    make(looks, max_epochs=1).fit(X, condition=condition).predict(X, condition=condition)
    assert seen == {(torch.float32, torch.int64, True, True)}


# ---------------------------------------------------------------------- all that is fitted
def test_a_classifier_takes_a_condition_everywhere(rows):
    X = rows[0][:100] - 1
    kind = {"kind": KINDS[np.arange(100) % 3]}

    def turn(t, z, *, kind):
        speed = z.new_tensor([2.0, -2.0, 1.0])[kind][:, None]
        return speed * torch.stack([-z[:, 1], z[:, 0]], dim=1)

    fast = HypersolverClassifier(
        NeuralODE(turn, output_map=ToLogits()), classes=["a", "b", "c"], base_solver="heun", n_steps=3, max_epochs=20,
        random_state=0,
    ).fit(X, condition=kind)  # fmt: skip
    labels = fast.predict(X, condition=kind)
    assert fast.agreement(X, condition=kind) > 0.9
    assert fast.score(X, labels, condition=kind) == 1
    assert (labels != fast.predict(X, condition={"kind": "slow"})).any()
    probabilities = fast.predict_proba(X, condition=kind)
    assert fast.classes_[probabilities.argmax(axis=1)].tolist() == labels.tolist()


def test_a_refit_takes_a_condition(fast, rows):
    X, condition = rows[0][:200], {"rate": rows[1][:200]}
    hyper = make(decay, max_epochs=20).fit(X, condition=condition)
    hyper.refit(lambda t, z, *, rate: 1.4 * decay(t, z, rate=rate), X, condition=condition, max_epochs=60)
    assert hyper.refit_["after"][3]["mean"] < hyper.refit_["before"][3]["mean"]
    with pytest.raises(ConditionError, match="condition must have 'rate'"):
        hyper.refit(decay, X)


def test_copies_and_pickles_remember_the_condition(fast, rows):
    X, condition = rows[0][:20], {"rate": rows[1][:20]}
    expected = fast.predict(X, condition=condition)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(fast)).predict(X, condition=condition), expected)
    module = fast.to_module()
    given = {"rate": torch.from_numpy(condition["rate"])}
    np.testing.assert_allclose(module(torch.from_numpy(X), given).detach().numpy(), expected)
    assert fast.without_correction().predict(X, condition=condition).shape == X.shape


def test_counts_and_reports_take_a_condition(fast, rows):
    X, condition = rows[0][:60], {"rate": rows[1][:60]}
    dopri5, base, ours = fast.solver_report(X, condition=condition)
    assert ours.l2_mean < base.l2_mean and ours.nfe == 6 and dopri5.l2_max < 1e-2
    assert fast.count_evaluations(X, condition=condition) == 6


@pytest.mark.parametrize("row_times", [True, False])
def test_adaptive_steps_take_a_condition(rows, row_times):
    X, rate = rows[0][:100], rows[1][:100]
    fast = make(decay, base_solver="auto", stepping="adaptive", row_times=row_times).fit(X, condition={"rate": rate})
    np.testing.assert_allclose(fast.predict(X, condition={"rate": rate}), truth(X, rate), atol=5e-3)
    assert fast.count_evaluations(X, condition={"rate": 2.0}) >= fast.count_evaluations(X, condition={"rate": 0.1})


# ---------------------------------------------------------------------- bounds and tolerances
def test_bounds_hold_over_conditions(calibrated, rows):
    X, rate = rows[0][700:], rows[1][700:]
    z, bound = calibrated.predict(X, condition={"rate": rate}, return_bound=True, coverage=0.9)
    assert (np.linalg.norm(z - truth(X, rate), axis=1) <= bound).mean() > 0.8


@pytest.mark.parametrize("how", [{}, {"route": True}, {"bound": "verified"}])
def test_tolerances_hold_over_conditions(calibrated, rows, how):
    X, rate = rows[0][700:], rows[1][700:]
    z, info = calibrated.predict(X, condition={"rate": rate}, tol=1e-3, alpha=0.05, return_info=True, **how)
    over = np.linalg.norm(z - truth(X, rate), axis=1) > 1e-3 * np.linalg.norm(truth(X, rate), axis=1)
    assert over.mean() <= 0.05 and (info.n_evaluations > 0).all()


@pytest.mark.filterwarnings("ignore::sklearn_hyper.calibration.calibration.UnusualRowsWarning")
def test_rows_of_unusual_conditions_are_unusual(calibrated, rows):
    X = rows[0][700:740]
    info = calibrated.predict(X, condition={"rate": 1.0}, return_info=True)[1]
    far = calibrated.predict(X, condition={"rate": 9.0}, return_info=True)[1]
    assert not info.unusual.mean() > 0.2 and far.unusual.all()


def test_rows_of_a_label_that_was_not_calibrated_are_unusual(rows):
    X = rows[0]
    kind = np.arange(900) % 3

    def field(t, z, *, kind):
        return -z * (1 + 0.1 * kind[:, None])

    hyper = make(field, max_epochs=3).fit(X[:100], condition={"kind": kind[:100]})
    seen = np.flatnonzero(kind[100:200] != 1) + 100  # 0 and 2, between which 1 lies
    hyper.conformalize(X[seen], condition={"kind": kind[seen]})
    info = hyper.predict(X[200:500], condition={"kind": kind[200:500]}, return_info=True)[1]
    assert info.unusual[kind[200:500] == 1].all() and info.unusual[kind[200:500] != 1].mean() < 0.1


def test_a_row_of_the_fit_with_another_condition_is_another_row(rows):
    X, rate = rows[0][:100], rows[1][:100]
    hyper = make(decay, max_epochs=2).fit(X, condition={"rate": rate})
    with pytest.raises(CalibrationRowsError, match="100 of 100 rows of X were fitted on"):
        hyper.conformalize(X, condition={"rate": rate})
    hyper.conformalize(X, condition={"rate": rate + 0.1})


# ---------------------------------------------------------------------- inside scikit-learn
@pytest.fixture
def routing():
    with sklearn.config_context(enable_metadata_routing=True):
        yield


def scores_by_hand(estimator, X, rate, folds):
    found = []
    for train, test in folds.split(X):
        one = sklearn.clone(estimator).fit(X[train], condition={"rate": rate[train]})
        found.append(one.score(X[test], condition={"rate": rate[test]}))
    return found


def requesting(**params):
    return make(decay, max_epochs=3, **params).set_fit_request(condition=True).set_score_request(condition=True)


@pytest.mark.parametrize(
    "form",
    [lambda rate: pd.DataFrame({"rate": rate}), lambda rate: rate.astype([("rate", float)])],
    ids=["frame", "structured"],
)
def test_cross_validation_cuts_the_condition_with_its_rows(routing, rows, form):
    X, rate = rows[0][:90], rows[1][:90]
    hyper, folds = requesting(), KFold(3)
    scores = cross_val_score(hyper, X, cv=folds, params={"condition": form(rate)}, error_score="raise")
    np.testing.assert_allclose(scores, scores_by_hand(hyper, X, rate, folds), rtol=1e-6)


def test_searches_carry_the_condition(routing, rows):
    X, rate = rows[0][:90], rows[1][:90]
    condition = pd.DataFrame({"rate": rate})
    search = GridSearchCV(requesting(), {"n_steps": [1, 3]}, cv=KFold(2), error_score="raise")
    search.fit(X, condition=condition)
    assert search.best_params_ == {"n_steps": 3}
    expected = scores_by_hand(search.estimator.set_params(n_steps=3), X, rate, KFold(2))
    assert search.cv_results_["mean_test_score"][1] == pytest.approx(np.mean(expected), rel=1e-6)


def test_pipelines_carry_the_condition(routing, rows):
    X, rate = rows[0][:60], rows[1][:60]
    hyper = requesting().set_predict_request(condition=True)
    pipeline = make_pipeline(FunctionTransformer(lambda X: 2 * X), hyper).fit(X, condition={"rate": rate})
    alone = requesting().fit(2 * X, condition={"rate": rate})
    np.testing.assert_allclose(
        pipeline.predict(X, condition={"rate": rate}), alone.predict(2 * X, condition={"rate": rate})
    )


def test_a_dict_is_not_cut_by_folds_and_the_error_says_so(routing, rows):
    X, rate = rows[0][:60], rows[1][:60]
    with pytest.raises(ValueError, match="pass a frame or a structured array: scikit-learn does not cut a dict"):
        cross_val_score(requesting(), X, params={"condition": {"rate": rate}}, error_score="raise")


# ---------------------------------------------------------------------- what is wrong is named
@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (None, "condition must have 'rate', as in fit of this HypersolverRegressor, got None"),
        ({"rates": 1.0}, "condition must have 'rate'.*got 'rates'"),
        ({"rate": 1.0, "label": 2}, "condition must have 'rate'.*got 'label', 'rate'"),
        (1.0, "condition must have 'rate'.*got 'condition', the name of a value that is passed without one; pass"),
        ({"rate": np.ones(7)}, r"condition\['rate'\] has 7 entries for 20 rows of X; pass one a row, or one for all"),
        ({"rate": np.ones((20, 2))}, r"condition\['rate'\] has entries of shape \(2,\), and had entries of shape \(\)"),
        ({"rate": "fast"}, r"condition\['rate'\] has dtype <U4, and was of kind 'float' in fit"),
        ({"rate": np.full(20, np.nan)}, r"condition\['rate'\] holds nan or infinity in 20 places"),
        ({"rate": np.full(20, 1j)}, r"condition\['rate'\] has dtype complex128, which no field takes"),
        ({"rate": [[1.0], [1.0, 2.0]]}, r"condition\['rate'\] cannot be read as an array"),
        ({3: np.ones(20)}, r"condition must name the field's keyword arguments.*got the names \[3\]"),
        ({}, "condition is empty; pass {name: one entry a row}, or leave it out"),
        ({"rate": {1.0, 2.0}}, r"condition\['rate'\] is of type set, which is neither a number, a string nor an array"),
        ({"rate": scipy.sparse.csr_array(np.ones((20, 1)))}, "is of type csr_array.*toarray"),
        ({"rate": (1.0 for _ in range(20))}, "is of type generator"),
        ({"rate": np.ma.masked_greater(np.arange(20.0), 9.5)}, r"condition\['rate'\] masks 10 values"),
        (pd.DataFrame(np.ones((20, 2)), columns=["rate", "rate"]), r"has the columns \['rate', 'rate'\], some of them"),
    ],
)
def test_a_wrong_condition_is_named(fast, rows, condition, message):
    with pytest.raises(ConditionError, match=message):
        fast.predict(rows[0][:20], condition=condition)


@pytest.mark.parametrize("values", [[0.5, 1.5], [1, 2], [True, False]], ids=["floats", "integers", "bools"])
def test_objects_that_are_all_numbers_are_numbers_not_categories(rows, values):
    """As categories, every number would be one, and the field would get its index."""
    X, rate = rows[0][:40], np.array(values * 20)
    plain, objects = (make(decay, max_epochs=1).fit(X, condition={"rate": one}) for one in (rate, rate.astype(object)))
    assert objects.condition_ == plain.condition_
    for given in (rate, rate.astype(object), list(rate)):
        np.testing.assert_array_equal(
            objects.predict(X, condition={"rate": given}), plain.predict(X, condition=({"rate": rate}))
        )


@pytest.mark.parametrize("condition", [{"label": np.full(20, 2**63, dtype="u8")}, {"label": np.uint64(2**64 - 1)}])
def test_integers_beyond_int64_are_refused(rows, condition):
    with pytest.raises(ConditionError, match=r"condition\['label'\] holds \d+, too large for int64; use strings"):
        make(decay).fit(rows[0][:20], condition=condition)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "'rate'.*passed as condition={name: one entry a row}, which was left out"),
        ({"y": {"rate": 1.0}}, "passed as condition={name: one entry a row}, which was left out"),  # by position
        ({"condition": {"rte": 1.0}}, "unexpected keyword argument 'rte'.*which had 'rte'"),
        ({"condition": 1.0}, "which had 'condition'"),
    ],
)
def test_a_field_that_lacks_its_condition_says_how_it_is_passed(rows, given, said):
    with pytest.raises(VectorFieldError, match=said):
        make(decay).fit(rows[0][:20], **given)


def test_fit_transform_passes_a_condition_to_both(rows):
    X, rate = rows[0][:60], {"rate": rows[1][:60]}
    states = make(decay, max_epochs=1).fit_transform(X, condition=rate)
    np.testing.assert_array_equal(states, make(decay, max_epochs=1).fit(X, condition=rate).transform(X, condition=rate))
    frame = make(decay, max_epochs=1).set_output(transform="pandas").fit_transform(X, condition=rate)
    np.testing.assert_array_equal(frame.to_numpy(), states)
    assert list(frame.columns) == ["hypersolverregressor0", "hypersolverregressor1"]
    with pytest.raises(VectorFieldError, match="left out"):
        make(decay).fit_transform(X)


def test_a_loaded_estimator_has_no_condition(rows, tmp_path):
    X = rows[0][:40]
    fast = make(MLPVectorField(2).double(), max_epochs=1).fit(X)
    fast.save(tmp_path / "model")
    loaded = load(tmp_path / "model")
    assert loaded.condition_ == fast.condition_ == {}
    with pytest.raises(ConditionError, match="condition has 'rate', but this HypersolverRegressor was fitted without"):
        loaded.predict(X, condition={"rate": 1.0})
    with pytest.raises(ConditionError, match="condition is empty"):
        loaded.predict(X, condition={})


def test_a_new_category_is_named(rows):
    X = rows[0][:60]
    fast = make(decay_of_kind, max_epochs=1).fit(X, condition={"kind": KINDS[np.arange(60) % 3]})
    with pytest.raises(ConditionError, match=r"holds 'odd', not among the 3 categories of the fit \('fast', 'slow'"):
        fast.predict(X, condition={"kind": np.where(np.arange(60) < 3, "odd", "fast")})
    with pytest.raises(ConditionError, match=r"condition\['kind'\] lacks 1 values"):
        fast.predict(X, condition={"kind": np.array([None] + 59 * ["fast"], dtype=object)})
    with pytest.raises(ConditionError, match="mixes types that have no order"):
        make(decay_of_kind).fit(X[:2], condition={"kind": np.array([1, "fast"], dtype=object)})


def test_floats_do_not_pass_for_integers(rows):
    X = rows[0][:60]
    fast = make(lambda t, z, *, kind: -z * (1 + kind[:, None]), max_epochs=1).fit(X, condition={"kind": 1})
    with pytest.raises(ConditionError, match="dtype float64, and was of kind 'integer' in fit"):
        fast.predict(X, condition={"kind": 1.5})


def test_a_condition_that_the_fit_had_not_is_refused(rows):
    X = rows[0][:40]
    fast = make(lambda t, z: -z, max_epochs=1).fit(X)
    assert fast.condition_ == {}
    with pytest.raises(ConditionError, match="this HypersolverRegressor was fitted without a condition"):
        fast.predict(X, condition={"rate": 1.0})


def test_a_name_that_the_field_does_not_take_is_an_error_of_the_field(rows):
    with pytest.raises(VectorFieldError, match=r"unexpected keyword argument 'speed'.*speed \(shape"):
        make(decay).fit(rows[0][:40], condition={"rate": 1.0, "speed": 2.0})
    with pytest.raises(VectorFieldError, match="missing 1 required keyword-only argument: 'rate'"):
        make(decay).fit(rows[0][:40])


def test_extra_rows_have_the_condition_of_a_row_or_none(rows):
    with pytest.raises(ValueError, match="with a condition: nothing says which condition a drawn row has"):
        make(decay, extra_rows="box").fit(rows[0][:40], condition={"rate": 1.0})
    X, rate = rows[0][:200], rows[1][:200]
    fast = make(decay, extra_rows="between").fit(X, condition={"rate": rate})
    np.testing.assert_allclose(fast.predict(X, condition={"rate": rate}), truth(X, rate), atol=5e-3)


def test_states_at_times_take_a_condition(fast, rows):
    X, rate = rows[0][:30], rows[1][:30]
    times = np.array([0.25, 0.5, 1.0])
    states = fast.trajectory(X, condition={"rate": rate}, t_eval=times)
    expected = X[:, None] * np.exp(-rate[:, None, None] * times[:, None])
    np.testing.assert_allclose(states, expected, atol=2e-2)
    np.testing.assert_array_equal(fast.predict(X, condition={"rate": rate}, t_eval=times), states)
    own = np.where(np.arange(30)[:, None] % 2, [0.25, 1.0], [0.5, np.nan])
    by_row = fast.trajectory(X, condition={"rate": rate}, t_eval=own)
    np.testing.assert_allclose(by_row[1::2], states[1::2][:, [0, 2]], rtol=1e-9)
    assert np.isfinite(fast.count_evaluations(X, condition={"rate": rate}, t_eval=times))
