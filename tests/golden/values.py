"""What is recorded of a fitted estimator: all that is public, as arrays."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from golden.fields import N_NEW, N_PATHS

from sklearn_hyper.hypersolvers import FittedHypersolver

Values = dict[str, Any]


def prefixed(prefix: str, values: Mapping[str, Any]) -> Values:
    return {f"{prefix}_{name}": value for name, value in values.items()}


def history_values(history: list[dict[str, Any]]) -> Values:
    """Number of epochs of each stage, and its last losses."""
    last = {row.get("stage", "only"): row for row in history}
    stages = [row.get("stage", "only") for row in history]
    losses = [[row.get(name, np.nan) for name in ("train_loss", "valid_loss")] for row in last.values()]
    return {
        "history_stages": np.array(list(last)),
        "history_epochs": np.array([stages.count(stage) for stage in last]),
        "history_losses": np.array(losses, dtype=float),
    }


def table_values(name: str, table: Mapping[int, Mapping[str, float]]) -> Values:
    """A fitted table by number of steps: ``delta_`` or ``errors_``."""
    steps = sorted(table)
    return {
        f"{name}_steps": np.array(steps),
        name: np.array([[table[k][column] for column in sorted(table[k])] for k in steps], dtype=float),
    }


def solver_values(fast: Any) -> Values:
    """The base solver of a fit, with its coefficients where these are learned."""
    solver = fast.base_solver_
    values = {
        "solver": solver.name,
        "solver_stages": solver.n_stages,
        "solver_evaluations": solver.count_evaluations(fast.module_.n_steps),
        "order": fast.order_,
        "grid": np.array(fast.module_.grid),
    }
    if hasattr(solver, "weights"):
        values["solver_weights"] = np.concatenate([np.array(row) for row in solver.weights])
    return values


def fit_values(fast: Any) -> Values:
    """What a fit of a hypersolver leaves behind."""
    has_correction = fast.correction_ is not None
    parameters = fast.correction_.parameters() if has_correction else ()
    return {
        "has_correction": has_correction,
        "n_parameters": sum(parameter.numel() for parameter in parameters),
        "n_samples_fit": fast.n_samples_fit_,
        **solver_values(fast),
        **history_values(fast.history_),
        **table_values("delta", fast.delta_),
        **table_values("errors", fast.errors_),
    }


def report_values(report: Any) -> Values:
    """All of a report but the milliseconds."""
    names = ("mape", "l2_mean", "l2_p50", "l2_p99", "l2_max", "accuracy")
    macs = np.array([row.macs for row in report])
    return {
        "report_solvers": np.array([row.solver for row in report]),
        "report_nfe": np.array([row.nfe for row in report]),
        "report_macs": np.where(np.isnan(macs), -1, macs).round().astype(np.int64),
        "report_overhead": np.array([row.relative_overhead for row in report]),
        "report_errors": np.array([[getattr(row, name) for name in names] for row in report], dtype=float),
    }


def module_values(fast: Any, X: np.ndarray) -> Values:
    """The plain module with live weights, and whether its folded form still gives the estimator's own terminal states."""
    module, x = fast.to_module(), torch.from_numpy(X).to(fast.dtype_)
    with torch.no_grad():
        folded = module.fold().terminal_state(x).numpy()
        return {"module": module(x).numpy(), "module_folds": np.array_equal(folded, fast.transform(X))}


def predictions(fast: Any, X: np.ndarray, y: Any = None) -> Values:
    """What a fitted hypersolver predicts, and how good it is."""
    values = {"predict": fast.predict(X), "transform": fast.transform(X), "score": fast.score(X, y)}
    if hasattr(fast, "predict_proba"):
        values["predict_proba"] = fast.predict_proba(X)
    return values


def all_values(fast: Any, X: np.ndarray, y: Any = None) -> Values:
    """Everything that a fitted hypersolver gives for X."""
    return {
        **fit_values(fast),
        **predictions(fast, X, y),
        "trajectory": fast.trajectory(X[:N_PATHS]),
        "trajectory_output": fast.trajectory(X[:N_PATHS], output=True),
        "reference": fast.reference(X),
        **report_values(fast.solver_report(X, y)),
        "base_predict": fast.without_correction().predict(X),
    }


def plain_values(fast: Any, X: np.ndarray, y: Any = None) -> Values:
    """Everything, and the plain module: of a hypersolver that takes arrays as its Neural ODE does."""
    return all_values(fast, X, y) | module_values(fast, X)


def swapped_values(prefix: str, fast: Any, X: np.ndarray) -> Values:
    """What a hypersolver gives after a swap of its solver."""
    values = {**solver_values(fast), "predict": fast.predict(X)}
    return prefixed(prefix, values | report_values(fast.solver_report(X)))


def direction_values(prefix: str, fitted: FittedHypersolver, report: Any) -> Values:
    """One direction of a HypersolverDensity, whose fitted value says without underscores what an estimator says with them."""
    fast = SimpleNamespace(
        base_solver_=fitted.method, correction_=fitted.correction, n_samples_fit_=fitted.n_samples, module_=fitted.module,
        order_=fitted.method.order, history_=fitted.history, delta_=fitted.delta, errors_=fitted.errors,
    )  # fmt: skip
    return prefixed(prefix, fit_values(fast) | report_values(report))


def flow_values(flow: Any, X: np.ndarray, n_samples: int = N_NEW) -> Values:
    """Samples and densities, of a flow or its hypersolver."""
    Z = flow.transform(X)
    return {
        "sample": flow.sample(n_samples, random_state=5),
        "score_samples": flow.score_samples(X),
        "score": flow.score(X),
        "transform": Z,
        "inverse_transform": flow.inverse_transform(Z),
    }


def density_values(fast: Any, X: np.ndarray) -> Values:
    """Everything that a HypersolverDensity gives for X."""
    return {
        **flow_values(fast, X),
        **direction_values("sampler", fast.sampler_, fast.solver_report(n_samples=64, random_state=6)),
        **direction_values("density", fast.density_, fast.solver_report(X)),
    }
