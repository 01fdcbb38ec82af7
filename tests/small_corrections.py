"""Corrections with random weights, on steps with true residuals: what a fit would hand over, without the fit."""

import math

import numpy as np
import torch
from torch import nn

from sklearn_hyper import ConvCorrection, MLPCorrection, NeuralODE
from sklearn_hyper.modules import BoundedCorrection, ConvVectorField, HypersolvedODE, MLPVectorField, NetInputs, Units
from sklearn_hyper.modules.corrections import ScaleSample, build_net, fit_units
from sklearn_hyper.numerics import StepPlan, compute_residuals, reference_solution, resolve_base_solver

DOUBLE = torch.float64
SPAN = (0.0, 1.0)


# ---------------------------------------------------------------------- steps
def field(t, z):
    """Smooth, coupled along the last axis, dependent on time; any shape."""
    return torch.sin(z.roll(1, dims=-1)) * torch.cos(t) - 0.5 * z + 0.3


def controlled_field(t, z, x):
    return field(t, z) + x.mean()


def linear_field(t, z):
    return z.roll(1, dims=-1) - 0.5 * z


def make_steps(shape, base_solver="heun", x=None, n_steps=4):
    """True residuals of a batch of six."""
    f = field if x is None else controlled_field
    z0 = torch.randn(6, *shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(1))
    grid = np.linspace(*SPAN, n_steps + 1).tolist()
    states = reference_solution(f, z0, grid, rtol=1e-10, atol=1e-10, x=x)
    return compute_residuals(f, states, grid, base_solver, x=x)


def plan_of(step):
    return StepPlan(0, step.s, step.eps, step.kind)


def kinds_of(steps):
    """Each once, those of start-up steps first."""
    return tuple(dict.fromkeys(step.kind for step in steps))


# ---------------------------------------------------------------------- corrections
def randomize(net, std):
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=std)
    return net


def make_net(spec, steps, x=None, *, std=None):
    """The net of a spec in the scales of some steps, as it starts or with random weights."""
    net = build_net(spec, NetInputs(steps[0].z, x, kinds_of(steps), math.nan))
    if std is not None:
        randomize(net, std)
    return net.with_scales(ScaleSample(steps, x, SPAN))


def make_correction(spec, steps, x=None, *, std=None):
    """What a fit makes of a spec, before training or with random weights."""
    return BoundedCorrection(make_net(spec, steps, x, std=std), fit_units(steps)).requires_grad_(False)


def apply(g, step, x=None):
    return g(step.eps, step.z.new_tensor(step.s), step.z, step.stages, x, step.kind)


def apply_folded(g, step, x=None):
    """What :func:`apply` is to a correction, to what is left of it in a step."""
    return g(step.eps, step.z.new_tensor(step.s), step.z, step.stages, x)


class Emit(nn.Module):
    """A user's correction whose output is its state, times a factor."""

    def __init__(self, factor=1.0):
        super().__init__()
        self.factor = factor

    def forward(self, eps, s, z, stages, x=None):
        return self.factor * z


class Own(nn.Module):
    """A user's correction, with a dropout that inference must not run."""

    def __init__(self, n_state):
        super().__init__()
        self.layer, self.dropout = nn.Linear(2 * n_state, n_state), nn.Dropout(0.5)

    def forward(self, eps, s, z, stages, x=None):
        return torch.tanh(self.layer(self.dropout(torch.cat([z, stages[0]], dim=1)))) * (1 + eps * s)


# name: (spec, shape of the state, shape of the input x)
CASES = {
    "vector": (MLPCorrection(hidden=8), (3,), None),
    "vector-wide": (MLPCorrection(hidden=8, depth=1, activation="tanh"), (7,), None),
    "vector-ungated": (MLPCorrection(hidden=8, activation="softplus", gate=False), (3,), None),
    "vector-controlled": (MLPCorrection(hidden=8, activation="prelu"), (3,), (2,)),
    "scalar": (MLPCorrection(hidden=8), (1,), None),
    "vector-family": (MLPCorrection(hidden=8, tableaus=["heun"]), (3,), None),
    "matrix": (MLPCorrection(hidden=8), (2, 3), None),
    "matrix-controlled": (MLPCorrection(hidden=8), (2, 3), (2, 2)),
    "image-flat": (MLPCorrection(hidden=8), (2, 4, 5), None),
    "image": (ConvCorrection(hidden=6), (2, 4, 5), None),
    "image-deep": (ConvCorrection(hidden=6, depth=2, kernel_size=1), (2, 4, 5), None),
    "image-ungated": (ConvCorrection(hidden=6, gate=False), (2, 4, 5), None),
    "image-family": (ConvCorrection(hidden=6, tableaus=["heun"]), (2, 4, 5), None),
    "image-controlled": (ConvCorrection(hidden=6), (2, 4, 5), (1, 4, 5)),
}
SPECS = {"vector": (MLPCorrection(hidden=8), (3,)), "image": (ConvCorrection(hidden=6), (2, 4, 5))}


# ---------------------------------------------------------------------- hypersolved ODEs
class Controlled(nn.Module):
    """f(t, z, x) for two states and three inputs."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(5, 2)

    def forward(self, t, z, x):
        return torch.tanh(self.linear(torch.cat([z, x], dim=1))) + t


def make_ode(kind):
    """A Neural ODE with maps for some kind of state, and an input for it."""
    x = torch.randn(5, 3)
    if kind == "vector":
        return NeuralODE(MLPVectorField(6, hidden=8), input_map=nn.Linear(3, 6), output_map=nn.Linear(6, 2)), x
    if kind == "planar":
        return NeuralODE(MLPVectorField(2, hidden=8), input_map=nn.Linear(3, 2), output_map=nn.Linear(2, 2)), x
    if kind == "controlled":
        maps = {"input_map": nn.Linear(3, 2), "output_map": nn.Linear(2, 2)}
        return NeuralODE(Controlled(), **maps, data_controlled=True), x
    maps = {"input_map": nn.Conv2d(1, 2, 1), "output_map": nn.Sequential(nn.Flatten(), nn.Linear(32, 2))}
    return NeuralODE(ConvVectorField(2, hidden=3), **maps), torch.randn(5, 1, 4, 4)


def bound_to(net, z, method, cap=0.5):
    """A net in half the units of a state, for all kinds of a method's steps."""
    scale = torch.full((z.shape[1], *[1] * (z.ndim - 2)), 0.5)
    return BoundedCorrection(net, Units(method.kinds, [scale] * len(method.kinds), cap=cap, floor=0.1))


def make_hypersolved(kind, base_solver, spec, grid):
    """A hypersolved ODE in float64 with maps and a random correction, frozen as fits leave it, and an input for it.

    ``spec`` may also be "bounded" or "bare": a module of the user's own, in the library's bound or without.
    """
    method, (ode, x) = resolve_base_solver(base_solver), make_ode(kind)
    z = ode.input_map(x).detach()
    if isinstance(spec, str):
        g = Own(z.shape[1]) if spec == "bare" else bound_to(randomize(Own(z.shape[1]), 0.3), z, method)
    else:
        net = build_net(spec, NetInputs(z, ode.inputs(x).x, method.kinds, math.nan))
        g = bound_to(randomize(net, 0.3), z, method)
    module = HypersolvedODE(ode, method, g, grid).double().eval()
    return module.requires_grad_(False), x.double()
