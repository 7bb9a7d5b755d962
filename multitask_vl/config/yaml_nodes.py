"""What does a YAML file say, and on which line: text into values that remember where they stand."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

OVERRIDE = "override"
"""Origin of a value that was given on the command line."""


@dataclass(frozen=True)
class Node:
    """A value and the place that set it.

    Attributes:
        value: text, number, truth value or None; or a list of nodes; or a mapping from key to node.
        origin: ``file:line``, or ``override``.
    """

    value: dict[str, Node] | list[Node] | str | int | float | bool | None
    origin: str

    def plain(self) -> Any:
        """The value without its places."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value


class CoreLoader(yaml.SafeLoader):
    """PyYAML's safe loader with the scalars of YAML 1.2.

    PyYAML follows YAML 1.1, where ``1e-3`` is text and a bare ``no`` (a value of ``mixed_precision``) is false. Here
    numbers are numbers, only ``true`` and ``false`` are truth values, and digits with leading zeros (picture names)
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
    """The mapping that a YAML text holds.

    Args:
        text: the YAML.
        name: what errors and origins call it, usually the path.
        problems: gets a line for everything that is wrong (syntax, a key written twice, an unknown tag).

    Returns:
        None where nothing can be read: no YAML, nothing in it, or no mapping at its top.
    """
    try:
        top = yaml.compose(text, Loader=CoreLoader)
    except yaml.YAMLError as error:
        problems.append(_syntax(error, text, name))
        return None
    except RecursionError:
        problems.append(f"{name}: nested too deeply to be a configuration")
        return None
    if top is None:
        problems.append(f"{name}: holds nothing; a configuration is a mapping, such as 'seed: 42'")
        return None
    if not isinstance(top, yaml.MappingNode):
        problems.append(f"{_place(top, name)}: a configuration is a mapping of keys to values, this is {_kind(top)}")
        return None
    return _Converter(name, problems).convert(top, ())


def read_value(text: str, name: str, problems: list[str]) -> Node | None:
    """The value of an override: YAML, except that a bare text is taken letter by letter, colons and blanks included.

    So ``prompt=vqa: `` (what a shell leaves of ``prompt="vqa: "``) is text, not a mapping; ``{a: b}`` is a mapping.
    """
    try:
        top = yaml.compose(text, Loader=CoreLoader)
    except yaml.YAMLError as error:
        problems.append(_syntax(error, text, name).replace(f"{name}:1: ", f"{name}: "))
        return None
    if top is None:
        problems.append(f"{name}: no value after '='; write null for nothing or '\"\"' for an empty text")
        return None
    block = isinstance(top, yaml.CollectionNode) and not top.flow_style
    bare = isinstance(top, yaml.ScalarNode) and top.style is None and top.tag == "tag:yaml.org,2002:str"
    if block or bare:
        return Node(text, OVERRIDE)
    found: list[str] = []
    node = _Converter(name, found).convert(top, ())
    problems.extend(problem.replace(f"{name}:1", name) for problem in found)  # a word has no lines
    return nodes_of(node.plain(), OVERRIDE)


def nodes_of(value: Any, origin: str) -> Node:
    """Plain values as nodes that all come from one place."""
    if isinstance(value, dict):
        return Node({str(key): nodes_of(one, origin) for key, one in value.items()}, origin)
    if isinstance(value, list | tuple):
        return Node([nodes_of(one, origin) for one in value], origin)
    return Node(value, origin)


def did_you_mean(name: object, known: Iterable[str], shown: str = "known") -> str:
    """The end of an error about a name: ``; did you mean 'x'?``, or the list of all where none is close."""
    names = {str(one).lower(): str(one) for one in known}
    close = difflib.get_close_matches(str(name).lower(), list(names), n=2, cutoff=0.6)
    if close:
        return f"; did you mean {' or '.join(repr(names[one]) for one in close)}?"
    return f" ({shown}: {', '.join(names.values()) or 'nothing'})"


class _Converter:
    def __init__(self, name: str, problems: list[str]):
        self.name = name
        self.problems = problems

    def convert(self, node: yaml.Node, above: tuple[yaml.Node, ...]) -> Node:
        place = _place(node, self.name)
        if any(node is other for other in above):
            self.problems.append(f"{place}: this alias contains itself")
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
                self.problems.append(f"{place}: a key must be text, this one is {_kind(key)}")
                continue
            if key.value in entries:
                first = entries[key.value].origin
                self.problems.append(f"{place}: {key.value}: written twice (first at {first}); keep one of them")
            # A value that starts on a later line is found more easily by its key.
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
            self.problems.append(f"{place}: {text!r} is marked !!{tag} but is none")
            return None
        self.problems.append(f"{place}: the tag {node.tag!r} is not allowed; plain YAML values only")
        return None


def _place(node: yaml.Node, name: str) -> str:
    return f"{name}:{node.start_mark.line + 1}"


def _kind(node: yaml.Node) -> str:
    return {"sequence": "a list", "mapping": "a mapping", "scalar": "a single value"}[node.id]


def _syntax(error: yaml.YAMLError, text: str, name: str) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        told = " ".join(part for part in (error.context, error.problem) if part)
        return f"{name}:{error.problem_mark.line + 1}: not YAML: {told}"
    position = getattr(error, "position", 0)
    return f"{name}:{text[:position].count(chr(10)) + 1}: not YAML: {getattr(error, 'reason', error)}"


def read_text(path: Path) -> str:
    """Contents of a configuration file.

    Raises:
        OSError: it cannot be opened.
        UnicodeDecodeError: it is not UTF-8.
    """
    return path.read_text(encoding="utf-8-sig")
