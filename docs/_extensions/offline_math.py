"""Write formulas as MathML, which browsers draw by themselves: no script, no font and no network when a page is read.

MathJax and KaTeX would have to be shipped as megabytes of scripts and fonts, or fetched.
"""

from __future__ import annotations

import re
import unicodedata

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.errors import ExtensionError

# Browsers draw letters as they come, and know no attribute for script ones.
SCRIPT_LETTER = re.compile(r'<mi mathvariant="script">([A-Z])</mi>')


def script(letter: str) -> str:
    try:
        return unicodedata.lookup(f"SCRIPT CAPITAL {letter}")
    except KeyError:
        return unicodedata.lookup(f"MATHEMATICAL SCRIPT CAPITAL {letter}")


def render(node: nodes.Node, display: str) -> str:
    tex = node.astext()
    markup = convert(tex, display=display)
    if "\\" in markup:  # the converter hands on what it does not know
        raise ExtensionError(f"{node.source}: no MathML for a command in {tex!r}")
    return SCRIPT_LETTER.sub(lambda match: f"<mi>{script(match[1])}</mi>", markup)


def visit_inline(self, node):
    self.body.append(render(node, "inline"))
    raise nodes.SkipNode


def visit_block(self, node):
    self.body.append(f'<div class="math-block">{render(node, "block")}</div>')
    raise nodes.SkipNode


def setup(app):
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
