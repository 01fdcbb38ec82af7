"""The benchmarks themselves run for hours; here, that what they have written hangs together."""

import json
from pathlib import Path

BENCHMARKS = Path(__file__).parents[1] / "examples" / "benchmarks"


def test_tables_of_the_docs_are_those_of_the_committed_cells(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from _results import finite
    from wp_summary import summarise
    from wp_tables import tables

    cells = json.loads((BENCHMARKS / "work_precision.json").read_text())["cells"]
    assert tables(finite(summarise(cells, seeds=3))) == (BENCHMARKS / "work_precision.md").read_text()
