"""What differs between a page in the repository and in the site: the notebook, and links to what is not in the site."""

import json
import re
from pathlib import Path

from mkdocs.structure.files import File

OUTSIDE = re.compile(r"\[([^\]]*)\]\(\.\./([^)]+)\)")
HOME = {"README.md": "index.md"}
NOTEBOOK = "quickstart.ipynb"
PAGE = "quickstart.md"


def on_files(files, config):
    """The notebook is a page too; its outputs are not in it."""
    cells = json.loads(Path(config.docs_dir, NOTEBOOK).read_text(encoding="utf-8"))["cells"]
    files.append(File.generated(config, PAGE, content="\n\n".join(map(_shown, cells))))
    return files


def on_page_markdown(markdown, **kwargs):
    """A link to a file beside ``docs/`` becomes the file's name, which a reader finds in a checkout."""
    markdown = markdown.replace(f"({NOTEBOOK})", f"({PAGE})")
    # what is folded away is Markdown too
    return OUTSIDE.sub(_named, markdown.replace("<details>", '<details markdown="1">'))


def _shown(cell):
    text = "".join(cell["source"])
    return text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```"


def _named(found):
    text, path = found.groups()
    if path in HOME:
        return f"[{text}]({HOME[path]})"
    return f'<span title="{path}">{text}</span>'
