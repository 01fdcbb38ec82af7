"""Solvers without a net: learned times and coefficients alone, a few dozen numbers for any loop."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..numerics.methods import Nonstationary
from .denoiser import DenoiserField

FORMAT = "sklearn_hyper.schedule/1"


def export_schedule(fast: Any, path: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    r"""Return the times and coefficients that a fit has learned, as plain numbers, and write them as JSON.

    They are a solver without a net, for a field that changes with every prompt or observation, in any language:

    .. math:: z_{k+1} = z_k + (t_{k+1} - t_k) \sum_{j \le k} w_{kj} f(t_j, z_j)

    Parameters
    ----------
    fast : fitted estimator or FittedHypersolver
        One with learned coefficients: ``base_solver="nonstationary"``, which "auto" often stands for. Its correction is
        left out; the coefficients are those that do best without it.
    path : path, optional
        File to write.

    Returns
    -------
    dict
        "times", K + 1 of them; "weights", K lists of 1, 2, ..., K numbers that sum to 1; "n_evaluations"; and
        "format". For a field of :func:`from_denoiser` also "model_times", what the model gets as its time at each
        evaluation.

    Raises
    ------
    TypeError
        If ``fast`` is not fitted, or holds no single solver.
    ValueError
        If its coefficients are not learned.

    Examples
    --------
    >>> import torch
    >>> from sklearn_hyper import HypersolverRegressor
    >>> from sklearn_hyper.adapters import export_schedule, load_schedule
    >>> x = torch.linspace(0.5, 1, 60)[:, None]
    >>> fast = HypersolverRegressor(
    ...     lambda t, z: -z, base_solver="nonstationary", n_steps=3, max_epochs=20, random_state=0
    ... ).fit(x)
    >>> schedule = export_schedule(fast)
    >>> times, weights = schedule["times"], schedule["weights"]
    >>> z, slopes = x, []
    >>> for k, row in enumerate(weights):  # the whole solver, for any loop
    ...     slopes.append(-z)  # f(times[k], z)
    ...     z = z + (times[k + 1] - times[k]) * sum(w * slope for w, slope in zip(row, slopes))
    >>> bool((z - x * torch.exp(torch.tensor(-1.0))).abs().max() < 1e-3)
    True
    >>> load_schedule(schedule).n_steps
    3
    """
    fitted = _fitted_of(fast)
    method = fitted.base_method or fitted.method
    if not isinstance(method, Nonstationary):
        raise ValueError(
            f"fast runs base_solver={method.name!r}, whose coefficients are not learned: a schedule of it is that "
            "method itself. Fit with base_solver='nonstationary'."
        )
    ode = fitted.neural_ode
    times = [float(time) for time in method.mesh(ode.t_span)]
    schedule: dict[str, Any] = {
        "format": FORMAT,
        "n_evaluations": method.n_steps,
        "times": times,
        "weights": [list(row) for row in method.weights],
    }
    if isinstance(ode.vector_field, DenoiserField):
        schedule["model_times"] = ode.vector_field.model_times(times[:-1])
    if path is not None:
        Path(path).write_text(json.dumps(schedule, indent=1) + "\n", encoding="utf-8")
    return schedule


def load_schedule(source: str | os.PathLike[str] | Mapping[str, Any]) -> Nonstationary:
    """Return the method of a schedule, to run on another field with ``sklearn_hyper.numerics.hypersolve``.

    Parameters
    ----------
    source : path or mapping
        A file of :func:`export_schedule`, or what it returned.

    Returns
    -------
    Nonstationary
        For its own number of steps; it scales to any span of time.

    Raises
    ------
    ValueError
        If it is no schedule, or its numbers make no method.
    """
    found = source if isinstance(source, Mapping) else json.loads(Path(source).read_text(encoding="utf-8"))
    if not isinstance(found, Mapping) or found.get("format") != FORMAT:
        raise ValueError(f"source must be a schedule of export_schedule, of format {FORMAT!r}; this one is not.")
    times, weights = found.get("times"), found.get("weights")
    if not (isinstance(times, list) and isinstance(weights, list) and len(times) == len(weights) + 1 > 1):
        raise ValueError(
            "source must hold lists of times and weights, one more time than weights; export the schedule again."
        )
    start, end = times[0], times[-1]
    if start == end:
        raise ValueError(f"source has times from {start} to {end}, whose ends must differ; export the schedule again.")
    shares = [0.0, *((time - start) / (end - start) for time in times[1:-1]), 1.0]
    return Nonstationary(weights, shares)


def _fitted_of(fast: Any) -> Any:
    """Return the fitted solver of an estimator: that of sampling, for a density."""
    for name in ("fitted_", "sampler_"):
        fast = vars(fast).get(name, fast) if hasattr(fast, "__dict__") else fast
    if not hasattr(fast, "base_method"):
        raise TypeError(f"fast must be a fitted hypersolver, got {fast!r}; call fit first.")
    return fast
