"""
Drawing digits in two to four evaluations
=========================================

A flow on scikit-learn's 8x8 digits, trained by flow matching, would usually be sampled by a hundred Euler steps. A
hypersolver draws the same digits in one or two steps of Heun's method: two or four evaluations of the field.

Run it with ``python examples/plot_digits_sampler.py``; it takes about two minutes.
"""

# %%
# The flow
# --------
# Grey values are integers, and integers have no density: uniform noise makes them continuous (dequantisation).

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

from sklearn_hyper import ContinuousNormalizingFlow, HypersolverDensity
from sklearn_hyper.metrics import relative_l2
from sklearn_hyper.modules import MLPVectorField

rng = np.random.default_rng(0)
images = load_digits().data
X = ((images + rng.uniform(size=images.shape)) / 17).astype(np.float32)

flow = ContinuousNormalizingFlow(
    MLPVectorField(64, hidden=256, depth=3), max_epochs=200, lr=2e-3, random_state=0, verbose=1
).fit(X)

# %%
# Fast samplers
# -------------
# One a number of steps; they learn from draws of the base distribution alone.

samplers = {}
for n_steps in (1, 2):
    fast = HypersolverDensity(
        flow, base_solver="heun", n_steps=n_steps, fit_n_steps=n_steps, max_samples=4000, max_epochs=50, random_state=0,
        verbose=1,
    ).fit()  # fmt: skip
    samplers[f"HyperHeun, {2 * n_steps} evaluations"] = fast
    samplers[f"Heun, {2 * n_steps} evaluations"] = fast.without_correction()
samplers["Euler, 100 evaluations"] = fast.without_correction().with_solver("euler", n_steps=100)

# %%
# All start from the same base draws, so the same image should come out. The errors are against dopri5's.

exact = flow.sample(500, random_state=1)
drawn = {"dopri5": exact} | {name: sampler.sample(500, random_state=1) for name, sampler in samplers.items()}
for name, samples in drawn.items():
    print(f"{name + ':':<28} relative error {relative_l2(exact, samples).mean():.4f}")

figure, axes = plt.subplots(len(drawn), 1, figsize=(9, 1.35 * len(drawn)), layout="constrained")
for ax, (name, samples) in zip(axes, drawn.items(), strict=True):
    ax.imshow(np.hstack(samples[:12].reshape(-1, 8, 8)), cmap="gray_r", vmin=0, vmax=1)
    ax.set(title=name, xticks=[], yticks=[])
if plt.get_backend().lower() == "agg":  # no window to show it in: leave the picture beside where this was run
    figure.savefig("digits_sampler.png", dpi=120)
    print("Picture saved to digits_sampler.png.")
plt.show()
