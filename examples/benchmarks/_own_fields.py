"""Fields of kinds that users write by hand: energies, graphs, attention, states that are tuples, guidance."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from _before_and_after import (
    N_FIT,
    K,
    N,
    by_dopri5,
    by_torchdiffeq,
    exact_end,
    hypersolved,
    measured,
    mlp,
    no_grad,
    noise,
    train,
)
from torch import Tensor, nn
from torch.func import grad, jacrev, vmap
from torchdiffeq import odeint

from sklearn_hyper import NeuralODE
from sklearn_hyper.adapters import PytreeField, from_velocity


class Hamiltonian(nn.Module):
    """Hamilton's equations of a learned energy, by autograd inside."""

    def __init__(self) -> None:
        super().__init__()
        self.energy = mlp(2, 1)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        with torch.enable_grad():
            z = z if z.requires_grad else z.detach().requires_grad_(True)
            (slope,) = torch.autograd.grad(self.energy(z).sum(), z, create_graph=True)
        return torch.stack([slope[:, 1], -slope[:, 0]], dim=1)


def match_field(field: nn.Module, true: Callable[[Tensor], Tensor], draw: Callable[[int], Tensor], steps: int) -> None:
    """Train a field to be another one."""

    def loss(step: int) -> Tensor:
        z = draw(128)
        return (field(torch.rand(()), z) - true(z)).pow(2).mean()

    train(field, loss, steps)


def hamiltonian() -> dict[str, Any]:
    """A Hamiltonian net of a pendulum, whose energy is p**2 / 2 - 9.81 cos q, over one second."""
    field = Hamiltonian()

    def draw(n: int, seed: int | None = None) -> Tensor:
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        return (2 * torch.rand(n, 2, generator=generator) - 1) * torch.tensor([1.5, 4.0])

    match_field(field, lambda z: torch.stack([z[:, 1], -9.81 * z[:, 0].sin()], dim=1), draw, 1500)
    ode, fresh = NeuralODE(field).eval(), draw(N, 1)
    exact = exact_end(ode, fresh)
    return {
        "own adaptive": by_dopri5(ode, fresh, exact),
        "own fixed": by_torchdiffeq(ode, fresh, exact),
        "ours": hypersolved(ode, draw(2000, 2), fresh, exact),
    }


class Lagrangian(nn.Module):
    """The Euler-Lagrange equations of a learned Lagrangian: derivatives of derivatives, and a linear solve."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(4, 1)

    def lagrangian(self, q: Tensor, v: Tensor) -> Tensor:
        return 0.5 * v.square().sum() + self.net(torch.cat([q.cos(), v]))[0]

    def acceleration(self, q: Tensor, v: Tensor) -> Tensor:
        momentum = grad(self.lagrangian, 1)
        mass = jacrev(momentum, 1)(q, v)
        force = grad(self.lagrangian, 0)(q, v) - jacrev(momentum, 0)(q, v) @ v
        return torch.linalg.solve(mass, force)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        q, v = z.chunk(2, dim=1)
        return torch.cat([v, vmap(self.acceleration)(q, v)], dim=1)


def double_pendulum(z: Tensor) -> Tensor:
    """Two equal masses on equal rods, with g = 1."""
    (a, b), (v, w) = z[:, :2].unbind(1), z[:, 2:].unbind(1)
    apart = a - b
    mass = torch.stack([torch.full_like(a, 2.0), apart.cos(), apart.cos(), torch.ones_like(a)], dim=1).reshape(-1, 2, 2)
    force = torch.stack([-w.square() * apart.sin() - 2 * a.sin(), v.square() * apart.sin() - b.sin()], dim=1)
    return torch.cat([z[:, 2:], torch.linalg.solve(mass, force)], dim=1)


def lagrangian() -> dict[str, Any]:
    """A Lagrangian net of a double pendulum, over two units of time."""
    field = Lagrangian()

    def draw(n: int, seed: int | None = None) -> Tensor:
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        return 2 * torch.rand(n, 4, generator=generator) - 1

    match_field(field, double_pendulum, draw, 400)
    ode, fresh = NeuralODE(field, t_span=(0.0, 2.0)).eval(), draw(N, 1)
    exact = exact_end(ode, fresh)
    return {
        "own adaptive": by_dopri5(ode, fresh, exact),
        "own fixed": by_torchdiffeq(ode, fresh, exact),
        "ours": hypersolved(ode, draw(N_FIT, 2), fresh, exact),
    }


N_NODES = 12
_RING = torch.stack([torch.arange(N_NODES), (torch.arange(N_NODES) + 1) % N_NODES])
_ONE_WAY = torch.cat([_RING, torch.tensor([[0, 3, 5], [6, 9, 11]])], dim=1)
EDGES = torch.cat([_ONE_WAY, _ONE_WAY.flip(0)], dim=1)
"""A ring with three chords, both ways."""


def oscillators(z: Tensor) -> Tensor:
    """Turning nodes in the plane that pull at their neighbours."""
    source, target = EDGES
    pull = torch.zeros_like(z).index_add(1, target, torch.tanh(2 * (z[:, source] - z[:, target])))
    turn = torch.stack([-z[..., 1], z[..., 0]], dim=-1)
    return 2 * turn + 0.5 * pull - 0.3 * z * (z.square().sum(-1, keepdim=True) - 1)


def nodes(n: int, seed: int | None = None) -> Tensor:
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    return 1.2 * torch.randn(n, N_NODES, 2, generator=generator)


def on_nodes(field: nn.Module, evaluations: tuple[int, ...], beside: nn.Module | None = None) -> dict[str, Any]:
    """A field on nodes, at several numbers of evaluations; with a net beside it, at four."""
    match_field(field, oscillators, nodes, 800)
    ode, fresh, fitted = NeuralODE(field).eval(), nodes(N, 1), nodes(N_FIT, 2)
    exact = exact_end(ode, fresh)
    found = {"own adaptive": by_dopri5(ode, fresh, exact)}
    for steps in evaluations:
        name = "" if steps == K else f" {steps}"
        found[f"own fixed{name}"] = by_torchdiffeq(ode, fresh, exact, steps)
        found[f"ours{name}"] = hypersolved(ode, fitted, fresh, exact, steps=steps)
    if beside is not None:
        found["ours, a message-passing g"] = hypersolved(ode, fitted, fresh, exact, correction=beside)
    return found


def graph() -> dict[str, Any]:
    """Graph convolutions of torch_geometric; a state has the numbers of all nodes."""
    from torch_geometric.nn import GCNConv

    class Field(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([GCNConv(2, 24), GCNConv(24, 24), GCNConv(24, 2)])
            self.own = nn.Linear(2, 2)
            self.register_buffer("edges", EDGES)

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            first, second, last = self.layers
            h = second(first(z, self.edges).tanh(), self.edges).tanh()
            return last(h, self.edges) + self.own(z)

    class MessagePassing(nn.Module):
        """g of one layer of messages: it reads the node, its last stage, and those of its neighbours."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.last, self.own = GCNConv(5, 32), nn.Linear(32, 2), nn.Linear(5, 32)
            self.register_buffer("edges", EDGES)
            nn.init.zeros_(self.last.weight)
            nn.init.zeros_(self.last.bias)

        def forward(self, eps: float, s: Tensor, z: Tensor, stages: list[Tensor], x: Tensor | None = None) -> Tensor:
            h = torch.cat([z, stages[-1], s.to(z.dtype).expand(*z.shape[:-1], 1)], dim=-1)
            return self.last((self.first(h, self.edges) + self.own(h)).tanh())

    return on_nodes(Field(), (2, 4, 8), MessagePassing())


def graph_attention() -> dict[str, Any]:
    """Graph attention of torch_geometric, which takes no batch axis: a batch is one graph without edges between."""
    from torch_geometric.nn import GATConv

    class Field(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last, self.own = GATConv(2, 16, heads=2), GATConv(32, 2), nn.Linear(2, 2)
            self.register_buffer("edges", EDGES)

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            n, m, _ = z.shape
            edges = (self.edges[:, None] + m * torch.arange(n, device=z.device)[:, None]).reshape(2, -1)
            h = self.first(z.reshape(n * m, 2), edges).tanh()
            return self.last(h, edges).reshape(z.shape) + self.own(z)

    return on_nodes(Field(), (4,))


class Attention(nn.Module):
    """A transformer's block over tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 32)
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.head = nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 32), nn.SiLU(), nn.Linear(32, 2))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        h = self.embed(torch.cat([z, t.to(z.dtype).expand(*z.shape[:-1], 1)], dim=-1))
        return self.head(h + self.attention(h, h, h, need_weights=False)[0])


def attention() -> dict[str, Any]:
    """The same oscillators as tokens, each of which sees all others."""
    return on_nodes(Attention(), (2, 4, 8))


class SecondOrder(nn.Module):
    """Positions, velocities and the energy lost so far, as torchdiffeq takes them: a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.force = mlp(2, 2)

    def forward(self, t: Tensor, state: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        q, v, _ = state
        return v, self.force(q) - 0.1 * v, 0.1 * v.square().sum(dim=1)


def tuples() -> dict[str, Any]:
    """A tuple of three through PytreeField; the net is a force, -4 sin q."""
    model = SecondOrder()

    def loss(step: int) -> Tensor:
        q = 2 * torch.randn(128, 2)
        return (model.force(q) + 4 * q.sin()).pow(2).mean()

    train(model.force, loss)
    start = noise(N), noise(N, seed=3), torch.zeros(N)
    field = PytreeField(model, example=start)
    ode, fresh = NeuralODE(field).eval(), field.pack(start)
    exact = exact_end(ode, fresh)
    ends, even = torch.tensor([0.0, 1.0]), torch.linspace(0, 1, K // 2 + 1)

    def solve(times: Tensor, **options: Any) -> Tensor:
        return field.pack(tuple(states[-1] for states in odeint(model, start, times, **options)))

    return {
        "own adaptive": measured(no_grad(lambda: solve(ends, rtol=1e-5, atol=1e-5)), exact, model),
        "own fixed": measured(no_grad(lambda: solve(even, method="midpoint")), exact, model),
        "ours": hypersolved(
            ode, field.pack((noise(2000, seed=2), noise(2000, seed=4), torch.zeros(2000))), fresh, exact
        ),
    }


class Labelled(nn.Module):
    """A velocity of a state, a time and a label, or None for no label."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.labels = mlp(7, 2), nn.Embedding(3, 4)

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        label = torch.full((len(x),), 2) if label is None else label
        return self.net(torch.cat([x, t[:, None], self.labels(label)], dim=1))


class Guided(nn.Module):
    """Classifier-free guidance: two calls of the model, a label and a weight for every row."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, t: Tensor, *, label: Tensor, weight: Tensor) -> Tensor:
        free = self.model(x, t, None)
        return free + weight[:, None] * (self.model(x, t, label) - free)


def guidance() -> dict[str, Any]:
    """Each moon is a class. Labels and guidance weights from 1 to 4 vary by row; evaluations are calls of the model."""
    model = Labelled()

    def loss(step: int) -> Tensor:
        label, start, t = torch.randint(2, (256,)), torch.randn(256, 2), torch.rand(256)
        angle = torch.rand(256) * torch.pi
        x = torch.stack([angle.cos() + label - 0.5, (1 - 2 * label) * (angle.sin() - 0.25)], dim=1)
        x = (x + 0.05 * torch.randn(256, 2)) * torch.tensor([1.15, 2.0])
        seen = torch.where(torch.rand(256) < 0.15, torch.tensor(2), label)
        state = (1 - t[:, None]) * start + t[:, None] * x
        return (model(state, t, seen) - (x - start)).pow(2).mean()

    def conditions(n: int, seed: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        weight = 1 + 3 * torch.rand(n, generator=generator)
        return {"label": torch.randint(2, (n,), generator=generator), "weight": weight}

    train(model, loss)
    ode = from_velocity(Guided(model), order="xt", condition=["label", "weight"])
    fresh, condition = noise(N), conditions(N, 3)
    exact, field = exact_end(ode, fresh, condition), partial(ode.vector_field, **condition)
    ends, even = torch.linspace(0, 1, 2), torch.linspace(0, 1, K // 2 + 1)
    net = ode.vector_field.model.model  # type: ignore[union-attr]
    ours = hypersolved(ode, noise(2000, seed=2), fresh, exact, conditions=(conditions(2000, 4), condition))
    return {
        "own adaptive": measured(no_grad(lambda: odeint(field, fresh, ends, rtol=1e-5, atol=1e-5)[-1]), exact, net),
        "own fixed": measured(no_grad(lambda: odeint(field, fresh, even, method="midpoint")[-1]), exact, net),
        "ours": ours | {"evaluations": 2 * K},
    }


OWN_FIELDS = {
    "hamiltonian": hamiltonian, "lagrangian": lagrangian, "graph": graph, "graph_attention": graph_attention, "attention": attention, "tuples": tuples, "guidance": guidance,
}  # fmt: skip
