"""Fast inference for fitted Neural ODEs: hypersolvers as scikit-learn estimators."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# Public name -> module that defines it. Imported on first use (PEP 562), so that
# ``import sklearn_hyper.numerics`` pulls in torch alone.
_EXPORTS = {
    "NeuralODE": "modules",
    "MLPCorrection": "modules",
    "ConvCorrection": "modules",
    "ReachCorrection": "modules",
    "WeightCorrection": "modules",
    "ContinuousNormalizingFlow": "estimators",
    "NeuralODEClassifier": "estimators",
    "NeuralODERegressor": "estimators",
    "HypersolverRegressor": "estimators",
    "HypersolverClassifier": "estimators",
    "HypersolverDensity": "estimators",
    "ButcherTableau": "numerics",
    "alpha_family": "numerics",
    "SolverReport": "metrics",
    "show_versions": "_versions",
    "ModelFileError": "estimators",
    "load": "estimators",
}

__all__ = ["__version__", *_EXPORTS]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        value = getattr(importlib.import_module(f".{_EXPORTS[name]}", __name__), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
