"""How Sphinx builds the documentation site: `make docs`, or `sphinx-build -W --keep-going -c docs . build/site`.

The source folder is the repository's root, not `docs/`: pages beside the code (`components/README.md` and others) are
pages of the site too, and a relative link between two of them works on GitHub and in the site alike.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))

from mlflywheel import __version__

project = "mlflywheel"
author = "The mlflywheel authors"
copyright = author
version = release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "repository_pages",
    "generated_reference",
]
root_doc = "docs/index"
source_suffix = {".md": "markdown"}
include_patterns = [
    "docs/**.md",
    "benchmarks/README.md",
    "components/README.md",
    "manifests/**.md",
    "pipelines/**.md",
]
# Folders that are never walked through; the symlinks of src/mlflywheel lead to the same pages a second time.
exclude_patterns = [".*", "build", "issues", "requirements", "runs", "src", "tests", "docs/_*"]
templates_path = ["_templates"]

# Where the repository can be seen, up to the commit: links to files that are no pages lead there. Without it those
# files become part of the site. The address is the publisher's to name.
repository_url = os.environ.get("MLFLYWHEEL_REPOSITORY_URL", "")

# Links to headings as GitHub makes them.
myst_heading_anchors = 4
myst_enable_extensions = ["fieldlist"]
# Dashes between words; quotes stay as they are written.
smartquotes_action = "D"
# In a docstring `name` is code, as in Markdown.
default_role = "literal"

# Blocks without a language are commands and what they print.
highlight_language = "text"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
maximum_signature_line_length = 88
add_module_names = False
toc_object_entries_show_parents = "hide"
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Source", "returns_style")]

html_theme = "furo"
html_title = "mlflywheel"
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
# The root page leads to docs/index.html.
html_additional_pages = {"index": "redirect.html"}
html_theme_options = {"navigation_with_keys": True}
