"""
Accuracy and error against cost: Fig. 3 on digits
=================================================

Figure 3 of the paper draws, for solvers of one convolutional Neural ODE, the test accuracy lost against the evaluations
of the vector field (NFE), and the error of the solution against multiply-accumulates (MACs), which count the
correction's work too. Here it is drawn for scikit-learn's digits, with one correction for each base solver, fitted over
a range of step counts (Euler's at 4, 5, 7 and 8 are among those that it was not fine-tuned at).

Run it with ``python examples/plot_accuracy_against_nfe.py``; it takes about two minutes on one core.
"""

# %%
# A convolutional Neural ODE
# --------------------------
# Ready-made parts: the field keeps the state's shape, the input map puts learned channels beside the image.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import manual_seed, nn

from sklearn_hyper import HypersolverClassifier, NeuralODEClassifier
from sklearn_hyper.evaluation import ParetoDisplay
from sklearn_hyper.modules import AugmentedInput, ConvVectorField

X, y = load_digits(return_X_y=True)
X = X.reshape(-1, 1, 8, 8).astype(np.float32) / 16
X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=450, stratify=y, random_state=0)

manual_seed(0)  # the modules draw their weights here
slow = NeuralODEClassifier(
    ConvVectorField(8, hidden=32),
    input_map=AugmentedInput(nn.Conv2d(1, 7, 3, padding=1), nn.BatchNorm2d(1)),
    output_map=nn.Sequential(nn.Flatten(), nn.Linear(8 * 64, 10)),
    max_epochs=10,
    random_state=0,
).fit(X_train, y_train)
print(f"Test accuracy with dopri5: {slow.score(X_test, y_test):.3f}")

# %%
# One correction for many step counts
# -----------------------------------
# A pair in ``fit_n_steps`` draws the step sizes of the fit between the two, and fine-tunes at a few step counts in the
# range (for (1, 10) at 1, 2, 3, 6 and 10): a generalist. No labels are used, and no test image.

fitted = [
    HypersolverClassifier(
        slow, base_solver=base, n_steps=2, fit_n_steps=(1, most), max_epochs=20, max_samples=400, random_state=0
    ).fit(X_train)
    for base, most in [("euler", 10), ("midpoint", 5), ("rk4", 2)]
]

# %%
# The figure
# ----------
# ``with_solver(n_steps=...)`` takes the same correction to another number of steps, and its report sets the base solver
# and dopri5 beside it. Reports add up.

steps = {"euler": [1, 2, 4, 5, 7, 8], "midpoint": [1, 2, 3, 4], "rk4": [1, 2]}
reports = [
    hypersolver.with_solver(n_steps=k).solver_report(X_test, y_test, batch_size=64)
    for hypersolver in fitted
    for k in steps[hypersolver.base_solver]
]
report = sum(reports[1:], reports[0])
print(report)

figure, axes = plt.subplots(1, 2, figsize=(13, 5), layout="constrained")
ParetoDisplay(report, cost="nfe", error="accuracy_loss").plot(ax=axes[0], annotate=False)
ParetoDisplay(report, cost="macs", error="mape").plot(ax=axes[1])
figure.suptitle("Digits, as Fig. 3: accuracy lost against NFE, error of the logits against MACs")

# %%
# Read from it: a diamond lies below the circle of the same name, its base solver at the same K, most clearly at the
# left. As in the paper, a higher order catches up where steps are many; corrections of higher-order solvers (which the
# paper leaves open) then keep the lead.

if plt.get_backend().lower() == "agg":  # no window to show it in: leave the picture beside where this was run
    figure.savefig("accuracy_against_nfe.png", dpi=120)
    print("Picture saved to accuracy_against_nfe.png.")
plt.show()
