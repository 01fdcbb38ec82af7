"""Truths about the predictor-corrector methods."""

import numpy as np
import pytest
import torch

from sklearn_hyper import HypersolverRegressor
from sklearn_hyper.numerics import (
    CountedField,
    compute_residuals,
    hypersolve,
    hypersolve_trajectory,
    reference_solution,
    resolve_base_solver,
)
from sklearn_hyper.numerics.methods.predictor_corrector import PredictorCorrector

NAMES = ("abm2", "abm2_pec")
EVALUATIONS = {"abm2": lambda K: 2 * K, "abm2_pec": lambda K: K + 1}


def logistic(t, z):
    """Autonomous: z' = z (1 - z)."""
    return z * (1 - z)


def driven(t, z):
    """Non-autonomous: z' = -z + sin(3 t) + t."""
    return -z + torch.sin(3 * t) + t


def exact(f, end):
    z0 = torch.full((1, 1), 0.3, dtype=torch.float64)
    return reference_solution(f, z0, [0.0, end], rtol=1e-12)[-1].item()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("f", [logistic, driven])
def test_both_are_of_order_two(name, f):
    z0, steps = torch.full((1, 1), 0.3, dtype=torch.float64), (20, 40, 80, 160)
    errors = [abs(hypersolve(f, z0, (0.0, 1.7), K, name).item() - exact(f, 1.7)) for K in steps]
    slope = np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert abs(slope + 2) < 0.2


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("K", [1, 2, 7])
def test_evaluations_are_counted_exactly(name, K):
    f = CountedField(driven)
    hypersolve(f, torch.ones(1, 1), (0.0, 1.0), K, name)
    assert f.n_evaluations == resolve_base_solver(name).count_evaluations(K) == EVALUATIONS[name](K)


@pytest.mark.parametrize("name", NAMES)
def test_quadratics_in_time_are_exact_on_any_mesh(name):
    """Both predictor and corrector integrate lines exactly, so z' = 2 t is solved without an error."""
    grid = (0.0, 0.1, 0.35, 0.5, 1.0)
    z = hypersolve_trajectory(
        lambda t, z: 2 * t * torch.ones_like(z), torch.zeros(1, 1).double(), None, None, name, grid=grid
    )
    torch.testing.assert_close(z.ravel(), torch.tensor(grid, dtype=torch.float64) ** 2, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("name", NAMES)
def test_stages_are_evaluations_where_the_kind_says(name):
    """Of a field that returns the time, the stages are the offsets."""
    method, eps = resolve_base_solver(name), 0.25
    state, f = (), lambda t, z: t * torch.ones_like(z)
    for k in range(3):
        kind, s = method.kind(k), k * eps
        times = [torch.tensor(s + node * eps) for node in kind.nodes]
        step = method.step(f, times, torch.ones(1, 1), eps, state)
        state = step.state
        assert [(stage.item() - s) / eps for stage in step.stages] == pytest.approx(list(kind.offsets))


@pytest.mark.parametrize("name", NAMES)
def test_the_error_estimate_is_that_of_the_step(name):
    """On a smooth field the estimate of a later step approaches its true local error."""
    method, eps = resolve_base_solver(name), 0.01
    z = reference_solution(driven, torch.full((1, 1), 0.3).double(), [0.0, eps, 2 * eps], rtol=1e-13)
    state = method.remember((), eps, driven(torch.tensor(0.0).double(), z[0]))
    state = method.arrive(state, driven(torch.tensor(eps).double(), z[1])) if name == "abm2_pec" else state
    times = [torch.tensor(eps + node * eps).double() for node in method.main_kind.nodes]
    step = method.step(driven, times, z[1], eps, state)
    true_error = (z[1] + eps * step.direction - z[2]).item()
    assert step.error.item() == pytest.approx(true_error, rel=0.1)


def test_the_exact_residual_as_g_reproduces_the_trajectory():
    """With two evaluations; with one the past of a solve is at predicted states, that of residuals on the reference."""
    grid = tuple(k / 6 for k in range(7))
    states = reference_solution(logistic, torch.full((3, 1), 0.3).double(), grid, rtol=1e-12)
    residuals = compute_residuals(logistic, states, grid, "abm2")
    g = [lambda eps, s, z, stages, x, r=r: r.target for r in residuals]
    solved = hypersolve_trajectory(logistic, states[0], (0.0, 1.0), 6, "abm2", g)
    torch.testing.assert_close(solved, states, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_a_known_past_gives_the_residual_of_a_full_step(name):
    grid = (0.0, 0.2, 0.4)
    states = reference_solution(driven, torch.full((2, 1), 0.3).double(), grid, rtol=1e-12)
    (last,) = compute_residuals(driven, states, grid, name, n_past=1)
    assert last.kind == resolve_base_solver(name).main_kind
    if name == "abm2":  # whose step depends on the past by f at mesh points alone
        torch.testing.assert_close(last.target, compute_residuals(driven, states, grid, name)[-1].target)


@pytest.mark.parametrize("name", NAMES)
def test_a_hypersolver_over_it_fits_reports_and_exports(name, tmp_path):
    X = np.random.default_rng(0).normal(size=(120, 2)).astype(np.float32)
    fast = HypersolverRegressor(Rotation(), base_solver=name, n_steps=3, max_epochs=30, random_state=0).fit(X)
    report = fast.solver_report(X)
    assert [row.nfe for row in report[1:]] == [EVALUATIONS[name](3)] * 2
    assert report[2].l2_mean < 0.7 * report[1].l2_mean
    pytest.importorskip("onnxruntime")
    import onnxruntime

    path = fast.export_onnx(tmp_path / "pc.onnx", X=X)
    (output,) = onnxruntime.InferenceSession(path).run(None, {"X": X})
    np.testing.assert_allclose(output, fast.predict(X), rtol=1e-4, atol=1e-5)
    assert fast.with_solver(n_steps=4).predict(X).shape == X.shape


class Rotation(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("A", torch.tensor([[0.0, 2.0], [-2.0, -0.3]]))

    def forward(self, t, z):
        return torch.tanh(z @ self.A)


@pytest.mark.parametrize("evaluations", [0, 3, True, 1.5])
def test_other_numbers_of_evaluations_are_refused(evaluations):
    with pytest.raises(ValueError, match="evaluations must be 1 or 2"):
        PredictorCorrector(evaluations)


def test_both_have_one_family():
    """So that a correction fitted for one can be swapped to the other."""
    kinds = [resolve_base_solver(name).main_kind for name in NAMES]
    assert kinds[0].family == kinds[1].family and kinds[0] != kinds[1]
