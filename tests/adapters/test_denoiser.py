"""Denoisers of normal data, whose probability flow is known: every prediction, both kinds of schedule."""

import math

import pytest
import torch
from torch import nn

from sklearn_hyper import HypersolverRegressor
from sklearn_hyper.adapters import from_denoiser

ALPHAS = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
SIZE = 2.0  # data are normal, with this deviation


class Scheduler:
    alphas_cumprod = ALPHAS


class Output:
    def __init__(self, sample):
        self.sample = sample


class Exact(nn.Module):
    """What a perfect model of normal data returns."""

    def __init__(self, prediction, levels):
        super().__init__()
        self.prediction, self.levels = prediction, levels

    def forward(self, x, t):
        assert t.shape == (len(x),)
        a, s = (value.to(x.dtype)[:, None] for value in self.levels(t))
        x0 = a * SIZE**2 * x / (a**2 * SIZE**2 + s**2)
        eps = (x - a * x0) / s
        return Output({"x0": x0, "eps": eps, "v": a * eps - s * x0}[self.prediction])


def of_alphas(t):
    """a and s between timesteps."""
    i = t.floor().long().clamp(0, 998)
    alpha = (ALPHAS[i].log() * (1 - (t - i)) + ALPHAS[i + 1].log() * (t - i)).exp()
    return alpha.sqrt(), (1 - alpha).sqrt()


def of_sigma(t):
    return torch.ones_like(t), t


def deviation(a, s):
    return math.sqrt(a**2 * SIZE**2 + s**2)


def make(prediction, schedule):
    return from_denoiser(
        Exact(prediction, of_sigma if isinstance(schedule, tuple) else of_alphas), prediction, schedule=schedule
    )


CASES = [("eps", Scheduler()), ("x0", ALPHAS), ("v", ALPHAS), ("x0", (0.002, 80.0)), ("eps", (0.01, 50.0))]


def ends(schedule):
    """(a, s) at the most and at the least noise."""
    if isinstance(schedule, tuple):
        return (1.0, schedule[1]), (1.0, schedule[0])
    return tuple((float(ALPHAS[i].sqrt()), float((1 - ALPHAS[i]).sqrt())) for i in (-1, 0))


@pytest.mark.parametrize("prediction, schedule", CASES)
def test_the_probability_flow_scales_normal_data(prediction, schedule):
    first, last = ends(schedule)
    x = deviation(*first) * torch.randn(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = make(prediction, schedule).double()(x, rtol=1e-8)
    torch.testing.assert_close(found, x * deviation(*last) / deviation(*first), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("prediction, schedule", CASES)
def test_the_field_is_of_the_size_of_data_and_noise_from_end_to_end(prediction, schedule):
    ode, first = make(prediction, schedule), ends(schedule)[0]
    x = deviation(*first) * torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
    z = ode.input_map(x)
    times = torch.linspace(*ode.t_span, 30)
    states = ode.reference(z, ode.inputs(x), times.tolist(), rtol=1e-5, atol=1e-5)
    sizes = torch.stack([ode.vector_field(t, z).pow(2).mean().sqrt() for t, z in zip(times, states, strict=True)])
    assert sizes.max() < 1.5 * math.hypot(1, SIZE)


def test_timesteps_are_those_of_the_schedule():
    levels = make("eps", ALPHAS).vector_field.levels
    a, s = ALPHAS.sqrt(), (1 - ALPHAS).sqrt()
    tau = s / (a + s)
    found = levels.model_time(tau)
    torch.testing.assert_close(found.double(), torch.arange(1000.0, dtype=torch.float64), rtol=0, atol=5e-2)
    between = levels.model_time(torch.linspace(float(tau[0]), float(tau[-1]), 5000))
    assert (between.diff() >= 0).all()


def test_four_evaluations_of_a_variance_exploding_model():
    ode = make("x0", (0.002, 80.0))
    x = 80 * torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
    fast = HypersolverRegressor(ode, n_steps=4, max_epochs=40, random_state=0).fit(x)
    assert fast.errors_[4]["mean"] < 0.02 * SIZE


@pytest.mark.parametrize(
    "prediction, schedule, message",
    [
        ("noise", ALPHAS, "prediction must be one of .* got 'noise'"),
        ("v", (0.1, 1.0), "prediction='v' with a pair of sigmas"),
        ("x0", (1.0, 0.1), "must be .smallest sigma, largest sigma."),
        ("eps", torch.linspace(0.99, 0, 10), "whose last alpha is 0"),
        ("eps", torch.linspace(0, 0.99, 10), "10 numbers from 0 to 0.99: .*from noise to data their reverse"),
        ("x0", torch.linspace(1e-4, 0.02, 20), r"of betas pass \(1 - betas\).cumprod\(0\)"),
        ("x0", ("low", "high"), "must be .smallest sigma, largest sigma., numbers above 0"),
        ("eps", object(), "schedule must be .* got object"),
    ],
)
def test_wrong_options(prediction, schedule, message):
    with pytest.raises(ValueError, match=message):
        from_denoiser(Exact("x0", of_sigma), prediction, schedule=schedule)
