"""Messages that the docs list are those that the library has."""

import ast
import re
from pathlib import Path

import sklearn_hyper

ROOT = Path(__file__).parents[2]
PACKAGE = Path(sklearn_hyper.__file__).parent
GAP = "\0"


def text_of(node):
    """A string as it reads, with a gap for what is filled in."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    return "".join(text_of(part) if isinstance(part, ast.Constant) else GAP for part in node.values)


def texts_of_sources():
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str)):
                yield text_of(node)


def documented():
    """Each part of a message between its dots, of the first column of every table."""
    for line in (ROOT / "docs" / "messages.md").read_text().splitlines():
        if line.startswith("|"):
            for message in re.findall(r'"([^"]+)"', line.split("|")[1]):
                yield from (part.strip() for part in message.split("...") if part.strip())


def test_every_message_of_the_page_is_in_the_sources():
    everything = "\n".join(texts_of_sources())
    assert [part for part in documented() if part not in everything] == []


def test_every_warning_and_error_of_ours_is_on_the_page():
    page = (ROOT / "docs" / "messages.md").read_text()
    ours = {
        node.name
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef) and node.name.endswith("Warning")
    }
    assert sorted(name for name in ours if name not in page) == []
