"""Flows of zuko and sbi, by stand-ins that keep their contracts: normal densities for any condition."""

import math
import warnings

import pytest
import torch
from torch import nn
from torch.distributions import Independent, Normal, Uniform

from sklearn_hyper.adapters import AdaptedFlow, Adapter, from_sbi, from_zuko


class Transform(nn.Module):
    """As zuko.flows.continuous.FFJTransform: f(t, x, c), data at time 0."""

    def __init__(self, context):
        super().__init__()
        self.context = context
        self.ode = nn.Linear(2, 2, bias=False)
        nn.init.eye_(self.ode.weight)
        self.register_buffer("times", torch.tensor([0.0, 1.0]))

    def f(self, t, x, c=None):
        if self.context:
            return -c * self.ode(x)  # towards the base, data of deviation exp(c) shrink to 1
        return -0.5 * self.ode(x)

    def forward(self, c=None):
        raise AssertionError("an adapter does not solve")


class CNF(nn.Module):
    def __init__(self, context=0):
        super().__init__()
        self.transform = Transform(context)

    def base(self, c):
        return Independent(Normal(torch.zeros(2), torch.ones(2)), 1)


class Estimator(nn.Module):
    """As sbi's vector field estimators: ode_fn by keywords, from t_max to t_min, normal base."""

    t_min, t_max, input_shape = 0.0, 1.0, torch.Size([2])

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.register_buffer("_mean", torch.full((1, 2), 1.0))
        self.register_buffer("_std", torch.full((1, 2), 2.0))

    mean_base = property(lambda self: self._mean)
    std_base = property(lambda self: self._std)

    def forward(self, input, condition, time):
        speed = 3 * time[:, None] ** 2  # in all 1: samples are base draws, moved by the condition
        return -self.weight * condition * speed + 0 * input

    def ode_fn(self, input, condition, times):
        assert times.shape == (len(input),)
        return self(input, condition, times)


class Posterior:
    def __init__(self, prior=None):
        self.vector_field_estimator, self.prior = Estimator(), prior


def settings(**given):
    return {"n_steps": 2, "base_solver": "heun", "max_epochs": 25, "random_state": 0, **given}


def normal(x, mean, deviation):
    return Normal(mean, deviation).log_prob(x).sum(dim=1)


@pytest.fixture(scope="module")
def contextual():
    c = torch.rand(400, 1, generator=torch.Generator().manual_seed(0))
    x = torch.randn(400, 2, generator=torch.Generator().manual_seed(1)) * c.exp()
    return from_zuko(CNF(context=1)).fit(x, c, **settings())


def test_a_context_is_a_condition_and_its_absence_is_seen():
    assert from_zuko(CNF(context=1)).condition == "c"
    assert from_zuko(CNF()).condition is None
    assert from_zuko(CNF()).sampling().t_span == (1.0, 0.0)


@pytest.mark.parametrize("c", [0.2, 0.8])
def test_densities_for_each_condition(contextual, c):
    x = math.exp(c) * torch.randn(200, 2, generator=torch.Generator().manual_seed(5))
    found = contextual.log_prob(x, torch.tensor([[c]]))
    torch.testing.assert_close(found, normal(x, 0.0, math.exp(c)), rtol=0, atol=0.03)
    samples = contextual.sample(2000, torch.tensor([[c]]), generator=torch.Generator().manual_seed(6))
    assert samples.std().item() == pytest.approx(math.exp(c), rel=0.05)


def test_a_density_integrates_to_one_for_each_condition(contextual):
    axis = torch.linspace(-9, 9, 120)
    grid = torch.cartesian_prod(axis, axis)
    for c in (0.1, 0.6):
        mass = contextual.log_prob(grid, torch.tensor([[c]])).exp().sum() * (axis[1] - axis[0]) ** 2
        assert mass.item() == pytest.approx(1, abs=0.02)


def test_rows_keep_their_conditions(contextual):
    x, c = torch.randn(6, 2), torch.rand(6, 1)
    every = contextual.log_prob(x, c)
    for i in range(6):
        torch.testing.assert_close(every[i : i + 1], contextual.log_prob(x[i : i + 1], c[i : i + 1]))


def test_the_transform_goes_back_where_it_came_from(contextual):
    transform = contextual.transform(torch.tensor([0.5]))
    x = torch.randn(4, 7, 2)  # any batch shape
    y, ladj = transform.call_and_ladj(x)
    assert y.shape == x.shape and ladj.shape == x.shape[:-1]
    torch.testing.assert_close(transform.inv(y), x, rtol=0, atol=0.05)
    torch.testing.assert_close(ladj, torch.full_like(ladj, -1.0), rtol=0, atol=0.02)
    torch.testing.assert_close(transform.log_abs_det_jacobian(x, y), ladj)


@pytest.fixture(scope="module")
def posterior():
    x = torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
    theta = torch.randn(300, 2, generator=torch.Generator().manual_seed(1)) * 2 + 1 + x
    prior = Independent(Uniform(torch.full((2,), -1.0), torch.full((2,), 5.0)), 1)
    return from_sbi(Posterior(prior)).fit(theta, x, **settings())


def test_a_posterior_for_an_observation(posterior):
    x_o = torch.tensor([[0.5, -0.5]])
    theta = torch.rand(100, 2, generator=torch.Generator().manual_seed(4)) * 6 - 1
    expected = normal(theta, 1 + x_o, 2.0)
    torch.testing.assert_close(posterior.log_prob(theta, x_o), expected, rtol=0, atol=0.01)


def test_outside_the_prior_nothing_is_drawn(posterior):
    x_o = torch.tensor([[0.5, -0.5]])
    samples = posterior.sample(500, x_o, generator=torch.Generator().manual_seed(0))
    assert samples.min() >= -1 and samples.max() <= 5
    assert posterior.log_prob(torch.tensor([[6.0, 0.0]]), x_o).item() == -math.inf


def test_standardized_parameters_are_scaled_back():
    class Composed(Estimator):
        compose_enabled = True

        def from_z(self, z):
            return 3 + 10 * z

    flow = from_sbi(Composed())
    x = torch.ones(50, 2) * torch.linspace(-1, 1, 50)[:, None]
    fast = flow.fit(3 + 10 * torch.randn(50, 2), x, **settings())
    theta = torch.tensor([[3.0, 13.0]])
    torch.testing.assert_close(
        fast.log_prob(theta, torch.zeros(1, 2)), normal(theta, 13.0, 20.0), rtol=0, atol=0.02
    )  # base N(1, 2), times 10 and 3 more


def test_a_leaking_posterior_says_so(posterior):
    with pytest.raises(RuntimeError, match="lie outside the support"):
        posterior.sample(50, torch.tensor([[500.0, 500.0]]))


def test_flows_that_solve_no_ode_are_refused():
    with pytest.raises(TypeError, match="flow must be a CNF of zuko"):
        from_zuko(nn.Linear(2, 2))
    with pytest.raises(TypeError, match="posterior must be one of FMPE or NPSE"):
        from_sbi(object())


def test_conditions_of_other_lengths(contextual):
    with pytest.raises(ValueError, match="its first axis must have 1 entry, for all rows, or 4"):
        contextual.log_prob(torch.randn(4, 2), torch.rand(3, 1))
    with pytest.raises(ValueError, match="condition=None in sample"):
        contextual.sample(3)
    with pytest.raises(ValueError, match=r"x must be a tensor of shape \(n, 2\), got \(4, 3\)"):
        contextual.log_prob(torch.randn(4, 3), torch.rand(4, 1))
    with pytest.raises(ValueError, match="this flow has none"):
        from_zuko(CNF()).fit(torch.randn(9, 2), torch.rand(9, 1))


def test_it_is_fitted_first():
    with pytest.raises(ValueError, match="this AdaptedFlow is not fitted"):
        from_zuko(CNF()).sample(3)


def test_a_flow_has_one_condition_at_most():
    class Two(Adapter):
        def velocity(self, t, z, *, a, b):
            return a * z + b

    with pytest.raises(ValueError, match="at most one, so join them"):
        AdaptedFlow(Two(nn.Identity(), conditions=["a", "b"]), n_features=2, t_span=(0.0, 1.0))


class Score(Adapter):
    """The probability flow of N(condition, width ** 2) in noise of size t: nearly singular at a narrow one's end."""

    def velocity(self, t, z, *, condition):
        return t * (z - condition) / (t**2 + self.width**2)


def score_flow(width):
    field = Score(nn.Identity(), conditions=["condition"])
    field.width = width
    return AdaptedFlow(field, n_features=2, t_span=(1.0, 1e-4))


@pytest.mark.filterwarnings("ignore:The reference's noise", "ignore:no epoch was better")
def test_errors_as_large_as_a_posterior_is_narrow_are_warned_of():
    """A fit's own errors are small beside the conditions' states, and so say nothing of it."""
    c = torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
    with pytest.warns(
        RuntimeWarning, match="% of their spread for one condition, with n_steps=4; .* fit with n_steps=8"
    ):
        narrow = score_flow(0.003).fit(c, c, n_steps=4, max_epochs=5, random_state=0)
    assert narrow.sampler_.errors[4]["mean"] < 0.01
    assert narrow.sample(500, c[:1]).std(dim=0).max() < 0.5 * 0.003
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        warnings.filterwarnings("ignore", "The reference's noise|no epoch was better")
        wide = score_flow(0.3).fit(c, c, n_steps=4, max_epochs=5, random_state=0)
        score_flow(0.3).fit(c[:5], c[:5], n_steps=4, max_epochs=2, random_state=0)  # fewer than are compared
    width = 0.3 / (1 + 0.3**2) ** 0.5  # of the exact flow of standard normal draws
    assert wide.sample(2000, c[:1]).std(dim=0).mean() == pytest.approx(width, rel=0.1)
