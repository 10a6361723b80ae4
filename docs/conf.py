"""How the documentation is built: `make docs`."""

import sfumato

project = "sfumato"
author = "The sfumato developers"
copyright = author
version = release = sfumato.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]

# Everything is built from this checkout alone: no link is looked up, no font is fetched.
html_theme = "furo"
html_title = f"sfumato {release}"
html_copy_source = False

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True, "exclude-members": "model_config"}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # or attributes would be documented twice
napoleon_use_rtype = False
