"""Rows for fields as users write them."""

import numpy as np
import pytest


@pytest.fixture
def X():
    """In float32, and made anew for every test: a field may write into them."""
    return np.random.default_rng(0).uniform(-1, 1, (40, 2)).astype(np.float32)
