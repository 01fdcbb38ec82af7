"""
A grid search on a Ray cluster
==============================

As :ref:`sphx_glr_auto_examples_plot_dask_search.py`, on Ray. This needs ``pip install ray``, and so the gallery shows
it without running it. It takes about a minute on two cores.

A worker is killed while the search runs: its candidates are fitted again, and the result is the same.
"""

# %%
# A field that kills a worker
# ---------------------------
# The first process, other than this one, that evaluates the field is killed. This stands in for a machine that fails.

import os
import signal
import tempfile
from pathlib import Path

import joblib
import numpy as np
import ray
import torch
from ray.util.joblib import register_ray
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV

from sklearn_hyper import HypersolverRegressor


class Pendulum:
    """A pendulum, and the end of the first worker that evaluates it."""

    def __init__(self, flag):
        self.flag, self.home = flag, os.getpid()

    def __call__(self, t, z):
        if os.getpid() != self.home and not self.flag.exists():
            self.flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.stack([z[:, 1], -torch.sin(z[:, 0])], dim=1)


# %%
# The search, here and there
# --------------------------
# ``n_jobs`` has to be said: without it, joblib's Ray backend takes one worker. ``ray_remote_args`` are what makes the
# search survive. Ray's default is to start no worker again, and then the search ends with an error.
#
# Each call of joblib starts workers of its own, which import torch. So Ray pays for searches that run for minutes.


def search_on_cluster(search, X):
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    register_ray()
    survive = {"max_restarts": 3, "max_task_retries": 3}
    try:
        with joblib.parallel_config("ray", n_jobs=2, ray_remote_args=survive):
            return search.fit(X)
    finally:
        ray.shutdown()


def main():
    X = np.random.default_rng(0).uniform(-1, 1, (300, 2))
    with tempfile.TemporaryDirectory() as folder:
        flag = Path(folder) / "a worker has died"
        fast = HypersolverRegressor(Pendulum(flag), base_solver="heun", max_epochs=10, random_state=0)
        here = GridSearchCV(fast, {"n_steps": [2, 4, 8]}, cv=2).fit(X)
        there = search_on_cluster(clone(here), X)
        print(f"a worker has died: {flag.exists()}")
    for search, where in ((here, "here"), (there, "on the cluster")):
        print(f"{where:15} {np.round(search.cv_results_['mean_test_score'], 4)} {search.best_params_}")


if __name__ == "__main__":
    main()
