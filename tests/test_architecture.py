"""Imports point one way, and heavy dependencies stay where they belong: read off the sources with ast."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import sklearn_hyper

ROOT = Path(sklearn_hyper.__file__).parent
PACKAGE = "sklearn_hyper"

# What each part may import of the others. The rings come in order; metrics, datasets and _versions are leaves.
# Nothing imports evaluation, and nothing but tests and examples needs datasets.
RINGS = ["numerics", "modules", "training", "estimators", "evaluation"]
ALLOWED = {ring: {*RINGS[: i + 1], "__version__"} for i, ring in enumerate(RINGS)}
for ring in ("training", "estimators", "evaluation"):
    ALLOWED[ring].add("metrics")
ALLOWED |= {
    "metrics": {"numerics", "metrics"},
    "datasets": {"numerics", "modules", "datasets"},
    "_versions": {"__version__"},
    "__init__": set(),
}

# Third-party packages that one place alone may import.
OWNERS = {
    "torchdiffeq": f"{PACKAGE}.numerics.reference",
    "skorch": f"{PACKAGE}.training",
    "sklearn.base": f"{PACKAGE}.estimators",
}


def _module_name(path):
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


PATHS = {_module_name(path): path for path in sorted(ROOT.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in PATHS.items()}


def _imports(module):
    """Every absolute dotted name that a module imports, inside functions and TYPE_CHECKING blocks too."""
    package = module.split(".") if PATHS[module].name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parent = package[: len(package) - node.level + 1] if node.level else []
            base = [*parent, *([node.module] if node.module else [])]
            yield from (".".join([*base, alias.name]) for alias in node.names)


IMPORTS = {module: sorted(set(_imports(module))) for module in PATHS}


def _part(name):
    """The ring or leaf that a dotted name of the package lies in."""
    return name.split(".")[1] if "." in name else "__init__"


def _within(name, prefix):
    return name == prefix or name.startswith(prefix + ".")


def _defining_module(name):
    """The module that importing a dotted name runs: its longest prefix that is one."""
    while name not in PATHS:
        name = name.rpartition(".")[0]
    return name


each_module = pytest.mark.parametrize("module", PATHS)


@each_module
def test_imports_point_one_way(module):
    targets = {_part(name) for name in IMPORTS[module] if _within(name, PACKAGE)}
    assert _part(module) in ALLOWED, f"{module} is in no ring and is no known leaf"
    assert targets <= ALLOWED[_part(module)]


def test_no_import_cycles():
    graph = {
        module: {_defining_module(name) for name in names if _within(name, PACKAGE)}
        for module, names in IMPORTS.items()
    }
    assert len(graph["sklearn_hyper.numerics"]) >= 6  # the graph is not empty
    TopologicalSorter(graph).prepare()  # raises CycleError, which spells the cycle out


@pytest.mark.parametrize(("dependency", "owner"), OWNERS.items(), ids=OWNERS)
def test_a_dependency_is_imported_by_its_owner_only(dependency, owner):
    users = {module for module, names in IMPORTS.items() if any(_within(name, dependency) for name in names)}
    assert users, f"nothing imports {dependency}: is this table out of date?"
    assert all(_within(module, owner) for module in users), users


@pytest.mark.parametrize("module", [module for module in PATHS if _part(module) == "numerics"])
def test_numerics_needs_torch_alone(module):
    roots = {name.partition(".")[0] for name in IMPORTS[module]}
    assert roots <= sys.stdlib_module_names | {PACKAGE, "torch", "torchdiffeq"}


def test_numerics_loads_neither_sklearn_nor_skorch():
    code = "import sys, sklearn_hyper.numerics; print(sorted({'sklearn', 'skorch', 'torch'} & sys.modules.keys()))"
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT.parent, capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "['torch']"


@pytest.mark.parametrize("name", sklearn_hyper._EXPORTS)
def test_public_names_resolve(name):
    assert name in sklearn_hyper.__all__ and name in dir(sklearn_hyper)
    assert getattr(sklearn_hyper, name).__name__ == name


def test_an_unknown_public_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'HyperEuler'"):
        _ = sklearn_hyper.HyperEuler


@each_module
def test_no_function_has_its_modules_name(module):
    functions = {node.name for node in TREES[module].body if isinstance(node, ast.FunctionDef)}
    assert module.rpartition(".")[2] not in functions
