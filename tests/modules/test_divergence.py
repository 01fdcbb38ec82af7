"""Divergences and log-determinants against closed forms and autograd's Jacobian; what a flow refuses."""

import itertools
import math
import pickle

import pytest
import torch
from flow_problems import FLOWS, LINEAR, TANH, TANH_5D, LinearFlow, NoDivergence, log_standard_normal, standard_normal
from problems import largest, named
from torch import nn
from torch.distributions import (
    Categorical,
    Independent,
    Laplace,
    LogNormal,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    Uniform,
)
from torch.func import jacrev, vmap

from sklearn_hyper.modules import (
    Flow,
    HypersolvedODE,
    LogDensity,
    LogDensityField,
    MLPVectorField,
    Standardize,
    VectorFieldError,
)
from sklearn_hyper.modules.divergence import vector_jacobian_products
from sklearn_hyper.modules.flow import check_base_distribution, check_divergence
from sklearn_hyper.numerics import count_macs, reference_solution, resolve_base_solver

each_flow = pytest.mark.parametrize("problem", **named(FLOWS))
TIGHT = {"rtol": 1e-10, "atol": 1e-10}
T = torch.tensor(0.4, dtype=torch.float64)


def small_field(n_features=3):
    return MLPVectorField(n_features, hidden=5).double()


def jacobians(field, z, t=T):
    return vmap(jacrev(lambda z: field(t, z[None])[0]))(z)


def augmented(z, n_zeros=1):
    return torch.cat([z, z.new_zeros(len(z), n_zeros)], dim=1)


def terminal_state(ode, x):
    return reference_solution(ode.vector_field, ode.input_map(x), ode.t_span, x=ode.inputs(x).x, **TIGHT)[-1]


# ---------------------------------------------------------------------- the dynamics
@pytest.mark.parametrize("d", [1, 2, 5])
def test_the_exact_trace_is_that_of_the_jacobian(d):
    field, z = small_field(d), standard_normal(6, d)
    with torch.no_grad():
        dynamics = LogDensityField(field)(T, augmented(z))
        assert largest(dynamics[:, :d] - field(T, z)) < 1e-15
    assert largest(dynamics[:, d] + jacobians(field, z).diagonal(dim1=1, dim2=2).sum(dim=1)) < 1e-14


@each_flow
def test_the_exact_trace_has_its_closed_form(problem):
    z = standard_normal(6, problem.n_features)
    with torch.no_grad():
        dynamics = LogDensityField(problem.field)(T, augmented(z))
    assert largest(dynamics[:, -1] + problem.field.divergence(float(T), z)) < 1e-14


def test_hutchinsons_estimate_is_the_quadratic_form_of_its_noise():
    z, noise = standard_normal(6, 2), standard_normal(6, 2, seed=1)
    with torch.no_grad():
        dynamics = LogDensityField(LINEAR.field, hutchinson=True)(T, augmented(z), torch.cat([z, noise], dim=1))
    assert largest(dynamics[:, 2] + torch.einsum("ni,ij,nj->n", noise, LINEAR.field.matrix, noise)) < 1e-14


def test_hutchinsons_estimate_is_unbiased():
    # The mean over all of {-1, 1}^d is Rademacher noise's expectation.
    signs = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=5))).double()
    z = standard_normal(1, 5).expand(len(signs), 5)
    with torch.no_grad():
        estimates = LogDensityField(TANH_5D.field, hutchinson=True)(T, augmented(z), signs)[:, -1]
    assert estimates.std() > 0.1
    assert estimates.mean().item() == pytest.approx(-TANH_5D.field.divergence(float(T), z[:1]).item(), abs=1e-14)


def test_hutchinsons_estimate_is_exact_where_the_noise_cannot_be_seen():
    # e'De = tr D for a diagonal D and signs e; in one dimension the Jacobian is its own diagonal.
    for field, d in [(LinearFlow([[0.3, 0.0], [0.0, -0.8]]), 2), (small_field(1), 1)]:
        z, signs = standard_normal(6, d), 2.0 * torch.randint(0, 2, (6, d)) - 1
        with torch.no_grad():
            exact = LogDensityField(field)(T, augmented(z))
            assert largest(LogDensityField(field, hutchinson=True)(T, augmented(z), signs.double()) - exact) < 1e-14


def test_the_noise_must_be_there_for_an_estimate():
    with pytest.raises(TypeError, match=r"hutchinson=True\) needs the noise: call it with x"):
        LogDensityField(LINEAR.field, hutchinson=True)(T, augmented(standard_normal(2, 2)))


@pytest.mark.parametrize("estimated", [False, True])
def test_penalties_are_squared_norms_of_field_and_jacobian(estimated):
    field, z, noise = small_field(), standard_normal(6, 3), standard_normal(6, 3, seed=1)
    with torch.no_grad():
        dynamics = LogDensityField(field, hutchinson=estimated, penalties=True)(T, augmented(z, 3), noise)
        plain = LogDensityField(field, hutchinson=estimated)(T, augmented(z), noise)
    jacobian = jacobians(field, z)
    seen = torch.einsum("ni,nij->nj", noise, jacobian)[:, None] if estimated else jacobian
    assert largest(dynamics[:, :4] - plain) == 0
    assert largest(dynamics[:, 4] - field(T, z).pow(2).sum(dim=1)) < 1e-14
    assert largest(dynamics[:, 5] - seen.pow(2).sum(dim=(1, 2))) < 1e-14


# ---------------------------------------------------------------------- integrals of it
@each_flow
def test_a_density_solve_gives_the_closed_forms_base_point_and_log_density(problem):
    flow, x = Flow(problem.field, n_features=problem.n_features, t_span=problem.t_span), problem.sample(6)
    state = terminal_state(flow.density(), x)
    assert largest(state[:, :-1] - problem.pull(x)) < 1e-8
    assert largest(state[:, -1] - problem.log_det(problem.pull(x))) < 1e-8
    assert largest(flow.log_prob(state) - problem.log_prob(x)) < 1e-8


def test_a_scaler_adds_its_log_determinant():
    shift, scale = torch.tensor([3.0, -1.0]).double(), torch.tensor([0.5, 20.0]).double()
    flow = Flow(TANH.field, n_features=2, t_span=TANH.t_span, scaler=Standardize(shift, scale))
    y = TANH.sample(6)
    expected = TANH.log_prob(y) - math.log(0.5) - math.log(20)
    assert largest(flow.log_prob(terminal_state(flow.density(), y * scale + shift)) - expected) < 1e-8
    sampling = flow.sampling()
    z = reference_solution(sampling.vector_field, TANH.pull(y), sampling.t_span, **TIGHT)[-1]
    assert largest(sampling.output_map(z) - (y * scale + shift)) < 1e-7


def test_penalties_integrate_to_their_closed_forms():
    # f = a z: |f|^2 = a^2 |z|^2 with z = x e^{a (t - 1)}, and |J|_F^2 = d a^2.
    a, x = 0.7, standard_normal(6, 3)
    ode = Flow(LinearFlow((a * torch.eye(3)).tolist()), n_features=3).density(penalties=True)
    energy, jacobian = terminal_state(ode, x)[:, -2:].abs().unbind(dim=1)
    assert largest(energy - a * (1 - math.exp(-2 * a)) / 2 * x.pow(2).sum(dim=1)) < 1e-7
    assert largest(jacobian - 3 * a**2) < 1e-7


def test_the_estimated_log_determinant_of_a_linear_flow_is_the_noises_quadratic_form():
    x, noise = LINEAR.sample(6), standard_normal(6, 2, seed=1)
    flow = Flow(LINEAR.field, n_features=2)
    state = terminal_state(flow.density(hutchinson=True), torch.cat([x, noise], dim=1))
    assert largest(state[:, 2] - torch.einsum("ni,ij,nj->n", noise, LINEAR.field.matrix, noise)) < 1e-9


# ---------------------------------------------------------------------- gradients
@pytest.mark.parametrize("hutchinson", [False, True])
def test_log_densities_differentiate_with_respect_to_the_field(hutchinson):
    field, z, noise = small_field(2), standard_normal(3, 2), standard_normal(3, 2, seed=1)
    names, weights = zip(*field.named_parameters(), strict=True)
    dynamics = LogDensityField(field, hutchinson=hutchinson, penalties=True)

    def evaluate(z, *weights):
        parameters = {f"vector_field.{name}": weight for name, weight in zip(names, weights, strict=True)}
        return torch.func.functional_call(dynamics, parameters, (T, augmented(z, 3), noise))

    leaves = [weight.detach().requires_grad_(True) for weight in weights]
    assert torch.autograd.gradcheck(evaluate, (z, *leaves))
    assert torch.autograd.gradcheck(evaluate, (z.requires_grad_(True), *leaves))


def test_the_log_density_of_a_solve_differentiates_with_respect_to_the_field():
    field, x = small_field(2), standard_normal(3, 2)
    names, weights = zip(*field.named_parameters(), strict=True)
    flow = Flow(field, n_features=2)
    solver = LogDensity(HypersolvedODE(flow.density(), resolve_base_solver("heun"), None, (1.0, 0.5, 0.0)), flow)
    prefix = "solver.neural_ode.vector_field.vector_field"

    def log_prob(*weights):
        parameters = {f"{prefix}.{name}": weight for name, weight in zip(names, weights, strict=True)}
        return torch.func.functional_call(solver, parameters, (x,))

    assert torch.autograd.gradcheck(log_prob, [weight.detach().requires_grad_(True) for weight in weights])


def test_without_gradients_outside_no_graph_is_left():
    field, z = small_field().requires_grad_(True), standard_normal(4, 3)
    with torch.no_grad():
        dz, products = vector_jacobian_products(field, T, z, [torch.ones(3).double()])
        dynamics = LogDensityField(field, penalties=True)(T, augmented(z, 3))
    assert not any(tensor.requires_grad for tensor in (dz, *products, dynamics))
    assert z.grad is None and not z.requires_grad and all(weight.grad is None for weight in field.parameters())


class Detached(nn.Module):
    def __init__(self):
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

    def forward(self, t, z):
        return self.rate * z.detach()


def constant(t, z):
    return torch.ones_like(z)


@torch.no_grad()
def without_gradients(t, z):
    return -z


@pytest.mark.parametrize("field", [Detached(), constant, without_gradients])
@pytest.mark.parametrize("training", [False, True])
def test_fields_that_autograd_cannot_see_through_are_refused(field, training):
    with torch.set_grad_enabled(training), pytest.raises(VectorFieldError, match=r"do not detach it .* add 0 \* z"):
        LogDensityField(field)(T, augmented(standard_normal(2, 2)))


def test_a_constant_field_that_adds_zero_times_z_has_no_divergence():
    with torch.no_grad():
        assert LogDensityField(lambda t, z: 1 + 0 * z)(T, torch.zeros(2, 3))[:, -1].tolist() == [0, 0]


# ---------------------------------------------------------------------- cost
def test_macs_include_the_backward_products():
    d, field = 4, nn.Linear(4, 4, bias=False)
    matrix_product = d * d

    def f(t, z):
        return field(z)

    state, x = torch.zeros(1, d + 1), torch.ones(1, 2 * d)
    assert count_macs(LogDensityField(f), T, state) == (1 + d) * matrix_product
    assert count_macs(LogDensityField(f, hutchinson=True), T, state, x) == 2 * matrix_product


def test_macs_of_a_module_are_counted_too():
    # torch's counter hooks modules, which a leaf that autograd.grad ends at would break.
    field = MLPVectorField(2, hidden=8, depth=1).requires_grad_(False)
    assert count_macs(LogDensityField(field), torch.tensor(0.0), torch.zeros(1, 3)) == 3 * 2 * 16


# ---------------------------------------------------------------------- flows
def test_flows_pickle_and_count_their_scale():
    flow = Flow(MLPVectorField(2), n_features=2, scaler=Standardize(torch.zeros(2), torch.tensor([2.0, 3.0])))
    assert flow.log_scale == pytest.approx(math.log(6)) and flow.dtype == torch.float32
    other = pickle.loads(pickle.dumps(flow))
    assert other.log_scale == flow.log_scale and other.t_span == (0.0, 1.0)


def mixture():
    return MixtureSameFamily(Categorical(torch.ones(2)), Independent(Normal(torch.zeros(2, 3), 1.0), 1))


BASES = [
    None,
    Independent(Laplace(torch.zeros(3), torch.ones(3)), 1),
    MultivariateNormal(torch.ones(3), torch.eye(3)),
    mixture(),
]


@pytest.mark.parametrize("base", BASES, ids=["standard normal", "Laplace", "MultivariateNormal", "mixture"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_base_distributions_serve_every_dtype(base, dtype):
    flow = Flow(lambda t, z: -z, n_features=3, base_distribution=base)
    check_base_distribution(flow)
    z = flow.sample_base(5, dtype).requires_grad_(True)
    log_prob = flow.base_log_prob(z)
    assert (log_prob.dtype, z.dtype, z.shape) == (dtype, dtype, (5, 3))
    expected = log_standard_normal(z) if base is None else base.log_prob(z.float())
    torch.testing.assert_close(log_prob, expected.to(dtype), rtol=1e-5, atol=1e-6)
    assert torch.autograd.grad(log_prob.sum(), z)[0].abs().min() > 0


def test_building_a_flow_leaves_the_generator_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    Flow(lambda t, z: -z, n_features=3, base_distribution=BASES[1])
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    "base, message",
    [
        (Normal(torch.zeros(3), 1.0), r"vectors of 3 features .*got batch_shape \(3,\) and event_shape \(\); wrap"),
        (MultivariateNormal(torch.zeros(2), torch.eye(2)), r"vectors of 3 features .*event_shape \(2,\)"),
        (MultivariateNormal(torch.zeros(5, 3), torch.eye(3)), r"no batch_shape\), got batch_shape \(5,\)"),
        (Independent(Uniform(-torch.ones(3), 1.0), 1), r"must have a density everywhere, got Independent\(Uniform"),
        (Independent(LogNormal(torch.zeros(3), 1.0), 1), r"must have a density everywhere.*GreaterThan"),
    ],
    ids=["batch", "width", "many", "bounded", "positive"],
)
def test_base_distributions_that_no_flow_has(base, message):
    with pytest.raises(ValueError, match=message):
        check_base_distribution(Flow(lambda t, z: -z, n_features=3, base_distribution=base))


def test_a_divergence_that_is_not_finite_is_refused_for_data_and_for_base():
    flow, negative = Flow(NoDivergence(), n_features=2), -torch.ones(3, 2)
    with pytest.raises(VectorFieldError, match=r"not finite at t=1 on some of 3 rows of X"):
        check_divergence(Flow(Shifted(), n_features=2), negative)
    torch.manual_seed(0)
    with pytest.raises(VectorFieldError, match=r"not finite at t=0 on some of 3 base samples.*differentiable wherever"):
        check_divergence(flow, -negative)
    check_divergence(Flow(TANH.field, n_features=2, t_span=TANH.t_span), negative.double())


class Shifted(nn.Module):
    """NoDivergence, out of the base samples' way at t=0."""

    def forward(self, t, z):
        return NoDivergence()(t, z + 100 * (1 - t))
