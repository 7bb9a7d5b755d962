"""Hooks of the site: the notebook as a page, and links to files outside of the site."""

import json
import re
from pathlib import Path

from mkdocs.structure.files import File

OUTSIDE = re.compile(r"\[([^\]]*)\]\(\.\./([^)]+)\)")
PAGE_OF_FILE = {"README.md": "index.md"}
NOTEBOOK = "quickstart.ipynb"
PAGE = "quickstart.md"


def on_files(files, config):
    """Add the notebook as a page, without outputs."""
    cells = json.loads(Path(config.docs_dir, NOTEBOOK).read_text(encoding="utf-8"))["cells"]
    files.append(File.generated(config, PAGE, content="\n\n".join(map(_cell_markdown, cells))))
    return files


def on_page_markdown(markdown, **kwargs):
    """Replace links to files outside of ``docs/`` by their text, with the path as a tooltip."""
    markdown = markdown.replace(f"({NOTEBOOK})", f"({PAGE})")
    # the content of <details> is Markdown too
    return OUTSIDE.sub(_replace_link, markdown.replace("<details>", '<details markdown="1">'))


def _cell_markdown(cell):
    text = "".join(cell["source"])
    return text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```"


def _replace_link(match):
    text, path = match.groups()
    if path in PAGE_OF_FILE:
        return f"[{text}]({PAGE_OF_FILE[path]})"
    return f'<span title="{path}">{text}</span>'
