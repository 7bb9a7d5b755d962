"""Code blocks of the README and the pages of docs/."""

from __future__ import annotations

import re
from pathlib import Path

from tests.tiny_run import ROOT

README = ROOT / "README.md"
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
FILE = re.compile(r"<!-- file: ([\w./]+) -->\n```\w+\n(.*?)```", re.DOTALL)
"""A file of the example of a page: name and content."""
RUN = re.compile(r"<!-- run -->\n```bash\n(.*?)```", re.DOTALL)
"""Commands of a page that a test runs."""


def block(page: Path, tag: str) -> str:
    """The code block after the comment ``test: tag``."""
    return re.search(rf"<!-- test: {tag} -->\n```\w+\n(.*?)```", page.read_text(), re.DOTALL)[1]


def run_commands(page: Path) -> list[str]:
    """The commands of a page that a test runs, in order."""
    return [line for commands in RUN.findall(page.read_text()) for line in commands.splitlines()]
