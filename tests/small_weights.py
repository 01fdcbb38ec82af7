"""Fields of many kinds, and corrections in their weights with zero or random changes: what a fit makes, without the fit."""

import pytest
import torch
from torch import nn

from sklearn_hyper import NeuralODE, WeightCorrection
from sklearn_hyper.modules.corrections.changes import FullChanges, LowRankChanges, OwnWeights, SmoothWeights
from sklearn_hyper.modules.corrections.weights import FieldWeights
from sklearn_hyper.numerics import FixedMesh, resolve_base_solver

DOUBLE = torch.float64
SPAN = (0.0, 1.0)


class Growth(nn.Module):
    """f = rate z, whose Euler solve is a product."""

    def __init__(self, rate=0.5):
        super().__init__()
        self.rate = nn.Parameter(torch.tensor([rate], dtype=DOUBLE))

    def forward(self, t, z):
        return self.rate * z


class Wave(nn.Module):
    """A small smooth net that depends on time."""

    def __init__(self, hidden=6):
        super().__init__()
        self.first, self.last = nn.Linear(3, hidden, dtype=DOUBLE), nn.Linear(hidden, 2, dtype=DOUBLE)

    def forward(self, t, z):
        return self.last(torch.tanh(self.first(torch.cat([z, t.expand(len(z), 1)], dim=1))))


class Tied(nn.Module):
    """Two layers of one weight."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(2, 2, dtype=DOUBLE), nn.Linear(2, 2, dtype=DOUBLE)
        self.last.weight = self.first.weight

    def forward(self, t, z):
        return self.last(torch.tanh(self.first(z)))


class Behind:
    """A field that is no module, and reaches one."""

    def __init__(self, net):
        self.net = net

    def __call__(self, t, z):
        return self.net(t, z)


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.cell = kind(2, 2, batch_first=True, dtype=DOUBLE)

    def forward(self, t, z):
        return self.cell(z[:, None])[0][:, 0]


class Plain(nn.Module):
    """tanh of some layers."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(*layers).double()

    def forward(self, t, z):
        return torch.tanh(self.layers(z))


class Attends(nn.Module):
    """Attention between the two numbers of a state, each a token of two with its place."""

    def __init__(self):
        super().__init__()
        self.places = nn.Embedding(2, 2, dtype=DOUBLE)
        self.attention = nn.MultiheadAttention(2, 1, batch_first=True, dtype=DOUBLE)
        self.norm = nn.LayerNorm(2, dtype=DOUBLE)

    def forward(self, t, z):
        tokens = self.norm(z[..., None] + self.places.weight)
        return self.attention(tokens, tokens, tokens, need_weights=False)[0].mean(-1) - z


FIELDS = {
    "time": Wave,
    "tied": Tied,
    "attention": Attends,
    "rnn": lambda: Recurrent(nn.RNN),
    "gru": lambda: Recurrent(nn.GRU),
    "lstm": lambda: Recurrent(nn.LSTM),
    "weight norm": lambda: Plain(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))),
    "orthogonal": lambda: Plain(nn.utils.parametrizations.orthogonal(nn.Linear(2, 2))),
    "batch norm": lambda: Plain(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.ReLU(inplace=True), nn.Linear(4, 2)),
    "conv 1d": lambda: Plain(nn.Unflatten(1, (1, 2)), nn.Conv1d(1, 2, 3, padding=1), nn.Conv1d(2, 1, 1), nn.Flatten()),
    "conv 3d": lambda: Plain(nn.Unflatten(1, (1, 1, 1, 2)), nn.Conv3d(1, 1, 3, padding=1), nn.Flatten()),
    "behind": lambda: Behind(Wave()),
}


each_field = pytest.mark.parametrize("make", FIELDS.values(), ids=FIELDS)


def made(make):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ode = NeuralODE(make(), t_span=SPAN).eval()
    return ode.requires_grad_(False)


def states(n=7):
    return torch.randn(n, 2, dtype=DOUBLE, generator=torch.Generator().manual_seed(1))


def chosen(f, **params):
    return WeightCorrection(**params).chosen_weights(f)


def own(f, method="euler", n_steps=3, *, rank=None, std=0.0, t_span=SPAN):
    """Weights for each evaluation of a mesh, zero or random."""
    schedule = OwnWeights.of_steps(FixedMesh.of(resolve_base_solver(method), t_span, n_steps).plans)
    return FieldWeights([changes(f, schedule.n_parts, rank)], schedule).apply(lambda m: randomized(m, std))


def smooth(f, n_steps=1, std=0.0):
    schedule = SmoothWeights(SPAN, (SPAN[1] - SPAN[0]) / n_steps)
    return FieldWeights([changes(f, 3, None)], schedule).apply(lambda m: randomized(m, std))


def changes(f, n_parts, rank):
    tensors = chosen(f)
    if rank is not None:
        tensors = {name: tensor for name, tensor in tensors.items() if tensor.ndim > 1}
        return LowRankChanges(tensors, n_parts, rank)
    return FullChanges(tensors, n_parts)


def randomized(module, std):
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in module.parameters(recurse=False):
            if std and not parameter.any():
                parameter.copy_(std * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))


def solve(f, z, correction, method="euler", n_steps=3, t_span=SPAN):
    """The end of a solve."""
    mesh = FixedMesh.of(resolve_base_solver(method), t_span, n_steps)
    return list(mesh.iterate(f, z, correction))[-1]
