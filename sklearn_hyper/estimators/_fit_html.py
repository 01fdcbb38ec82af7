"""What notebooks show below a fitted hypersolver: its solvers, and their errors on rows held out from the fit."""

from __future__ import annotations

import html
from typing import Any

from ..hypersolvers.fitted import FittedHypersolver
from ..modules.corrections.building import OwnModule

_PARTS = {"fitted_": "", "sampler_": "sampling: ", "density_": "densities: "}
_COLUMNS = {"mean": "mean", "max": "largest", "base_mean": "base solver's mean", "base_max": "base solver's largest"}


def add_fit(diagram: str, estimator: Any) -> str:
    """Return scikit-learn's diagram with a table below for each solver that a fit has made."""
    parts = [(label, vars(estimator).get(name)) for name, label in _PARTS.items()]
    tables = "".join(_describe(label, part) for label, part in parts if isinstance(part, FittedHypersolver))
    # Some versions of scikit-learn close the body.
    opened = diagram.removesuffix("</body>")
    return opened + tables + diagram[len(opened) :]


def _describe(label: str, fitted: FittedHypersolver) -> str:
    columns = [name for name in _COLUMNS if fitted.correction is not None or name.startswith("base")]
    heads = "".join(f"<th>{html.escape(_COLUMNS[name])}</th>" for name in columns)
    rows = "".join(
        f"<tr><td>{k}</td>" + "".join(f"<td>{errors[name]:.2g}</td>" for name in columns) + "</tr>"
        for k, errors in fitted.errors.items()
    )
    correction = "without a correction" if fitted.correction is None else f"with {correction_name(fitted)}"
    words = f"{label}{fitted.solver_name}, {correction}, from {fitted.n_samples:,} rows. Errors held out:"
    return f"<p>{html.escape(words)}</p><table><tr><th>steps</th>{heads}</tr>{rows}</table>"


def correction_name(fitted: FittedHypersolver) -> str:
    """Return the name of the kind of correction that was fitted; of a module of the user's own, its class."""
    spec = fitted.settings.correction
    return type(spec.module if isinstance(spec, OwnModule) else spec).__name__
