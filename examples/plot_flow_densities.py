"""
Sampling a continuous normalizing flow in two evaluations
=========================================================

The paper's Figs. 1 and 7: a flow on a two-dimensional density is sampled by dopri5, by one step of plain Heun (two
evaluations of the field), and by Heun with a learned correction, HyperHeun, at the same two evaluations.

Run it with ``python examples/plot_flow_densities.py``; it takes about two minutes.
"""

# %%
# A flow by flow matching
# -----------------------
# ``objective="flow_matching"``, the default, trains the field without solving anything. Samples and densities of the
# flow are dopri5's.

import warnings

import matplotlib.pyplot as plt

from sklearn_hyper import ContinuousNormalizingFlow, HypersolverDensity
from sklearn_hyper.datasets import make_density
from sklearn_hyper.evaluation import DensityDisplay
from sklearn_hyper.metrics import sliced_wasserstein_distance
from sklearn_hyper.numerics import ConditioningWarning

X = make_density("pinwheel", 3000, random_state=0).astype("float32")
X_test = make_density("pinwheel", 2000, random_state=1).astype("float32")
flow = ContinuousNormalizingFlow(max_epochs=120, batch_size=256, random_state=0, verbose=1).fit(X)
print(f"Held-out log likelihood: {flow.score(X_test):.3f} nats.")

# %%
# HyperHeun with K = 1
# --------------------
# ``fit()`` without data learns to sample. Draws of the base distribution are free, so we learn from many of them.

fast = HypersolverDensity(
    flow,
    base_solver="heun",
    n_steps=1,
    fit_n_steps=1,
    finetune=None,
    max_samples=6000,
    max_epochs=60,
    random_state=0,
    verbose=1,
).fit()
plain = fast.without_correction()
print(fast.solver_report(random_state=1))

samples = DensityDisplay.from_estimators(
    {"dopri5": flow, "HyperHeun, 2 NFE": fast, "Heun, 2 NFE": plain}, X, random_state=0
)
samples.figure_.suptitle("Data, and samples of the flow by three solvers")

# %%
# How far are the samples from dopri5's? Two sets of dopri5 samples have a distance, too: the noise floor.

other_samples = flow.sample(10_000, random_state=1)
for name, density in {"dopri5": flow, "HyperHeun": fast, "Heun": plain}.items():
    distance = sliced_wasserstein_distance(density.sample(10_000, random_state=0), other_samples, random_state=0)
    print(f"sliced Wasserstein distance of {name + ':':<10} {distance:.4f}")

# %%
# Log densities, too
# ------------------
# With data, ``fit(X)`` also learns the density direction: the log-determinant is carried through the hypersolver.

with warnings.catch_warnings():
    warnings.simplefilter("ignore", ConditioningWarning)  # a second, float64 solve of the reference settles it
    dense = HypersolverDensity(flow, base_solver="midpoint", n_steps=2, max_epochs=60, random_state=0, verbose=1).fit(X)
difference = dense.score_samples(X_test) - flow.score_samples(X_test)
print(f"Held-out log likelihood in 4 evaluations: {dense.score(X_test):.3f} nats, {difference.mean():+.4f} off.")

densities = DensityDisplay.from_estimators(
    {"dopri5": flow, "hyper-midpoint, 4 NFE": dense, "midpoint, 4 NFE": dense.without_correction()}, X, kind="density"
)
densities.figure_.suptitle("Densities of the flow by three solvers")

if plt.get_backend().lower() == "agg":  # no window to show it in: leave the pictures beside where this was run
    samples.figure_.savefig("flow_samples.png", dpi=120)
    densities.figure_.savefig("flow_densities.png", dpi=120)
    print("Pictures saved to flow_samples.png and flow_densities.png.")
plt.show()
