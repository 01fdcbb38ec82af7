"""Analytic fields do what their equations say: conserved quantities, closed forms, a law of energy."""

import pickle

import numpy as np
import pytest
import torch
from problems import largest

from sklearn_hyper import HypersolverRegressor, NeuralODE
from sklearn_hyper.datasets import ForcedOscillator, LeadingFeatures, LotkaVolterra, Pendulum, VanDerPol, make_pendulum
from sklearn_hyper.numerics import hypersolve, reference_solution

TIGHT = {"rtol": 1e-10, "atol": 1e-10}
TIMES = (0.0, 0.7, 2.0)
AUTONOMOUS = [VanDerPol(), VanDerPol(mu=0.3), LotkaVolterra(), ForcedOscillator()]


@pytest.fixture
def z0(generator):
    return torch.rand(5, 2, dtype=torch.float64, generator=generator) + 0.5


def test_pendulum_without_control_loses_the_energy_that_friction_takes(z0):
    field = Pendulum(mass=1.3, stiffness=0.4, length=0.8, gravity=9.0, friction=0.2)
    x = torch.cat([z0, torch.full((5, 1), 0.7, dtype=torch.float64)], dim=1).requires_grad_(False)
    z = z0.clone().requires_grad_()
    q, p = z.unbind(1)
    # H = p^2 / 2m + k q^2 / 2 - m g l cos q changes at the rate (u - beta p / m) p / m.
    energy = p**2 / (2 * 1.3) + 0.4 * q**2 / 2 - 1.3 * 9.0 * 0.8 * torch.cos(q)
    (gradient,) = torch.autograd.grad(energy.sum(), z)
    power = (gradient * field(torch.tensor(0.0), z, x)).sum(dim=1)
    assert largest(power - (0.7 - 0.2 * p / 1.3) * p / 1.3) < 1e-12


def test_default_pendulum_is_the_benchmarks():
    z, x = torch.tensor([[1.0, 2.0]]).double(), torch.tensor([[1.0, 2.0, 3.0]]).double()
    expected = [[2.0, -0.5 - 9.81 * np.sin(1.0) - 0.02 + 3.0]]
    assert np.allclose(Pendulum()(torch.tensor(0.0), z, x), expected, atol=1e-14)


def test_van_der_pol_without_damping_is_a_rotation(z0):
    *_, end = reference_solution(VanDerPol(mu=0), z0, TIMES, **TIGHT)
    c, s = np.cos(TIMES[-1]), np.sin(TIMES[-1])
    assert largest(end - z0 @ torch.tensor([[c, -s], [s, c]])) < 1e-8


def test_van_der_pol_has_a_limit_cycle_of_amplitude_near_two(z0):
    states = reference_solution(VanDerPol(mu=0.5), z0, np.linspace(0, 40, 401), rtol=1e-5, atol=1e-5)
    amplitudes = states[-80:, :, 0].abs().amax(dim=0)
    assert largest(amplitudes - 2.0) < 0.02


def test_lotka_volterra_keeps_its_invariant(z0):
    field = LotkaVolterra(alpha=1.2, beta=0.7, gamma=0.9, delta=0.5)
    prey, predators = reference_solution(field, z0, TIMES, **TIGHT).unbind(-1)
    invariant = 0.5 * prey - 0.9 * prey.log() + 0.7 * predators - 1.2 * predators.log()
    assert largest(invariant - invariant[0]) < 1e-8


def test_forced_oscillator_follows_its_steady_state():
    omega, zeta, amplitude, nu = 2.0, 0.1, 1.5, 3.0
    # The solution that only oscillates with the drive: the real part of response * e^(i nu t).
    response = amplitude / (omega**2 - nu**2 + 2j * zeta * omega * nu)

    def steady(t):
        z = response * np.exp(1j * nu * t)
        return torch.tensor([[z.real, (1j * nu * z).real]], dtype=torch.float64)

    field = ForcedOscillator(frequency=omega, damping=zeta, amplitude=amplitude, drive=nu)
    states = reference_solution(field, steady(0.4), (0.4, 1.0, 2.5), **TIGHT)
    assert largest(states - torch.stack([steady(t) for t in (0.4, 1.0, 2.5)])) < 1e-8


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("field", AUTONOMOUS, ids=repr)
def test_fields_keep_shape_and_dtype_pickle_and_show_their_constants(field, z0, dtype):
    z = z0.to(dtype)
    end = hypersolve(field, z, (0.0, 1.0), 3, "rk4")
    assert (end.shape, end.dtype) == (z.shape, dtype)
    assert torch.equal(hypersolve(pickle.loads(pickle.dumps(field)), z, (0.0, 1.0), 3, "rk4"), end)
    assert all(f"{name}={value}" in repr(field) for name, value in vars(field).items() if isinstance(value, float))
    assert not list(field.parameters())


def test_make_pendulum_fills_its_box_reproducibly():
    X, _ = make_pendulum(2000, random_state=3)
    assert (X.shape, X.dtype) == ((2000, 3), np.float64)
    assert np.allclose(np.abs(X).max(axis=0), [5, 5, 10], rtol=0.01)
    assert np.abs(X.mean(axis=0) / [5, 5, 10]).max() < 0.05
    assert np.array_equal(X, make_pendulum(2000, np.random.RandomState(3))[0])
    assert not np.array_equal(X, make_pendulum(2000, random_state=4)[0])


def test_make_pendulum_gives_the_neural_ode_of_its_samples():
    X, neural_ode = make_pendulum(4, random_state=0)
    x = torch.from_numpy(X)
    assert isinstance(neural_ode, NeuralODE) and neural_ode.data_controlled and neural_ode.t_span == (0.0, 1.0)
    assert torch.equal(neural_ode.input_map(x), x[:, :2])
    end = hypersolve(Pendulum(), x[:, :2], (0.0, 1.0), 200, "rk4", x=x)
    assert largest(pickle.loads(pickle.dumps(neural_ode))(x) - end) < 1e-4
    assert "n_features=2" in repr(LeadingFeatures(2))


def test_a_hypersolver_learns_the_controlled_pendulum():
    X, neural_ode = make_pendulum(300, random_state=0)
    fast = HypersolverRegressor(neural_ode, base_solver="euler", n_steps=10, max_epochs=40, random_state=0).fit(X[:200])
    report = fast.solver_report(X[200:]).to_dict()
    assert fast.predict(X[200:]).shape == (100, 2)
    assert report["hyper-euler K=10"]["l2_mean"] < 0.5 * report["euler K=10"]["l2_mean"]
