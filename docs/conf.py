"""Builds the documentation site: `python -m sphinx -W docs docs/_build/html`, with the extra `docs`."""

from pathlib import Path

import lightning_ppo
from lightning_ppo.settings.reference import to_markdown

project = "lightning_ppo"
version = release = lightning_ppo.__version__
extensions = ["myst_parser"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
exclude_patterns = ["_build", "_generated"]
html_theme = "furo"
html_title = "lightning_ppo"
html_show_copyright = False

# the reference of settings is made from the source at every build, and included by configuration.md
generated = Path(__file__).parent / "_generated"
generated.mkdir(exist_ok=True)
(generated / "settings.md").write_text(to_markdown())
