"""
Energies over a long time
=========================

A Hamiltonian net learns an energy :math:`H(q, p)`; its field is :math:`\\dot q = \\partial H / \\partial p`,
:math:`\\dot p = -\\partial H / \\partial q`. So autograd runs inside each call of f, and the true flow keeps the energy.
A solver keeps it only nearly. Here a hypersolver advances states by half a second, 100 times in a row. How far does
the energy drift?

It takes about half a minute on one core.
"""

# %%
# Learn an energy
# ---------------
# A pendulum, from its accelerations. Kinetic and potential energy are nets of their own, so that leapfrog steps, which
# need this, can be compared. ``torch.func.grad`` differentiates inside f. ``torch.autograd.grad`` does as well, within
# ``torch.enable_grad()`` and with ``create_graph=True``.

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import nn
from torch.func import grad

from sklearn_hyper import HypersolverRegressor, NeuralODE
from sklearn_hyper.numerics import hypersolve, reference_solution


def net():
    return nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))


class Hamiltonian(nn.Module):
    def __init__(self):
        super().__init__()
        self.potential, self.kinetic = net(), net()

    def energy(self, z):
        return (self.potential(z[:, :1]) + self.kinetic(z[:, 1:]))[:, 0]

    def forward(self, t, z):
        slope = grad(lambda z: self.energy(z).sum())(z)
        return torch.stack([slope[:, 1], -slope[:, 0]], dim=1)


def draw(n, seed):
    """States of swings that stay within the ranges learned from."""
    rng = np.random.default_rng(seed)
    z = rng.uniform(-1, 1, (4 * n, 2)) * [2.0, 6.2]
    inside = z[:, 1] ** 2 / 2 - 9.81 * np.cos(z[:, 0]) < 9.81 * 0.4
    return z[inside][:n].astype(np.float32)


torch.manual_seed(0)
model = Hamiltonian()
z = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (4000, 2)).astype(np.float32)) * torch.tensor([2.5, 7.0])
target = torch.stack([z[:, 1], -9.81 * z[:, 0].sin()], dim=1)
optimizer = torch.optim.Adam(model.parameters(), 5e-3)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1000)
for _ in range(1000):
    rows = torch.randint(len(z), (256,))
    loss = (model(None, z[rows]) - target[rows]).pow(2).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()
print(f"root mean squared error of the field: {loss.item() ** 0.5:.3f}")

# %%
# Fit a hypersolver
# -----------------
# Half a second in four evaluations of f. The rows to fit on are the states that the long run will meet: all swings up
# to an energy. Along each, the flow stays among them.

ode = NeuralODE(model, t_span=(0.0, 0.5))
fast = HypersolverRegressor(ode, n_steps=4, max_epochs=60, random_state=0).fit(draw(1000, 1))
print(fast.solver_report(draw(300, 2)))

# %%
# Go on for 50 seconds
# --------------------
# Each solver takes four evaluations for half a second; leapfrog counts an evaluation of each half of f as half of one.
# ``projected`` goes back to the energy of the start after each call, by one Newton step along the slope of H. The slope
# is f itself, turned by a right angle: a fifth evaluation.

N_CALLS = 100
step = fast.module_
base = fast.without_correction().module_


def rk4(z):
    return hypersolve(model, z, (0.0, 0.5), 1, "rk4")


def leapfrog(z, n=4):
    q, p, h = z[:, :1], z[:, 1:], 0.5 / n
    push, drift = grad(lambda q: model.potential(q).sum()), grad(lambda p: model.kinetic(p).sum())
    for _ in range(n):
        p = p - h / 2 * push(q)
        q = q + h * drift(p)
        p = p - h / 2 * push(q)
    return torch.cat([q, p], dim=1)


def run(call, z, energy=None):
    states = [z]
    with torch.no_grad():
        for _ in range(N_CALLS):
            z = call(states[-1])
            if energy is not None:
                f = model(None, z)
                slope = torch.stack([-f[:, 1], f[:, 0]], dim=1)
                z = z - (model.energy(z) - energy)[:, None] * slope / slope.square().sum(1, keepdim=True)
            states.append(z)
    return torch.stack(states)


starts = torch.from_numpy(draw(100, 3))
with torch.no_grad():
    energy = model.energy(starts)
    times = torch.linspace(0, 0.5 * N_CALLS, N_CALLS + 1, dtype=torch.float64)
    precise = Hamiltonian().double()
    precise.load_state_dict(model.state_dict())
    exact = reference_solution(precise, starts.double(), times.tolist(), rtol=1e-7, atol=1e-7)
    dopri5 = reference_solution(model, starts, times.tolist(), rtol=1e-4, atol=1e-4)

paths = {
    "rk4, 4 evaluations": run(rk4, starts),
    "leapfrog, 4": run(leapfrog, starts),
    "base solver, 4": run(base, starts),
    "base solver, projected, 5": run(base, starts, energy),
    "hypersolver, 4": run(step, starts),
    "hypersolver, projected, 5": run(step, starts, energy),
    "dopri5 at 1e-4, 20": dopri5,
}

# %%
# The drift is the error of the energy, as a share of the spread of energies over the starts.

spread = float(energy.std())
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
print(f"{'solver':28s}{'drift after 1 call':>19s}{'10 s':>9s}{'50 s':>9s}{'distance after 10 s':>21s}{'50 s':>9s}")
for name, path in paths.items():
    with torch.no_grad():
        drift = torch.stack([(model.energy(z) - energy).abs().median() for z in path.float()]) / spread
    distance = (path.double() - exact).norm(dim=2).median(dim=1).values
    drift, distance = drift.nan_to_num(torch.inf), distance.nan_to_num(torch.inf)
    print(f"{name:28s}{drift[1]:19.1e}{drift[20]:9.1e}{drift[-1]:9.1e}{distance[20]:21.1e}{distance[-1]:9.1e}")
    left.semilogy(times[1:], drift[1:], label=name)
    right.semilogy(times[1:], distance[1:], label=name)
left.set(xlabel="seconds", ylabel="median drift of the energy", ylim=(1e-7, 30))
right.set(xlabel="seconds", ylabel="median distance from the exact state", ylim=(1e-5, 30))
right.legend(fontsize=8)

# %%
# Errors of single calls add up: the hypersolver's drift grows with time, as the base solver's and dopri5's do. Leapfrog
# is symplectic, so its drift does not grow, but its angle runs off. Projected, the hypersolver keeps the energy to
# rounding; what is left is an error along the orbit, the smaller the better the solver is.

plt.show()
