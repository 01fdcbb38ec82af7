"""Sphinx configuration; see CONTRIBUTING.md for the command that builds the docs."""

from __future__ import annotations

import re
import warnings

import sklearn_hyper

project = "sklearn_hyper"
author = "sklearn_hyper developers"
copyright = f"2026, {author}"
version = release = sklearn_hyper.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
    "myst_parser",
    "numpydoc",
]
exclude_patterns = ["_build", "_templates"]
templates_path = ["_templates"]

html_theme = "pydata_sphinx_theme"
html_title = f"sklearn_hyper {release}"
html_theme_options = {"show_prev_next": False, "secondary_sidebar_items": ["page-toc"]}
html_show_sourcelink = False

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
}

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
