"""Velocity models in every order of call that libraries have."""

import numpy as np
import pytest
import torch
from torch import nn

from sklearn_hyper import HypersolverDensity, HypersolverRegressor
from sklearn_hyper.adapters import from_denoiser, from_velocity
from sklearn_hyper.modules import VectorFieldError


def velocity(x, t):
    """(1 + t) x rotated: its flow is known by another solve of the plain field."""
    return (1 + t) * torch.stack([-x[:, 1], x[:, 0]], dim=1)


class StateFirst(nn.Module):
    def forward(self, x, t):
        assert t.shape == (len(x),)
        return velocity(x, t[:, None])


class TimeFirst(nn.Module):
    def forward(self, t, x):
        assert t.ndim == 0
        return velocity(x, t)


class Named(nn.Module):
    def forward(self, *, x, t, **extras):
        return velocity(x, t[:, None]) + extras.get("shift", 0)


class Times(nn.Module):
    def forward(self, noised, *, times):
        return (velocity(noised, times[:, None]),)


CALLS = {
    "state first": (StateFirst(), {"order": "xt"}),
    "time first": (TimeFirst(), {"order": "tx", "t": "scalar"}),
    "by name": (Named(), {"order": "keywords"}),
    "times": (Times(), {"order": "keywords", "names": (None, "times")}),
}


@pytest.mark.parametrize("model, how", CALLS.values(), ids=CALLS)
def test_every_order_of_call_is_the_same_flow(model, how):
    x = torch.randn(20, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    angle = torch.tensor(1.5, dtype=torch.float64)  # the integral of 1 + t
    turn = torch.stack([torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])])
    torch.testing.assert_close(from_velocity(model, **how)(x, rtol=1e-9), x @ turn.T, rtol=1e-7, atol=1e-7)


def test_time_runs_backwards_and_in_timesteps():
    class Model(nn.Module):
        def forward(self, x, timestep):
            return x * timestep[:, None] / 1000

    ode = from_velocity(Model(), order="xt", t_span=(1.0, 0.0), time_scale=1000)
    torch.testing.assert_close(ode(torch.ones(1, 1)), torch.full((1, 1), np.exp(-0.5), dtype=torch.float32))


def test_conditions_are_passed_by_row_or_fixed():
    x = torch.zeros(3, 2)
    shift = torch.tensor([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]])
    by_row = from_velocity(Named(), order="keywords", condition="shift")(x, condition={"shift": shift})
    for i in range(3):
        fixed = from_velocity(Named(), order="keywords", condition={"shift": shift[i : i + 1]})
        torch.testing.assert_close(fixed(x)[i], by_row[i])


def test_it_fits():
    ode = from_velocity(StateFirst(), order="xt")
    X = np.random.default_rng(0).normal(size=(200, 2))
    fast = HypersolverRegressor(ode, n_steps=4, max_epochs=30, random_state=0).fit(X)
    assert fast.errors_[4]["mean"] < 0.2 * fast.errors_[4]["base_mean"]


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"order": "zt"}, r"order must be one of .* got 'zt'"),
        ({"t": "row"}, r"t must be one of .* got 'row'"),
        ({"names": ("z", "t")}, r"names=\('z', 't'\) with order='tx', which passes no names"),
        ({"time_scale": float("inf")}, "time_scale must be a finite number other than 0, got inf"),
        ({"time_scale": "1000"}, "time_scale must be a finite number other than 0, got '1000'"),
        ({"order": "keywords", "names": ("x",)}, r"names must be a pair, of state and of time.* got \('x',\)"),
        ({"condition": "x"}, r"condition names \['x'\], which the field's own arguments have"),
        ({"condition": ["label", "t"]}, r"condition names \['t'\], .*Wrap the model"),
        ({"condition": ["z"]}, r"condition names \['z'\]"),
        ({"time_scale": 0}, "time_scale must be a finite number other than 0, got 0"),
    ],
)
def test_wrong_options(wrong, message):
    with pytest.raises(ValueError, match=message):
        from_velocity(StateFirst(), **wrong)


def test_a_condition_is_names():
    for wrong in ([3], 3, 1.5):
        with pytest.raises(TypeError, match="condition must be names"):
            from_velocity(StateFirst(), condition=wrong)


@pytest.mark.parametrize(
    "model, wrong, right",
    [
        (StateFirst(), {"order": "tx"}, "order='xt', t='batch'"),
        (TimeFirst(), {"order": "xt"}, "order='tx', t='scalar'"),
        (TimeFirst(), {"order": "tx", "t": "batch"}, "order='tx', t='scalar'"),
        (Named(), {"order": "xt"}, "order='keywords', t='batch'"),
    ],
)
def test_another_order_of_call_is_named_where_it_runs(model, wrong, right):
    ode = from_velocity(model, **wrong)
    with pytest.raises(TypeError, match=f"the model fails with order='{wrong['order']}'.*; pass {right}, with which"):
        ode(torch.ones(3, 2))
    with pytest.raises(VectorFieldError, match=f"pass {right}"):
        HypersolverRegressor(ode).fit(torch.ones(30, 2))


def test_what_fails_in_every_order_fails_as_it_is():
    def broken(*arguments, **named):
        raise KeyError("weights")

    with pytest.raises(KeyError, match="weights"):
        from_velocity(broken)(torch.ones(3, 2))


class Shifted(nn.Module):
    """Moves states by the label's shift: flows of closed form, and of density N(shift, 1)."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, -3.0]]))

    def forward(self, x, t, label):
        return self.shift[label.long()] * 3 * t[:, None] ** 2 + 0 * x


@pytest.fixture(scope="module")
def shifted():
    model = Shifted().train()
    rng = np.random.default_rng(0)
    X, label = rng.normal(size=(120, 2)), rng.integers(3, size=120)
    return model, X, label, model.shift.detach().numpy()[label]


def test_a_regressor_takes_the_condition_of_an_adapter(shifted):
    model, X, label, shift = shifted
    ode = from_velocity(model, order="xt", condition="label")
    fast = HypersolverRegressor(ode, base_solver="heun", n_steps=2, max_epochs=40, random_state=0)
    fast.fit(X, condition={"label": label})
    np.testing.assert_allclose(fast.predict(X, condition={"label": label}), X + shift, atol=1e-2)
    np.testing.assert_allclose(fast.predict(X, condition={"label": 1}), X + np.array([2, 0]), atol=1e-2)
    assert model.training and model.shift.requires_grad and model.shift.grad is None
    with pytest.raises(
        VectorFieldError, match=r"condition must have the entries \['label'\], got \[\]: pass condition="
    ):
        HypersolverRegressor(ode).fit(X)
    with pytest.raises(VectorFieldError, match=r"entries \['label'\], got \['labels'\]"):
        HypersolverRegressor(ode).fit(X, condition={"labels": label})


@pytest.mark.parametrize("part", ["ode", "field"])
def test_a_density_takes_the_condition_of_an_adapter(shifted, part):
    model, X, label, shift = shifted
    ode = from_velocity(model, order="xt", condition="label")
    fast = HypersolverDensity(
        ode if part == "ode" else ode.vector_field, n_features=2, base_solver="heun", n_steps=2, max_epochs=40,
        random_state=0,
    )  # fmt: skip
    fast.fit(X + shift, condition={"label": label})
    expected = -0.5 * (X**2).sum(axis=1) - np.log(2 * np.pi)
    np.testing.assert_allclose(fast.score_samples(X + shift, condition={"label": label}), expected, atol=3e-2)
    drawn = fast.sample(4000, random_state=0, condition={"label": 2})
    np.testing.assert_allclose(drawn.mean(axis=0), [0, -3], atol=0.08)


@pytest.mark.filterwarnings("ignore:The reference's noise")
def test_a_denoiser_takes_a_condition_through_a_regressor():
    def denoise(x, sigma, mean):  # the exact denoiser of N(mean, 1)
        share = sigma[:, None] ** 2 / (1 + sigma[:, None] ** 2)
        return x * (1 - share) + mean * share

    ode = from_denoiser(denoise, "x0", schedule=(0.01, 20.0), condition="mean")
    rng = np.random.default_rng(0)
    noise, mean = 20 * rng.normal(size=(200, 2)), rng.uniform(-2, 2, (200, 2))
    fast = HypersolverRegressor(ode, n_steps=4, max_epochs=30, random_state=0).fit(noise, condition={"mean": mean})
    expected = mean + (noise - mean) * np.sqrt((1 + 0.01**2) / (1 + 20.0**2))
    np.testing.assert_allclose(fast.predict(noise, condition={"mean": mean}), expected, atol=0.05)
