"""The recorded tables of training are those of the recorded cells."""

from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "examples" / "benchmarks" / "training.json"


@pytest.mark.skipif(not PATH.exists(), reason="the benchmark's files are not part of an installation")
def test_tables_are_those_of_the_cells(tmp_path):
    from _results import Results, raw_path
    from training import summarise, tables

    results = Results(PATH, "", measuring=False)
    results.path, results.raw_path = tmp_path / PATH.name, tmp_path / raw_path(PATH).name
    results.write(summarise(results.cells))
    assert results.path.read_text() == PATH.read_text()
    assert tables(results.summary) == PATH.with_suffix(".md").read_text()
