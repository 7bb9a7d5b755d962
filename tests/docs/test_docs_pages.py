"""Are the reference pages true: is every message that they quote said, every key written, every file there?"""

from __future__ import annotations

import ast
import re

import pytest

from multitask_vl.config import reference
from multitask_vl.config.schema import Config, MethodConfig, TaskConfig, TrainingConfig
from multitask_vl.registry import METHODS, TASKS
from tests import tiny_run

DOCS = tiny_run.ROOT / "docs"
GAP = re.compile(r"<[^<>]*>")


def sentences() -> list[str]:
    """Every text in the code that is no docstring, with `<>` where an f-string puts a value."""
    found = []
    for top in ("multitask_vl", "feature_extraction", "launch"):
        for path in (tiny_run.ROOT / top).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.JoinedStr):
                    found.append("".join(one.value if isinstance(one, ast.Constant) else "<>" for one in node.values))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    return found


def test_every_quoted_message_is_said_by_the_code():
    said = sentences()
    quoted = re.findall(r"^### `(.+)`$", (DOCS / "troubleshooting.md").read_text(), re.MULTILINE)
    assert len(quoted) > 30
    assert len(set(quoted)) == len(quoted)
    for message in quoted:
        parts = [part for part in GAP.split(message) if part.strip()]
        # what the code puts into a gap may be any text
        pattern = re.compile(".*?".join(map(re.escape, parts)), re.DOTALL)
        assert any(pattern.search(one) for one in said), f"docs/troubleshooting.md quotes what is not said: {message}"


def test_the_page_of_keys_is_current():
    written = (DOCS / "configuration.md").read_text()
    if written != reference.page():
        pytest.fail(f"keys have changed; run: {reference.COMMAND}", pytrace=False)


def test_the_page_of_keys_has_them_all():
    page = reference.page()
    for name in (*Config.model_fields, *TrainingConfig.model_fields):
        assert f"`{name}`" in page
    for registry, base in ((TASKS, TaskConfig), (METHODS, MethodConfig)):
        for name in registry.names():
            entry = registry.get(name)
            if entry.__module__.startswith("multitask_vl."):
                chapter = page[page.index(f"### `{name}`") :].split("\n### ")[0]
                own = set(entry.Config.model_fields) - set(base.model_fields)
                assert all(f"| `{key}` |" in chapter for key in own), name
    # each has a meaning
    assert not re.findall(r"^\| `\w+` \|.*\|  \|$", page, re.MULTILINE)
    assert "| `lr` | float > 0 | `0.001` | Peak learning rate. |" in page
    assert '| `resize` | `squash`, `crop` | `"squash"` |' in page


def test_the_command_writes_what_it_prints(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["reference", "--write", str(tmp_path / "keys.md")])
    assert reference.main() == 0
    monkeypatch.setattr("sys.argv", ["reference"])
    capsys.readouterr()
    assert reference.main() == 0
    assert capsys.readouterr().out == (tmp_path / "keys.md").read_text() == reference.page()


def test_files_and_keys_that_the_pages_name_exist():
    for name in ("troubleshooting.md", "footguns.md"):
        text = (DOCS / name).read_text()
        for path in re.findall(r"`(?:python )?((?:configs|launch|multitask_vl)/[\w/]+\.(?:yaml|py))", text):
            assert (tiny_run.ROOT / path).exists(), path
        for link in re.findall(r"\]\(([\w.]+)\)", text):
            assert (DOCS / link).exists(), link
        for section, key in re.findall(r"`(\w+)\.(\w+)(?:[:=` ])", text):
            if section in Config.model_fields and section not in ("tasks", "method"):
                assert key in Config.model_fields[section].annotation.model_fields, f"{section}.{key}"
