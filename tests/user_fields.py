"""Fields and corrections as users write them: what they are held in, write into, and reach."""

import functools
import threading

import torch
from torch import nn

FIT = {"n_steps": 2, "max_epochs": 2, "random_state": 0}
"""Parameters of a tiny fit."""


class Net(nn.Module):
    """With everything that a fit must settle: dropout, running statistics, weights."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 2))

    def velocity(self, t, z):
        return self.net(z)

    forward = velocity


class Holder:
    def __init__(self, net):
        self.nets = [net]

    def __call__(self, t, z):
        return self.nets[0](t, z)


class PlainList(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.nets = [net]

    def forward(self, t, z):
        return self.nets[0](t, z)


def call(t, z, net):
    return net(t, z)


FORMS = {
    "module": lambda net: net,
    "bound method": lambda net: net.velocity,
    "object": Holder,
    "partial": lambda net: functools.partial(call, net=net),
    "list in a module": PlainList,
}


class NoDropout(Net):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2))


class Potential(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.energy = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, t, z):
        with torch.enable_grad():
            q = z if z.requires_grad else z.detach().requires_grad_(True)
            (slope,) = torch.autograd.grad(self.energy(q).sum(), q, create_graph=True)
        return -slope


class Locked(nn.Module):
    """Cannot be copied or pickled."""

    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()

    def forward(self, t, z):
        return -z


def first_column(t, z):
    """Returns another shape than z's."""
    return z[:, :1]


def decay(t, z):
    """A field of any width."""
    return -z
