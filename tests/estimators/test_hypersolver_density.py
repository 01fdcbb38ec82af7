"""HypersolverDensity: both directions of a flow against its closed forms, dopri5 and loops by hand."""

import copy
import pickle

import numpy as np
import pytest
import torch
from flow_problems import (
    BACKWARD,
    LINEAR,
    SCALING,
    TANH_5D,
    grid_2d,
    log_standard_normal,
    standard_normal,
)
from problems import named
from sklearn.base import clone
from small_flows import holding, make_fast, make_flow, two_blobs
from torch import nn

from sklearn_hyper import ContinuousNormalizingFlow, NeuralODE
from sklearn_hyper.estimators.flows import append_noise
from sklearn_hyper.numerics import count_macs

some_flows = pytest.mark.parametrize("problem", **named([SCALING, BACKWARD]))


def of_problem(problem, **params):
    return make_fast(NeuralODE(problem.field, t_span=problem.t_span), **params)


@pytest.fixture(scope="module")
def flow(blobs):
    return make_flow(max_epochs=20, lr=2e-2).fit(blobs)


@pytest.fixture(scope="module")
def fast(flow, blobs):
    """To be read only."""
    return make_fast(flow, max_epochs=20, max_samples=300).fit(blobs)


# ---------------------------------------------------------------------- accuracy
def test_agrees_with_the_flow_in_both_directions(fast, flow, blobs):
    test = two_blobs(200, seed=1)
    log_densities = flow.score_samples(test)
    assert np.abs(fast.score_samples(test) - log_densities).max() < 0.1
    assert fast.score(test) == pytest.approx(flow.score(test), abs=5e-3)
    # The same random_state takes the same base draws.
    np.testing.assert_allclose(fast.sample(200, random_state=3), flow.sample(200, random_state=3), atol=0.06)
    np.testing.assert_allclose(fast.transform(test), flow.transform(test), atol=0.06)
    z = np.random.default_rng(0).normal(size=(100, 2))
    np.testing.assert_allclose(fast.inverse_transform(z), flow.inverse_transform(z), atol=0.06)
    base = fast.without_correction()
    for one, other in [(base.score(test), fast.score(test)), (base.sample(200, 3), fast.sample(200, 3))]:
        assert np.abs(one - other).max() > 5e-3
    assert abs(base.score(test) - flow.score(test)) > 5 * abs(fast.score(test) - flow.score(test))


def test_a_trained_density_integrates_to_one(fast):
    points, area = grid_2d(half_width=5.0, n_cells=60)
    total = np.exp(fast.score_samples(points)).sum() * area
    assert total == pytest.approx(1, abs=0.01)
    assert abs(np.exp(fast.without_correction().score_samples(points)).sum() * area - 1) > 2 * abs(total - 1)


@some_flows
def test_densities_of_bare_fields_have_their_closed_forms(problem):
    x = problem.sample(300)
    fast = of_problem(problem, max_epochs=30, max_samples=300).fit(x)
    errors = np.abs(fast.score_samples(x) - problem.log_prob(x).numpy())
    assert np.median(errors) < 0.02 and errors.max() < 0.2
    np.testing.assert_allclose(fast.transform(x[:50]), problem.pull(x[:50]), atol=0.1)
    z = standard_normal(50, 2)
    np.testing.assert_allclose(fast.inverse_transform(z), problem.push(z), atol=0.1)
    points, area = grid_2d(n_cells=60)
    assert np.exp(fast.score_samples(points)).sum() * area == pytest.approx(1, abs=0.01)


def test_transform_and_inverse_transform_undo_each_other(fast, blobs):
    np.testing.assert_allclose(fast.inverse_transform(fast.transform(blobs)), blobs, atol=0.1)


def heun_by_hand(f, trace, z, start, end, n_steps):
    """The state and the integral of the trace along the way."""
    eps, log_det = (end - start) / n_steps, 0.0
    for k in range(n_steps):
        t = torch.tensor(start + k * eps)
        r1, trace1 = f(t, z), trace(t, z)
        r2, trace2 = f(t + eps, z + eps * r1), trace(t + eps, z + eps * r1)
        z, log_det = z + eps * (r1 + r2) / 2, log_det + eps * (trace1 + trace2) / 2
    return z, log_det


@some_flows
@pytest.mark.filterwarnings("ignore:no epoch was better")
def test_without_a_correction_it_is_the_base_solver_with_its_log_determinant(problem):
    x, z = problem.sample(40), standard_normal(40, 2)
    plain = of_problem(problem, n_steps=3, max_epochs=3).fit(x).without_correction()
    f, trace = problem.field, lambda t, z: problem.field.divergence(float(t), z)
    base, integral = heun_by_hand(f, trace, x, *problem.t_span[::-1], 3)
    # From data to base the integral runs backwards: log p(x) = log p_0(z) + it.
    np.testing.assert_allclose(plain.score_samples(x), log_standard_normal(base) + integral, atol=1e-6)
    np.testing.assert_allclose(plain.transform(x), base, atol=1e-6)
    np.testing.assert_allclose(plain.inverse_transform(z), heun_by_hand(f, trace, z, *problem.t_span, 3)[0], atol=1e-6)


# ---------------------------------------------------------------------- cost
class Counted(nn.Module):
    """LINEAR's field, counting its calls and those that ask for gradients."""

    def __init__(self):
        super().__init__()
        self.field, self.calls, self.with_gradients = LINEAR.field, 0, 0

    def forward(self, t, z):
        self.calls += 1
        self.with_gradients += z.requires_grad
        return self.field(t, z)


@pytest.mark.parametrize("base_solver, stages", [("euler", 1), ("rk4", 4)])
def test_every_step_evaluates_field_and_trace_once_a_stage(base_solver, stages):
    x = LINEAR.sample(40)
    fast = make_fast(Counted(), base_solver=base_solver, n_steps=2, rtol=1e-9, atol=1e-9).fit(x)
    density, sampling = fast.density_.module.neural_ode.vector_field.vector_field, fast.module_.neural_ode.vector_field
    density.calls = density.with_gradients = sampling.calls = sampling.with_gradients = 0
    fast.score_samples(x)
    assert (density.calls, density.with_gradients, sampling.calls) == (stages * 2, stages * 2, 0)
    fast.sample(10, random_state=0)
    assert (sampling.calls, sampling.with_gradients, density.calls) == (stages * 2, 0, stages * 2)
    rows = fast.solver_report(x).rows
    assert [row.nfe for row in rows[1:]] == [stages * 2] * 2


def test_reports_on_both_directions(fast, blobs):
    sampling, density = fast.solver_report(n_samples=100, random_state=0), fast.solver_report(blobs[:100], n_samples=50)
    for report in (sampling, density):
        slow, plain, corrected = report.rows
        assert (slow.solver, plain.solver, corrected.solver) == ("dopri5 1e-05", "heun K=2", "hyper-heun K=2")
        assert corrected.l2_mean < plain.l2_mean / 2 and corrected.nfe == plain.nfe == 4 < slow.nfe
        assert corrected.macs > plain.macs and slow.macs > corrected.macs
    # One evaluation of (f, trace): a forward pass and two backward ones; linear layers of 2-16-16-2.
    products = 2 * 16 + 16 * 16 + 16 * 2
    assert sampling.rows[1].macs == 4 * products
    assert density.rows[1].macs == 4 * 3 * products
    module = fast.to_module("density").solver.neural_ode
    state = module.input_map(torch.zeros(1, 2, dtype=torch.float64))
    assert count_macs(module.vector_field, state.new_tensor(0.0), state) == 3 * products


# ---------------------------------------------------------------------- Hutchinson
def test_reference_and_hypersolver_see_the_same_noise():
    x = LINEAR.sample(60)
    fast = make_fast(LINEAR.field, trace="gaussian").fit(x)
    rows = append_noise(x.numpy(), "gaussian", fast._noise_seed)
    estimate = np.einsum("ni,ij,nj->n", rows[:, 2:], LINEAR.field.matrix, rows[:, 2:])
    assert np.ptp(estimate) > 1
    states = torch.from_numpy(rows)
    np.testing.assert_allclose(fast.density_.reference(states)[:, 2], estimate, atol=1e-5)
    np.testing.assert_allclose(fast.without_correction().density_.predict(states)[:, 2], estimate, atol=1e-6)
    log_densities = log_standard_normal(torch.from_numpy(fast.transform(x))) - fast.density_.predict(states)[:, 2]
    np.testing.assert_allclose(fast.score_samples(x), log_densities, atol=1e-9)
    module = fast.to_module("density")
    with torch.no_grad():
        np.testing.assert_allclose(module(states), fast.score_samples(x), atol=1e-12)


@pytest.mark.parametrize("trace", ["rademacher", "gaussian"])
def test_an_estimated_density_does_not_depend_on_the_batch(trace):
    x = TANH_5D.sample(60).numpy()
    fast = make_fast(TANH_5D.field, trace=trace).fit(x)
    densities = fast.score_samples(x)
    np.testing.assert_allclose(fast.score_samples(x[::-1])[::-1], densities, atol=1e-9)
    np.testing.assert_allclose(fast.score_samples(x[17:18]), densities[17:18], atol=1e-9)
    np.testing.assert_allclose(fast.transform(x[17:18]), fast.transform(x)[17:18], atol=1e-9)


@pytest.mark.parametrize("trace", ["auto", "exact"])
def test_the_flows_trace_and_noise_are_taken_over(trace):
    slow, x = holding(TANH_5D, trace="rademacher"), TANH_5D.sample(100)
    fast = make_fast(slow, trace=trace, max_epochs=20, max_samples=100).fit(x)
    taken_over, other = slow.score_samples(x), TANH_5D.log_prob(x).numpy()
    if trace == "exact":
        taken_over, other = other, taken_over
    assert np.abs(fast.score_samples(x) - taken_over).mean() < 0.1
    assert np.abs(fast.score_samples(x) - other).mean() > 0.3


# ---------------------------------------------------------------------- other solvers, modules, other processes
def test_with_solver_swaps_steps_and_base_in_both_directions(fast, blobs):
    ralston = fast.with_solver("ralston")
    assert (ralston.base_solver, fast.base_solver, ralston.sampler_.method.name) == ("ralston", "heun", "ralston")
    assert ralston.density_.method.name == "ralston" and ralston.density_.correction is fast.density_.correction
    assert 0 < np.abs(ralston.score_samples(blobs) - fast.score_samples(blobs)).max() < 0.5
    with pytest.warns(UserWarning, match=r"step size 0.0625 lies outside the fitted range"):
        finer = fast.with_solver(n_steps=16)
    assert (finer.n_steps, finer.module_.n_steps, finer.density_.module.n_steps, fast.module_.n_steps) == (
        16,
        16,
        16,
        2,
    )
    assert np.abs(finer.without_correction().score(blobs) - fast.score(blobs)) < 0.02
    with pytest.raises(ValueError, match=r"base_solver 'rk4' .* cannot take over the correction fitted for 'heun'"):
        fast.with_solver("rk4")


def test_modules_predict_the_same(fast, blobs):
    z = torch.from_numpy(np.random.default_rng(0).normal(size=(10, 2)))
    sampling, density = fast.to_module(), fast.to_module("density")
    assert not sampling.training and not density.training and density.solver is not fast.density_.module
    x = torch.from_numpy(blobs)
    with torch.no_grad():
        np.testing.assert_array_equal(sampling.fold()(z), fast.inverse_transform(z))
        np.testing.assert_array_equal(density.fold()(x), fast.score_samples(blobs))
        np.testing.assert_array_equal(density.fold().base_state(x), fast.transform(blobs))
        torch.testing.assert_close(sampling(z), sampling.fold()(z))
        torch.testing.assert_close(density(x), density.fold()(x))


def test_a_density_module_holds_each_weight_once_and_trains_it(blobs):
    slow = ContinuousNormalizingFlow(max_epochs=1, random_state=0).fit(blobs)
    module = make_fast(slow, base_solver="heun", n_steps=2, max_epochs=1).fit(blobs).to_module("density")
    tensors = [tensor for tensor in module.state_dict().values() if tensor.numel()]
    assert len({tensor.data_ptr() for tensor in tensors}) == len(tensors)
    n_field = sum(parameter.numel() for parameter in slow.flow_.vector_field.parameters())
    assert sum(parameter.numel() for parameter in module.solver.neural_ode.parameters()) == n_field
    module.requires_grad_(True)(torch.from_numpy(blobs)).mean().backward()
    assert all(parameter.grad is not None for parameter in module.solver.neural_ode.parameters())
    assert not any("flow" in name for name in module.state_dict())


def test_sampling_exports(fast):
    module, z = fast.to_module().fold(), torch.zeros(2, 2, dtype=torch.float64)
    exported = torch.export.export(module, (z,), dynamic_shapes=({0: torch.export.Dim("batch")},)).module()
    z = torch.from_numpy(np.random.default_rng(0).normal(size=(7, 2)))
    np.testing.assert_allclose(exported(z).detach(), module(z).detach(), rtol=1e-12)


@pytest.mark.parametrize(
    "copied", [lambda fast: pickle.loads(pickle.dumps(fast)), copy.deepcopy], ids=["pickle", "deepcopy"]
)
def test_copies_are_equal_and_stand_alone(fast, blobs, copied):
    other = copied(fast)
    np.testing.assert_array_equal(other.score_samples(blobs), fast.score_samples(blobs))
    np.testing.assert_array_equal(other.sample(3, random_state=0), fast.sample(3, random_state=0))
    assert other.module_ is other.sampler_.module and other.module_ is not fast.module_
    np.testing.assert_array_equal(other.with_solver("ralston").sample(3, 0), fast.with_solver("ralston").sample(3, 0))


def test_a_pickle_holds_no_training_data(quick):
    assert abs(len(pickle.dumps(clone(quick).fit(two_blobs(3000)))) - len(pickle.dumps(quick))) < 2000
