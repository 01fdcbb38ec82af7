"""Hypersolvers of generated fields: their cases, and what has to hold of each."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
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
    DataCase,
    FieldCase,
    draw_problem,
    solve,
)
from torch import nn

from sklearn_hyper import (
    HypersolverClassifier,
    HypersolverRegressor,
    MLPCorrection,
    NeuralODE,
    alpha_family,
)

SPANS = ((0.0, 1.0), (1.0, 0.0), (-0.5, 0.5), (2.0, 2.5))
BASES = (("euler", 2), ("auto", 2), ("midpoint", 1), ("heun", 2), ("ab2", 3), ("rk4", 1), ("nonstationary", 2), (alpha_family(0.3), 2))  # fmt: skip
LOSSES = (("residual", "terminal"), ("residual", None), ("residual", "output"), ("trajectory", "trajectory"))
DETERMINISTIC = tuple(kind for kind in KINDS if kind != "dropout")
OF_TWO_ARGUMENTS = tuple(kind for kind in DETERMINISTIC if kind != "controlled")


def rounding(dtype: torch.dtype) -> float:
    """How far apart two orders of summation may be."""
    return 2e-5 if dtype == torch.float32 else 1e-11


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
