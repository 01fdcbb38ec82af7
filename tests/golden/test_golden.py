"""What small fitted configurations give is what it was when ``golden.npz`` was recorded.

Opt-in (``pytest -m slow tests/golden``): training multiplies rounding, and another processor, number of threads or version of
torch may round otherwise. Where a test fails, run it with the code before the change on the same machine first.

Record anew with ``python tests/golden/record.py`` where results are meant to change (another default, another draw of random
numbers, another criterion), and say so in the commit; never to make a refactoring pass. Commit no file of a machine on which
the code before the change does not pass.
"""

from pathlib import Path

import pytest
from golden.comparison import deviation, read_golden
from golden.configurations import CONFIGURATIONS, run

# Deviations as a share of the largest number of an array. Runs with one thread agree bit for bit on one machine; two threads
# move predictions by up to 3e-6. The limits come from what rounding may do: rows whose last bit is changed at random move
# float32 predictions by up to 5e-4 (by less than 1e-5 in most configurations), and what is measured of errors, which are small
# differences of large numbers, by up to 1e-2; in float64 by 1e-13 and 1e-11. No count has changed.
VALUES, ERRORS = 1e-3, 3e-2
VALUES_64, ERRORS_64 = 1e-9, 1e-8
OF_ERRORS = ("score", "score_weighted", "errors", "delta", "losses")
COUNTED = ("overhead",)
"""What is computed from counts of operations alone."""


def limit(configuration: str, name: str) -> float:
    """The largest deviation that rounding may explain; counts, names and labels are exact anyway."""
    precise, kind = configuration.startswith("float64"), name.rpartition("_")[2]
    if kind in COUNTED:
        return 1e-12
    if kind in OF_ERRORS:
        return ERRORS_64 if precise else ERRORS
    return VALUES_64 if precise else VALUES


@pytest.fixture(scope="module")
def golden():
    return read_golden(Path(__file__).with_name("golden.npz"))


def test_every_configuration_is_recorded(golden):
    assert set(golden) == set(CONFIGURATIONS)


@pytest.mark.slow
@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_results_are_the_recorded_ones(golden, configuration):
    values, recorded = run(configuration), golden[configuration]
    assert set(values) == set(recorded)
    deviations = {name: deviation(values[name], recorded[name]) for name in recorded}
    assert {name: size for name, size in deviations.items() if size > limit(configuration, name)} == {}
