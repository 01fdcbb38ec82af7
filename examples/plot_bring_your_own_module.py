"""
Bring your own module
=====================

You have a vector field of your own, trained by your own loop, and want to sample from it faster. Nothing about the
model or the loop has to change: a hypersolver is fitted afterwards, to the field as it stands.

The model here is a small flow: a field that carries Gaussian noise at :math:`s = 0` to the two half-moons at
:math:`s = 1`. It is trained by flow matching, in plain torch. Its weights vary with depth, :math:`\\theta(s)`, and the
correction is a module of our own too.
"""

# %%
# A field with depth-varying weights
# ----------------------------------
# A field is ``f(t, z)``, as in torchdiffeq. Weights that depend on depth need no special support, since such a field
# merely reads ``t``: every layer below has :math:`\\theta(s) = \\theta_0 + s\\,\\theta_1 + s^2\\,\\theta_2`.

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import make_moons
from torch import nn

from sklearn_hyper import HypersolverRegressor
from sklearn_hyper.metrics import relative_l2
from sklearn_hyper.numerics import hypersolve


class DepthVaryingLinear(nn.Module):
    """A linear layer whose weight and bias are polynomials of s."""

    def __init__(self, n_in, n_out, degree=2):
        super().__init__()
        self.coefficients = nn.ModuleList([nn.Linear(n_in, n_out) for _ in range(degree + 1)])

    def forward(self, s, z):
        weight = sum(s**i * layer.weight for i, layer in enumerate(self.coefficients))
        bias = sum(s**i * layer.bias for i, layer in enumerate(self.coefficients))
        return nn.functional.linear(z, weight, bias)


class Flow(nn.Module):
    """A field f(t, z) with weights theta(t)."""

    def __init__(self, hidden=64):
        super().__init__()
        self.layers = nn.ModuleList(
            [DepthVaryingLinear(2, hidden), DepthVaryingLinear(hidden, hidden), DepthVaryingLinear(hidden, 2)]
        )

    def forward(self, t, z):
        first, second, last = self.layers
        return last(t, torch.tanh(second(t, torch.tanh(first(t, z)))))


# %%
# Train it in a plain torch loop
# ------------------------------
# Flow matching regresses the field on the velocity of straight lines from noise to data, at a random time each step.
# sklearn_hyper takes no part in this.

rng = np.random.default_rng(0)
torch.manual_seed(0)

moons, _ = make_moons(20_000, noise=0.05, random_state=0)
moons = torch.from_numpy(((moons - moons.mean(axis=0)) / moons.std(axis=0)).astype(np.float32))

flow = Flow()
n_updates = 1500
optimizer = torch.optim.Adam(flow.parameters(), lr=3e-3)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_updates)
losses = []
for _ in range(n_updates):
    data = moons[torch.randint(len(moons), (512,))]
    noise = torch.randn_like(data)
    s = torch.rand(())
    loss = (flow(s, (1 - s) * noise + s * data) - (data - noise)).pow(2).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()
    losses.append(loss.item())
print(f"flow matching loss, mean of the last 300 of {n_updates} updates: {np.mean(losses[-300:]):.3f}")

# %%
# Fit a hypersolver to it
# -----------------------
# A bare field is a Neural ODE without maps: ``predict`` returns :math:`z(S)`. (For a model with maps, trained through
# its own solver, pass ``NeuralODE(field, input_map=..., output_map=...)``.) The training inputs are noise, which costs
# nothing, and no target is needed: what has to be matched is dopri5.
#
# Heun's method with two steps makes four evaluations of the field.

noise_train = rng.normal(size=(2000, 2)).astype(np.float32)
noise_test = rng.normal(size=(4000, 2)).astype(np.float32)

auto = HypersolverRegressor(flow, base_solver="heun", n_steps=2, max_epochs=100, random_state=0).fit(noise_train)
report = auto.solver_report(noise_test)
print(report)

# %%
# A correction of our own
# -----------------------
# ``correction="auto"`` chose a small MLP. Any module will do that has ``forward(eps, s, z, stages, x=None)`` and
# returns a tensor like ``z``. ``stages`` are the evaluations of f that Heun's method has made already, so reading them
# is free.
#
# Two habits keep a correction well behaved: start at zero, so that training starts from Heun's method itself, and
# stay of order one as ``eps`` goes to 0, hence the difference quotient. Scale and bound are the library's job: it
# multiplies the output by the size of the residuals, and caps the share of a step that the correction may take.


class OwnCorrection(nn.Module):
    """One hidden layer that reads the state, the slope, the change of the slope, s and eps."""

    def __init__(self, d, hidden=24):
        super().__init__()
        self.first = nn.Linear(3 * d + 2, hidden)
        self.last = nn.Linear(hidden, d)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, eps, s, z, stages, x=None):
        change = (stages[1] - stages[0]) / eps
        times = torch.stack([s, torch.full_like(s, eps)]).expand(len(z), 2)
        features = torch.cat([z, stages[0], change, times], dim=1)
        return self.last(torch.tanh(self.first(features)))


own = HypersolverRegressor(
    flow, base_solver="heun", n_steps=2, correction=OwnCorrection(2), max_epochs=100, random_state=0
)
own.fit(noise_train)

# %%
# How near are they?
# ------------------
# All solvers get the same noise, so their samples can be compared one by one with those of a tight dopri5. Heun's
# method without a correction is ``numerics.hypersolve`` without ``g``.

reference = auto.reference(noise_test)
with torch.no_grad():
    plain = hypersolve(flow, torch.from_numpy(noise_test), (0.0, 1.0), 2, "heun").numpy()
samples = {
    "Heun, 2 steps": plain,
    "hypersolver, own correction": own.predict(noise_test),
    "hypersolver, correction='auto'": auto.predict(noise_test),
}
errors = {name: relative_l2(reference, z) for name, z in samples.items()}
for name, error in errors.items():
    print(f"{name:32s} relative L2: median {np.median(error):.4f}, 99th percentile {np.quantile(error, 0.99):.4f}")
print(f"evaluations of f: {report[0].nfe} for {report[0].solver}, {report[2].nfe} for each of the above")

# %%
# The samples tell the same story.

fig, axes = plt.subplots(1, 4, figsize=(12, 3.6), sharex=True, sharey=True, layout="compressed")
for ax, (name, z) in zip(axes, {"dopri5": reference, **samples}.items(), strict=True):
    ax.scatter(*z.T, s=2, alpha=0.4, linewidths=0)
    ax.set(title=name.replace("hypersolver, ", "hypersolver,\n"), xlabel="$z_1(S)$", aspect="equal")
axes[0].set_ylabel("$z_2(S)$")

# %%
# And the errors of single samples, as a distribution: how many lie below a given error.

fig, ax = plt.subplots(figsize=(6, 3.6), layout="constrained")
for name, error in errors.items():
    ax.plot(np.sort(error), np.linspace(0, 1, len(error)), label=name)
ax.set(xscale="log", xlabel="relative L2 error of a sample, against dopri5", ylabel="share of samples below")
ax.legend(loc="upper left")
plt.show()
