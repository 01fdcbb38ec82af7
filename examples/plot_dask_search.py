"""
A grid search on a Dask cluster
===============================

Candidates of a search do not wait for each other, so they may run on as many machines as there are. joblib, which runs
scikit-learn's searches, hands them to a Dask cluster when asked to, and a hypersolver needs nothing special for it: the
fitted Neural ODE inside travels with it.

This needs ``pip install "sklearn_hyper[dask]"``, and takes about a minute and a half on two cores.
"""

# %%
# A search as ever
# ----------------
# The search of :ref:`sphx_glr_auto_examples_plot_solver_under_budget.py` in small: which is the cheapest solver that
# changes at most 2 % of a classifier's labels?

import time

import dask
import joblib
import numpy as np
from dask.distributed import Client, LocalCluster
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV

from sklearn_hyper import HypersolverClassifier, NeuralODEClassifier
from sklearn_hyper.evaluation import agreement_scorer, cheapest_within, neg_macs_scorer, neg_mape_scorer


def make_search(slow):
    return GridSearchCV(
        HypersolverClassifier(slow, max_samples=120, max_epochs=4, random_state=0),
        {"base_solver": ["euler", "midpoint"], "n_steps": [1, 2]},
        scoring={"agreement": agreement_scorer, "neg_mape": neg_mape_scorer, "neg_macs": neg_macs_scorer},
        refit=cheapest_within(0.02),
        cv=2,
    )


# %%
# The same search on a cluster
# ----------------------------
# A ``LocalCluster`` of processes stands in for machines here. For real ones only this line changes:
# ``Client("tcp://address-of-the-scheduler:8786")``. Each worker has one thread, as fits draw their random numbers from
# torch's generator, which the threads of a process share: with more, ``random_state`` would not settle the result.
#
# One setting matters for torch on Dask. To save memory, Dask makes its workers hand freed memory back to the system at
# once. torch asks for it again in the next operation, and fits took twice the processor time. None leaves that to the
# allocator.
#
# The processes import this very file, so the part that starts them stands behind ``if __name__ == "__main__"``.


def search_on_cluster(search, X, y):
    with (
        dask.config.set({"distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": None}),
        LocalCluster(processes=True, n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster),
        joblib.parallel_config(backend="dask"),
    ):
        return search.fit(X, y)


# %%
# Nothing but the place has changed
# ---------------------------------
# Scores agree with those of the sequential search, and so does the choice. Each worker was sent a copy of the Neural
# ODE; here, clones and the refitted winner still share the one that was passed in.
#
# As for the time: two cores can at best halve it, and starting the processes takes seconds. A cluster pays for
# searches that run for minutes or longer. There, ``memory=`` is worth a folder that all machines see.


def main():
    X, y = load_digits(return_X_y=True)
    X, y = X[:500].reshape(-1, 1, 8, 8), y[:500]
    slow = NeuralODEClassifier(max_epochs=6, random_state=0).fit(X, y)

    start = time.perf_counter()
    here = make_search(slow).fit(X, y)
    seconds_here = time.perf_counter() - start
    start = time.perf_counter()
    there = search_on_cluster(clone(here), X, y)
    seconds_there = time.perf_counter() - start

    print("solver           kMACs  agreement: here   on the cluster")
    for i, params in enumerate(here.cv_results_["params"]):
        kmacs = -here.cv_results_["mean_test_neg_macs"][i] / 1e3
        both = [search.cv_results_["mean_test_agreement"][i] for search in (here, there)]
        print(f"{params['base_solver']:9} K={params['n_steps']}  {kmacs:7.0f}  {both[0]:15.4f}  {both[1]:15.4f}")
    difference = np.abs(here.cv_results_["mean_test_neg_mape"] - there.cv_results_["mean_test_neg_mape"]).max()
    print(f"largest difference of a MAPE: {difference:.1e}")
    print(f"chosen here: {here.best_params_}, on the cluster: {there.best_params_}")
    print(f"the Neural ODE is shared, not copied: {there.best_estimator_.neural_ode is slow}")
    print(f"{seconds_here:.0f} s here, {seconds_there:.0f} s on the cluster with its start")


if __name__ == "__main__":
    main()
