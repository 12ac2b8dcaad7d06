"""Builds the documentation site: `python -m sphinx -W docs docs/_build/html`, with the extra `docs`."""

import re
from pathlib import Path
from typing import Any

import lightning_ppo
from lightning_ppo.settings.reference import to_markdown

project = "lightning_ppo"
version = release = lightning_ppo.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
default_role = "code"  # docstrings write code in single backticks
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # signatures stay readable; docstrings say what an argument is
python_maximum_signature_line_length = 80
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
exclude_patterns = ["_build", "_generated"]
html_theme = "furo"
html_title = "lightning_ppo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_copyright = False

# the reference of settings is made from the source at every build, and included by configuration.md
generated = Path(__file__).parent / "_generated"
generated.mkdir(exist_ok=True)
(generated / "settings.md").write_text(to_markdown())


def literal_asterisks(app: Any, what: str, name: str, thing: object, options: Any, lines: list[str]) -> None:
    """Keep shapes such as (B, *shape) from being read as emphasis; code in backticks stays as it is."""
    parts = "\n".join(lines).split("`")
    parts[::2] = [re.sub(r"(?<!\*)\*(?!\*)", r"\*", part) for part in parts[::2]]
    lines[:] = "`".join(parts).split("\n")


def setup(app: Any) -> None:
    """Connect what this file does to Sphinx, before the extension that reads docstrings in Google style."""
    app.connect("autodoc-process-docstring", literal_asterisks, priority=100)
