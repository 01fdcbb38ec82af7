"""
How wrong, and at what cost
===========================

A fast sampler is of use where one knows how wrong it is. This example calibrates one on draws of its own. It then shows
the bound of each sample, whether bounds hold as often as they say, and how many evaluations a tolerance takes, sample
by sample.

It takes about a minute on one core.
"""

# %%
# A flow, and samplers with one, two, four and eight evaluations
# --------------------------------------------------------------

import matplotlib.pyplot as plt
import numpy as np

from sklearn_hyper import ContinuousNormalizingFlow, HypersolverDensity
from sklearn_hyper.datasets import make_density

flow = ContinuousNormalizingFlow(random_state=0).fit(make_density("moons", 2000, random_state=0))
samplers = {
    k: HypersolverDensity(flow, n_steps=k, max_epochs=60, max_samples=2000, random_state=0).fit() for k in (1, 2, 4, 8)
}

# %%
# Calibrate
# ---------
# ``conformalize`` draws a thousand base samples, and compares with dopri5. The other samplers become levels of a
# ladder, for tolerances.

fast = samplers[2].conformalize(levels=[samplers[k] for k in (1, 4, 8)])

# %%
# Bounds
# ------
# The learned bound costs no evaluation: it predicts the error from the run itself. The verified one solves each sample
# a second time. Fresh draws show how often they hold.

N = 2000
truth = flow.sample(N, random_state=1)
stated = np.array([0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99])
held = {}
for kind in ("learned", "verified"):
    held[kind] = []
    for coverage in stated:
        samples, bound = fast.sample(N, random_state=1, return_bound=True, coverage=coverage, bound=kind)
        error = np.linalg.norm(samples - truth, axis=1)
        held[kind].append(np.mean(error <= bound))
    print(
        f"{kind:9} at {coverage}: holds for {held[kind][-1]:.3f}, median bound / error {np.median(bound / error):.2f}"
    )

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), constrained_layout=True)
points = left.scatter(*samples.T, c=np.log10(bound), s=4)
figure.colorbar(points, ax=left, label="log10 of the verified bound")
left.set_title("Samples by two evaluations, and their bounds")
right.plot([0.5, 1], [0.5, 1], color="0.7")
for kind, shares in held.items():
    right.plot(stated, shares, "o-", label=kind)
right.set(xlabel="stated coverage", ylabel="share of bounds that hold", title="Bounds hold as often as they say")
right.legend()
plt.show()

# %%
# Tolerances
# ----------
# At most one sample in a hundred may exceed a tolerance. One sampler for all takes what the hardest samples need. A
# router runs the cheapest one, and sends each sample on to the one that it needs.

for tol in (1e-1, 1e-2, 1e-3):
    for policy in ({}, {"route": True}):
        samples, info = fast.sample(N, random_state=1, tol=tol, return_info=True, **policy)
        over = np.linalg.norm(samples - truth, axis=1) > tol * np.linalg.norm(truth, axis=1)
        how = "routed     " if policy else "one for all"
        print(f"tol {tol:<6} {how} {info.n_evaluations.mean():5.1f} evaluations, {over.mean():.4f} over")

# %%
# Where the router spends its evaluations:

samples, info = fast.sample(N, random_state=1, tol=1e-2, route=True, return_info=True)
figure, axes = plt.subplots(figsize=(5, 4), constrained_layout=True)
points = axes.scatter(*samples.T, c=np.minimum(info.n_evaluations, 32), s=4)
figure.colorbar(points, ax=axes, label="evaluations (32 and more alike)")
axes.set_title("Evaluations a sample at a tolerance of 1e-2")
plt.show()
