"""Every kind of net that the library has, as a fixture."""

import pytest
import torch
from small_corrections import CASES, DOUBLE


@pytest.fixture(params=CASES.values(), ids=CASES)
def case(request):
    """A spec, the shape of its states, and an input x or None."""
    spec, shape, x_shape = request.param
    x = None if x_shape is None else torch.randn(6, *x_shape, dtype=DOUBLE)
    return spec, shape, x
