"""
Follow a field that is trained on
=================================

A hypersolver belongs to the weights it was fitted for. Where these move, because the model is fine-tuned or learns
from new data, ``refit`` follows in a part of a fit's time. ``extra_rows`` makes a fit robust to rows that are rare.

It takes about half a minute on one core.
"""

# %%
# A flow, a fast sampler of it, and more training
# -----------------------------------------------

import copy
import time

import matplotlib.pyplot as plt
import numpy as np

from sklearn_hyper import ContinuousNormalizingFlow, HypersolverRegressor
from sklearn_hyper.datasets import make_density

X = make_density("moons", 3000, random_state=0).astype(np.float32)
flow = ContinuousNormalizingFlow(max_epochs=60, random_state=0).fit(X)
before = copy.deepcopy(flow.flow_.sampling())

draws = np.random.default_rng(0).normal(size=(3000, 2)).astype(np.float32)
fitted, fresh = draws[:600], draws[600:]
start = time.perf_counter()
fast = HypersolverRegressor(before, n_steps=4, random_state=0).fit(fitted)
first = time.perf_counter() - start

flow.set_params(warm_start=True, max_epochs=10, lr=1e-3).fit(X + np.array([0.3, 0.0]))  # the data have moved
now = flow.flow_.sampling()

# %%
# Refit
# -----
# ``refit`` starts from the present correction. It says what the errors were on the moved field, and what they are.

followed = copy.deepcopy(fast)
start = time.perf_counter()
followed.refit(now, fitted)
again = time.perf_counter() - start
errors = followed.refit_
print(f"fit {first:.1f} s, refit {again:.1f} s")
print(f"held-out error before {errors['before'][4]['mean']:.5f}, after {errors['after'][4]['mean']:.5f}")

# %%
# The same, beside a new fit, on draws that no fit has seen:

truth = followed.reference(fresh)
new = HypersolverRegressor(now, n_steps=4, random_state=0).fit(fitted)
for name, solver in {"of the old flow": fast, "refitted": followed, "fitted anew": new}.items():
    error = np.linalg.norm(solver.predict(fresh) - truth, axis=1)
    print(f"{name:15} median error {np.median(error):.4f}, 99 % below {np.quantile(error, 0.99):.4f}")

# %%
# Rare rows
# ---------
# ``extra_rows="worst"`` trains on rows from the range of the inputs and its fringe from which the base solver errs most.

robust = HypersolverRegressor(now, n_steps=4, extra_rows="worst", random_state=0).fit(fitted)
figure, axes = plt.subplots(figsize=(6, 4), constrained_layout=True)
for name, solver in {"extra_rows=None": new, 'extra_rows="worst"': robust}.items():
    error = np.sort(np.linalg.norm(solver.predict(fresh) - truth, axis=1))
    axes.plot(error, 1 - np.arange(len(error)) / len(error), label=name)
    print(f"{name:20} median {np.median(error):.4f}, 99 % {np.quantile(error, 0.99):.4f}, largest {error[-1]:.4f}")
axes.set(xscale="log", yscale="log", xlabel="error", ylabel="share of draws with a larger one", title="Rare rows")
axes.legend()
plt.show()
