"""
Wall-clock at equal accuracy: Fig. 4 on digits
==============================================

Figure 4 of the paper asks each solver for the fewest steps that lose less than 0.1 % of accuracy, and compares their
time with dopri5's: HyperEuler is about eight times faster on MNIST. Here the same is asked on scikit-learn's digits,
for a batch of 256 images and for a single one. The 450 test images make 0.1 % stricter than it sounds: not one more
mistake than dopri5.

Run it with ``python examples/plot_wall_clock.py``; it takes about two minutes on one core.
"""

# %%
# The Neural ODE, and one correction a base solver
# ------------------------------------------------

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from sklearn_hyper import HypersolverClassifier, NeuralODEClassifier

X, y = load_digits(return_X_y=True)
X = X.reshape(-1, 1, 8, 8).astype(np.float32)
X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=450, stratify=y, random_state=0)
slow = NeuralODEClassifier(random_state=0).fit(X_train, y_train)

fitted = [
    HypersolverClassifier(
        slow, base_solver=base, n_steps=2, fit_n_steps=(1, most), max_epochs=20, max_samples=400, random_state=0
    ).fit(X_train)
    for base, most in [("euler", 10), ("midpoint", 5)]
]

# %%
# The fewest steps that keep the accuracy
# ---------------------------------------
# Each report holds dopri5 at 1e-4, the base solver and the hypersolver at one number of steps, timed in turn. The first
# row of a method that loses less than 0.1 points is its entry in the figure.

fewest = {}
for hypersolver in fitted:
    for k in range(1, hypersolver.fit_n_steps[1] + 1):
        at_k = hypersolver.with_solver(n_steps=k)
        batch, single = at_k.solver_report(X_test, y_test), at_k.solver_report(X_test[:1])
        dopri5, *others = batch
        for i, row in enumerate(others, start=1):
            method = row.solver.split()[0]
            if method not in fewest and dopri5.accuracy - row.accuracy < 0.001:
                fewest[method] = (row.solver, row.speed_up, single[i].speed_up)
                print(f"{row.solver}: {row.nfe} NFE instead of {dopri5.nfe}, accuracy {row.accuracy:.3f}")

# %%
# The figure
# ----------

fewest = dict(sorted(fewest.items(), key=lambda item: item[1][1]))
names, batch_speeds, single_speeds = zip(*fewest.values(), strict=True)
places = np.arange(len(names))
figure, ax = plt.subplots(figsize=(8, 4), layout="constrained")
for offset, speeds, label in [(0.2, batch_speeds, "batch of 256"), (-0.2, single_speeds, "one image")]:
    bars = ax.barh(places + offset, speeds, height=0.38, label=label)
    ax.bar_label(bars, fmt="%.1fx", padding=3)
ax.set_yticks(places, names)
ax.set_xlabel("times faster than dopri5 at 1e-4, with less than 0.1 points of accuracy lost")
ax.legend(loc="lower right")
ax.margins(x=0.12)

# %%
# A base solver that is missing needs more steps than were tried. The correction takes a tenth of the field's
# multiply-accumulates but more of its time on images as small as these (8 x 8); on larger ones its share falls.

if plt.get_backend().lower() == "agg":  # no window to show it in: leave the picture beside where this was run
    figure.savefig("wall_clock.png", dpi=120)
    print("Picture saved to wall_clock.png.")
plt.show()
