"""
Train a Neural ODE faster, and know that it is true
===================================================

Training differentiates a solve for every batch. A cheap fixed-step solver makes that fast. But the field may learn the
solver's errors, so that dopri5, which predicts, gets other answers. ``solver="auto"`` begins cheaply, compares with
dopri5 as it goes, and ends with dopri5.

It takes about half a minute on one core.
"""

# %%
# Three trainings of the same model
# ---------------------------------
# The rows are images of digits. Only ``solver`` differs.

import time

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split

from sklearn_hyper import NeuralODEClassifier

X, y = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(X / 16, y, test_size=500, random_state=0, stratify=y)

models, seconds = {}, {}
for name, solver in {
    "dopri5": {"solver": "dopri5"},
    "auto": {"solver": "auto"},
    "euler, 1 step": {"solver": "euler", "n_steps": 1, "validation_fraction": None},
}.items():
    start = time.perf_counter()
    models[name] = NeuralODEClassifier(max_epochs=20, random_state=0, **solver).fit(X_train, y_train)
    seconds[name] = time.perf_counter() - start

for name, model in models.items():
    loss = log_loss(y_test, model.predict_proba(X_test))
    print(
        f"{name:14} {seconds[name]:5.1f} s, {model.n_evaluations_:6} evaluations of f, "
        f"test accuracy {model.score(X_test, y_test):.3f}, loss {loss:.3f}"
    )

# %%
# Predictions are dopri5's in all three. The field that was trained by one Euler step has learned that step's errors, too:
# solved truly, its loss is the largest.
#
# What "auto" did, and why
# ------------------------
# Each row is a change of the solver. ``gap`` is how far the losses of the solver before and of dopri5 were apart, and
# ``allowed`` how far they might be.

auto = models["auto"]
for row in auto.solver_history_:
    steps = "" if row["n_steps"] is None else f", {row['n_steps']} steps"
    gap = "" if row["gap"] is None else f" (gap {row['gap']:.3g}, allowed {row['allowed']:.3g})"
    print(f"step {row['step']:4}: {row['solver']}{steps}: {row['why']}{gap}")

# %%
# How true it is
# --------------
# ``agreement_`` compares the solver that training ended with and dopri5 as ``predict`` runs it, on rows held out.

print(f"certified: {auto.agreement_.certified}, gap of the loss {auto.agreement_.gap:.1e}")
print(f"99 % of rows err by less than {auto.agreement_.error_p99:.1e}")

figure, axes = plt.subplots(figsize=(6, 4), constrained_layout=True)
for name in ("dopri5", "auto"):
    history = models[name].history_
    axes.plot(np.cumsum([row["dur"] for row in history]), [row["valid_loss"] for row in history], label=name)
axes.set(xlabel="seconds", ylabel="held-out loss, by dopri5", yscale="log", title="The same epochs in less time")
axes.legend()
plt.show()
