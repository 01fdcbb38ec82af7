"""Hypersolvers inside scikit-learn: searches, pipelines, cross-validation, metadata routing, set_output."""

import subprocess
import sys
import textwrap
import warnings

import numpy as np
import pytest
import sklearn
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LinearRegression
from sklearn.metrics import get_scorer
from sklearn.model_selection import GridSearchCV, KFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from small_hypersolvers import make_classifier, make_regressor

from sklearn_hyper import HypersolverClassifier, HypersolverRegressor, MLPCorrection
from sklearn_hyper.evaluation import neg_mape_scorer

GRID = [
    {"base_solver": ["euler", "heun"], "n_steps": [1, 2]},
    {"base_solver": ["auto"], "order": [2], "n_steps": [2]},
]
FOLDS = KFold(2)

pytestmark = pytest.mark.filterwarnings("ignore::sklearn_hyper.numerics.residuals.ConditioningWarning")


def _on_vectors(ode):
    return HypersolverRegressor(ode, base_solver="euler", batch_size=16, max_epochs=5, random_state=0)


def _weights(ode):
    return {name: value.numpy().tobytes() for name, value in ode.neural_ode_.state_dict().items()}


def test_a_search_ranks_candidates_as_direct_evaluation_does(vectors, vectors_ode):
    X, _ = vectors
    before = _weights(vectors_ode)
    search = GridSearchCV(_on_vectors(vectors_ode), GRID, cv=FOLDS, n_jobs=2).fit(X)
    direct = [
        np.mean([
            clone(search.estimator).set_params(**params).fit(X[train]).score(X[test]) for train, test in FOLDS.split(X)
        ])
        for params in search.cv_results_["params"]
    ]  # fmt: skip
    np.testing.assert_allclose(search.cv_results_["mean_test_score"], direct, rtol=1e-3)
    assert np.isfinite(direct).all() and search.best_index_ == np.argmax(direct)
    assert search.best_estimator_.neural_ode is vectors_ode
    assert _weights(vectors_ode) == before


def test_a_search_over_a_module_class_of_the_users_script(tmp_path):
    """Workers cannot import __main__: its classes must travel by value."""
    script = tmp_path / "users_script.py"
    script.write_text(
        textwrap.dedent("""
        import numpy as np, torch
        from sklearn.model_selection import GridSearchCV
        from sklearn_hyper import HypersolverRegressor, NeuralODERegressor

        class Field(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.linear = torch.nn.Linear(2, 2)

            def forward(self, t, z):
                return torch.tanh(self.linear(z))

        if __name__ == "__main__":
            torch.set_num_threads(1)
            X = np.random.default_rng(0).normal(size=(40, 2))
            slow = NeuralODERegressor(Field(), input_map=torch.nn.Identity(), max_epochs=1, random_state=0).fit(X, X[:, 0])
            hyper = HypersolverRegressor(slow, max_epochs=1, random_state=0)
            search = GridSearchCV(hyper, {"n_steps": [1, 2]}, cv=2, n_jobs=2, error_score="raise").fit(X)
            assert np.isfinite(search.cv_results_["mean_test_score"]).all()
            print("searched", search.best_params_["n_steps"])
        """)
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout.startswith("searched"), done.stderr


@pytest.mark.parametrize("cached", [False, True])
def test_candidates_share_reference_solves_through_memory(X, solves, tmp_path, cached):
    """Without: one solve a fit and one a score, for every candidate and fold. With: one each for every fold."""
    hyper = make_regressor(memory=str(tmp_path) if cached else None, max_epochs=5)
    search = GridSearchCV(hyper, {"base_solver": ["euler", "heun", "ralston"]}, cv=FOLDS, refit=False).fit(X)
    assert len(solves) == (2 * 2 if cached else 3 * 2 * 2)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    if cached:
        GridSearchCV(clone(hyper), {"random_state": [1, 2]}, cv=FOLDS, refit=False).fit(X)
        assert len(solves) == 2 * 2


def test_correction_parameters_are_searchable(X):
    hyper = make_regressor(correction=MLPCorrection(), max_epochs=2)
    search = GridSearchCV(hyper, {"correction__hidden": [2, 3]}, cv=2).fit(X)
    assert search.best_estimator_.correction_.net.layout.hidden == search.best_params_["correction__hidden"]
    assert hyper.correction.hidden is None


def test_a_search_over_fitted_models_needs_them_frozen(vectors, vectors_ode):
    X, _ = vectors
    grid = {"neural_ode": [FrozenEstimator(vectors_ode)]}
    assert np.isfinite(GridSearchCV(_on_vectors(vectors_ode), grid, cv=2).fit(X).best_score_)
    unfrozen = GridSearchCV(_on_vectors(vectors_ode), {"neural_ode": [vectors_ode]}, cv=2, error_score="raise")
    with pytest.raises(sklearn.exceptions.NotFittedError, match=r"clone has unfitted it.*FrozenEstimator"):
        unfrozen.fit(X)


def test_a_search_of_a_classifier_without_labels_is_loud(digits, digits_ode):
    """scikit-learn turns a scorer's errors into nan and keeps the first candidate: we can only make it say why."""
    hyper = HypersolverClassifier(digits_ode, base_solver="euler", max_epochs=1, random_state=0)
    X, y = digits
    with pytest.raises(ValueError, match=r"needs labels y.*neg_mape_scorer or agreement_scorer"):
        GridSearchCV(hyper, {"n_steps": [1, 2]}, cv=2, error_score="raise").fit(X)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        search = GridSearchCV(hyper, {"n_steps": [1, 2]}, cv=2).fit(X)
    assert np.isnan(search.best_score_)
    assert sum("needs labels y" in str(warning.message) for warning in caught) == 4
    assert any("test scores are non-finite" in str(warning.message) for warning in caught)
    assert np.isfinite(GridSearchCV(hyper, {"n_steps": [1, 2]}, cv=2).fit(X, y).best_score_)
    label_free = GridSearchCV(hyper, {"n_steps": [1, 2]}, cv=2, scoring=neg_mape_scorer).fit(X)
    assert label_free.best_params_ == {"n_steps": 2}


def test_cross_val_score_is_the_score_of_each_fold(X):
    scores = cross_val_score(make_regressor(), X, cv=FOLDS)
    direct = [make_regressor().fit(X[train]).score(X[test]) for train, test in FOLDS.split(X)]
    np.testing.assert_allclose(scores, direct)


def test_behind_a_transformer_and_between_two_steps(X):
    behind = make_pipeline(FunctionTransformer(lambda X: X / 2), make_regressor()).fit(X)
    np.testing.assert_allclose(behind.predict(X), make_regressor().fit(X / 2).predict(X / 2))
    assert behind.score(X) == behind[-1].score(X / 2)
    y = X @ [1.0, -1.0]
    middle = make_pipeline(StandardScaler(), make_regressor(), LinearRegression()).fit(X, y)
    assert middle.predict(X).shape == y.shape
    assert middle[:-1].get_feature_names_out().tolist() == ["hypersolverregressor0", "hypersolverregressor1"]


def test_set_output_gives_frames_of_vector_states_and_refuses_images(X, digits, digits_hyper):
    pytest.importorskip("pandas")
    frame = make_regressor().set_output(transform="pandas").fit_transform(X)
    assert frame.columns.tolist() == ["hypersolverregressor0", "hypersolverregressor1"] and len(frame) == len(X)
    images = clone(digits_hyper).set_params(max_epochs=1).set_output(transform="pandas").fit(digits[0])
    with pytest.raises(ValueError, match=r"set_output\(transform='pandas'\) needs vector states.*\(4, 8, 8\)"):
        images.transform(digits[0])
    assert clone(images).set_output(transform="default").fit(digits[0]).transform(digits[0]).shape == (150, 4, 8, 8)


def test_metadata_routing_takes_sample_weight_to_score(X):
    weight = np.r_[np.ones(40), np.zeros(40)]
    with sklearn.config_context(enable_metadata_routing=True):
        hyper = make_regressor().set_score_request(sample_weight=True)
        assert clone(hyper).get_metadata_routing().score.requests["sample_weight"] is True
        weighted = make_pipeline(StandardScaler(), hyper).fit(X).score(X, sample_weight=weight)
        search = GridSearchCV(hyper, {"n_steps": [1, 2]}, cv=FOLDS).fit(X, sample_weight=np.ones(80))
    assert np.isfinite(weighted) and np.isfinite(search.best_score_)


@pytest.mark.parametrize("make", [make_regressor, make_classifier])
def test_representations_name_the_parameters(X, make):
    for hyper in (make(n_steps=3), make(n_steps=3).fit(X)):
        assert "n_steps=3" in repr(hyper)
        assert "Swirl" in hyper._repr_html_() and "n_steps" in hyper._repr_html_()


def test_accuracy_scorers_read_the_classifier(digits, digits_hyper):
    assert get_scorer("accuracy")(digits_hyper, *digits) == digits_hyper.score(*digits)
    assert get_scorer("neg_log_loss")(digits_hyper, *digits) < 0
