"""The real libraries, of the extra "interop": a test whose library is missing is skipped."""

import importlib
import importlib.machinery
import importlib.util
import sys
import types

import pytest


@pytest.fixture
def library(request):
    """Import a library, or skip the test. Its own warnings at import are none of ours."""

    def load(name):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("warnings.showwarning", lambda *_, **__: None)
            return pytest.importorskip(name)

    return load


class Nothing(types.ModuleType):
    """A module in which every name is None."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return None


def pytest_configure(config):
    """torchdyn names torchvision, by way of torchmetrics. One built for another torch fails at import: do without."""
    if importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError):
        for name in ("torchvision", "torchvision.transforms", "torchvision.models"):
            module = Nothing(name)
            module.__spec__, module.__path__ = importlib.machinery.ModuleSpec(name, None), []
            sys.modules[name] = module
