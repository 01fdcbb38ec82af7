"""One generalist, calibrated on a thousand rows."""

import pytest
from calibrated import draw, make_generalist


@pytest.fixture(scope="session")
def general():
    return make_generalist().fit(draw(200, 0)).conformalize(draw(1000, 1))
