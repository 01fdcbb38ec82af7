"""What is written in several places about versions and dependencies agrees: project, recipe, constraints, matrix."""

import re
import runpy
import tomllib
from pathlib import Path

import pytest
import yaml

import sklearn_hyper

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONDA_NAMES = {"torch": "pytorch", "matplotlib": "matplotlib-base"}
TEMPLATES = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


def requirements(lines):
    """Lower bounds by name; None where there is none."""
    found = [re.fullmatch(r"([\w.-]+)(?:\[.*\])?(?:>=([\w.]+))?", line) for line in lines]
    return {match[1]: match[2] for match in found}


@pytest.fixture(scope="module")
def recipe():
    text = (ROOT / "recipe" / "meta.yaml").read_text()
    names = dict(re.findall(r'\{% set (\w+) = "(.*)" %\}', text))
    filled = re.sub(r"\{\{ (\w+) \}\}", lambda match: names.get(match[1], match[1]), text)
    return yaml.safe_load(re.sub(r"\{%.*%\}", "", filled))


def conda_pins(lines):
    return requirements(line.replace(" ", "") for line in lines)


def test_the_recipe_has_the_projects_version_and_license(recipe):
    assert recipe["package"] == {"name": PROJECT["name"], "version": sklearn_hyper.__version__}
    assert recipe["about"]["license"] == PROJECT["license"] and (ROOT / recipe["about"]["license_file"]).is_file()
    assert recipe["about"]["summary"] == PROJECT["description"]


def test_the_recipe_runs_on_what_the_project_depends_on(recipe):
    expected = {CONDA_NAMES.get(name, name): bound for name, bound in requirements(PROJECT["dependencies"]).items()}
    pins = conda_pins(recipe["requirements"]["run"])
    assert pins.pop("python") == PROJECT["requires-python"].removeprefix(">=")
    assert pins == expected
    plots = requirements(PROJECT["optional-dependencies"]["plots"])
    constrained = conda_pins(recipe["requirements"]["run_constrained"])
    assert constrained == {CONDA_NAMES.get(name, name): bound for name, bound in plots.items()}


def test_the_recipe_builds_with_the_projects_backend(recipe):
    (backend,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    assert backend.replace(">=", " >=") in recipe["requirements"]["host"]
    assert backend in PROJECT["optional-dependencies"]["release"]


def test_the_citation_has_the_projects_version_and_license():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["version"], citation["license"]) == (sklearn_hyper.__version__, PROJECT["license"])


def test_constraints_pin_all_that_the_project_names():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {_normal(line.split("==")[0]) for line in lines if not line.startswith("#")}
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    named = {_normal(name) for group in groups for name in requirements(group)} - {PROJECT["name"]}
    assert len(named) > 20 and named <= pinned


def _normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


# ---------------------------------------------------------------------- the matrix
@pytest.fixture(scope="module")
def matrix():
    return runpy.run_path(str(ROOT / ".ci" / "matrix"))


def test_the_oldest_cell_pins_every_lower_bound(matrix):
    pins = dict(pin.split("==") for pin in matrix["Cell"]("3.11", "oldest").requirements())
    assert pins == requirements(PROJECT["dependencies"])
    for python, first in matrix["FIRST_FOR"].items():
        later = dict(pin.split("==") for pin in matrix["Cell"](python, "oldest").requirements())
        assert later == pins | first and first.keys() <= pins.keys()
        assert (later["torch"], later["scikit-learn"]) == (pins["torch"], pins["scikit-learn"])
    assert matrix["Cell"]("3.13", "newest").requirements() == []


def test_a_dry_run_lists_every_cell_and_what_is_missing(matrix, capsys, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None if name == "python3.13" else name)
    assert matrix["main"](["--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "Python 3.11, oldest", "Python 3.11, newest", "Python 3.12, oldest", "Python 3.12, newest",
        "Python 3.13, not installed",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("fails", "end"),
    [(None, "passed"), ("-m venv", "no environment"), ("-m pip", "not installable"), ("-m pytest", "failed")],
)
def test_a_cell_that_fails_says_where_and_does_not_stop_the_others(matrix, capsys, monkeypatch, fails, end):
    commands = []

    def run(command, **how):
        commands.append(" ".join(command))
        return type("Ended", (), {"returncode": int(fails is not None and fails in commands[-1])})

    monkeypatch.setattr("subprocess.run", run)
    monkeypatch.setattr("shutil.which", lambda name: name)
    code = matrix["main"](["--python", "3.11", "--", "tests/numerics"])
    out = capsys.readouterr().out
    assert code == int(fails is not None)
    assert f"Python 3.11, oldest  {end}" in out and f"Python 3.11, newest  {end}" in out
    if fails is None:
        assert sum(command.endswith("-m pytest -q tests/numerics") for command in commands) == 2


def test_without_any_python_the_matrix_fails(matrix, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert matrix["main"]([]) == 1


# ---------------------------------------------------------------------- issues
@pytest.mark.parametrize(
    "template", [path for path in TEMPLATES if path.name != "config.yml"], ids=lambda path: path.name
)
def test_issue_templates_are_forms(template):
    form = yaml.safe_load(template.read_text())
    assert form["name"] and form["description"]
    for part in form["body"]:
        assert part["type"] in ("markdown", "textarea")
        assert part["type"] == "markdown" or (part["id"] and part["attributes"]["label"])


def test_a_bug_report_asks_for_versions_and_a_script():
    parts = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / "bug_report.yml").read_text())["body"]
    required = {part["id"] for part in parts if part.get("validations", {}).get("required")}
    assert {"script", "versions"} <= required
    assert any("sklearn_hyper.show_versions()" in part["attributes"].get("description", "") for part in parts)
