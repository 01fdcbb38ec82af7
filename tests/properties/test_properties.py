"""Name: (what is checked, of which cases, in how many examples by default); slow runs have ten times as many."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from properties.checks import (
    TALLY,
)
from properties.flows import check_density, check_flow, density_cases, flow_cases
from properties.hypersolvers import check_classifier, check_regressor, check_units, hypersolver_cases, unit_cases
from properties.strategies import (
    choices,
)
from properties.trained import check_node_classifier, check_node_regressor, training_cases


def examples(n: int) -> Any:
    """So many examples, without shrinking: an example is small as it is, and shrinking takes minutes."""
    return settings(
        max_examples=n, deadline=None, derandomize=True, database=None, phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck), report_multiple_bugs=False, print_blob=False,
    )  # fmt: skip


PROPERTIES = {
    "regressor": (check_regressor, choices.map(hypersolver_cases), 80),
    "classifier": (check_classifier, choices.map(hypersolver_cases), 25),
    "neural_ode_regressor": (check_node_regressor, choices.map(training_cases), 35),
    "neural_ode_classifier": (check_node_classifier, choices.map(training_cases), 20),
    "flow": (check_flow, choices.map(flow_cases), 20),
    "density": (check_density, choices.map(density_cases), 15),
    "units": (check_units, unit_cases, 8),
}


def run(name: str, factor: int, record: Any) -> None:
    check, cases, n = PROPERTIES[name]
    before = TALLY.copy()
    count = 0

    @examples(factor * n)
    @given(cases)
    def property_holds(case: Any) -> None:
        nonlocal count
        count += 1
        check(case)

    try:
        property_holds()
    finally:
        done = TALLY - before
        record("property_examples", count)
        record("property_refusals", done["refused"])


@pytest.mark.parametrize("name", PROPERTIES)
def test_every_property_holds(name, record_property):
    run(name, 1, record_property)


@pytest.mark.slow
@pytest.mark.parametrize("name", PROPERTIES)
def test_every_property_holds_of_thousands(name, record_property):
    run(name, 10, record_property)
