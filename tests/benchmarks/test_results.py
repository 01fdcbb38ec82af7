"""Results of benchmarks are kept cell by cell, and the scripts use what the library makes public."""

import ast
import importlib
import json
from pathlib import Path

import pytest
from _results import HERE, Results, raw_path, read_raw

SCRIPTS = sorted(HERE.rglob("*.py"))


def test_a_stopped_run_goes_on_where_it_was(tmp_path):
    path = tmp_path / "speed.json"
    first = Results(path, "python speed.py")
    first.cell("a", lambda: {"ms": 1.23456789, "bad": float("nan")})  # stopped here: no summary has been written
    assert not path.exists()
    second = Results(path, "python speed.py")
    assert second.cell("a", lambda: pytest.fail("measured twice"))["ms"] == 1.23457
    second.cell("b", lambda: {"ms": 2})
    second.write({"slowest": {"b": 2}})
    header, records = read_raw(raw_path(path))
    assert [record["name"] for record in records] == ["a", "b"]
    assert records[0]["bad"] is None
    assert json.loads(path.read_text())["summary"] == {"slowest": {"b": 2}}
    assert header["command"] == "python speed.py"


def test_fresh_measures_all_anew(tmp_path):
    path = tmp_path / "speed.json"
    Results(path, "python speed.py").cell("a", lambda: {"ms": 1})
    assert Results(path, "python speed.py", fresh=True).cell("a", lambda: {"ms": 2})["ms"] == 2


def test_cells_of_other_versions_are_read_but_not_added_to(tmp_path):
    path = tmp_path / "speed.json"
    old = Results(path, "python speed.py")
    old.made_with["versions"]["torch"] = "1.0"
    old.cell("a", lambda: {"ms": 1})
    with pytest.raises(SystemExit, match=r"measured with .*1\.0.* pass --fresh"):
        Results(path, "python speed.py")
    reading = Results(path, "another command", measuring=False)
    reading.write({})
    assert json.loads(path.read_text())["versions"]["torch"] == "1.0"
    assert json.loads(path.read_text())["command"] == "python speed.py"


def test_the_same_cells_are_the_same_bytes(tmp_path):
    contents = []
    for name in ("one", "two"):
        results = Results(tmp_path / name / "speed.json", "python speed.py")
        results.cells["a"] = {"ms": 1}
        results.write({})
        contents.append(results.raw_path.read_bytes())
    assert contents[0] == contents[1]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: str(path.relative_to(HERE)))
def test_scripts_import_public_names_alone(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "sklearn_hyper":
            public = importlib.import_module(node.module).__all__
            assert {alias.name for alias in node.names} <= set(public), f"line {node.lineno} of {path.name}"
