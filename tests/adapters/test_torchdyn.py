"""Stand-ins with torchdyn's contract: times and controls are set in modules, and training leaves tensors there."""

import pytest
import torch
from torch import nn

from sklearn_hyper import HypersolverRegressor
from sklearn_hyper.adapters import from_torchdyn


class DepthCat(nn.Module):
    def __init__(self):
        super().__init__()
        self.t = None

    def forward(self, x):
        return torch.cat([x, self.t * torch.ones(len(x), 1)], dim=1)


class DataControl(nn.Module):
    def __init__(self):
        super().__init__()
        self._control = None

    def forward(self, x):
        return torch.cat([x, self._control], dim=1)


class DEFunc(nn.Module):
    def __init__(self, net, order=1):
        super().__init__()
        self.vf, self.order, self.nfe, self.integral_loss = net, order, 0.0, None

    def forward(self, t, x, args={}):  # noqa: B006
        self.nfe += 1
        for module in self.vf.modules():
            if hasattr(module, "t"):
                module.t = t
        if self.order == 1:
            return self.vf(x)
        half = x.shape[1] // 2
        return torch.cat([x[:, half:], self.vf(x)], dim=1)


class Node(nn.Module):
    def __init__(self, net, order=1):
        super().__init__()
        self.vf, self.solver, self.t_span = DEFunc(net, order), "dopri5", None
        # torchdyn keeps the concatenated weights of the last step, which are no leaf and cannot be deep-copied.
        self.vf_params = torch.cat([p.flatten() for p in self.vf.parameters()])


NETS = {
    "depth": lambda: (nn.Sequential(DepthCat(), nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)), 1),
    "control": lambda: (nn.Sequential(DataControl(), nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)), 1),
    "order 2": lambda: (nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1)), 2),
}


@pytest.fixture(params=NETS)
def node(request):
    """A node right after a step of training."""
    torch.manual_seed(0)
    node = Node(*NETS[request.param]())
    x = torch.randn(20, 2)
    for module in node.modules():
        if hasattr(module, "_control"):
            module._control = node.vf.vf[1](torch.cat([x, x], dim=1))[:, :2]  # with a graph
    node.vf(torch.tensor(0.5, requires_grad=True) * 1, x).sum().backward()
    return node


def test_it_is_taken_right_after_training(node):
    ode = from_torchdyn(node)
    x = torch.randn(30, 2)
    assert ode.data_controlled == any(hasattr(module, "_control") for module in node.modules())

    def plain(t, z):
        for module in node.modules():
            if hasattr(module, "_control"):
                module._control = x
        return node.vf(t, z)

    slope = ode.vector_field(torch.tensor(0.3), x, *ode.inputs(x).arguments)
    torch.testing.assert_close(slope, plain(torch.tensor(0.3), x).detach())
    assert not slope.requires_grad and all(p.requires_grad for p in node.parameters())


def test_calls_leave_nothing_behind(node):
    ode = from_torchdyn(node)
    ode(torch.randn(10, 2), rtol=1e-2)
    for module in ode.modules():
        assert getattr(module, "_control", None) is None
        assert getattr(module, "t", None) is None
        assert getattr(module, "nfe", 0.0) == 0.0


def test_it_fits(node):
    x = torch.randn(100, 2, generator=torch.Generator().manual_seed(3))
    fast = HypersolverRegressor(from_torchdyn(node), n_steps=2, max_epochs=15, random_state=0).fit(x)
    assert fast.errors_[2]["mean"] <= fast.errors_[2]["base_mean"]


def test_the_span_is_the_nodes(node):
    node.t_span = torch.linspace(0, 3, 4)
    assert from_torchdyn(node).t_span == (0.0, 3.0)
    assert from_torchdyn(node, t_span=(1, 0)).t_span == (1.0, 0.0)
    assert from_torchdyn(node.vf).t_span == (0.0, 1.0)


def test_what_is_more_than_a_state_is_refused(node):
    node.vf.integral_loss = nn.Identity()
    with pytest.raises(ValueError, match="integral_loss beside the state"):
        from_torchdyn(node)
    node.vf.integral_loss = None
    node.vf.vf[0].trace_estimator = "hutchinson"
    with pytest.raises(ValueError, match="node integrates a trace beside the state"):
        from_torchdyn(node)
    with pytest.raises(TypeError, match="node must be a torchdyn NeuralODE or DEFunc, got 3"):
        from_torchdyn(3)
