"""Cached reference solves of a user's field: never those of an older one, and served again where nothing has changed."""

import importlib
import linecache
import sys

import numpy as np
import pytest
from small_hypersolvers import ROUGH_FITS
from user_fields import FIT, NoDropout

from sklearn_hyper import (
    HypersolverRegressor,
)

pytestmark = ROUGH_FITS


EDITS = {
    "body": ("def f(t, z):\n    return -1.0 * z\n", "def f(t, z):\n    return -3.0 * z\n"),
    "constant": ("R = 1.0\ndef f(t, z):\n    return -R * z\n", "R = 3.0\ndef f(t, z):\n    return -R * z\n"),
    "helper": ("def g(z):\n    return -z\ndef f(t, z):\n    return g(z)\n", "def g(z):\n    return -3 * z\ndef f(t, z):\n    return g(z)\n"),
    "base class": (
        "class B:\n    def g(self, z):\n        return -z\nclass F(B):\n    def __call__(self, t, z):\n        return self.g(z)\nf = F()\n",
        "class B:\n    def g(self, z):\n        return -3 * z\nclass F(B):\n    def __call__(self, t, z):\n        return self.g(z)\nf = F()\n",
    ),
    "partial": (
        "import functools\ndef g(t, z, r):\n    return -r * z\nf = functools.partial(g, r=1.0)\n",
        "import functools\ndef g(t, z, r):\n    return -r * z\nf = functools.partial(g, r=3.0)\n",
    ),
    "eval": ("f = eval('lambda t, z: -z')\n", "f = eval('lambda t, z: -3 * z')\n"),
    "file": (
        "import pathlib\ndef f(t, z):\n    return -float(pathlib.Path(__file__).with_suffix('.txt').read_text()) * z\n",
        None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_field_is_never_served_stale_solutions(edit, X, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before, after = EDITS[edit]
    name = f"fields_{abs(hash(edit))}"

    def load(source, rate):
        (tmp_path / f"{name}.txt").write_text(rate)
        (tmp_path / f"{name}.py").write_text(source)
        linecache.clearcache()
        importlib.invalidate_caches()
        sys.modules.pop(name, None)
        return importlib.import_module(name).f

    def fit(f):
        return HypersolverRegressor(f, base_solver="heun", memory=str(tmp_path / "cache"), **FIT).fit(X)

    fit(load(before, "1.0")).score(X)
    fast = fit(load(after or before, "3.0"))
    np.testing.assert_allclose(fast.reference(X), X * np.exp(-3.0), rtol=1e-4, atol=1e-6)


def test_a_cache_takes_fields_that_refuse_other_states(X, tmp_path):
    def careful(t, z):
        if (z.abs() > 1.01).any():
            raise ValueError("outside of its domain")
        return -z

    fast = HypersolverRegressor(careful, base_solver="euler", memory=str(tmp_path), **FIT).fit(X)
    np.testing.assert_allclose(fast.reference(X), np.exp(-X.dtype.type(1)) * X, rtol=1e-5)


def test_an_unchanged_field_is_served_from_the_cache(X, tmp_path, monkeypatch):
    params = {"base_solver": "heun", "memory": str(tmp_path), **FIT}
    net = NoDropout()
    first = HypersolverRegressor(net.velocity, **params).fit(X)
    monkeypatch.setattr("sklearn_hyper.training.references._solve_chunk", None)
    second = HypersolverRegressor(net.velocity, **params).fit(X)
    np.testing.assert_array_equal(first.predict(X), second.predict(X))
