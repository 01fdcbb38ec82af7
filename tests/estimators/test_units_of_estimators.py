"""What any estimator makes of data does not depend on the units of X, of states, of outputs or of time."""

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
    HypersolverClassifier,
    HypersolverDensity,
    HypersolverRegressor,
    NeuralODE,
    NeuralODEClassifier,
    NeuralODERegressor,
)
from sklearn_hyper.hypersolvers import SolveSettings, Task
from sklearn_hyper.modules import Standardize
from sklearn_hyper.numerics import reference_solution
from sklearn_hyper.numerics.units import feature_sizes
from sklearn_hyper.training.references import solve_references

RNG = np.random.default_rng(3)
ROWS = RNG.normal(size=(60, 3))
TARGET = np.sin(ROWS[:, 0]) + ROWS[:, 1]
LABELS = (TARGET > 0).astype(int)
IMAGES = RNG.normal(size=(40, 1, 5, 5)) + LABELS[:40, None, None, None]
UNITS = (1e-12, 1e12)
TRAIN = {"max_epochs": 2, "random_state": 0}
FIT = {"n_steps": 3, "max_epochs": 2, "random_state": 0}


def regressor(unit, dtype, **more):
    rows = (unit * ROWS).astype(dtype)
    return NeuralODERegressor(**TRAIN, **more).fit(rows, TARGET).predict(rows)


def regressor_of_targets(unit, dtype):
    rows, y = ROWS.astype(dtype), (unit * TARGET).astype(dtype)
    model = NeuralODERegressor(**TRAIN).fit(rows, y)
    return np.append(model.predict(rows) / unit, model.score(rows, y))


def regressor_of_one_column(unit, dtype):
    rows = (ROWS * [1, unit, 1]).astype(dtype)
    return NeuralODERegressor(**TRAIN).fit(rows, TARGET).predict(rows)


def classifier(unit, dtype):
    rows = (unit * ROWS).astype(dtype)
    model = NeuralODEClassifier(**TRAIN).fit(rows, LABELS)
    fast = HypersolverClassifier(model, **FIT).fit(rows)
    return np.hstack([model.predict_proba(rows), fast.predict_proba(rows), fast.reference(rows)])


def image_classifier(unit, dtype):
    rows = (unit * IMAGES).astype(dtype)
    return NeuralODEClassifier(solver="rk4", n_steps=2, **TRAIN).fit(rows, LABELS[:40]).predict_proba(rows)


def flow(unit, dtype, **more):
    rows = (unit * ROWS).astype(dtype)
    model = ContinuousNormalizingFlow(**TRAIN | more).fit(rows)
    return np.hstack(
        [
            model.score_samples(rows)[:, None] + 3 * math.log(unit),
            model.transform(rows),
            model.sample(60, random_state=0) / unit,
        ]
    )


def swirl(unit):
    def f(t, z):
        q, p = (z / unit).unbind(dim=1)
        return 2 * unit * torch.stack([p, (1 - q**2) * p - q], dim=1)

    return f


def fitted_numbers(hyper, rows, unit):
    row = {key: value / unit for key, value in hyper.errors_[3].items()}
    outputs = np.hstack([hyper.predict(rows), hyper.reference(rows)]).ravel() / unit
    return np.r_[outputs, hyper.score(rows), list(row.values())]


def hypersolver(unit, dtype, **more):
    rows = (unit * ROWS[:, :2] / 2).astype(dtype)
    hyper = HypersolverRegressor(swirl(unit), **FIT | more).fit(rows)
    return fitted_numbers(hyper, rows, unit)


def hypersolver_of_outputs(unit, dtype):
    rows = (ROWS[:, :2] / 2).astype(dtype)
    ode = NeuralODE(swirl(1.0), output_map=lambda z: unit * z[:, :1])
    hyper = HypersolverRegressor(ode, base_solver="euler", finetune="output", **FIT).fit(rows)
    return np.r_[hyper.predict(rows)[:, 0] / unit, hyper.score(rows), hyper.errors_[3]["mean"]]


def hypersolver_of_time(unit, dtype):
    rows = (ROWS[:, :2] / 2).astype(dtype)
    ode = NeuralODE(lambda t, z: torch.cos(t / unit) * swirl(1.0)(t, z) / unit, t_span=(0, unit))
    return fitted_numbers(HypersolverRegressor(ode, base_solver="euler", **FIT).fit(rows), rows, 1.0)


def hypersolver_of_images(unit, dtype):
    rows = (unit * IMAGES).astype(dtype)
    kernel = torch.linspace(-1, 1, 9, dtype=torch.float64).reshape(1, 1, 3, 3)

    def f(t, z):
        return 2 * unit * torch.tanh(nn.functional.conv2d(z / unit, kernel.to(z), padding=1))

    hyper = HypersolverRegressor(f, base_solver="euler", **FIT).fit(rows)
    return fitted_numbers(hyper, rows, unit)


def density(unit, dtype):
    rows = (unit * ROWS[:, :2]).astype(dtype)
    scale = torch.full((2,), unit, dtype=torch.float64)
    base = torch.distributions.Independent(torch.distributions.Normal(torch.zeros_like(scale), scale), 1)
    fast = HypersolverDensity(
        lambda t, z: unit * torch.tanh(z / unit), base_distribution=base, base_solver="euler", **FIT
    )
    fast.fit(rows)
    return np.hstack(
        [
            fast.score_samples(rows)[:, None] + 2 * math.log(unit),
            fast.transform(rows) / unit,
            fast.sample(60, random_state=0) / unit,
        ]
    )


EVERY = {
    "regressor": regressor,
    "regressor, adjoint": lambda unit, dtype: regressor(unit, dtype, adjoint=True),
    "regressor, fixed steps": lambda unit, dtype: regressor(unit, dtype, solver="heun", n_steps=8),
    "targets": regressor_of_targets,
    "one column": regressor_of_one_column,
    "classifiers": classifier,
    "images": image_classifier,
    "flow": flow,
    "flow, likelihood": lambda unit, dtype: flow(unit, dtype, objective="likelihood", max_epochs=1),
    "hypersolver": hypersolver,
    "hypersolver, coefficients": lambda unit, dtype: hypersolver(unit, dtype, base_solver="nonstationary"),
    "hypersolver, trajectory": lambda unit, dtype: hypersolver(unit, dtype, base_solver="euler", loss="trajectory"),
    "outputs": hypersolver_of_outputs,
    "time": hypersolver_of_time,
    "hypersolver of images": hypersolver_of_images,
    "density": density,
}


def test_reports_have_no_units():
    accuracy = []
    for unit in (1.0, *UNITS):
        rows = unit * ROWS[:, :2] / 2
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            report = HypersolverRegressor(swirl(unit), base_solver="euler", **FIT).fit(rows).solver_report(rows)
        accuracy.append([value for line in report for value in (line.mape, line.l2_mean, line.l2_max, line.nfe)])
    np.testing.assert_allclose(accuracy[1:], accuracy[:1] * 2, rtol=1e-2)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize(
    "dtype", [np.float32, pytest.param(np.float64, marks=pytest.mark.slow)], ids=["float32", "float64"]
)
def test_no_estimator_knows_units(name, dtype):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # two epochs need not be enough; targets may be solved for again
        expected = EVERY[name](1.0, dtype)
        for unit in UNITS if dtype == np.float32 else (1e-12, 1e-7, 1e5, 1e12):
            # Decimal units are rounded, which training in float32 carries on.
            np.testing.assert_allclose(EVERY[name](unit, dtype), expected, rtol=2e-2, atol=2e-3)


# ---------------------------------------------------------------------- sizes
@pytest.mark.parametrize("base_solver", ["euler", "nonstationary"])
def test_columns_of_a_state_may_have_units_of_their_own(base_solver):
    def score(unit):
        def f(t, z):
            q, p = z[:, 0], z[:, 1] / unit
            return 2 * torch.stack([p, unit * ((1 - q**2) * p - q)], dim=1)

        rows = (np.random.default_rng(0).uniform(-1.5, 1.5, (80, 2)) * [1, unit]).astype(np.float32)
        hyper = HypersolverRegressor(f, base_solver=base_solver, n_steps=4, max_epochs=15, random_state=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return hyper.fit(rows).score(rows), hyper.without_correction().score(rows)

    scores = np.array([score(unit) for unit in (1.0, 1e-9, 1e9)])
    assert (scores[:, 0] > 0.3 * scores[0, 1]).all(), scores


def test_sizes_are_by_feature_and_never_zero():
    z = torch.tensor([[3.0, 0.0, 1e-30], [4.0, 0.0, 1e-30]])
    sizes = feature_sizes(z)
    whole = 5 / math.sqrt(6)
    assert sizes.tolist()[0] == pytest.approx([5 / math.sqrt(2), whole, 1e-30], rel=1e-6)
    assert feature_sizes(torch.zeros(2, 1)).item() == 1 and feature_sizes(torch.full((2,), 3.0)).tolist() == [3]
    assert feature_sizes(z, n_unitless=2).tolist()[0] == pytest.approx([5 / math.sqrt(2), 1, 1])
    assert feature_sizes(torch.ones(2, 3, 4, 4)).shape == (1, 3, 1, 1)


@pytest.mark.parametrize("unit", [1e-12, 1e-6, 1.0, 1e12])
def test_references_have_the_units_of_the_states_by_feature(unit):
    z0 = torch.tensor([[1.0, unit], [2.0, -unit]], dtype=torch.float64)
    (_, z) = reference_solution(lambda t, z: -z, z0, (0.0, 1.0))
    assert torch.allclose(z / z0, torch.full_like(z, math.exp(-1)), rtol=1e-5)
    coarse = reference_solution(lambda t, z: -z, z0, (0.0, 1.0), rtol=1e-3, atol=10 * unit)[-1]
    assert unit > 1e-6 or (coarse / z0 - z / z0)[:, 1].abs().max() > 1e-9  # a number is a number in the states' units


@pytest.mark.filterwarnings("ignore:no epoch was better")
def test_the_size_of_a_fit_stays_with_it(tmp_path):
    rows = (1e-9 * ROWS).astype(np.float32)
    hyper = HypersolverRegressor(NeuralODE(lambda t, z: -z), base_solver="euler", memory=str(tmp_path), **FIT).fit(rows)
    sizes = np.sqrt((rows.astype(float) ** 2).mean(axis=0))
    for other in (
        hyper,
        pickle.loads(pickle.dumps(hyper)),
        copy.deepcopy(hyper),
        hyper.with_solver(t_span=(0.0, 1.01)),
    ):
        assert other.neural_ode_.state_size == pytest.approx(sizes, rel=1e-6)
        assert other.module_.neural_ode.state_size == pytest.approx(sizes, rel=1e-6)
    # One row, or one that is far smaller, is solved as in company.
    np.testing.assert_allclose(hyper.reference(rows[:1]), hyper.reference(rows)[:1], rtol=1e-5)
    model = NeuralODERegressor(**TRAIN).fit(ROWS, TARGET)
    assert len(model.neural_ode_.state_size) == 11
    assert HypersolverRegressor(model, **FIT).fit(ROWS).neural_ode_.state_size == model.neural_ode_.state_size


def test_cached_references_are_those_of_a_size(tmp_path):
    rows, settings = torch.ones(2, 1).double(), SolveSettings(rtol=1e-3, memory=str(tmp_path))

    def f(t, z):
        return -(z**2)

    fine, coarse = (
        solve_references(Task(NeuralODE(f, state_size=(size,)), rows), (0.0, 3.0), settings)[-1] for size in (1e-3, 1e3)
    )
    assert (fine - 0.25).abs().max() < (coarse - 0.25).abs().max()
    with pytest.raises(ValueError, match="state_size must hold one size a feature or channel of the state, 1, got 2"):
        NeuralODE(f, state_size=(1.0, 1.0))(rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_what_varies_by_rounding_alone_is_constant(dtype):
    for size in (1e-12, 1.0, 1e12):
        ulp = torch.finfo(dtype).eps
        column = torch.tensor([1.0, 1 + ulp, 1.0, 1 + ulp], dtype=dtype)[:, None] * size
        scaled = Standardize.from_data(column)(column)
        assert scaled.abs().max() < 10 * ulp  # by its size
        varied = torch.tensor([1.0, 1 + 99 * ulp, 1.0, 1 + 99 * ulp], dtype=dtype)[:, None] * size
        assert Standardize.from_data(varied)(varied).abs().max() > 0.9
    with pytest.raises(ValueError, match="feature 1 constant"):
        ContinuousNormalizingFlow(**TRAIN).fit(np.c_[ROWS[:, 0], 0.1 + 1e-17 * ROWS[:, 1]])


def test_constant_targets_and_features_have_no_units():
    for unit in UNITS:
        y = np.full(60, 0.3) * unit
        model = NeuralODERegressor(**TRAIN).fit(np.c_[unit * ROWS, np.full(60, unit)], y)
        np.testing.assert_allclose(model.predict(np.c_[unit * ROWS, np.full(60, unit)]), y, rtol=2)


def test_the_floor_of_a_score_is_a_share_of_each_column():
    ode = NeuralODE(lambda t, z: torch.sin(3 * z), output_map=lambda z: z * torch.tensor([1.0, 1e-9], dtype=z.dtype))
    hyper = HypersolverRegressor(ode, base_solver="euler", **FIT)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        hyper.fit(ROWS[:, :2])
    error = np.abs(hyper.predict(ROWS[:, :2]) / hyper.reference(ROWS[:, :2]) - 1)
    assert error.mean(axis=0).min() > 1e-3
    assert -hyper.score(ROWS[:, :2]) == pytest.approx(error.mean(), rel=0.5)
