"""YAML parsing into values that keep their origin (file and line)."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

OVERRIDE = "override"
"""Origin of a value from the command line."""


@dataclass(frozen=True)
class Node:
    """A value and its origin.

    Attributes:
        value: a scalar (text, number, bool, None), a list of nodes, or a mapping from key to node.
        origin: ``file:line``, or ``override``.
    """

    value: dict[str, Node] | list[Node] | str | int | float | bool | None
    origin: str

    def to_python(self) -> Any:
        """The value without origins."""
        if isinstance(self.value, dict):
            return {key: node.to_python() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.to_python() for node in self.value]
        return self.value


class CoreLoader(yaml.SafeLoader):
    """PyYAML's safe loader with the scalars of YAML 1.2 (core schema).

    PyYAML follows YAML 1.1, where ``1e-3`` is text and an unquoted ``no`` (a value of ``mixed_precision``) is false.
    Here ``1e-3`` is a number, only ``true`` and ``false`` are booleans, and digits with leading zeros (image names)
    stay text.
    """

    yaml_implicit_resolvers: dict[str, list] = {}


_INTEGER = re.compile(r"^[-+]?(?:0|[1-9][0-9]*)$")
_FLOAT = re.compile(
    r"^[-+]?(?:(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)$|^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$"
)
for _tag, _pattern, _first in (
    ("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    ("tag:yaml.org,2002:null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:int", _INTEGER, list("-+0123456789")),
    ("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789")),
):
    CoreLoader.add_implicit_resolver(_tag, _pattern, _first)


def read_nodes(text: str, name: str, problems: list[str]) -> Node | None:
    """Parse a YAML text whose top level is a mapping.

    Args:
        text: the YAML.
        name: its name in errors and origins, usually the path.
        problems: receives a line for each error (syntax, duplicate key, unknown tag).

    Returns:
        None if the text is not YAML, is empty, or is not a mapping.
    """
    try:
        top = yaml.compose(text, Loader=CoreLoader)
    except yaml.YAMLError as error:
        problems.append(_syntax(error, text, name))
        return None
    except RecursionError:
        problems.append(f"{name}: nested too deeply for a configuration")
        return None
    if top is None:
        problems.append(f"{name}: the file is empty; a configuration is a mapping, such as 'seed: 42'")
        return None
    if not isinstance(top, yaml.MappingNode):
        problems.append(f"{_place(top, name)}: a configuration is a mapping of keys to values, got {_kind(top)}")
        return None
    return _Converter(name, problems).convert(top, ())


def read_value(text: str, name: str, problems: list[str]) -> Node | None:
    """Parse the value of an override: YAML, but unquoted text is kept verbatim, with colons and spaces.

    So ``prompt=vqa: `` (what a shell passes for ``prompt="vqa: "``) is text, not a mapping; ``{a: b}`` is a mapping.
    """
    try:
        top = yaml.compose(text, Loader=CoreLoader)
    except yaml.YAMLError as error:
        problems.append(_syntax(error, text, name).replace(f"{name}:1: ", f"{name}: "))
        return None
    if top is None:
        problems.append(f"{name}: no value after '='; write null for no value or '\"\"' for empty text")
        return None
    block = isinstance(top, yaml.CollectionNode) and not top.flow_style
    bare = isinstance(top, yaml.ScalarNode) and top.style is None and top.tag == "tag:yaml.org,2002:str"
    if block or bare:
        return Node(text, OVERRIDE)
    errors: list[str] = []
    node = _Converter(name, errors).convert(top, ())
    problems.extend(error.replace(f"{name}:1", name) for error in errors)  # an override has no line number
    return to_nodes(node.to_python(), OVERRIDE)


def to_nodes(value: Any, origin: str) -> Node:
    """Python values as nodes of a single origin."""
    if isinstance(value, dict):
        return Node({str(key): to_nodes(item, origin) for key, item in value.items()}, origin)
    if isinstance(value, list | tuple):
        return Node([to_nodes(item, origin) for item in value], origin)
    return Node(value, origin)


def did_you_mean(name: object, known: Iterable[str], label: str = "known") -> str:
    """The end of an error about a name: ``; did you mean 'x'?``, or all known names if none is similar."""
    names = {str(entry).lower(): str(entry) for entry in known}
    close = difflib.get_close_matches(str(name).lower(), list(names), n=2, cutoff=0.6)
    if close:
        return f"; did you mean {' or '.join(repr(names[key]) for key in close)}?"
    return f" ({label}: {', '.join(names.values()) or 'none'})"


class _Converter:
    def __init__(self, name: str, problems: list[str]):
        self.name = name
        self.problems = problems

    def convert(self, node: yaml.Node, above: tuple[yaml.Node, ...]) -> Node:
        place = _place(node, self.name)
        if any(node is ancestor for ancestor in above):
            self.problems.append(f"{place}: the alias contains itself")
            return Node(None, place)
        if isinstance(node, yaml.MappingNode):
            return Node(self._mapping(node, (*above, node)), place)
        if isinstance(node, yaml.SequenceNode):
            return Node([self.convert(item, (*above, node)) for item in node.value], place)
        return Node(self._scalar(node, place), place)

    def _mapping(self, node: yaml.MappingNode, above: tuple[yaml.Node, ...]) -> dict[str, Node]:
        entries: dict[str, Node] = {}
        for key, value in node.value:
            place = _place(key, self.name)
            if not isinstance(key, yaml.ScalarNode):
                self.problems.append(f"{place}: a key must be text, got {_kind(key)}")
                continue
            if key.value in entries:
                first = entries[key.value].origin
                self.problems.append(f"{place}: {key.value}: duplicate key (first at {first}); keep one of them")
            # a value that starts on a later line is easier to find by its key
            entries[key.value] = Node(self.convert(value, above).value, place)
        return entries

    def _scalar(self, node: yaml.ScalarNode, place: str) -> str | int | float | bool | None:
        text, tag = node.value, node.tag.removeprefix("tag:yaml.org,2002:")
        try:
            match tag:
                case "str":
                    return text
                case "null":
                    return None
                case "bool":
                    return text.lower() == "true"
                case "int":
                    return int(text)
                case "float":
                    return float(re.sub(r"\.(inf|nan)$", r"\1", text.lower()))
        except ValueError:
            self.problems.append(f"{place}: {text!r} is tagged !!{tag} but is not one")
            return None
        self.problems.append(f"{place}: the tag {node.tag!r} is not allowed; plain YAML values only")
        return None


def _place(node: yaml.Node, name: str) -> str:
    return f"{name}:{node.start_mark.line + 1}"


def _kind(node: yaml.Node) -> str:
    return {"sequence": "a list", "mapping": "a mapping", "scalar": "a single value"}[node.id]


def _syntax(error: yaml.YAMLError, text: str, name: str) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        message = " ".join(part for part in (error.context, error.problem) if part)
        return f"{name}:{error.problem_mark.line + 1}: invalid YAML: {message}"
    position = getattr(error, "position", 0)
    return f"{name}:{text[:position].count(chr(10)) + 1}: invalid YAML: {getattr(error, 'reason', error)}"


def read_text(path: Path) -> str:
    """Read a configuration file.

    Raises:
        OSError: the file cannot be opened.
        UnicodeDecodeError: the file is not UTF-8.
    """
    return path.read_text(encoding="utf-8-sig")
