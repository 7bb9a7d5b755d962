"""Pages of docs/: quoted messages, keys, commands, files, links and configurations exist."""

from __future__ import annotations

import ast
import re
import runpy

import pytest
import yaml

from multitask_vl.cli.main import COMMANDS, main
from multitask_vl.cli.store import SUBCOMMANDS as STORE_COMMANDS
from multitask_vl.config import load_config, reference
from multitask_vl.config.schema import Config, MethodConfig, TaskConfig, TrainingConfig
from multitask_vl.registry import METHODS, ROUTING, TASKS
from tests import tiny_run
from tests.docs.pages import DOCS, FILE, PAGES, README, RUN

ROOT = tiny_run.ROOT
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
GAP = re.compile(r"<[^<>]*>")
FENCED = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)


def message_texts() -> list[str]:
    """Strings in the code, with `<>` where an f-string puts a value."""
    found = []
    for top in ("multitask_vl", "feature_extraction", "launch"):
        for path in (ROOT / top).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.JoinedStr):
                    parts = (part.value if isinstance(part, ast.Constant) else "<>" for part in node.values)
                    found.append("".join(parts))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    return found


def test_quoted_messages_are_in_the_code():
    texts = message_texts()
    quoted = re.findall(r"^### `(.+)`$", (DOCS / "troubleshooting.md").read_text(), re.MULTILINE)
    assert len(quoted) > 30
    assert len(set(quoted)) == len(quoted)
    for message in quoted:
        parts = [part for part in GAP.split(message) if part.strip()]
        # any text may fill a gap
        pattern = re.compile(".*?".join(map(re.escape, parts)), re.DOTALL)
        assert any(pattern.search(text) for text in texts), f"docs/troubleshooting.md: no such message: {message}"


def test_configuration_page_is_current():
    if (DOCS / "configuration.md").read_text() != reference.reference_page():
        pytest.fail(f"keys have changed; run: {reference.COMMAND}", pytrace=False)


def test_configuration_page_has_all_keys():
    page = reference.reference_page()
    for name in (*Config.model_fields, *TrainingConfig.model_fields):
        assert f"`{name}`" in page
    for registry, base in ((TASKS, TaskConfig), (METHODS, MethodConfig)):
        for name in registry.names():
            entry = registry.get(name)
            if entry.__module__.startswith("multitask_vl."):
                chapter = page[page.index(f"### `{name}`") :].split("\n### ")[0]
                own = set(entry.Config.model_fields) - set(base.model_fields)
                assert all(f"| `{key}` |" in chapter for key in own), name
    # every key has a meaning
    assert not re.findall(r"^\| `\w+` \|.*\|  \|$", page, re.MULTILINE)
    assert "| `lr` | float > 0 | `0.001` | Peak learning rate. |" in page
    assert '| `resize` | `squash`, `crop` | `"squash"` |' in page


def test_configs_command_writes_reference(tmp_path):
    assert main(["configs", "--reference", str(tmp_path / "keys.md")]) in (0, None)
    assert (tmp_path / "keys.md").read_text() == reference.reference_page()


def anchors(text: str) -> set[str]:
    """Anchors of the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", FENCED.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [README, CONTRIBUTING, *PAGES], ids=lambda page: page.stem)
def test_page_links_exist(page):
    for link, anchor in re.findall(r"\]\(([^()#:\s]*)(?:#([\w-]+))?\)", page.read_text()):
        target = page.parent / link if link else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text()), f"{link}#{anchor}"


@pytest.mark.parametrize("page", [README, CONTRIBUTING, *PAGES], ids=lambda page: page.stem)
def test_page_names_existing_files_commands_keys(page):
    text = page.read_text()
    for path in re.findall(r"(?<![\w./])((?:launch|configs|tests|multitask_vl|docs|benchmarks)/[\w/.-]+\.\w+)", text):
        assert (ROOT / path).exists(), path
    assert set(re.findall(r"multitask-vl (?!authors)([a-z][\w-]*)", text)) <= set(COMMANDS)
    assert set(re.findall(r"multitask-vl store ([a-z]\w*)", text)) <= set(STORE_COMMANDS)
    for section, key in re.findall(r"`(\w+)\.(?!yaml|md|py|h5|npy)(\w+)(?:[:=` ])", text):
        if section in Config.model_fields and section not in ("tasks", "method"):
            assert key in Config.model_fields[section].annotation.model_fields, f"{section}.{key}"


@pytest.mark.parametrize("name", ["datasets", "training", "feature_extraction"])
def test_page_configuration_loads(name, tmp_path):
    """The first YAML of a page that composes the configurations of the toolkit."""
    shown = yaml.safe_load(
        re.search(r"```yaml\n(compose: \[base.*?)```", (DOCS / f"{name}.md").read_text(), re.DOTALL)[1]
    )
    shown["compose"] = [str(ROOT / "configs" / path) for path in shown["compose"]]
    path = tmp_path / "page.yaml"
    path.write_text(yaml.safe_dump(shown))
    config = load_config(path)
    if name != "feature_extraction":
        assert config.routing.function == {"vqa": "mul", "gqa": "mul", "nlvr2": "mm1", "coco_caption": "mm2"}
        assert config.method[0].sharing == "per_task"


def test_routing_page_lists_functions(monkeypatch, tmp_path):
    page = (DOCS / "routing.md").read_text()
    table = page[page.index("`routing.function` is one of") : page.index("`mm1` and `mm2` grow")]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == set(ROUTING.names())
    monkeypatch.setattr(ROUTING, "_entries", dict(ROUTING._entries))
    module = tmp_path / "minus.py"
    module.write_text(re.search(r"```python\n(from multitask_vl.registry import ROUTING.*?)```", page, re.DOTALL)[1])
    runpy.run_path(str(module))
    assert ROUTING.get("minus")(3, 1) == 2


def test_methods_page_lists_methods():
    page = (DOCS / "methods.md").read_text()
    table = page[page.index("| `method:` |") : page.index("A list combines methods")]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == set(METHODS.names())


def test_commands_page_lists_commands():
    page = (DOCS / "commands.md").read_text()
    table = page[: page.index("## Exit codes")]
    assert set(re.findall(r"^\| `([\w-]+)` \|", table, re.MULTILINE)) == set(COMMANDS)


def test_marked_commands_are_run_by_a_test():
    pages = {path.stem for path in PAGES if RUN.search(path.read_text())}
    by_extension_pages = {"add_a_backbone", "add_a_method", "add_a_routing_function", "add_a_task", "reports"}
    assert pages == {"finetune_your_data"} | by_extension_pages
    for path in PAGES:
        for _, text in FILE.findall(path.read_text()):
            assert text.strip()
