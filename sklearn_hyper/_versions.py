"""The versions that a bug report needs."""

from __future__ import annotations

import platform
import sys
from importlib import metadata

PACKAGES = (
    "sklearn-hyper",
    "torch",
    "torchdiffeq",
    "scikit-learn",
    "skorch",
    "numpy",
    "scipy",
    "joblib",
    "cloudpickle",
    "safetensors",
    "matplotlib",
    "pandas",
)
"""Distributions whose behaviour can show through ours."""


def show_versions() -> None:
    """Print the versions of Python, the platform and every package that matters here.

    Paste the output into a bug report.

    Examples
    --------
    >>> from sklearn_hyper import show_versions
    >>> show_versions()
    python: 3...
    platform: ...
    sklearn-hyper: ...
    cuda: ...
    """
    rows = {"python": sys.version.split()[0], "platform": platform.platform()}
    rows |= {package: _installed_version(package) for package in PACKAGES}
    rows["cuda"] = _describe_cuda()
    width = max(map(len, rows)) + 1
    for name, value in rows.items():
        print(f"{name + ':':<{width}} {value}")


def _installed_version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _describe_cuda() -> str:
    import torch  # here, so that importing this module costs nothing

    if not torch.cuda.is_available():
        return "not available"
    return f"{torch.version.cuda} ({torch.cuda.get_device_name()})"
