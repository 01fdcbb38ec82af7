"""joblib on a local Ray cluster: results are those of a loop here, and those of a worker that died are computed again.

Ray is no part of the extras, as it is large: ``pip install ray`` runs these tests.
"""

import os
import sys

import joblib
import numpy as np
import pytest
from processes import DiesOnce
from sklearn.model_selection import GridSearchCV, KFold
from small_hypersolvers import ROUGH_FITS, make_regressor
from small_saved import NET, X

ray = pytest.importorskip("ray")

pytestmark = ROUGH_FITS


@pytest.fixture(scope="module")
def cluster():
    from ray.util.joblib import register_ray

    where = {"env_vars": {"PYTHONPATH": os.pathsep.join(sys.path)}}  # pytest's own, so that workers find our helpers
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR", runtime_env=where)
    register_ray()
    yield
    ray.shutdown()


def on_cluster():
    # Without these arguments Ray gives up a search at the first death of a worker.
    return joblib.parallel_config("ray", n_jobs=2, ray_remote_args={"max_restarts": 3, "max_task_retries": 3})


def test_a_search_outlives_a_worker(cluster, tmp_path):
    def search():
        estimator = make_regressor(DiesOnce(tmp_path / "died"), correction=NET)
        return GridSearchCV(estimator, {"n_steps": [1, 2]}, cv=KFold(2), error_score="raise", refit=False).fit(X)

    here = search().cv_results_["mean_test_score"]
    assert not (tmp_path / "died").exists()
    with on_cluster():
        there = search().cv_results_["mean_test_score"]
    assert (tmp_path / "died").exists()
    np.testing.assert_allclose(there, here, rtol=1e-5)


def test_reference_solves_outlive_a_worker(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr("sklearn_hyper.training.references.chunk_rows", lambda numel: 16)

    def solve(n_jobs):
        return make_regressor(DiesOnce(tmp_path / "died"), correction=NET, n_jobs=n_jobs).fit(X).predict(X)

    here = solve(None)
    with on_cluster():
        np.testing.assert_array_equal(solve(2), here)
    assert (tmp_path / "died").exists()
