"""Flow matching of fields that ``torch.func.vmap`` cannot call, and trainings that have no adjoint."""

import re

import numpy as np
import pytest
import torch
from torch import nn

from sklearn_hyper import ContinuousNormalizingFlow, HypersolverDensity, NeuralODERegressor
from sklearn_hyper.modules.flow import Flow
from sklearn_hyper.modules.seeding import own_generator
from sklearn_hyper.training.flow_fitting import FlowMatchingLoss, check_matching
from sklearn_hyper.training.nets import TrainingDivergedError

X = np.random.default_rng(0).normal(size=(64, 2)) * 0.3 + np.repeat([[-2.0, 0.0], [2.0, 1.0]], 32, axis=0)


class Potential(nn.Module):
    """Minus the slope of an energy, by autograd inside."""

    def __init__(self):
        super().__init__()
        self.energy = nn.Sequential(nn.Linear(2, 16), nn.Softplus(), nn.Linear(16, 1)).double()

    def forward(self, t, z):
        with torch.enable_grad():
            q = z if z.requires_grad else z.detach().requires_grad_(True)
            return -torch.autograd.grad(self.energy(q).sum(), q, create_graph=True)[0]


class OneBuffer(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2).double()
        self.register_buffer("out", torch.zeros(8000, 2, dtype=torch.float64))

    def forward(self, t, z):
        out = self.out[: len(z)].clone() if torch.is_grad_enabled() else self.out[: len(z)]
        return out.copy_(self.layer(z))


class BranchesOnTime(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2).double()

    def forward(self, t, z):
        return self.layer(z) if t < 0.5 else -self.layer(z)


class GrowingBuffer(nn.Module):
    """Allocates its output anew where its shape changes, which it does not see under vmap."""

    def __init__(self):
        super().__init__()
        self.layer, self.out = nn.Linear(2, 2).double(), None

    def forward(self, t, z):
        value = self.layer(z)
        if self.out is None or self.out.shape != value.shape:
            self.out = torch.empty_like(value).detach()
        self.out = self.out.detach()
        self.out.copy_(value)
        return self.out


FIELDS = [Potential, OneBuffer, GrowingBuffer, BranchesOnTime]


@pytest.mark.filterwarnings("ignore::sklearn_hyper.numerics.residuals.ConditioningWarning")
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("field", FIELDS)
def test_flows_match_fields_that_vmap_cannot_call(field):
    flow = ContinuousNormalizingFlow(field(), max_epochs=40, lr=1e-2, random_state=0).fit(X)
    losses = [row["valid_loss"] for row in flow.history_]
    assert min(losses) < losses[0]
    fast = HypersolverDensity(flow, base_solver="heun", n_steps=4, max_epochs=2, random_state=0).fit(X)
    assert abs(fast.score(X) - flow.score(X)) < 0.05


def test_rows_that_share_times_have_the_loss_of_rows_of_their_own():
    flow = Flow(nn.Linear(2, 2).double().forward, n_features=2)

    class Field(nn.Module):
        def forward(self, t, z):
            return torch.sin(z) * t

    flow = Flow(Field(), n_features=2)
    x = torch.from_numpy(X)
    z0, s = torch.randn(64, 2, generator=own_generator(0)).double(), (torch.arange(64) % 16 + 0.5) / 16
    losses = [FlowMatchingLoss(flow, row_times=row_times)(x, (s.double(), z0)) for row_times in (True, False)]
    torch.testing.assert_close(*losses)
    assert check_matching(flow, x[:2]) and not check_matching(Flow(Potential(), n_features=2), x[:2])
    shared, _ = FlowMatchingLoss(flow, own_generator(0), row_times=False).draw(64, x)
    assert len(shared.unique()) == 16 and torch.equal((16 * shared).floor().unique(), torch.arange(16).double())


@pytest.mark.parametrize("said", ["underflow in dt 5e-21", "non-finite values in state `y`: nan"])
def test_an_adjoint_that_gives_up_is_named(said, monkeypatch):
    def gives_up(*args):
        raise AssertionError(said)

    node = NeuralODERegressor(adjoint=True, max_epochs=1, random_state=0)
    monkeypatch.setattr("sklearn_hyper.training.nets.TrainingNet.train", gives_up)
    with pytest.raises(TrainingDivergedError, match=rf"gave up \({re.escape(said)}\).*adjoint=False or a fixed-step"):
        node.fit(X, X[:, 0])
    assert not hasattr(node, "neural_ode_")
