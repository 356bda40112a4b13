"""Sphinx's configuration: the pages of this folder, and the API reference (`make docs`)."""

import bevkd2

project = "bevkd2"
author = "bevkd2 developers"
version = release = bevkd2.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["logs"]
html_theme = "furo"
html_title = f"bevkd2 {version}"

myst_heading_anchors = 4
# Links to files of the repository that are no pages (tests/docs checks them), and names of several classes.
suppress_warnings = ["myst.xref_missing", "ref.python"]

autodoc_default_options = {"members": True, "imported-members": True, "show-inheritance": True}
autodoc_member_order = "groupwise"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_attr_annotations = False  # reStructuredText reads "numpy.str_" as a reference
