"""The site: `make docs`. Pages are the Markdown files of the repository, read where they lie."""

from __future__ import annotations

from importlib.metadata import version as installed

project = "cbir_faiss"
author = "the cbir_faiss maintainers"
project_copyright = author
version = release = installed("cbir-faiss")

extensions = ["myst_parser"]
root_doc = "docs/index"
include_patterns = ["docs/**.md", "connectors/README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"]
exclude_patterns = ["**/.*", "runs", "site", "tests", "benchmarks"]
source_suffix = {".md": "markdown"}
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
# Shown as they are written: an ellipsis is a character, and quotes may stand in commands.
smartquotes = False
highlight_language = "text"

html_theme = "furo"
html_title = f"cbir_faiss {release}"
html_extra_path = ["_root"]
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {"footer_icons": []}
