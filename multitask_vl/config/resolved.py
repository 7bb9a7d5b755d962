"""`resolved.yaml`: the complete configuration as one YAML file, with the origin of each value."""

from __future__ import annotations

import json
from typing import Any

import yaml

from multitask_vl.config.schema import Config
from multitask_vl.config.yaml_nodes import CoreLoader, Node

DEFAULT = "default"
HEADER = """\
# Every value of this run and its origin: file:line, "override" (the command line) or "default" (the schema).
# This file is complete: pass it to --config to repeat the run (with run_dir=... for a new folder).
"""


def flatten(value: Any, at: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Leaves of a dumped configuration by key path. Lists of scalars and empty mappings are leaves."""
    if isinstance(value, dict) and value:
        entries = value.items()
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        entries = ((str(position), item) for position, item in enumerate(value))
    else:
        return {at: value}
    return {key: leaf for name, child in entries for key, leaf in flatten(child, (*at, name)).items()}


def origins_of(config: Config, tree: Node) -> dict[str, str]:
    """Origin of every leaf by dotted key: ``file:line``, ``override`` or ``default``."""
    origins = {}
    for keys in flatten(config.model_dump(mode="json")):
        node: Node | None = tree
        for key in keys:
            if node is not None and isinstance(node.value, list):
                node = node.value[int(key)] if int(key) < len(node.value) else None
            else:
                node = node.value.get(key) if node is not None and isinstance(node.value, dict) else None
        origins[".".join(keys)] = DEFAULT if node is None else node.origin
    return origins


def resolved_text(config: Config, origins: dict[str, str]) -> str:
    """The configuration as YAML, one value per line, followed by its origin as a comment."""
    lines = [HEADER]
    _write(config.model_dump(mode="json"), (), "", lines, origins)
    return "\n".join(lines) + "\n"


def _write(value: Any, at: tuple[str, ...], indent: str, lines: list[str], origins: dict[str, str]) -> None:
    for key, child in value.items():
        keys = (*at, key)
        head = f"{indent}{_scalar(key)}:"
        if isinstance(child, dict) and child:
            lines.append(head)
            _write(child, keys, indent + "  ", lines, origins)
        elif isinstance(child, list) and any(isinstance(item, dict) for item in child):
            lines.append(head)
            for position, item in enumerate(child):
                _write_item(item, (*keys, str(position)), indent, lines, origins)
        else:
            lines.append(f"{head} {_flow(child)}  # {origins.get('.'.join(keys), DEFAULT)}")


def _write_item(item: Any, at: tuple[str, ...], indent: str, lines: list[str], origins: dict[str, str]) -> None:
    first = len(lines)
    if isinstance(item, dict) and item:
        _write(item, at, indent + "    ", lines, origins)
        lines[first] = f"{indent}  - {lines[first].lstrip()}"
    else:
        lines.append(f"{indent}  - {_flow(item)}  # {origins.get('.'.join(at), DEFAULT)}")


def _flow(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_scalar(key)}: {_flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_flow(item) for item in value) + "]"
    return _scalar(value)


def _scalar(value: Any) -> str:
    """One value on one line, unquoted if both our loader and a YAML 1.1 reader parse it as the same value."""
    if value is None or isinstance(value, bool | int):
        return json.dumps(value)
    if isinstance(value, float):
        return yaml.safe_dump(value).split("\n")[0]
    if _needs_no_quotes(value):
        return value
    return yaml.safe_dump(value, default_style='"', allow_unicode=True, width=float("inf")).rstrip("\n")


def _needs_no_quotes(text: str) -> bool:
    if not text or text.strip() != text or any(char in text for char in ",[]{}#:&*!|>'\"%@`?\n\t"):
        return False
    try:
        return yaml.safe_load(text) == text == yaml.load(text, Loader=CoreLoader)  # CoreLoader is a safe loader
    except yaml.YAMLError:
        return False
