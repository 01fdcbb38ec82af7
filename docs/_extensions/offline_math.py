"""Write formulas as MathML, which browsers draw by themselves: no script, no font and no network when a page is read.

MathJax and KaTeX would have to be shipped as megabytes of scripts and fonts, or fetched. The converter is docutils' own. It
reads braces strictly (``\\tfrac{1}{2}``, not ``\\tfrac12``), and what it does not know fails the build.
"""

from __future__ import annotations

import re

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.errors import ExtensionError

# A fraction whose parts have no braces would be read as another one, without an error.
BARE_FRACTION = re.compile(r"\\[td]?frac\s*[^{\s]")


def render(node: nodes.Node, *, as_block: bool) -> str:
    tex = node.astext()
    try:
        if BARE_FRACTION.search(tex):
            raise MathError("write fractions with braces, \\frac{1}{2}")
        # docutils takes aligned lines as they are; amsmath's environments around one formula add nothing here.
        return tex2mathml(tex, as_block=as_block).replace("&ApplyFunction;", "&#8289;")
    except MathError as error:
        raise ExtensionError(f"{node.source}: {error} in {tex!r}") from error


def visit_inline(self, node):
    self.body.append(render(node, as_block=False))
    raise nodes.SkipNode


def visit_block(self, node):
    self.body.append(f'<div class="math-block">{render(node, as_block=True)}</div>')
    raise nodes.SkipNode


def setup(app):
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
