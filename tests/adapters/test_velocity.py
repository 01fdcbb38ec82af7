"""Velocity models in every order of call that libraries have."""

import numpy as np
import pytest
import torch
from torch import nn

from sklearn_hyper import HypersolverRegressor
from sklearn_hyper.adapters import from_velocity
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
