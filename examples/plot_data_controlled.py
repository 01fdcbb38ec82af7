"""
A data-controlled field: one correction for all step sizes
==========================================================

A controller that plans ahead asks a model, over and over, where a torque will take the system within the next few
milliseconds or the next second. The model here is a pendulum with a spring and a torque :math:`u`,

.. math:: \\dot q = p, \\qquad \\dot p = -\\tfrac12 q - 9.81 \\sin q - 0.01\\,p + u ,

so its field takes the input as well: :math:`f(s, z, x)` with :math:`x = (q_0, p_0, u)`. One evaluation a step is all
that we can afford, and that is Euler's method. This example fits one correction to Euler's method, for every step size
from 0.01 to 1.
"""

# %%
# State it, then fit
# ------------------
# A field that takes the input is stated when the ``NeuralODE`` is built; it is then called ``f(t, z, x)`` with the raw
# input. The input map picks the initial state out of x. ``make_pendulum`` does both and draws states and torques.
#
# ``fit_n_steps=(1, 100)`` asks for a generalist: step sizes log-uniform between the span and a hundredth of it.

import time

import matplotlib.pyplot as plt
import numpy as np
import torch

from sklearn_hyper import HypersolverRegressor, MLPCorrection
from sklearn_hyper.datasets import make_pendulum
from sklearn_hyper.numerics import hypersolve, reference_solution, time_interleaved

X, pendulum = make_pendulum(2000, random_state=0)
print(pendulum)

start = time.perf_counter()
general = HypersolverRegressor(
    pendulum,
    base_solver="euler",
    fit_n_steps=(1, 100),
    correction=MLPCorrection(hidden=64),
    finetune=None,
    max_epochs=150,
    random_state=0,
).fit(X)
print(f"fitted in {time.perf_counter() - start:.0f} s")

# %%
# One step, five sizes
# --------------------
# ``with_solver(t_span=(0, dt), n_steps=1)`` is the same correction at another step size. Each error is the mean
# distance from a tight dopri5 over 5,000 states and torques that were not fitted.

X_test, _ = make_pendulum(5000, random_state=1)
x = torch.from_numpy(X_test)
z, field = x[:, :2], pendulum.vector_field
step_sizes = [0.01, 0.03, 0.1, 0.3, 1.0]
solvers = {"euler": 1, "midpoint": 2, "rk4": 4}


def mean_distance(a, b):
    return float(np.linalg.norm(np.asarray(a) - np.asarray(b), axis=1).mean())


errors = {name: [] for name in ["hypersolved euler", *solvers]}
for dt in step_sizes:
    exact = reference_solution(field, z, (0.0, dt), rtol=1e-10, atol=1e-10, x=x)[-1]
    errors["hypersolved euler"].append(
        mean_distance(general.with_solver(t_span=(0.0, dt), n_steps=1).predict(X_test), exact)
    )
    for name in solvers:
        errors[name].append(mean_distance(hypersolve(field, z, (0.0, dt), 1, name, x=x), exact))

print(f"{'dt':18s}" + "".join(f"{dt:>10g}" for dt in step_sizes))
for name, values in errors.items():
    slope = np.polyfit(np.log(step_sizes[:3]), np.log(values[:3]), 1)[0]
    print(
        f"{name:18s}"
        + "".join(f"{value:10.1e}" for value in values)
        + f"   NFE {solvers.get(name, 1)}, slope {slope:.1f}"
    )
gains = np.array(errors["euler"]) / np.array(errors["hypersolved euler"])
print("Euler's error over the hypersolver's, at each dt:", ", ".join(f"{gain:.0f}" for gain in gains))

# %%
# On logarithmic axes the slope of a line is the order plus one; the one printed is taken over the three smallest steps.
# A correction does not change the order of its base solver, it lowers the line. A method of higher order is steeper, so
# it passes the hypersolver where steps are small enough, at more evaluations each.

colors = {"hypersolved euler": "C1", "euler": "C0", "midpoint": "C2", "rk4": "C3"}
fig, ax = plt.subplots(figsize=(6, 4), layout="constrained")
for name, values in errors.items():
    count = solvers.get(name, 1)
    label = f"{name}, {count} evaluation{'s' * (count > 1)}"
    ax.loglog(step_sizes, values, "o-" if "hyper" in name else "o--", color=colors[name], label=label)
ax.set(xlabel="step size dt", ylabel="mean error of one step", title="One correction at five step sizes")
ax.legend()

# %%
# Follow a torque
# ---------------
# Ten seconds of a random torque that changes every fifth of a second. The errors of single steps now accumulate. All
# solvers take the same steps of 0.1; midpoint evaluates the field twice for each.

dt, n_moves = 0.1, 100
torques = np.repeat(np.random.default_rng(2).uniform(-5, 5, n_moves // 2), 2)


def roll_out(step):
    """States after every move, from rest at q = 1."""
    states = [np.array([[1.0, 0.0]])]
    for u in torques:
        states.append(step(np.column_stack([states[-1], [[u]]])))
    return np.concatenate(states)


def step_with(name):
    def step(row):
        row = torch.from_numpy(row)
        return hypersolve(field, row[:, :2], (0.0, dt), 1, name, x=row).numpy()

    return step


def step_exactly(row):
    row = torch.from_numpy(row)
    return reference_solution(field, row[:, :2], (0.0, dt), rtol=1e-9, atol=1e-9, x=row)[-1].numpy()


one_step = general.with_solver(t_span=(0.0, dt), n_steps=1)
exact = roll_out(step_exactly)
paths = {
    "euler": roll_out(step_with("euler")),
    "midpoint": roll_out(step_with("midpoint")),
    "hypersolved euler": roll_out(one_step.predict),
}
inside = np.mean(np.abs(exact).max(axis=1) <= 5)
print(f"{inside:.0%} of the exact path lies in the box that the training states were drawn from")
for name, path in paths.items():
    distance = np.linalg.norm(path - exact, axis=1)
    print(f"{name:18s} distance from the exact path: mean {distance.mean():.3f}, largest {distance.max():.3f}")

# %%
# Left the phase plane, right the distance from the exact path over time.

fig, (plane, gap) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
plane.plot(*exact.T, color="black", linewidth=3, alpha=0.3, label="dopri5")
for name, path in paths.items():
    plane.plot(*path.T, color=colors[name], linewidth=1, label=name)
    distance = np.linalg.norm(path - exact, axis=1)
    gap.semilogy(dt * np.arange(1, n_moves + 1), distance[1:], color=colors[name], label=name)
reach = 1.2 * np.abs(exact).max(axis=0)
plane.set(xlabel="angle q", ylabel="momentum p", xlim=(-reach[0], reach[0]), ylim=(-reach[1], reach[1]))
gap.set(xlabel="time", ylabel="distance from the exact path")
plane.legend(loc="center", fontsize=8)
gap.legend()

# %%
# What it costs
# -------------
# The pendulum's field is a handful of multiplications, and the correction is a network. Evaluations of the field are
# the cost to count where the field is expensive. Where it is as cheap as this one, milliseconds are, and they tell
# another story:

module = one_step.to_module().fold()
with torch.inference_mode():
    milliseconds = time_interleaved(
        {
            "euler": lambda: hypersolve(field, z, (0.0, dt), 1, "euler", x=x),
            "midpoint": lambda: hypersolve(field, z, (0.0, dt), 1, "midpoint", x=x),
            "rk4": lambda: hypersolve(field, z, (0.0, dt), 1, "rk4", x=x),
            "hypersolved euler": lambda: module(x),
        }
    )
for name, value in milliseconds.items():
    print(f"{name:18s} {value:6.2f} ms for one step of {len(x)} states")
plt.show()
