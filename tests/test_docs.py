"""Every snippet that the README and the docs show works as shown."""

import ast
import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest
import torch
from prose import written_pages

import sklearn_hyper

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *written_pages()]
# training/ is what the estimators are made with, not an interface.
SUBMODULES = (module.name for module in pkgutil.iter_modules(sklearn_hyper.__path__))
PUBLIC_MODULES = [name for name in SUBMODULES if name[0] != "_" and name != "training"]
FENCED_PYTHON = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@pytest.fixture(autouse=True)
def _one_thread():
    # The snippets fit small models; threads cost them more than they bring.
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


def name_page(page):
    return page.relative_to(ROOT).as_posix()


def read_blocks(page):
    """Yield (line number, code) of each fenced python block."""
    text = page.read_text()
    for match in FENCED_PYTHON.finditer(text):
        yield text.count("\n", 0, match.start(1)), match.group(1)


@pytest.mark.parametrize("page", PAGES, ids=name_page)
def test_examples_of_page_give_what_it_prints(page):
    # The blocks of a page are one session: later ones use the names of earlier ones.
    parser, runner, output = doctest.DocTestParser(), doctest.DocTestRunner(optionflags=OPTIONS), []
    session = {"__name__": page.stem}
    for line, code in read_blocks(page):
        block = parser.get_doctest(code, session, page.name, str(page), line)
        runner.run(block, out=output.append, clear_globs=False)
        session = block.globs
    assert runner.failures == 0, "".join(output)


@pytest.mark.parametrize("page", PAGES, ids=name_page)
def test_plain_blocks_compile_and_import_what_exists(page):
    for line, code in read_blocks(page):
        if ">>>" in code:
            continue
        tree = ast.parse(code, filename=f"{page}:{line}")
        imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        exec(compile(ast.Module(imports, []), str(page), "exec"), {})


@pytest.mark.parametrize("module", PUBLIC_MODULES)
def test_reference_lists_every_public_name(module):
    listed = set(re.findall(r"^(?:   |\.\. data:: )(\w+)$", (ROOT / "docs" / "api.rst").read_text(), re.MULTILINE))
    public = importlib.import_module(f"sklearn_hyper.{module}").__all__
    assert sorted(set(public) - listed) == []
