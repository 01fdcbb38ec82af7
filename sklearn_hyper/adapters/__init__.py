"""Fields of other libraries, taken as they are. Each adapter is a small file, imported on first use.

No adapter imports the library that it serves: it calls what it is given by the contract that its docstring states.
Whoever uses another library writes a subclass of :class:`Adapter`.
"""

from __future__ import annotations

import importlib
from typing import Any

_EXPORTS = {
    "Adapter": "contract",
    "AdaptedFlow": "flows",
    "PytreeField": "pytree",
    "from_denoiser": "denoiser",
    "from_sbi": "sbi",
    "from_torchcde": "torchcde",
    "from_torchdyn": "torchdyn",
    "from_velocity": "velocity",
    "from_zuko": "zuko",
    "export_schedule": "schedules",
    "load_schedule": "schedules",
}

__all__ = list(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        value = getattr(importlib.import_module(f".{_EXPORTS[name]}", __name__), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
