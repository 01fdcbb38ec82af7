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

# What each part may import of the others. The rings come in order; metrics, reports, datasets and _versions are leaves.
# Nothing imports evaluation and adapters, and nothing but tests and examples needs datasets.
RINGS = ["numerics", "modules", "training", "hypersolvers", "calibration", "estimators", "evaluation"]
ALLOWED = {ring: {*RINGS[: i + 1], "__version__"} for i, ring in enumerate(RINGS)}
for ring in ("training", "hypersolvers", "calibration", "estimators", "evaluation"):
    ALLOWED[ring] |= {"metrics", "reports"}
ALLOWED |= {
    "metrics": {"numerics", "metrics", "reports"},
    "reports": set(),
    "datasets": {"numerics", "modules", "datasets"},
    "adapters": {"numerics", "modules", "hypersolvers", "adapters"},
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


@pytest.mark.parametrize("module", [module for module in PATHS if _part(module) == "hypersolvers"])
def test_hypersolvers_are_fitted_without_scikit_learn(module):
    assert not [name for name in IMPORTS[module] if _within(name, "sklearn") or _within(name, "skorch")]


def test_numerics_loads_neither_sklearn_nor_skorch():
    code = "import sys, sklearn_hyper.numerics; print(sorted({'sklearn', 'skorch', 'torch'} & sys.modules.keys()))"
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT.parent, capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "['torch']"


@pytest.mark.parametrize("module", [module for module in PATHS if _part(module) == "adapters"])
def test_adapters_import_no_library_that_they_serve(module):
    roots = {name.partition(".")[0] for name in IMPORTS[module]}
    assert roots <= sys.stdlib_module_names | {PACKAGE, "torch"}


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


# ---------------------------------------------------------------------- contracts
@pytest.mark.parametrize("ring", ["numerics", "training", "hypersolvers"])
def test_protocols_are_base_classes_and_never_probed(ring):
    """The few probes left ask what a user's object is, not which of our protocols it keeps."""
    allowed = {"numerics.reference": ["__float__"]}  # of a tolerance: anything that float() takes
    for module in PATHS:
        if _part(module) == ring:
            probes = [attribute for function, attribute in _probes(TREES[module]) if function == "hasattr"]
            assert probes == allowed.get(module.removeprefix(f"{PACKAGE}."), []), module


@pytest.mark.parametrize("module", [module for module in PATHS if "corrections" in module or "hypersolved" in module])
def test_corrections_probe_nothing(module):
    assert not list(_probes(TREES[module], names=("hasattr",)))


def _probes(tree, names=("hasattr", "getattr")):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names:
            attribute = node.args[1] if len(node.args) > 1 else None
            yield node.func.id, attribute.value if isinstance(attribute, ast.Constant) else None


@pytest.mark.parametrize("name", ["HypersolverRegressor", "HypersolverClassifier", "HypersolverDensity"])
def test_a_hypersolver_has_at_most_two_project_ancestors_and_two_mixins(name):
    """A mixin holds a group of methods, and inherits nothing of ours: who reads it need not read on."""
    ancestors = [kind for kind in getattr(sklearn_hyper, name).__mro__[1:] if kind.__module__.startswith(PACKAGE)]
    mixins = [kind for kind in ancestors if kind.__name__.endswith("Mixin")]
    assert len(ancestors) - len(mixins) <= 2, ancestors
    assert len(mixins) <= 2, mixins
    assert all(kind.__mro__ == (kind, object) for kind in mixins)


@each_module
def test_functions_fit_on_a_screen(module):
    lengths = {node.name: _code_lines(node) for node in ast.walk(TREES[module]) if isinstance(node, ast.FunctionDef)}
    assert not {name: lines for name, lines in lengths.items() if lines > 50}


def _code_lines(function):
    """Lines of a function without its docstring."""
    lines = function.end_lineno - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function) is not None:
        lines -= first.end_lineno - first.lineno + 1
    return lines


def test_one_place_solves_a_neural_ode_by_dopri5():
    """All others ask NeuralODE.solve or NeuralODE.reference."""
    users = {
        module
        for module, names in IMPORTS.items()
        if any(name.endswith((".solve_dopri5", ".reference_solution")) for name in names)
    }
    assert users == {f"{PACKAGE}.modules.neural_ode", f"{PACKAGE}.numerics"}


def test_one_place_builds_the_nets_that_train():
    builders = {
        module
        for module, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "initialize"
    }
    assert builders <= {f"{PACKAGE}.training.nets", f"{PACKAGE}.training.callback_checks"}


def test_loops_are_two():
    """A method's step is called by the loops of fixed and of adaptive steps, and by residuals."""
    callers = {
        module
        for module, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and node.attr == "step"
        and isinstance(node.value, (ast.Attribute, ast.Name))
        and "method" in ast.unparse(node.value)
    }
    assert callers == {f"{PACKAGE}.numerics.{name}" for name in ("stepping", "adaptive_solve", "residuals")}
