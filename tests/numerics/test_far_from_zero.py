"""Whole fits far from zero: they are those at zero, for f gets its time exactly whatever the states' dtype."""

import copy
import math
import pickle
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from sklearn_hyper import (
    ContinuousNormalizingFlow,
    HypersolverDensity,
    HypersolverRegressor,
    NeuralODE,
    NeuralODEClassifier,
    NeuralODERegressor,
)
from sklearn_hyper.modules import MLPVectorField, VectorFieldError
from sklearn_hyper.numerics import reference_solution

FAR = 1.7e9
"""Seconds since 1970: float32 has one number every 128 of them."""
PERIOD, LENGTH = 60.0, 15.0
GROWTH = math.exp(6 / (2 * math.pi))


def season(t, z):
    return torch.cos(2 * math.pi * (t - FAR) / PERIOD) * z / 10


def season_at_zero(t, z):
    return torch.cos(2 * math.pi * t / PERIOD) * z / 10


pytestmark = pytest.mark.filterwarnings("ignore::sklearn_hyper.numerics.ConditioningWarning")

SPAN = (FAR, FAR + LENGTH)
X = np.random.default_rng(0).uniform(0.5, 1, (80, 2)).astype(np.float32)


# ---------------------------------------------------------------------- what f gets
@pytest.mark.parametrize(
    ("span", "expected"), [((0.0, 1.0), torch.float32), (SPAN, torch.float64)], ids=["near", "far"]
)
def test_everything_hands_f_time_in_one_dtype(span, expected):
    seen = set()

    def field(t, z):
        if z.dtype == torch.float32:  # targets may be solved for again in float64
            seen.add((t.dtype, t.ndim))
        return torch.cos(2 * math.pi * (t - span[0]) / (4 * (span[1] - span[0]))) * z / (span[1] - span[0])

    rows = np.hstack([X, X, X])[:, :5]
    for base_solver, more in (("auto", {}), ("ab2", {"fit_n_steps": (3, 40)}), ("heun", {"finetune": "trajectory"})):
        hyper = HypersolverRegressor(
            NeuralODE(field, t_span=span), base_solver=base_solver, n_steps=4, max_epochs=2, random_state=0, **more
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # two epochs need not beat the base solver
            hyper.fit(rows)
        hyper.predict(rows), hyper.score(rows), hyper.trajectory(rows), hyper.solver_report(rows)
    assert seen == {(expected, 0)}


def test_a_user_s_correction_gets_the_time_that_f_gets():
    class Mine(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(()))

        def forward(self, eps, s, z, stages, x=None):
            assert s.dtype == torch.float64 and FAR <= float(s.flatten()[0]) <= FAR + LENGTH
            return self.weight * stages[0]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it need not be any good
        HypersolverRegressor(
            NeuralODE(season, t_span=SPAN),
            correction=Mine(),
            base_solver="euler",
            n_steps=4,
            max_epochs=5,
            random_state=0,
        ).fit(X)


# ---------------------------------------------------------------------- whole fits
@pytest.mark.parametrize("base_solver", ["euler", "midpoint", "auto", "nonstationary"])
def test_a_fit_far_from_zero_is_right(base_solver):
    hyper = HypersolverRegressor(
        NeuralODE(season, t_span=SPAN), base_solver=base_solver, n_steps=4, max_epochs=8, random_state=0
    ).fit(X)
    np.testing.assert_allclose(hyper.reference(X) / X, GROWTH, rtol=1e-4)
    np.testing.assert_allclose((hyper.predict(X) / X).mean(), GROWTH, rtol=1e-2)
    assert hyper.score(X) > -0.02
    for other in (pickle.loads(pickle.dumps(hyper)), copy.deepcopy(hyper)):
        np.testing.assert_array_equal(other.predict(X), hyper.predict(X))


def test_a_fit_far_from_zero_is_the_fit_at_zero():
    far, near = (
        HypersolverRegressor(
            NeuralODE(field, t_span=span), base_solver="midpoint", n_steps=4, max_epochs=5, random_state=0
        ).fit(X)
        for field, span in ((season, SPAN), (season_at_zero, (0, LENGTH)))
    )
    np.testing.assert_allclose(far.predict(X), near.predict(X), rtol=2e-3)


def test_backwards_and_data_controlled_far_from_zero():
    backwards = HypersolverRegressor(
        NeuralODE(season, t_span=SPAN[::-1]), base_solver="heun", n_steps=4, max_epochs=5, random_state=0
    ).fit(X)
    np.testing.assert_allclose(backwards.predict(X) * GROWTH, X, rtol=2e-2)

    def forced(t, z, x):
        return season(t, x) + 0 * z  # z(15) = x (1 + 3 / pi)

    controlled = HypersolverRegressor(
        NeuralODE(forced, t_span=SPAN, data_controlled=True),
        base_solver="heun",
        n_steps=4,
        max_epochs=5,
        random_state=0,
    ).fit(X)
    np.testing.assert_allclose(controlled.predict(X), X * (1 + 3 / math.pi), rtol=1e-2)


def test_with_solver_keeps_time_exact():
    hyper = HypersolverRegressor(
        NeuralODE(season, t_span=SPAN), base_solver="heun", n_steps=4, fit_n_steps=(3, 12), max_epochs=5, random_state=0
    ).fit(X)
    np.testing.assert_allclose(hyper.with_solver(n_steps=12).predict(X), GROWTH * X, rtol=5e-3)
    other = hyper.with_solver(t_span=(FAR + LENGTH, FAR + 2 * LENGTH), n_steps=6)  # the way back of the season
    np.testing.assert_allclose(other.predict(X), X / GROWTH, rtol=5e-2)


# ---------------------------------------------------------------------- refusals
class Joined(nn.Module):
    """Puts time beside the state, so that float64 spreads."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, t, z):
        return self.layer(torch.cat([z, t.expand(len(z), 1)], dim=1))


def test_fields_that_need_time_in_the_states_dtype_are_told_of_t_span():
    def returns_float64(t, z):
        return z + t.expand(len(z), 1)

    for field in (Joined(), returns_float64):
        with pytest.raises(
            VectorFieldError, match=r"t_span=\(1700000000.0, .*not resolved by torch.float32.*from the start"
        ):
            HypersolverRegressor(NeuralODE(field, t_span=SPAN), n_steps=4).fit(X)
    with pytest.raises(VectorFieldError, match=r"t_span=.*not resolved by torch.float32"):
        NeuralODERegressor(Joined(), input_map=nn.Identity(), t_span=SPAN, max_epochs=1).fit(X, X[:, 0])
    # The same fields do at zero, and in float64.
    HypersolverRegressor(NeuralODE(Joined()), n_steps=4, max_epochs=1, random_state=0).fit(X)
    reference_solution(returns_float64, torch.ones(1, 2).double(), (FAR, FAR + 1))


# ---------------------------------------------------------------------- training
def test_neural_odes_are_trained_far_from_zero_as_at_zero():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(120, 2)).astype(np.float32)
    y = np.sin(rows[:, 0]) + rows[:, 1]
    scores = [
        NeuralODERegressor(t_span=span, max_epochs=5, random_state=0).fit(rows, y).score(rows, y)
        for span in ((0, 1), SPAN, (FAR, FAR - 1))
    ]
    assert scores == pytest.approx([scores[0]] * 3, abs=0.02) and scores[0] > 0.9
    labels = (y > 0).astype(int)
    accuracy = [
        NeuralODEClassifier(t_span=span, solver="rk4", n_steps=3, max_epochs=3, random_state=0)
        .fit(rows, labels)
        .predict_proba(rows)
        for span in ((0, 1), SPAN)
    ]
    np.testing.assert_allclose(*accuracy, atol=1e-3)
    images = rows.repeat(18, axis=1).reshape(120, 1, 6, 6)
    proba = [
        NeuralODEClassifier(t_span=span, max_epochs=1, random_state=0).fit(images, labels).predict_proba(images)
        for span in ((0, 1), (FAR, FAR + 86_400))
    ]
    np.testing.assert_allclose(*proba, atol=5e-3)


def test_flows_are_trained_far_from_zero_as_at_zero():
    rows = np.random.default_rng(0).normal(size=(100, 2)).astype(np.float32) * [3, 0.1]
    densities = []
    for span in ((0, 1), (FAR, FAR + 3600)):
        for more in ({"max_epochs": 3}, {"objective": "likelihood", "max_epochs": 1, "kinetic": 0.1, "jacobian": 0.1}):
            flow = ContinuousNormalizingFlow(t_span=span, random_state=0, **more).fit(rows.astype(np.float32))
            densities.append(flow.score_samples(rows))
    np.testing.assert_allclose(densities[2], densities[0], atol=1e-2)
    np.testing.assert_allclose(densities[3], densities[1], atol=1e-2)
    fast = HypersolverDensity(
        flow, base_solver="euler", n_steps=2, max_samples=40, max_epochs=1, loss="trajectory", random_state=0
    )
    fast.fit(rows[:60].astype(np.float32))
    assert np.abs(fast.score_samples(rows) - flow.score_samples(rows)).mean() < 0.1


def test_a_field_for_a_span_gives_the_change_over_it():
    torch.manual_seed(0)
    plain = MLPVectorField(2)
    field = MLPVectorField(2, t_span=SPAN)
    field.load_state_dict(plain.state_dict())
    z = torch.randn(4, 2)
    t = torch.tensor(FAR + 0.25 * LENGTH, dtype=torch.float64)
    assert torch.allclose(field(t, z) * LENGTH, plain(torch.tensor(0.25), z))


# ---------------------------------------------------------------------- exports
@pytest.mark.parametrize("base_solver", ["midpoint", "ab2"])
def test_torch_export_and_onnx_far_from_zero(base_solver, tmp_path):
    hyper = HypersolverRegressor(
        NeuralODE(season, t_span=SPAN), base_solver=base_solver, n_steps=3, max_epochs=3, random_state=0
    ).fit(X)
    module = hyper.to_module()
    exported = torch.export.export(module, (torch.from_numpy(X[:3]),)).module()
    np.testing.assert_allclose(exported(torch.from_numpy(X[:3])).numpy(), hyper.predict(X[:3]), rtol=1e-5)
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    path = hyper.export_onnx(tmp_path / "season.onnx")
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"X": X})
    np.testing.assert_allclose(found, hyper.predict(X), rtol=1e-5)
