"""Callbacks that score predictions work where a net predicts, and are refused before the fit where it computes a loss."""

import numpy as np
import pytest
import torch
from reference_solves import REFERENCE_SOLUTION
from sklearn.metrics import accuracy_score, log_loss, make_scorer, mean_absolute_error, r2_score, roc_auc_score
from skorch.callbacks import BatchScoring, Callback, Checkpoint, EarlyStopping, EpochScoring, LRScheduler
from small_flows import make_flow, two_blobs
from small_hypersolvers import make_regressor

from sklearn_hyper import HypersolverDensity, NeuralODEClassifier, NeuralODERegressor
from sklearn_hyper.training.nets import ClassifierNet, RegressorNet

PARAMS = {"solver": "rk4", "n_steps": 3, "max_epochs": 3, "batch_size": 32, "random_state": 0}


@pytest.fixture(scope="module")
def X():
    return np.random.default_rng(0).uniform(-1, 1, (120, 2)).astype(np.float32)


@pytest.fixture(scope="module")
def labels(X):
    return (X[:, 0] * X[:, 1] > 0).astype(int)


class Grabs(Callback):
    """Remembers the held-out rows and their encoded labels or targets, and every epoch's output for them."""

    def on_train_begin(self, net, **kwargs):
        self.outputs = []

    def on_epoch_end(self, net, dataset_valid, **kwargs):
        self.x, self.y = dataset_valid.X, dataset_valid.y.numpy()
        net.module_.eval()
        with torch.no_grad():
            self.outputs.append(net.module_(self.x))


def recorded(estimator, name):
    return np.array(estimator.net_.history[:, name])


CLASSIFIER_SCORES = {
    "accuracy": lambda y, logits: accuracy_score(y, logits.argmax(1)),
    "roc_auc": lambda y, logits: roc_auc_score(y, logits.softmax(1)[:, 1]),
    "neg_log_loss": lambda y, logits: -log_loss(y, logits.double().softmax(1)),
}


@pytest.mark.parametrize("use_caching", [True, False])
@pytest.mark.parametrize("names", [[0, 1], ["no", "yes"], [-1.0, 1.0]])
def test_scores_of_a_classifier_are_sklearn_s(X, labels, names, use_caching):
    scorings = [
        EpochScoring(name, lower_is_better=False, use_caching=use_caching, name=name) for name in CLASSIFIER_SCORES
    ]
    grabs = Grabs()
    net = NeuralODEClassifier(**PARAMS, callbacks=[*scorings, grabs]).fit(X, np.array(names)[labels])
    for name, score in CLASSIFIER_SCORES.items():
        expected = [score(grabs.y, logits) for logits in grabs.outputs]
        np.testing.assert_allclose(recorded(net, name), expected, rtol=1e-5)
    assert len(net.history_) == 3 and isinstance(net.net_, ClassifierNet)


@pytest.mark.parametrize("use_caching", [True, False])
def test_scores_of_a_regressor_are_in_units_of_the_target(X, use_caching):
    y = 100 * X[:, 0] + 7
    scorings = [
        EpochScoring("r2", lower_is_better=False, use_caching=use_caching),
        EpochScoring(make_scorer(mean_absolute_error), use_caching=use_caching, name="mae"),
        EpochScoring(lambda net, X, y: float(np.abs(net.predict(X) - y).max()), use_caching=use_caching, name="worst"),
    ]
    grabs = Grabs()
    net = NeuralODERegressor(**PARAMS, callbacks=[*scorings, grabs]).fit(X, y)
    assert isinstance(net.net_, RegressorNet) and np.abs(grabs.y).max() > 50
    for name, score in {
        "r2": r2_score,
        "mae": mean_absolute_error,
        "worst": lambda y, output: np.abs(y - output.numpy()).max(),
    }.items():
        np.testing.assert_allclose(recorded(net, name), [score(grabs.y, o) for o in grabs.outputs], rtol=1e-4)


@pytest.mark.parametrize("scoring", [EpochScoring, BatchScoring])
@pytest.mark.parametrize("use_caching", [True, False])
def test_scores_on_the_rows_trained_on(X, labels, scoring, use_caching):
    callback = scoring("accuracy", on_train=True, lower_is_better=False, use_caching=use_caching, name="train_acc")
    net = NeuralODEClassifier(**PARAMS | {"max_epochs": 5}, callbacks=[callback], validation_fraction=None)
    scores = recorded(net.fit(X, labels), "train_acc")
    assert len(scores) == 5 and 0.4 <= scores.min() <= scores.max() <= 1
    np.testing.assert_allclose(scores * 120, np.round(scores * 120), atol=1e-9)  # a whole number of rows


@pytest.mark.parametrize("scoring", [EpochScoring, BatchScoring])
def test_scores_of_rows_with_a_condition_are_the_same_with_and_without_a_cache(X, labels, scoring):
    found = []
    for use_caching in (True, False):
        callback = scoring("accuracy", lower_is_better=False, use_caching=use_caching, name="acc")
        net = NeuralODEClassifier(**PARAMS | {"max_epochs": 2}, callbacks=[callback])
        found.append(recorded(net.fit(X, labels, condition={"side": X[:, 0] > 0}), "acc"))
    np.testing.assert_array_equal(*found)


def test_scoring_changes_nothing_of_the_training(X, labels):
    plain = NeuralODEClassifier(**PARAMS).fit(X, labels)
    for use_caching in (True, False):
        callbacks = [EpochScoring("accuracy", use_caching=use_caching), BatchScoring("accuracy", name="batches")]
        scored = NeuralODEClassifier(**PARAMS, callbacks=callbacks).fit(X, labels)
        np.testing.assert_array_equal(scored.predict_proba(X), plain.predict_proba(X))
        assert [row["valid_loss"] for row in scored.history_] == [row["valid_loss"] for row in plain.history_]
    names = [name for name, _ in plain.net_.callbacks_]
    assert "valid_acc" not in names and "print_log" not in names  # our default callbacks stay ours


def test_a_score_may_be_monitored(X, labels):
    callbacks = [
        EpochScoring("accuracy", lower_is_better=False, name="valid_acc"),
        EarlyStopping(monitor="valid_acc", lower_is_better=False, patience=2, threshold=2.0, threshold_mode="abs"),
    ]
    net = NeuralODEClassifier(**PARAMS | {"max_epochs": 9}, callbacks=callbacks).fit(X, labels)
    assert len(net.history_) == 3


def test_scores_where_a_batch_lacks_classes(X):
    """partial_fit's rows need not hold all of them."""
    callback = EpochScoring("neg_log_loss", on_train=True, use_caching=False, name="score")
    net = NeuralODEClassifier(**PARAMS, callbacks=[callback])
    net.partial_fit(X[:40], np.arange(40) % 3, classes=[0, 1, 2])
    assert np.isfinite(net.net_.history[-1, "score"]) and net.net_.predict_proba(X).shape == (120, 3)
    np.testing.assert_array_equal(net.net_.classes_, [0, 1, 2])


def test_the_net_predicts_on_its_own(X, labels):
    net = NeuralODEClassifier(**PARAMS | {"n_steps": 20}).fit(X, labels)
    np.testing.assert_allclose(net.net_.predict_proba(X), net.predict_proba(X), atol=1e-4)


# ---------------------------------------------------------------------- refused before the fit
scoring_callbacks = pytest.mark.parametrize(
    "callback", [EpochScoring("r2"), ("named", BatchScoring("accuracy")), EpochScoring(lambda net, X, y: 0.0)]
)


@scoring_callbacks
def test_nets_that_compute_a_loss_refuse_to_be_scored(X, callback, monkeypatch):
    monkeypatch.setattr(REFERENCE_SOLUTION, None)  # before any solve
    flow = make_flow(max_epochs=1)
    for estimator, name in (
        (make_regressor(callbacks=[callback]), "a hypersolver"),
        (flow.set_params(callbacks=[callback]), "a flow"),
    ):
        with pytest.raises(
            ValueError, match=rf"callbacks holds a \w+Scoring\(.*\).* what {name} trains .* valid_loss is"
        ):
            estimator.fit(X)
    bare = HypersolverDensity(lambda t, z: -z, callbacks=[callback])
    with pytest.raises(ValueError, match=r"callbacks holds a .*predicts nothing.*NeuralODEClassifier"):
        bare.fit(two_blobs(20))


@pytest.mark.parametrize(
    "callback", [EarlyStopping(), Checkpoint(), LRScheduler(policy="ReduceLROnPlateau", monitor="valid_loss")]
)
def test_what_no_epoch_records_cannot_be_monitored(X, labels, callback, tmp_path):
    params = {"callbacks": [callback], "validation_fraction": None}
    message = r"monitor='valid_loss\w*', which no epoch records; recorded are dur, epoch, .*train_loss.*=None"
    with pytest.raises(ValueError, match=message):
        NeuralODEClassifier(**PARAMS, **params).fit(X, labels)
    with pytest.raises(ValueError, match=message):
        make_flow(**params).fit(X)
    with pytest.raises(ValueError, match=r"which no epoch records.*partial_fit holds no rows out"):
        NeuralODEClassifier(**PARAMS, callbacks=[callback]).partial_fit(X, labels)
    scored = [EpochScoring("accuracy"), EarlyStopping(monitor="accuracy")]  # of held-out rows, and there are none
    with pytest.raises(ValueError, match="monitor='accuracy', which no epoch records"):
        NeuralODEClassifier(**PARAMS | params | {"callbacks": scored}).fit(X, labels)
    with pytest.raises(ValueError, match="monitor='valid_acc', which no epoch records"):
        make_regressor(callbacks=[EarlyStopping(monitor="valid_acc")]).fit(X)


def test_what_a_callback_of_the_user_s_records_may_be_monitored(X, labels):
    class Records(Callback):
        def on_epoch_end(self, net, **kwargs):
            net.history.record("own", 1.0)

    callbacks = [Records(), EarlyStopping(monitor="own", patience=2)]
    assert len(NeuralODEClassifier(**PARAMS | {"max_epochs": 9}, callbacks=callbacks).fit(X, labels).history_) == 3
