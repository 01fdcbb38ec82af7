"""
Quickstart: a Neural ODE classifier, many times faster
======================================================

A convolutional Neural ODE learns to read scikit-learn's handwritten digits. Its forward pass calls the vector field
dozens of times inside dopri5. Hypersolvers, fitted to it without labels, reach the same accuracy in one to four calls.

Run it with ``python examples/plot_quickstart.py``; it takes a few minutes on two cores.
"""

# %%
# The slow model
# --------------
# Images go in as (n, channels, height, width). With no modules given, the estimator builds them from the data's shape:
# an input map that adds seven learned channels, a two-layer convolutional vector field f, and a linear output map.

import tempfile
import time

import matplotlib.pyplot as plt
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from sklearn_hyper import HypersolverClassifier, NeuralODEClassifier
from sklearn_hyper.evaluation import ParetoDisplay

X, y = load_digits(return_X_y=True)
X = X.reshape(-1, 1, 8, 8)
X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=450, stratify=y, random_state=0)

start = time.perf_counter()
slow = NeuralODEClassifier(random_state=0, verbose=1).fit(X_train, y_train)
print(f"Neural ODE trained in {time.perf_counter() - start:.0f} s, test accuracy {slow.score(X_test, y_test):.3f}.")

# %%
# The fast ones
# -------------
# Fitting a hypersolver needs no labels: dopri5 trajectories that start from the training images are what it learns
# from. ``memory`` lets fits on one mesh share them. By default every evaluation calls f with weights of its own, on a
# base solver that is learned too: its coefficients and its mesh, for the number of steps asked for (a single step is
# Euler's). Where a base solver is named, a small network g is added to it.

solvers = [
    {"n_steps": 1},
    {"n_steps": 2},
    {"n_steps": 4},
    {"base_solver": "euler", "n_steps": 2},
    {"base_solver": "midpoint", "n_steps": 1},
]
hypersolvers = []
with tempfile.TemporaryDirectory() as memory:
    for solver in solvers:
        start = time.perf_counter()
        fast = HypersolverClassifier(slow, **solver, max_epochs=60, memory=memory, random_state=0, verbose=1).fit(
            X_train
        )
        learned = "a network g" if solver.get("base_solver") else "weights of f"
        name = f"hyper-{fast.base_solver_.name} K={fast.n_steps}"
        print(f"{name}: {learned} fitted in {time.perf_counter() - start:.0f} s.")
        hypersolvers.append(fast.set_params(memory=None))

# %%
# What it costs and what it gives
# -------------------------------
# Every row is measured on the test images. ``hyper-nonstationary K=2`` calls f twice, ``hyper-euler K=2`` calls f twice
# and g twice. ``parameters`` counts the copies of f. MAPE is of the logits and
# relative L2 of the terminal states, both against dopri5 at 1e-6; milliseconds are medians for a batch of 256.

report = sum(
    (fast.solver_report(X_test, y_test) for fast in hypersolvers[1:]), hypersolvers[0].solver_report(X_test, y_test)
)
print(report)

# %%
# The same as a picture. Each diamond is a hypersolver, the circle of the same name its base solver at the same K.

figure, axes = plt.subplots(1, 2, figsize=(13, 5), layout="constrained")
for ax, cost in zip(axes, ["nfe", "macs"], strict=True):
    ParetoDisplay(report, cost=cost, error="relative_l2").plot(ax=ax)
figure.suptitle("Digits: error of the terminal state against cost")

if plt.get_backend().lower() == "agg":  # no window to show it in: leave the picture beside where this was run
    figure.savefig("quickstart_pareto.png", dpi=120)
    print("Picture saved to quickstart_pareto.png.")
plt.show()
