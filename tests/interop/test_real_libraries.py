"""Adapters beside the libraries that they serve: the same ends as their own solvers at tight tolerances."""

import pytest
import torch
from torch import nn

from sklearn_hyper import HypersolverRegressor
from sklearn_hyper.adapters import from_denoiser, from_sbi, from_torchcde, from_torchdyn, from_velocity, from_zuko

pytestmark = pytest.mark.filterwarnings("default")  # theirs, of their dependencies


def noise(n=20, d=2, seed=0, dtype=torch.float64):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def close(found, expected, atol=1e-6):
    torch.testing.assert_close(found, expected.detach(), rtol=0, atol=atol)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


# ---------------------------------------------------------------------- velocities
def test_torchcfm(library):
    library("torchcfm")
    from torchcfm.models import MLP
    from torchcfm.utils import torch_wrapper
    from torchdiffeq import odeint

    model, x = torch_wrapper(MLP(dim=2, time_varying=True)).double(), noise()
    expected = odeint(model, x, torch.tensor([0.0, 1.0], dtype=torch.float64), rtol=1e-9, atol=1e-9)[-1]
    close(from_velocity(model, order="tx", t="scalar")(x, rtol=1e-9), expected)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_the_unet_of_torchcfm_takes_labels(library):
    library("torchcfm")
    from torchcfm.models.unet import UNetModel

    net = UNetModel(
        dim=(1, 8, 8), num_channels=32, num_res_blocks=1, channel_mult=(1, 2), num_classes=3, class_cond=True
    ).eval()
    nn.init.normal_(net.out[-1].weight)  # it starts at zero
    ode = from_velocity(net, order="tx", condition="y")
    x, y = torch.randn(3, 1, 8, 8), torch.tensor([0, 1, 2])
    t = torch.tensor(0.3)
    close(ode.vector_field(t, x, y=y), net(t.expand(3), x, y))
    with pytest.raises(ValueError, match="condition must have the entries"):
        ode.vector_field(t, x)


def test_flow_matching(library):
    library("flow_matching")
    from flow_matching.solver import ODESolver
    from flow_matching.utils import ModelWrapper

    class Model(ModelWrapper):
        def forward(self, x, t, **extras):
            return self.model(torch.cat([x, t.expand(len(x))[:, None]], dim=1)) + extras.get("shift", 0)

    model, x = Model(nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 2)).double()), noise()
    solver, shift = ODESolver(velocity_model=model), noise(seed=1)
    grid = torch.tensor([0.0, 1.0], dtype=torch.float64)
    for name, extras in ((None, {}), ("shift", {"shift": shift})):
        expected = solver.sample(
            x_init=x, step_size=None, method="dopri5", rtol=1e-9, atol=1e-9, time_grid=grid, **extras
        )
        ode = from_velocity(model, order="keywords", condition=name)
        close(ode(x, rtol=1e-9, condition=extras), expected)


# ---------------------------------------------------------------------- denoisers
@pytest.mark.parametrize("prediction, theirs", [("eps", "epsilon"), ("v", "v_prediction"), ("x0", "sample")])
def test_diffusers_ddim_in_small_steps(library, prediction, theirs):
    library("diffusers")
    from diffusers import DDIMScheduler

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 2))

        def forward(self, x, t):
            t = t.to(x).expand(len(x))[:, None] / 1000
            return 0.1 * self.net(torch.cat([x, t], dim=1)) + (x if prediction == "eps" else 0)

    model, x = Model(), noise(dtype=torch.float32)
    scheduler = DDIMScheduler(prediction_type=theirs, clip_sample=False, set_alpha_to_one=False)
    errors = []
    for steps in (250, 1000):
        scheduler.set_timesteps(steps)
        state = x
        with torch.no_grad():
            for t in scheduler.timesteps[:-1]:
                state = scheduler.step(model(state, t), t, state).prev_sample
            expected = from_denoiser(model, prediction, schedule=scheduler)(x)
        if steps == 1000:
            errors.append((state - expected).abs().max().item())
    # 999 steps of first order, from timestep 999 to 0.
    assert errors[0] < 1e-2 * expected.abs().max()


def test_a_unet_of_diffusers(library):
    library("diffusers")
    from diffusers import DDPMScheduler, UNet2DModel

    net = UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 16), norm_num_groups=4,
        layers_per_block=1, num_class_embeds=3, down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    ).eval()  # fmt: skip
    ode = from_denoiser(net, "v", schedule=DDPMScheduler(), condition="class_labels")
    x, labels = torch.randn(3, 1, 8, 8), torch.tensor([0, 1, 2])
    with torch.no_grad():
        end = ode(x, rtol=1e-3, condition={"class_labels": labels})
        # At the start of the span, the model gets the last timestep and x itself.
        t = torch.tensor(ode.t_span[0])
        total = ode.vector_field.levels.total(ode.t_span[0])
        tau = ode.t_span[0]
        expected = (2 * tau - 1) * total * x + total * net(x, 999, class_labels=labels).sample
        close(ode.vector_field(t, ode.input_map(x), class_labels=labels), expected, atol=2e-3)
    assert end.shape == x.shape and end.isfinite().all()


# ---------------------------------------------------------------------- torchdyn
@pytest.mark.parametrize("sensitivity", ["autograd", "adjoint"])
@pytest.mark.parametrize("kind", ["plain", "depth", "control", "order 2"])
def test_torchdyn_right_after_training(library, kind, sensitivity):
    library("torchdyn")
    from torchdyn.core import NeuralODE
    from torchdyn.nn import DataControl, DepthCat

    first = {"plain": [], "depth": [DepthCat(1)], "control": [DataControl()], "order 2": []}[kind]
    n_in = {"plain": 2, "depth": 3, "control": 4, "order 2": 2}[kind]
    order = 2 if kind == "order 2" else 1
    net = nn.Sequential(*first, nn.Linear(n_in, 16), nn.Tanh(), nn.Linear(16, 2 // order))
    node = NeuralODE(net, sensitivity=sensitivity, order=order, solver="dopri5", rtol=1e-6, atol=1e-6)
    x, span = noise(dtype=torch.float32), torch.tensor([0.0, 1.0])
    optimizer = torch.optim.SGD(node.parameters(), 1e-2)
    node(x, span)[1][-1].pow(2).mean().backward()
    optimizer.step()
    ode = from_torchdyn(node)  # no pass without gradients between
    with torch.no_grad():
        close(ode(x), node.trajectory(x, span)[-1], atol=1e-4)
    HypersolverRegressor(ode, base_solver="euler", n_steps=2, max_epochs=5, random_state=0).fit(x)
    assert all(p.requires_grad for p in node.parameters())


# ---------------------------------------------------------------------- densities
@pytest.mark.parametrize("context", [0, 1])
def test_zuko(library, context):
    zuko = library("zuko")
    flow = zuko.flows.CNF(features=2, context=context, hidden_features=(16,), atol=1e-10, rtol=1e-9).double()
    adapted, z = from_zuko(flow), noise()
    c = torch.full((1, context), 0.5, dtype=torch.float64) if context else None
    given = {"c": c.expand(len(z), context)} if context else {}
    own = flow(c[0] if context else None)
    close(adapted.sampling()(z, rtol=1e-9, condition=given), own.transform.inv(z))
    log_prob = adapted.flow.log_prob(adapted.density()(z, rtol=1e-9, condition=given))
    close(log_prob, own.log_prob(z), atol=1e-5)


def test_zuko_gets_its_transform_back(library):
    zuko = library("zuko")
    flow = zuko.flows.CNF(features=2, context=1, hidden_features=(16,))
    x, c = noise(300, dtype=torch.float32), torch.rand(300, 1)
    fast = from_zuko(flow).fit(x, c, n_steps=4, max_epochs=20, random_state=0)
    expected, drawn = flow(c).log_prob(x), flow(c).sample()
    flow.transform = fast.transform
    assert (flow(c).log_prob(x) - expected).abs().median() < 1e-2
    assert flow(c).sample().shape == drawn.shape and flow(c[0]).sample((5,)).shape == (5, 2)
    close(flow(c).log_prob(x), fast.log_prob(x, c), atol=1e-5)


def test_score_models_of_sbi(library, tmp_path, monkeypatch):
    kind = library("sbi.inference").NPSE
    monkeypatch.chdir(tmp_path)  # it writes logs
    theta = torch.randn(200, 2)
    inference = kind(torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2)))
    inference.append_simulations(theta, theta).train(max_num_epochs=2, show_train_summary=False)
    posterior = inference.build_posterior()
    ode, estimator = from_sbi(posterior).sampling(), posterior.vector_field_estimator
    assert ode.t_span == (estimator.t_max, estimator.t_min)
    for t in ode.t_span:
        found = ode.vector_field(torch.tensor(t), theta, condition=theta)
        close(found, estimator.ode_fn(theta, theta, torch.full((200,), t)), atol=1e-5)


def test_sbi(library, tmp_path, monkeypatch):
    kind = library("sbi.inference").FMPE
    monkeypatch.chdir(tmp_path)  # it writes logs
    from sbi.utils import BoxUniform

    prior = BoxUniform(-2 * torch.ones(2), 2 * torch.ones(2))
    theta = prior.sample((300,))
    x = theta + 0.3 * torch.randn(300, 2)
    inference = kind(prior)
    inference.append_simulations(theta, x).train(max_num_epochs=3, show_train_summary=False)
    posterior = inference.build_posterior()
    x_o = torch.tensor([[0.5, -0.5]])
    posterior.set_default_x(x_o)
    own = posterior.potential_fn.neural_ode(x_o, atol=1e-7, rtol=1e-7)
    adapted, z = from_sbi(posterior), noise(dtype=torch.float32)
    given = {"condition": x_o.expand(len(z), 2)}
    close(adapted.sampling()(z, condition=given), own.transform.inv(z), atol=2e-4)
    inside = theta[:20]
    log_prob = adapted.flow.log_prob(adapted.density()(inside, condition=given))
    close(log_prob, own.log_prob(inside).reshape(-1), atol=2e-3)
    fast = adapted.fit(theta, x, n_steps=4, max_epochs=15, random_state=0)
    samples = fast.sample(200, x_o)
    assert samples.abs().max() <= 2
    assert (fast.log_prob(inside, x_o) - posterior.log_prob(inside)).abs().median() < 0.05


# ---------------------------------------------------------------------- controlled equations
@pytest.mark.parametrize("knots", [None, torch.tensor([0.0, 0.5, 2.0, 3.0, 4.5], dtype=torch.float64)])
def test_torchcde(library, knots):
    torchcde = library("torchcde")

    class Func(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(4, 12)

        def forward(self, t, z):
            return self.net(z).tanh().reshape(-1, 4, 3)

    func, initial = Func().double(), nn.Linear(3, 4).double()
    values = torch.randn(10, 5, 3, dtype=torch.float64)
    coeffs = torchcde.natural_cubic_coeffs(values, knots)
    control = torchcde.CubicSpline(coeffs, knots)
    start = initial(control.evaluate(control.interval[0]))
    expected = torchcde.cdeint(X=control, func=func, z0=start, t=control.interval, adjoint=False, rtol=1e-9, atol=1e-9)[
        :, -1
    ]
    given = {"t_span": (0.0, 4.0)} if knots is None else {"times": knots}
    close(from_torchcde(func, torchcde.CubicSpline, initial=initial, **given)(coeffs, rtol=1e-9), expected, atol=1e-5)
