"""Architecture rules: imports point one way, files and functions are short, first lines are statements."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LEVELS = (
    ("multitask_vl.errors", "multitask_vl.logging", "multitask_vl.registry", "multitask_vl.storage"),
    ("multitask_vl.metrics",),
    ("multitask_vl.tasks", "multitask_vl.routing", "multitask_vl.config"),
    ("multitask_vl.data", "multitask_vl.methods", "multitask_vl.reports"),
    ("multitask_vl.models", "feature_extraction", "multitask_vl.synthetic"),
    ("multitask_vl.evaluation", "multitask_vl.run", "multitask_vl.reproduction"),
    ("multitask_vl.training", "multitask_vl.inference"),
    ("multitask_vl.demo", "multitask_vl.doctor", "multitask_vl.analysis", "multitask_vl.sweep"),
    ("multitask_vl.cli", "multitask_vl.__main__", "launch"),
)
"""Rooms of the package from the lowest to the highest; a module imports from its own level and below."""
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
PACKAGE = sorted(
    path for top in ("multitask_vl", "feature_extraction", "launch") for path in (ROOT / top).rglob("*.py")
)
OTHERS = sorted(
    path for top in ("benchmarks", "studies", "examples", "tests", "docs") for path in (ROOT / top).rglob("*.py")
)
MAX_FILE_LINES, MAX_FUNCTION_LINES = 350, 60
QUESTION = re.compile(r"\?(\s|$)|^(how|what|which|where|who|why|when|is|are|does|do|may|can)\b", re.IGNORECASE)
DIALECT = re.compile(
    r"\b(told|mend(s|ed|ing)?|anew|afresh|guilty|(?<!visual\.)trunks?|goes on|went on|going on from|pictures?|besides?"
    r"|learnt|likewise"
    r"|embedded (world|vqa|gqa|nlvr2|backbones?)|one's own|by heart|whole (checkpoints?|or absent)|newest whole"
    r"|stand-ins?|neighbours?|optimisers?|artefacts?|colours?|behaviours?|analyse|analysed)\b",
    re.IGNORECASE,
)
"""Words that nobody in the field uses for these things, and British spelling. `visual.trunk` is open_clip's name."""
WORLD_LANGUAGE = {
    "multitask_vl/synthetic/language.py",
    "multitask_vl/synthetic/pretraining/text_batches.py",
    "tests/synthetic/test_synthetic_scenes.py",
    "tests/synthetic/test_synthetic_world.py",
}
"""Files with questions and captions of the synthetic world, in which "picture" is a word."""


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in PACKAGE}
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in [*PACKAGE, *OTHERS]}


def imported_modules(path: Path) -> set[str]:
    """Project modules that a file imports, at module level or inside a function."""
    found = set()
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return {name for name in found if name in MODULES and name != "multitask_vl"}


def level_of(module: str) -> int:
    """Level of the innermost room that holds a module."""
    return LEVEL[max((room for room in LEVEL if module == room or module.startswith(f"{room}.")), key=len)]


def test_every_package_module_has_a_level():
    rooms = {module for module in MODULES if module != "multitask_vl"}
    assert [module for module in sorted(rooms) if not any(f"{module}.".startswith(f"{room}.") for room in LEVEL)] == []


def test_imports_point_down():
    upward = [
        f"{module} imports {other}"
        for module, path in MODULES.items()
        if module != "multitask_vl"
        for other in sorted(imported_modules(path))
        if level_of(other) > level_of(module)
    ]
    assert upward == []


def test_imports_have_no_circles():
    graph = {module: imported_modules(path) - {module} for module, path in MODULES.items()}
    finished, chain = set(), []

    def visit(module):
        if module in chain:
            pytest.fail("circle: " + " -> ".join([*chain[chain.index(module) :], module]))
        if module in finished:
            return
        chain.append(module)
        for other in sorted(graph[module]):
            visit(other)
        chain.pop()
        finished.add(module)

    for module in graph:
        visit(module)
    assert finished == set(graph)


def test_files_and_functions_are_short():
    long = []
    for path, tree in TREES.items():
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > MAX_FILE_LINES:
            long.append(f"{path.relative_to(ROOT)} has {lines} lines")
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = node.end_lineno - node.lineno + 1
                if length > MAX_FUNCTION_LINES:
                    long.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name} has {length} lines")
    assert long == []


def test_module_docstrings_are_statements():
    wrong = []
    for path, tree in TREES.items():
        docstring = ast.get_docstring(tree)
        if docstring is None:
            if path.read_text(encoding="utf-8").strip():
                wrong.append(f"{path.relative_to(ROOT)} has no docstring")
        elif QUESTION.search(docstring.splitlines()[0]):
            wrong.append(f"{path.relative_to(ROOT)}: {docstring.splitlines()[0]}")
    assert wrong == []


def test_test_names_are_short():
    names = {
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}": len(node.name)
        for path, tree in TREES.items()
        if path.name.startswith("test_")
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }
    assert [name for name, length in names.items() if length > 65] == []


def test_text_uses_the_words_of_the_field():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    wrong = []
    for name in listed:
        path = ROOT / name
        if not name.endswith((".py", ".md", ".yaml", ".html", ".css", ".toml")) or not path.is_file():
            continue
        if path == Path(__file__) or name in WORLD_LANGUAGE:
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if DIALECT.search(line):
                wrong.append(f"{name}:{number}: {line.strip()[:120]}")
    assert wrong == []


def test_no_module_is_a_drawer_for_odds_and_ends():
    names = {path.stem for path in PACKAGE} | {path.parent.name for path in PACKAGE}
    assert not names & {"utils", "util", "helpers", "helper", "common", "misc"}
