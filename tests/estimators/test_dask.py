"""A search on a Dask cluster: what joblib sends to other machines arrives, and the results are those of a loop here."""

import os

import joblib
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_hyper import HypersolverRegressor
from sklearn_hyper.evaluation import cheapest_within, neg_macs_scorer, neg_mape_scorer

pytestmark = pytest.mark.filterwarnings("ignore::sklearn_hyper.numerics.residuals.ConditioningWarning")

distributed = pytest.importorskip("distributed")


@pytest.fixture(scope="module")
def client():
    # With a single worker joblib would run the search here.
    with (
        distributed.LocalCluster(processes=True, n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


def test_a_search_on_a_cluster_finds_what_a_sequential_one_finds(client, vectors, vectors_ode):
    X, y = vectors
    weights = {name: value.clone() for name, value in vectors_ode.neural_ode_.state_dict().items()}

    def score_process(estimator, X, y=None):
        return os.getpid()

    hyper = HypersolverRegressor(vectors_ode, base_solver="euler", max_epochs=8, batch_size=32, random_state=0)
    search = GridSearchCV(
        make_pipeline(StandardScaler(), hyper),
        {"hypersolverregressor__n_steps": [1, 2]},
        scoring={"neg_mape": neg_mape_scorer, "neg_macs": neg_macs_scorer, "process": score_process},
        refit=cheapest_within(0.02, metric="neg_mape"),
        cv=KFold(2),
        error_score="raise",
    )
    remote = clone(search)
    search.fit(X, y)
    with joblib.parallel_config(backend="dask"):
        remote.fit(X, y)

    processes = {process for fold in range(2) for process in remote.cv_results_[f"split{fold}_test_process"]}
    assert processes <= set(client.run(os.getpid).values()) and os.getpid() not in processes
    for fold in range(2):
        for name in ("neg_mape", "neg_macs"):
            here, there = (each.cv_results_[f"split{fold}_test_{name}"] for each in (search, remote))
            np.testing.assert_allclose(there, here, rtol=1e-5)
    assert remote.best_index_ == search.best_index_ == 1
    np.testing.assert_allclose(remote.predict(X), search.predict(X), rtol=1e-5)
    # The Neural ODE was sent to the workers and shared here: it is neither copied nor changed.
    assert remote.best_estimator_[-1].neural_ode is vectors_ode
    assert all((value == weights[name]).all() for name, value in vectors_ode.neural_ode_.state_dict().items())
