"""Sphinx configuration; see CONTRIBUTING.md for the command that builds the docs."""

from __future__ import annotations

import re
import sys
import warnings
from pathlib import Path

from tqdm.auto import tqdm

import sklearn_hyper

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))

project = "sklearn_hyper"
author = "sklearn_hyper developers"
copyright = f"2026, {author}"
version = release = sklearn_hyper.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "offline_math",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
    "myst_parser",
    "numpydoc",
]
exclude_patterns = ["_build", "_templates", "_extensions"]
templates_path = ["_templates"]

html_theme = "furo"
html_title = "sklearn_hyper"
html_logo = "_static/emblem.svg"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_show_sourcelink = False
html_copy_source = False

myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence"]
myst_heading_anchors = 3

autosummary_generate = True
autodoc_typehints = "none"  # numpydoc's sections state the types
autodoc_inherit_docstrings = False  # an override without a docstring of its own needs no entry
# The class template lists methods itself; numpydoc's own list would show them twice.
numpydoc_show_class_members = False

copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "auto_examples",
    "filename_pattern": r"plot_",
    "ignore_pattern": r"benchmarks|__init__\.py",
    "download_all_examples": False,
    "show_memory": False,
    "within_subsection_order": "gallery_order.ExampleOrder",
    "write_computation_times": False,  # its table asks other hosts for scripts
    "show_signature": False,
    # For an example that draws nothing, or has not been executed, as in a build with -D plot_gallery=0.
    "default_thumb_file": str(Path(__file__).parent / "_static" / "emblem.svg"),
}

# A page cannot show a bar that moves; printed, it is a wall of characters.
_draw_bar = tqdm.__init__
tqdm.__init__ = lambda self, *args, **kwargs: _draw_bar(self, *args, **{**kwargs, "disable": True})

# An example that warns should look like it does for a reader, once and not once per thread.
warnings.filterwarnings("default", category=UserWarning, module="sklearn_hyper")


def is_ours(obj):
    function = getattr(obj, "fget", obj)  # a property's getter
    owner = getattr(function, "__objclass__", function)  # methods written in C name their class, not their module
    return (getattr(owner, "__module__", None) or "").startswith("sklearn_hyper")


def skip_foreign_members(app, what, name, obj, skip, options):
    """List methods of ours and ``score``; leave out what torch, Python and scikit-learn's other bases bring."""
    foreign = callable(getattr(obj, "fget", obj)) and not is_ours(obj)
    return True if foreign and name != "score" else None


def unlink_foreign_references(app, what, name, obj, options, lines):
    """scikit-learn's docstrings link into its own user guide, which is not built here: keep the words."""
    if not is_ours(obj):
        lines[:] = [re.sub(r":ref:`([^<`]*?)\s*(<[^`]*>)?`", r"\1", line) for line in lines]


def setup(app):
    app.connect("autodoc-skip-member", skip_foreign_members)
    app.connect("autodoc-process-docstring", unlink_foreign_references)
