"""
Train a field that is cheap to solve
====================================

A Neural ODE may learn a field that is hard to solve, though an easy one would do as well. ``joint=`` adds a loss: a few
cheap steps must agree with the training's own solve. Whatever solves the field afterwards has less to do.

It takes about half a minute on one core.
"""

# %%
# The same model with and without
# -------------------------------

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from sklearn_hyper import HypersolverClassifier, NeuralODEClassifier, WeightCorrection

X, y = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(X / 16, y, test_size=500, random_state=0, stratify=y)

weights = (0.0, 3.0, 30.0)
models = {
    joint: NeuralODEClassifier(
        solver="auto", joint=joint, base_solver="euler", n_steps=1, max_epochs=15, random_state=0
    ).fit(X_train, y_train)
    for joint in weights
}

# %%
# What became easier
# ------------------
# A single evaluation of f, by Euler's method alone and with changed weights, beside dopri5. Errors are those of the
# logits, relative to dopri5's.

errors = {"Euler, one step": [], "hypersolver, one step": []}
for joint, model in models.items():
    fast = HypersolverClassifier(
        model, base_solver="euler", n_steps=1, correction=WeightCorrection(), max_epochs=60, random_state=0
    ).fit(X_train)
    report = fast.solver_report(X_test, y_test)
    dopri5, euler, corrected = report[0], report[1], report[-1]  # the last two are one if nothing was left to correct
    errors["Euler, one step"].append(euler.l2_mean)
    errors["hypersolver, one step"].append(corrected.l2_mean)
    print(
        f"joint={joint:<5} accuracy {model.score(X_test, y_test):.3f}, dopri5 {dopri5.nfe:.0f} evaluations, "
        f"errors: Euler {euler.l2_mean:.3f}, hypersolver {corrected.l2_mean:.3f}"
    )

figure, axes = plt.subplots(figsize=(6, 4), constrained_layout=True)
for shift, (name, values) in zip((-0.2, 0.2), errors.items(), strict=True):
    axes.bar(np.arange(len(weights)) + shift, values, width=0.4, label=name)
axes.set_xticks(range(len(weights)), [f"joint={joint:g}" for joint in weights])
axes.set(yscale="log", ylabel="relative error", title="One evaluation of f")
axes.legend()
plt.show()

# %%
# The weight is a choice, and too large a one leaves the task behind. In the benchmark ``joint.py``, 30 had less error in a
# step than 3, and a larger loss: .104 for .081.
