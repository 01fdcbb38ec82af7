"""Fitted hypersolvers in model files: the description of a FittedHypersolver, and the way back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..modules.closed_list import Reader, Writer, describe_method, read_method
from ..modules.corrections import ModuleCorrection
from ..modules.described_corrections import count_bytes, describe_correction, folded_bytes, read_correction
from ..modules.described_modules import describe_neural_ode, read_neural_ode
from ..modules.described_steps import describe_steps, read_steps
from ..modules.model_file import MAX_EVALUATIONS, MAX_FOLDED_BYTES, ModelFileError
from ..modules.neural_ode import NeuralODE
from ..numerics.methods import Method
from ..numerics.times import check_n_steps
from ..training.settings import OPTIMIZERS, FitSettings
from .fitted import FittedHypersolver

TYPES: dict[str, type] = {kind.__name__: kind for kind in OPTIMIZERS.values()}
"""Optimizers that a file may name, beside torch's."""
_NOT_WRITTEN = ("memory", "callbacks")
"""A cache is unpickled, so its place is not taken from a file; callbacks are code."""
_OPTIONAL = ("t_eval",)
"""Settings that are written only where they are set, so that files from before they were there can be read."""
_ALIKE = 1e-3
"""Largest deviation of a loaded solver's states or outputs from the saved ones, as a share of the largest: another
machine rounds otherwise, and another field computes something else."""
_MOST_JOBS = 1024
_MOST_ROWS = 64
"""Rows of a file that are solved to compare."""
_PLAIN: dict[str, Any] = {
    "fitted_eps": tuple[float, float],
    "errors": dict[int, dict[str, float]],
    "delta": dict[int, dict[str, float]],
    "history": list[dict[str, Any]],
    "n_samples": int,
    "problems": tuple[str, ...],
    "interrupted": bool,
    "fitted_rows": np.ndarray | None,
    "times": str,
    "errors_before": dict[int, dict[str, float]] | None,
}
"""Fields that are numbers and text, and their types."""


def describe_fitted(
    fitted: FittedHypersolver, writer: Writer, x: Tensor, condition: Mapping[str, Tensor] | None = None
) -> dict[str, Any]:
    """Describe a fitted hypersolver with its tensors.

    Parameters
    ----------
    fitted : FittedHypersolver
    writer : Writer
    x : Tensor of shape (n, ...)
        Some rows, such as random ones. Their states and outputs are written, and compared when the file is loaded.
    condition : mapping of str to Tensor, optional
        Keyword arguments of the field for these rows.
    """
    correction = fitted.correction
    _check_size(fitted.neural_ode, fitted.method, correction, int(fitted.n_steps))
    return {
        "neural_ode": describe_neural_ode(fitted.neural_ode, writer),
        "method": describe_method(fitted.method, writer),
        "base_method": describe_method(fitted.base_method, writer),
        "correction": describe_correction(correction, writer),
        "trains": correction is not None and any(p.requires_grad for p in correction.parameters()),
        "steps": describe_steps(fitted.steps, writer),
        "n_steps": int(fitted.n_steps),
        "settings": describe_settings(fitted.settings, writer),
        "plain": {name: writer.describe(getattr(fitted, name), name) for name in _PLAIN},
        "probe": _describe_probe(fitted, writer, x, condition or {}),
    }


def read_fitted(described: Mapping[str, Any], reader: Reader) -> FittedHypersolver:
    """Return a fitted hypersolver from its description, on the CPU. The net that trained it is not in the file."""
    n_steps = check_n_steps(reader.read(described["n_steps"], int, "n_steps"))
    method, base_method = (read_method(described[name], reader) for name in ("method", "base_method"))
    if method is None:
        raise ModelFileError("its description names no method")
    correction = read_correction(described["correction"], reader)
    if correction is not None:
        correction.requires_grad_(reader.read(described["trains"], bool, "trains")).eval()
    plain = {name: reader.read(described["plain"][name], hint, name) for name, hint in _PLAIN.items()}
    neural_ode = read_neural_ode(described["neural_ode"], reader)
    _check_size(neural_ode, method, correction, n_steps)
    fitted = FittedHypersolver(
        neural_ode=neural_ode, method=method, base_method=base_method,
        correction=correction, n_steps=n_steps, settings=read_settings(described["settings"], reader), net=None,
        steps=read_steps(described["steps"], reader), **plain,
    )  # fmt: skip
    _check_probe(fitted, described["probe"], reader)
    return fitted


def _check_size(neural_ode: NeuralODE, method: Method, correction: ModuleCorrection | None, n_steps: int) -> None:
    """Refuse a solver that takes more memory, once folded, than a file may ask for."""
    evaluations = method.count_evaluations(n_steps)
    n_bytes = evaluations * folded_bytes(correction, count_bytes(neural_ode))
    if evaluations > MAX_EVALUATIONS or n_bytes > MAX_FOLDED_BYTES:
        raise ModelFileError(
            f"n_steps={n_steps} makes {evaluations} evaluations of {n_bytes / 2**20:.0f} MiB in all, and a model file "
            f"may ask for {MAX_EVALUATIONS} of {MAX_FOLDED_BYTES / 2**20:.0f} MiB; use pickle"
        )


# ---------------------------------------------------------------------- settings
def describe_settings(settings: FitSettings, writer: Writer) -> dict[str, Any]:
    """Describe the settings of a fit, without its cache and callbacks."""
    described = {}
    for one in fields(settings):
        value = getattr(settings, one.name)
        if one.name in _NOT_WRITTEN or (one.name in _OPTIONAL and value is None):
            continue
        if one.name == "random_state" and isinstance(value, (np.random.RandomState, np.random.Generator)):
            value = None  # it has moved on since the fit, and a refit draws anew
        own = one.name if one.name in ("correction", "base_solver") else None
        described[one.name] = writer.describe(value, one.name, own)
    return described


def read_settings(described: Mapping[str, Any], reader: Reader) -> FitSettings:
    """Return settings of a fit from their description. They are on the CPU, without a cache and callbacks."""
    written = {one.name: one.type for one in fields(FitSettings) if one.name not in _NOT_WRITTEN}
    if set(described) | set(_OPTIONAL) != set(written):
        raise ModelFileError(f"its description of settings has the fields {sorted(described)!r:.300}")
    values = {name: reader.read(described[name], Any, name) for name in described}
    for name, hint in _SETTINGS.items():
        if name in described:
            reader.read(described[name], hint, name)
    check_jobs(values["n_jobs"])
    return FitSettings(**values | {"device": "cpu"})


def check_jobs(n_jobs: int | None) -> None:
    """Refuse more workers than any machine of a reader is likely to have: a file must not start thousands."""
    if n_jobs is not None and abs(n_jobs) > _MOST_JOBS:
        raise ModelFileError(f"its description has n_jobs={n_jobs!r:.100}; up to {_MOST_JOBS} are read")


_SETTINGS: dict[str, Any] = {
    "rtol": float, "atol": float | None, "n_steps": int, "batch_size": int, "max_epochs": int, "lr": float,
    "n_jobs": int | None, "t_eval": tuple[float, ...],
}  # fmt: skip
"""Settings that inference and a refit compute with, and their types."""


# ---------------------------------------------------------------------- the probe
def _finite(compute: Callable[..., Tensor], x: Tensor, condition: Mapping[str, Tensor]) -> Tensor | None:
    """Return floats on the CPU; None if they are not finite, as they may be for rows unlike the data."""
    try:
        found = compute(x, condition).cpu()
    except Exception:  # a user's field or map may refuse such rows in any way
        return None
    return found if found.is_floating_point() and bool(torch.isfinite(found).all()) else None


def _describe_probe(
    fitted: FittedHypersolver, writer: Writer, x: Tensor, condition: Mapping[str, Tensor]
) -> dict[str, Any]:
    rows = x.to(fitted.device), {name: value.to(fitted.device) for name, value in condition.items()}
    found = {"states": _finite(fitted.solve, *rows), "outputs": _finite(fitted.predict, *rows)}
    beside = {name: writer.add(value, f"condition[{name!r}]") for name, value in condition.items()}
    return (
        {"x": writer.add(x, "rows")}
        | ({"condition": beside} if beside else {})
        | {what: writer.add(one, what) for what, one in found.items() if one is not None}
    )


def _check_probe(fitted: FittedHypersolver, described: Any, reader: Reader) -> None:
    """Refuse a solver that computes something else than the saved one, as with a field or a map of other code."""
    x = reader.take(described["x"])
    condition = {name: reader.take(value) for name, value in described.get("condition", {}).items()}
    if any(not value.ndim or len(value) != len(x) for value in condition.values()):
        raise ModelFileError("its description of rows to compare has a condition of another length")
    if len(x) > _MOST_ROWS:
        raise ModelFileError(f"it asks to solve from {len(x)} rows, and {_MOST_ROWS} are enough to compare")
    for what, compute in (("states", fitted.solve), ("outputs", fitted.predict)):
        if what in described:
            _check_alike(compute(x, condition), reader.take(described[what]), what)


def _check_alike(found: Tensor, expected: Tensor, what: str) -> None:
    alike = found.shape == expected.shape and found.dtype == expected.dtype
    off = (
        float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-30))
        if alike and found.numel()
        else 0.0
    )
    if not alike or not off <= _ALIKE:
        raise ModelFileError(
            f"with what was passed it computes other {what} than when it was saved"
            + (f" (they differ by {off:.2g} of their size)" if alike else "")
            + ": pass the same code, with the same settings"
        )
