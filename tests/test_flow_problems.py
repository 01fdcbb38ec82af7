"""The closed forms of the flows that other tests rely on, against dopri5 and autograd."""

import pickle

import pytest
import torch
from flow_problems import (
    LINEAR,
    PLANE_FLOWS,
    NoDivergence,
    TanhFlow,
    each_flow,
    grid_2d,
    log_standard_normal,
    standard_normal,
)
from problems import largest, named
from torch.distributions import MultivariateNormal
from torch.func import jacrev, vmap

from sklearn_hyper.numerics import reference_solution

TIGHT = {"rtol": 1e-11, "atol": 1e-11}


def base_points(problem, n=6):
    return standard_normal(n, problem.n_features)


@each_flow
def test_the_map_solves_the_field(problem):
    z0 = base_points(problem)
    *_, end = reference_solution(problem.field, z0, problem.t_span, **TIGHT)
    assert largest(problem.push(z0) - end) < 1e-8
    assert largest(problem.pull(problem.push(z0)) - z0) < 1e-12


@each_flow
def test_the_divergence_is_the_trace_of_the_jacobian(problem):
    z, t = base_points(problem), 0.6
    jacobians = vmap(jacrev(lambda z: problem.field(torch.tensor(t, dtype=z.dtype), z[None])[0]))(z)
    assert largest(problem.field.divergence(t, z) - jacobians.diagonal(dim1=1, dim2=2).sum(dim=1)) < 1e-12


@each_flow
def test_the_log_determinant_is_that_of_the_map(problem):
    z0 = base_points(problem)
    jacobians = vmap(jacrev(lambda z: problem.push(z[None])[0]))(z0)
    assert largest(problem.log_det(z0) - torch.linalg.slogdet(jacobians).logabsdet) < 1e-12


@pytest.mark.parametrize("problem", **named(PLANE_FLOWS))
def test_densities_integrate_to_one(problem):
    points, area = grid_2d()
    assert problem.log_prob(points).exp().sum() * area == pytest.approx(1, abs=1e-6)


def test_the_linear_flow_makes_a_normal_distribution_of_a_normal_one():
    normal = MultivariateNormal(torch.zeros(2, dtype=torch.float64), LINEAR.field.covariance(*LINEAR.t_span))
    x = LINEAR.sample(6)
    assert largest(LINEAR.log_prob(x) - normal.log_prob(x)) < 1e-12


@each_flow
def test_log_densities_of_samples_are_those_of_the_base_less_the_log_determinant(problem):
    z0 = base_points(problem)
    expected = log_standard_normal(z0) - problem.log_det(z0)
    assert largest(problem.log_prob(problem.sample(6)) - expected) < 1e-12


@each_flow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fields_compute_in_the_dtype_of_the_state_and_pickle(problem, dtype):
    z = base_points(problem).to(dtype)
    slope = problem.field(torch.tensor(0.3, dtype=dtype), z)
    assert (slope.shape, slope.dtype) == (z.shape, dtype)
    assert torch.equal(pickle.loads(pickle.dumps(problem.field))(torch.tensor(0.3, dtype=dtype), z), slope)


def test_the_tanh_flow_couples_its_features():
    jacobian = jacrev(lambda z: TanhFlow()(torch.tensor(0.0), z[None])[0])(torch.tensor([0.3, 1.0]).double())
    assert min(jacobian[0, 1].abs(), jacobian[1, 0].abs()) > 0.01


def test_a_finite_field_may_have_no_divergence():
    z = torch.tensor([[-1.0, 4.0]])
    assert NoDivergence()(0.0, z).tolist() == [[0.0, 2.0]]
    assert torch.isnan(jacrev(lambda z: NoDivergence()(0.0, z))(z)).any()
