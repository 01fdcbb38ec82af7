"""Tables of benchmarks are those of their cells."""

from importlib import import_module
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "examples" / "benchmarks"
SCRIPTS = {"serving_load": "load_test"}
"""Those that are not named as their results."""


@pytest.mark.skipif(not BENCHMARKS.exists(), reason="the benchmark's files are not part of an installation")
@pytest.mark.parametrize("name", ["conditional_images", "joint", "training", "trust", "serving", "serving_load"])
def test_tables_are_those_of_the_cells(name, tmp_path):
    from _results import Results, raw_path

    path, script = BENCHMARKS / f"{name}.json", import_module(SCRIPTS.get(name, name))
    results = Results(path, "", measuring=False)
    results.path, results.raw_path = tmp_path / path.name, tmp_path / raw_path(path).name
    results.write(script.summarise(results.cells))
    assert results.path.read_text() == path.read_text()
    assert script.tables(results.summary) == path.with_suffix(".md").read_text()
