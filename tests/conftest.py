"""Fixed seeds for every test, and the helpers' folder on the path: pytest's importlib mode adds none."""

import sys
from pathlib import Path

import hypothesis
import pytest
import torch

torch.set_num_threads(1)
sys.path.insert(0, str(Path(__file__).parent))
hypothesis.settings.register_profile("tests", max_examples=25, deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("tests")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def solves():
    """Dopri5's reference solves from here on."""
    from reference_solves import recorded_solves  # the path is set above

    with recorded_solves() as made:
        yield made


def pytest_terminal_summary(terminalreporter):
    """How many examples the property-based suite has run, and how many of them were refused fits."""
    counts = {"property_examples": 0, "property_refusals": 0}
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            for name, value in report.user_properties:
                if report.when == "call" and name in counts:
                    counts[name] += value
    if counts["property_examples"]:
        terminalreporter.write_line(
            f"properties: {counts['property_examples']} examples, {counts['property_refusals']} of them refused fits"
        )
