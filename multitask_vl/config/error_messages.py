"""Validation errors as messages for the author of a YAML file: place, dotted key, value and what is expected."""

from __future__ import annotations

import re
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from multitask_vl.config.yaml_nodes import Node, did_you_mean
from multitask_vl.errors import truncate

EXPECTED = {
    "int_type": "an integer",
    "int_parsing": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "float_parsing": "a number",
    "decimal_type": "a number",
    "decimal_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "path_type": "a path",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "list_type": "a list",
    "tuple_type": "a list",
    "none_required": "null",
}
"""Error type of pydantic -> the expected value, in terms of YAML."""


def validation_messages(
    error: ValidationError, model: type[BaseModel], tree: Node, at: tuple[str, ...] = ()
) -> list[str]:
    """One line per invalid key: ``file:line: dotted.key: got 'x'; did you mean 'y'?``.

    Args:
        error: the exception of a failed validation.
        model: the validated model.
        tree: all values with their origins.
        at: path of the validated section in the tree.
    """
    # the branches of a union report the same key one by one; they share one message
    messages: dict[tuple[str, ...], _Message] = {}
    details = error.errors(include_url=False)
    for detail in details:
        # a list with invalid items counts as empty, which is not an error of its own
        if detail["type"] == "too_short" and any(detail["loc"] == other["loc"][:-1] for other in details):
            continue
        location = _find(detail, model, tree, at)
        messages.setdefault(location.keys, _Message(location)).add(detail)
    return [f"{one.location.origin}: {display_key(keys, tree)}: {one.text()}" for keys, one in messages.items()]


def origin(tree: Node, keys: tuple[str, ...]) -> str:
    """Origin of a key, or of its nearest ancestor in the tree."""
    node = tree
    for key in keys:
        child = _child(node, key)
        if child is None:
            break
        node = child
    return node.origin


def display_key(keys: tuple[str, ...], tree: Node) -> str:
    """The dotted key as its author wrote it: ``method.rank`` if there is a single method."""
    if keys[:1] == ("method",) and len(keys) > 1:
        methods = tree.value.get("method")
        if methods is not None and isinstance(methods.value, list) and len(methods.value) == 1:
            keys = ("method", *keys[2:])
    return ".".join(keys)


@dataclass
class _Location:
    """Where an error is: its key, its origin, the node there, and the model that defines the key."""

    keys: tuple[str, ...]
    origin: str
    node: Node | None
    owner: Any


@dataclass
class _Message:
    location: _Location
    expected: list[str] = field(default_factory=list)
    details: list[str] = field(default_factory=list)
    got: str = ""

    def add(self, error: Mapping[str, Any]) -> None:
        kind, key = error["type"], self.location.keys[-1] if self.location.keys else ""
        if kind == "extra_forbidden":
            self._add_detail(f"unknown key{_nesting_hint(key) or did_you_mean(key, _fields(self.location.owner))}")
        elif kind == "missing":
            self._add_detail("is missing")
        elif kind == "literal_error":
            choices = [str(choice) for choice in _choices(error["ctx"]["expected"])]
            self._add_detail(did_you_mean(error["input"], choices, "one of").lstrip("; "), got=error["input"])
        elif kind in EXPECTED:
            expected = "a mapping such as {name: adapter}" if self.location.keys == ("method",) else EXPECTED[kind]
            hint = _hint(kind, error["input"])
            self.got = _abbreviate(error["input"])
            if expected + hint not in self.expected:
                self.expected.append(expected + hint)
        else:
            message = error["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
            message = re.sub(r"^(Input|Tuple|List) should", "must", message).replace(" after validation", "")
            # do not repeat all keys of a section, and do not call a default value "got"
            silent = self.location.node is None or isinstance(error["input"], dict)
            self._add_detail(message, got=None if silent else error["input"])

    def text(self) -> str:
        parts = [f"got {self.got}"] if self.got else []
        if self.expected:
            parts.append("expected " + " or ".join(self.expected))
        return "; ".join([*parts, *self.details]).replace("; (", " (")

    def _add_detail(self, message: str, got: Any = None) -> None:
        if got is not None:
            self.got = _abbreviate(got)
        if message not in self.details:
            self.details.append(message)


def _find(error: Mapping[str, Any], model: type[BaseModel], tree: Node, at: tuple[str, ...]) -> _Location:
    """Follow a pydantic location through nodes and models; parts that name a branch of a union are skipped."""
    node: Node | None = tree
    for key in at:
        node = _child(node, key)
    keys, place, owner, annotation = list(at), origin(tree, at), model, model
    for position, part in enumerate(error["loc"]):
        key, child = str(part), _child(node, str(part))
        known = key in _fields(annotation)
        last = position == len(error["loc"]) - 1
        if child is None and not known and not (error["type"] == "missing" and last):
            continue
        keys.append(key)
        owner, annotation, node = annotation, _value_annotation(annotation, key), child
        place = child.origin if child is not None else place
    return _Location(tuple(keys), place, node, owner)


def _child(node: Node | None, key: str) -> Node | None:
    if node is None:
        return None
    if isinstance(node.value, dict):
        return node.value.get(key)
    if isinstance(node.value, list) and key.isdecimal() and int(key) < len(node.value):
        return node.value[int(key)]
    return None


def _alternatives(annotation: Any) -> Iterator[Any]:
    """The types that an annotation allows, with unions and Annotated expanded."""
    if get_origin(annotation) is Annotated:
        yield from _alternatives(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, types.UnionType):
        for argument in get_args(annotation):
            yield from _alternatives(argument)
    else:
        yield annotation


def _fields(annotation: Any) -> list[str]:
    """Keys of the models that an annotation allows."""
    models = [type_ for type_ in _alternatives(annotation) if isinstance(type_, type) and issubclass(type_, BaseModel)]
    return [name for model in models for name in model.model_fields]


def _value_annotation(annotation: Any, key: str) -> Any:
    """The annotation of the value under ``key``; None if it is unknown."""
    for type_ in _alternatives(annotation):
        if isinstance(type_, type) and issubclass(type_, BaseModel):
            if key in type_.model_fields:
                return type_.model_fields[key].annotation
        elif get_origin(type_) in (dict, list, tuple):
            return get_args(type_)[-1 if get_origin(type_) is dict else 0]
    return None


def _choices(expected: str) -> list[str]:
    """The choices in pydantic's "'a', 'b' or 'c'"."""
    return re.findall(r"'([^']*)'", expected)


def _nesting_hint(key: str) -> str:
    if "." not in key:
        return ""
    outer, _, inner = key.partition(".")
    return f" (dots join keys on the command line only; in a file, write '{inner}:' indented under '{outer}:')"


def _hint(kind: str, value: Any) -> str:
    if value in ("None", "none"):
        return " (write null for no value)"
    if kind in ("list_type", "tuple_type") and isinstance(value, str):
        return f", such as [{value}]"
    if kind == "string_type" and isinstance(value, int | float):
        return f" (in quotes: '{str(value).lower() if isinstance(value, bool) else value}')"
    return ""


def _abbreviate(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    return truncate(repr(value))
