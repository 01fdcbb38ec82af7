"""Flows and their hypersolvers on generated data: their cases, and what has to hold of each."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from properties.checks import (
    TALLY,
    check_copies,
    check_predictions,
    check_refit,
    fit_or_refuse,
    largest,
    nothing_touched,
)
from properties.hypersolvers import BASES, OF_TWO_ARGUMENTS, rounding
from properties.strategies import (
    KINDS,
    MAY_BE_REFUSED,
    UNTRAINABLE,
    FieldCase,
    draw_problem,
    solve,
)
from properties.trained import check_trained

from sklearn_hyper import (
    ContinuousNormalizingFlow,
    HypersolverDensity,
)


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
