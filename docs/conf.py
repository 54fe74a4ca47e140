"""sources in this folder -> the documentation site (``make docs``); nothing is ever fetched."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # tables.py, the directives that read the package's tables

project = "NGDiff"
author = "The NGDiff authors"
version = release = metadata.version("ngdiff")
# no MathJax: formulas are plain text, and it would come from another host
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "tables"]
exclude_patterns = ["study", "_build"]

smartquotes = False  # commands and definitions stand as they are typed

html_theme = "furo"
html_title = f"NGDiff {release}"
html_static_path: list[str] = []
html_copy_source = False
html_show_sphinx = False
# Furo's pages use the reader's fonts; tests/project/test_site.py checks that no page names a host

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
myst_links_external_new_tab = False
suppress_warnings = ["misc.highlighting_failure"]

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
python_use_unqualified_type_names = True
# types of other packages have no page here, so an unknown one is no fault; links in text are checked
nitpicky = False
