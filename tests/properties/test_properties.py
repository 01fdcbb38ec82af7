"""Right numbers whatever people bring: fits of generated fields on generated data, against truths that are solved for apart.

A few hundred examples run by default, always the same; ``-m slow`` runs thousands.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from properties.checks import (
    TALLY,
    check_copies,
    check_predictions,
    check_refit,
    fit_or_refuse,
    largest,
    nothing_touched,
    quiet,
)
from properties.strategies import (
    KINDS,
    MAPS,
    MAY_BE_REFUSED,
    UNTRAINABLE,
    DataCase,
    FieldCase,
    choices,
    draw_problem,
    solve,
)
from torch import nn

from sklearn_hyper import (
    ContinuousNormalizingFlow,
    HypersolverClassifier,
    HypersolverDensity,
    HypersolverRegressor,
    MLPCorrection,
    NeuralODE,
    NeuralODEClassifier,
    NeuralODERegressor,
    alpha_family,
)

SPANS = ((0.0, 1.0), (1.0, 0.0), (-0.5, 0.5), (2.0, 2.5))
BASES = (("euler", 2), ("auto", 2), ("midpoint", 1), ("heun", 2), ("ab2", 3), ("rk4", 1), ("nonstationary", 2), (alpha_family(0.3), 2))  # fmt: skip
LOSSES = (("residual", "terminal"), ("residual", None), ("residual", "output"), ("trajectory", "trajectory"))
DETERMINISTIC = tuple(kind for kind in KINDS if kind != "dropout")
OF_TWO_ARGUMENTS = tuple(kind for kind in DETERMINISTIC if kind != "controlled")


def examples(n: int) -> Any:
    """So many examples, without shrinking: an example is small as it is, and shrinking takes minutes."""
    return settings(
        max_examples=n, deadline=None, derandomize=True, database=None, phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck), report_multiple_bugs=False, print_blob=False,
    )  # fmt: skip


def rounding(dtype: torch.dtype) -> float:
    """How far apart two orders of summation may be."""
    return 2e-5 if dtype == torch.float32 else 1e-11


# ---------------------------------------------------------------------- hypersolvers
def hypersolver_cases(rng: random.Random) -> dict[str, Any]:
    field, data = draw_problem(rng)
    base_solver, n_steps = rng.choice(BASES)
    loss, finetune = rng.choice(LOSSES)
    if base_solver == "nonstationary" and loss == "trajectory":
        loss, finetune = "residual", "terminal"
    return {
        "field": field,
        "data": data,
        "input_map": rng.choice(tuple(MAPS)),
        "output_map": rng.choice(tuple(MAPS)),
        "t_span": rng.choice(SPANS),
        "params": {
            "base_solver": base_solver, "n_steps": n_steps, "loss": loss, "finetune": finetune, "batch_size": 8,
            "max_epochs": rng.randint(1, 2), "random_state": rng.randrange(4),
            "correction": rng.choice(("auto", "small")),
        },
    }  # fmt: skip


def build_ode(case: dict[str, Any], output: Any = None) -> tuple[NeuralODE, list[nn.Module]]:
    f, owned = case["field"].make()
    into, out = MAPS[case["input_map"]][0], MAPS[case["output_map"]][0] if output is None else output
    ode = NeuralODE(
        f, input_map=into, output_map=out, t_span=case["t_span"], data_controlled=case["field"].kind == "controlled"
    )
    return ode, [*owned, ode]


def parameters_of(case: dict[str, Any]) -> dict[str, Any]:
    params = dict(case["params"])
    if params["correction"] == "small":
        params["correction"] = MLPCorrection(hidden=4)
    return params


def dtype_of(field: FieldCase, data: DataCase) -> torch.dtype:
    return field.dtype if field.has_dtype else data.compute_dtype


def true_states(case: dict[str, Any], dtype: torch.dtype) -> torch.Tensor:
    """z(S) of the rows, as the estimator reads them."""
    x = case["data"].tensor(dtype)
    z = MAPS[case["input_map"]][1](x)
    return solve(case["field"].pure, z, case["t_span"], x)


def check_errors(fast: Any, X: Any, truth: torch.Tensor, dtype: torch.dtype) -> None:
    """No row is much further from the truth than the base solver takes the worst of them, and held-out rows are not at all."""
    slack = (1e-4 if dtype == torch.float32 else 2e-5) * largest(truth)
    own, base = (largest(model.transform(X) - truth.numpy()) for model in (fast, fast.without_correction()))
    assert own <= 4 * base + slack, f"error {own:.3g}, the base solver's {base:.3g}"
    errors = fast.errors_[fast.n_steps]
    assert errors["max"] <= errors["base_max"] * (1 + 1e-6)


def check_regressor(case: dict[str, Any]) -> None:
    TALLY["regressor"] += 1
    field, data, X = case["field"], case["data"], case["data"].make()
    ode, owned = build_ode(case)
    dtype = dtype_of(field, data)
    with nothing_touched(owned, X):
        make = lambda: HypersolverRegressor(ode, **parameters_of(case)).fit(X)  # noqa: E731
        fast = fit_or_refuse(make, may_refuse=field.kind in MAY_BE_REFUSED)
        if fast is None:
            return
        assert fast.dtype_ == dtype
        output = check_predictions(fast.predict, X, rounding(dtype))
        assert output.dtype == np.dtype(str(dtype).removeprefix("torch.")) and output.shape == data.values().shape
        truth = true_states(case, dtype)
        check_errors(fast, X, truth, dtype)
        expected = MAPS[case["output_map"]][1](truth).numpy()
        tolerance = (2e-4 if dtype == torch.float32 else 3e-5) * np.abs(expected).max()
        np.testing.assert_allclose(fast.reference(X), expected, rtol=0, atol=tolerance)
        assert -np.inf < fast.score(X) <= 0
        np.testing.assert_allclose(fast.trajectory(X)[:, -1], fast.transform(X), rtol=0, atol=0)
        check_copies(fast, lambda model: model.predict(X))
        if case["data"].seed % 2:  # takes a second fit
            check_refit(fast, lambda model: model.fit(X), lambda model: model.predict(X))


class ToLogits(nn.Module):
    """Three classes from states of any shape, in the state's unit."""

    def __init__(self, n_state: int, unit: float, dtype: torch.dtype):
        super().__init__()
        weight = torch.linspace(-1, 1, 3 * n_state, dtype=torch.float64).cos().view(3, n_state) / unit
        self.register_buffer("weight", weight.to(dtype))

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return z.flatten(1) @ self.weight.T.to(z)


def check_classifier(case: dict[str, Any]) -> None:
    TALLY["classifier"] += 1
    field, data, X = case["field"], case["data"], case["data"].make()
    head = ToLogits(int(np.prod(data.shape)), data.unit, field.dtype)
    ode, owned = build_ode(case, head)
    params = parameters_of(case)
    labels = np.array(["a", "b", "c"])
    with nothing_touched(owned, X):
        make = lambda: HypersolverClassifier(ode, classes=labels, **params).fit(X)  # noqa: E731
        fast = fit_or_refuse(make, may_refuse=field.kind in MAY_BE_REFUSED)
        if fast is None:
            return
        assert fast.dtype_ == field.dtype
        shares = check_predictions(fast.predict_proba, X, 10 * rounding(field.dtype))
        np.testing.assert_allclose(shares.sum(axis=1), 1, rtol=1e-5)
        assert np.array_equal(fast.predict(X), labels[shares.argmax(axis=1)])
        truth = true_states(case, field.dtype)
        check_errors(fast, X, truth, field.dtype)
        expected = ToLogits(head.weight.shape[1], data.unit, torch.float64)(truth)
        np.testing.assert_allclose(fast.reference(X), expected, rtol=0, atol=1e-3 * max(1.0, expected.abs().max()))
        assert fast.score(X, fast.predict(X)) == 1.0
        check_copies(fast, lambda model: model.predict_proba(X))
        if case["data"].seed % 2:  # takes a second fit
            check_refit(fast, lambda model: model.fit(X), lambda model: model.predict_proba(X))


# ---------------------------------------------------------------------- Neural ODEs
def training_cases(rng: random.Random, kinds: tuple[str, ...] = OF_TWO_ARGUMENTS) -> dict[str, Any]:
    field, data = draw_problem(rng, kinds)
    return {
        "field": field,
        "data": data,
        "t_span": rng.choice(SPANS),
        "y_unit": rng.choice((1.0, 1e-9, 1e9)),
        "n_outputs": rng.choice((1, 2)),
        "params": {
            "solver": rng.choice(("dopri5", "heun")), "n_steps": 6,
            # In training, spectral_norm changes at every call: such a field has no adjoint.
            "adjoint": rng.random() < 0.5 and field.kind != "spectral norm",
            "max_epochs": rng.randint(1, 2), "batch_size": 8, "random_state": rng.randrange(4), "lr": 0.02,
            "validation_fraction": rng.choice((None, 0.3)),
        },
    }  # fmt: skip


class ToStates(nn.Module):
    """An input map with weights, so that there is something to train whatever the field."""

    def __init__(self, dtype: torch.dtype):
        super().__init__()
        self.gain = nn.Parameter(torch.ones((), dtype=dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.gain * x


def probe(case: dict[str, Any]) -> torch.Tensor:
    field = case["field"]
    shape = (2, *case["data"].shape)
    return (field.unit * torch.linspace(-1, 1, int(np.prod(shape)), dtype=torch.float64).view(shape)).to(field.dtype)


def check_trained(case: dict[str, Any], f: Any, dtype: torch.dtype) -> None:
    """The field in the model is a trained copy of the one that was passed; weights that are no parameters stay."""
    field, z, t = case["field"], probe(case).to(dtype), torch.tensor(case["t_span"][0], dtype=dtype)
    with torch.no_grad():
        now = f(t, z.clone()).double()
    before = field.pure(float(t), z.double())
    moved = float((now - before).abs().max() / before.abs().max())
    assert moved < 1e-5 if field.kind in UNTRAINABLE else moved > 1e-4, f"the field has moved by {moved:.2g}"


def own_solution(ode: NeuralODE, data: DataCase, dtype: torch.dtype) -> np.ndarray:
    """Outputs of a fitted Neural ODE by small Runge-Kutta steps."""
    with torch.no_grad():
        z = ode.input_map(data.tensor(dtype).to(dtype))

        def f(t: float, z: torch.Tensor, x: Any) -> torch.Tensor:
            return ode.vector_field(torch.tensor(t, dtype=dtype), z.clone()).clone()

        return ode.output_map(solve(f, z, ode.t_span)).numpy()


def check_training(case: dict[str, Any], make: Any, y: np.ndarray, method: str) -> None:
    field, X = case["field"], case["data"].make()
    f, owned = field.make()
    into = ToStates(field.dtype)
    with nothing_touched([*owned, into], X, y):
        model = fit_or_refuse(
            lambda: make(f, into).fit(X, y),
            may_refuse=field.kind in MAY_BE_REFUSED,
        )
        if model is None:
            return
        dtype = field.dtype  # the map's, at least
        assert model.dtype_ == dtype
        check_trained(case, model.neural_ode_.vector_field, dtype)
        predict = getattr(model, method)
        check_predictions(predict, X, 2e-4 if dtype == torch.float32 else 2e-6)
        expected, output = own_solution(model.neural_ode_, case["data"], dtype), predict(X)
        if method == "predict_proba":
            expected = torch.softmax(torch.from_numpy(expected), dim=1).numpy()
            np.testing.assert_allclose(output.sum(axis=1), 1, rtol=1e-5)
        scale = np.abs(expected).max()
        np.testing.assert_allclose(output.reshape(expected.shape), expected, rtol=0, atol=3e-4 * scale)
        assert np.isfinite(model.score(X, y))
        check_copies(model, lambda model: getattr(model, method)(X))
        if case["data"].seed % 2:  # takes a second fit
            check_refit(model, lambda model: model.fit(X, y), lambda model: getattr(model, method)(X))


def check_node_regressor(case: dict[str, Any]) -> None:
    TALLY["Neural ODE regressor"] += 1
    data = case["data"]
    y = case["y_unit"] * np.random.default_rng(data.seed).normal(size=(data.n_rows, case["n_outputs"]))
    y = y[:, 0] if case["n_outputs"] == 1 else y

    def make(f: Any, into: nn.Module) -> Any:
        return NeuralODERegressor(f, input_map=into, output_map=flat_head(case), t_span=case["t_span"], **case["params"])  # fmt: skip

    check_training(case, make, y, "predict")


def flat_head(case: dict[str, Any]) -> nn.Module:
    """An output map for states of any shape and unit."""
    n_state = int(np.prod(case["data"].shape))
    head = nn.utils.skip_init(nn.Linear, n_state, case["n_outputs"], dtype=case["field"].dtype)
    with torch.no_grad():
        head.weight.copy_(torch.linspace(-1, 1, head.weight.numel()).sin().view_as(head.weight) / case["field"].unit)
        head.bias.zero_()
    return nn.Sequential(nn.Flatten(), head)


def check_node_classifier(case: dict[str, Any]) -> None:
    TALLY["Neural ODE classifier"] += 1
    case = case | {"n_outputs": 2}
    y = np.array(["no", "yes"])[np.arange(case["data"].n_rows) % 2]
    if case["data"].n_rows == 2:
        case["params"]["validation_fraction"] = None

    def make(f: Any, into: nn.Module) -> Any:
        return NeuralODEClassifier(f, input_map=into, output_map=flat_head(case), t_span=case["t_span"], **case["params"])  # fmt: skip

    check_training(case, make, y, "predict_proba")


# ---------------------------------------------------------------------- flows
def flow_cases(rng: random.Random) -> dict[str, Any]:
    """A flow standardizes its data: the field is in units of one whatever theirs."""
    kinds = tuple(kind for kind in OF_TWO_ARGUMENTS if kind not in UNTRAINABLE)
    field, data = draw_problem(rng, kinds, images=False, scaled_field=False)
    return {
        "field": field,
        "data": data,
        "t_span": (0.0, 1.0),
        "params": {
            "objective": rng.choice(("flow_matching", "likelihood")), "max_epochs": rng.randint(1, 2),
            "batch_size": 8, "random_state": rng.randrange(4), "lr": 0.02, "trace": "exact", "validation_fraction": None,
        },
    }  # fmt: skip


def check_flow(case: dict[str, Any]) -> None:
    TALLY["flow"] += 1
    field, data, X = case["field"], case["data"], case["data"].make()
    f, owned = field.make()
    with nothing_touched(owned, X):
        make = lambda: ContinuousNormalizingFlow(f, **case["params"]).fit(X)  # noqa: E731
        constant = np.ptp(data.values(), axis=0).min() == 0  # refused, and rightly
        flow = fit_or_refuse(make, may_refuse=field.kind in MAY_BE_REFUSED or bool(constant))
        if flow is None:
            return
        dtype = flow.dtype_
        check_trained(case, flow.flow_.vector_field, dtype)
        densities = check_predictions(flow.score_samples, X, 1e-3 if dtype == torch.float32 else 1e-5)
        assert densities.shape == (data.n_rows,) and flow.score(X) == pytest.approx(densities.mean(), rel=1e-5)
        samples = flow.sample(3, random_state=0)
        assert samples.shape == (3, field.n_features) and np.array_equal(samples, flow.sample(3, random_state=0))
        check_copies(flow, lambda model: model.score_samples(X))
        if case["data"].seed % 2:  # takes a second fit
            check_refit(flow, lambda model: model.fit(X), lambda model: model.sample(3, random_state=0))


def density_cases(rng: random.Random) -> dict[str, Any]:
    field, data = draw_problem(
        rng, tuple(k for k in KINDS if k != "controlled"), images=False, units=(1.0,), widths=(1, 2)
    )
    base_solver, n_steps = rng.choice(BASES[:4])
    return {
        "field": field,
        "data": data,
        "input_map": "none",
        "t_span": (0.0, 1.0),
        "params": {
            "base_solver": base_solver, "n_steps": n_steps, "max_epochs": 1, "max_samples": 8, "trace": "exact", "rtol": 1e-4, "atol": 1e-4,
            "batch_size": 16, "random_state": rng.randrange(4),
        },
    }  # fmt: skip


def true_log_density(field: FieldCase, x: torch.Tensor) -> torch.Tensor:
    """log p by the flow's own equation, from data back to the base."""
    d = x.shape[1]

    def augmented(t: float, state: torch.Tensor, _: Any) -> torch.Tensor:
        z = state[:, :d].detach().requires_grad_(True)
        with torch.enable_grad():
            dz = field.pure(t, z)
            trace = sum(torch.autograd.grad(dz[:, i].sum(), z, retain_graph=True)[0][:, i] for i in range(d))
        return torch.cat([dz.detach(), trace[:, None]], dim=1)

    state = solve(augmented, torch.cat([x, torch.zeros(len(x), 1).double()], dim=1), (1.0, 0.0))
    base = -0.5 * (state[:, :d].pow(2).sum(dim=1) + d * np.log(2 * np.pi))
    return base + state[:, d]


def check_density(case: dict[str, Any]) -> None:
    TALLY["density"] += 1
    field, X = case["field"], case["data"].make()
    f, owned = field.make()
    with nothing_touched(owned, X):
        make = lambda: HypersolverDensity(f, **case["params"]).fit(X)  # noqa: E731
        fast = fit_or_refuse(make, may_refuse=field.kind in MAY_BE_REFUSED)
        if fast is None:
            return
        dtype = fast.dtype_
        densities = check_predictions(fast.score_samples, X, 10 * rounding(dtype))
        truth = true_log_density(field, case["data"].tensor(dtype)).numpy()
        own, base = (np.abs(m.score_samples(X) - truth).max() for m in (fast, fast.without_correction()))
        assert own <= 4 * base + 1e-3 * np.abs(truth).max(), f"error {own:.3g}, the base solver's {base:.3g}"
        assert fast.score(X) == pytest.approx(densities.mean(), rel=1e-5)
        z = np.random.default_rng(0).normal(size=(4, field.n_features))
        expected = solve(field.pure, torch.from_numpy(z).to(dtype).double(), (0.0, 1.0)).numpy()
        own, base = (largest(m.inverse_transform(z) - expected) for m in (fast, fast.without_correction()))
        assert own <= 4 * base + 1e-4 * largest(expected), f"error {own:.3g}, the base solver's {base:.3g}"
        check_copies(fast, lambda model: model.score_samples(X))
        if case["data"].seed % 2:  # takes a second fit
            check_refit(fast, lambda model: model.fit(X), lambda model: model.score_samples(X))


# ---------------------------------------------------------------------- units
def check_units(case: dict[str, Any]) -> None:
    """The same problem in units a power of two apart: the same answers, in those units, and the same score."""
    TALLY["units"] += 1
    found = []
    for unit in (1.0, case["factor"]):
        field = FieldCase("module", 2, False, case["dtype"], unit, case["seed"])
        X = unit * np.random.default_rng(case["seed"]).uniform(-1, 1, (16, 2))
        params = {"max_epochs": 2, "batch_size": 8, "random_state": 0}
        f = field.make()[0]
        with quiet():
            fast = HypersolverRegressor(f, base_solver=case["base_solver"], n_steps=2, **params).fit(X)
        found.append((fast.predict(X) / unit, fast.reference(X) / unit, fast.score(X)))
    (output, reference, score), (other, other_reference, other_score) = found
    np.testing.assert_allclose(other, output, rtol=0, atol=1e-3 * np.abs(output).max())
    np.testing.assert_allclose(other_reference, reference, rtol=0, atol=1e-4 * np.abs(output).max())
    assert other_score == pytest.approx(score, rel=0.3)


unit_cases = st.fixed_dictionaries({
    "factor": st.sampled_from((2.0**-40, 2.0**-20, 2.0**20, 2.0**40)),
    "dtype": st.sampled_from((torch.float64, torch.float32)),
    "base_solver": st.sampled_from(("euler", "heun", "ab2")),
    "seed": st.integers(0, 99),
})  # fmt: skip


# ---------------------------------------------------------------------- the suite
PROPERTIES = {
    "regressor": (check_regressor, choices.map(hypersolver_cases), 80),
    "classifier": (check_classifier, choices.map(hypersolver_cases), 25),
    "neural_ode_regressor": (check_node_regressor, choices.map(training_cases), 35),
    "neural_ode_classifier": (check_node_classifier, choices.map(training_cases), 20),
    "flow": (check_flow, choices.map(flow_cases), 20),
    "density": (check_density, choices.map(density_cases), 15),
    "units": (check_units, unit_cases, 8),
}
"""Name: (what is checked, of which cases, in how many examples by default); slow runs have ten times as many."""


def run(name: str, factor: int, record: Any) -> None:
    check, cases, n = PROPERTIES[name]
    before = TALLY.copy()
    count = 0

    @examples(factor * n)
    @given(cases)
    def property_holds(case: Any) -> None:
        nonlocal count
        count += 1
        check(case)

    try:
        property_holds()
    finally:
        done = TALLY - before
        record("property_examples", count)
        record("property_refusals", done["refused"])


@pytest.mark.parametrize("name", PROPERTIES)
def test_every_property_holds(name, record_property):
    run(name, 1, record_property)


@pytest.mark.slow
@pytest.mark.parametrize("name", PROPERTIES)
def test_every_property_holds_of_thousands(name, record_property):
    run(name, 10, record_property)
