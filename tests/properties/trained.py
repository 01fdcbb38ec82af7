"""Trained Neural ODEs on generated data: their cases, and what has to hold of each."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from properties.checks import (
    TALLY,
    check_copies,
    check_predictions,
    check_refit,
    fit_or_refuse,
    nothing_touched,
)
from properties.hypersolvers import (
    OF_TWO_ARGUMENTS,
    SPANS,
)
from properties.strategies import (
    MAY_BE_REFUSED,
    UNTRAINABLE,
    DataCase,
    draw_problem,
    solve,
)
from torch import nn

from sklearn_hyper import (
    NeuralODE,
    NeuralODEClassifier,
    NeuralODERegressor,
)


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
