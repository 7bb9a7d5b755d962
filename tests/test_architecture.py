"""The house: imports point one way, no circles, no file too long to read."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOORS = {
    "launch": 7,
    "multitask_vl.cli.main": 7,
    "multitask_vl.__main__": 7,
    "multitask_vl.cli.adapter_args": 7,
    "multitask_vl.demo": 7,
    "multitask_vl.training": 6,
    "multitask_vl.analysis": 6,  # it puts a run together as training does
    "multitask_vl.evaluation": 5,
    "multitask_vl.inference": 6,
    "multitask_vl.doctor": 6,  # it asks the functions that training asks, so as not to say something else
    "multitask_vl.reproduction.parameters": 5,
    "multitask_vl.sweep": 5,  # it starts training as a program
    "multitask_vl.reproduction.experiments": 5,
    "multitask_vl.models": 4,
    "feature_extraction": 4,
    "multitask_vl.synthetic": 4,
    "multitask_vl.data": 3,
    "multitask_vl.methods": 3,
    "multitask_vl.tasks": 2,
    "multitask_vl.routing": 2,
    "multitask_vl.config": 2,
    "multitask_vl.metrics": 1,
    "multitask_vl.metrics.bootstrap": 0,  # numbers in, an interval out: reports of two runs need it as scorers do
    "multitask_vl.registry": 1,
    "multitask_vl.storage.atomic": 0,
    "multitask_vl.errors": 0,
    "multitask_vl.programs": 0,
    "multitask_vl.storage.exif": 0,
    "multitask_vl": 0,
    "multitask_vl.reports": 9,
}
SOURCES = sorted(
    path for top in ("multitask_vl", "feature_extraction", "launch") for path in (ROOT / top).rglob("*.py")
)


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in SOURCES}


def imported(path: Path) -> set[str]:
    """Project modules that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return {name for name in found if name in MODULES}


def place(module: str, table: dict[str, int]) -> str:
    return max((name for name in table if module == name or module.startswith(f"{name}.")), key=len)


def test_imports_point_down():
    wrong = []
    for module, path in MODULES.items():
        for other in imported(path):
            if module.startswith("multitask_vl.reports"):
                if FLOORS[place(other, FLOORS)] > 0 and not other.startswith("multitask_vl.reports"):
                    wrong.append(f"{module} imports {other}: reports read run folders only")
                continue
            if other.startswith("multitask_vl.reports"):
                if not module.startswith("launch"):
                    wrong.append(f"{module} imports {other}: reports are a leaf")
            elif FLOORS[place(module, FLOORS)] < FLOORS[place(other, FLOORS)]:
                wrong.append(f"{module} imports {other}, which is above it")
    assert wrong == []


def test_there_are_no_circles():
    graph = {module: imported(path) - {module} for module, path in MODULES.items()}
    finished, path = set(), []

    def visit(module):
        if module in path:
            pytest.fail("circle: " + " -> ".join([*path[path.index(module) :], module]))
        if module in finished:
            return
        path.append(module)
        for other in sorted(graph[module]):
            visit(other)
        path.pop()
        finished.add(module)

    for module in graph:
        visit(module)
    assert finished == set(graph)


def test_every_file_says_which_question_it_answers_and_is_short():
    tests = sorted((ROOT / "tests").rglob("*.py")) + sorted((ROOT / "benchmarks").rglob("*.py"))
    wrong = []
    for path in [*SOURCES, *tests]:
        text = path.read_text()
        if len(text.splitlines()) > 350:
            wrong.append(f"{path.relative_to(ROOT)} has {len(text.splitlines())} lines")
        if text.strip() and ast.get_docstring(ast.parse(text)) is None:
            wrong.append(f"{path.relative_to(ROOT)} has no docstring")
    assert wrong == []


def test_there_are_no_drawers_for_odds_and_ends():
    names = {path.stem for path in SOURCES} | {path.parent.name for path in SOURCES}
    assert not names & {"utils", "util", "helpers", "helper", "common", "misc"}
