"""How is a pydantic error told to the author of a YAML: place, dotted key, what was found, what may stand there."""

from __future__ import annotations

import re
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from multitask_vl.config.yaml_nodes import Node, did_you_mean

EXPECTED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
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
"""Pydantic's name of an error -> what should have stood there, in the words of a YAML author."""


def complaints(error: ValidationError, model: type[BaseModel], tree: Node, at: tuple[str, ...] = ()) -> list[str]:
    """One line for each key that is wrong: ``file:line: dotted.key: got 'x'; did you mean 'y'?``.

    Args:
        error: what validating raised.
        model: the model that was validated.
        tree: all values with their places.
        at: where in the tree the validated part stands.
    """
    # The branches of a union complain one by one about the same key; they are told in one line.
    told: dict[tuple[str, ...], _Complaint] = {}
    found = error.errors(include_url=False)
    for one in found:
        # A list whose items are wrong counts as empty; that is no complaint of its own.
        if one["type"] == "too_short" and any(one["loc"] == other["loc"][:-1] for other in found):
            continue
        spot = _find(one, model, tree, at)
        told.setdefault(spot.keys, _Complaint(spot)).add(one)
    return [f"{complaint.spot.origin}: {shown(keys, tree)}: {complaint.text()}" for keys, complaint in told.items()]


def origin(tree: Node, keys: tuple[str, ...]) -> str:
    """The place of a key, or of the nearest thing above it that stands anywhere."""
    node = tree
    for key in keys:
        below = _child(node, key)
        if below is None:
            break
        node = below
    return node.origin


def shown(keys: tuple[str, ...], tree: Node) -> str:
    """The dotted key as its author wrote it: ``method.rank`` where there is one method."""
    if keys[:1] == ("method",) and len(keys) > 1:
        methods = tree.value.get("method")
        if methods is not None and isinstance(methods.value, list) and len(methods.value) == 1:
            keys = ("method", *keys[2:])
    return ".".join(keys)


@dataclass
class _Spot:
    """Where an error is: its key, the place in a file, the value there, the model that owns the key."""

    keys: tuple[str, ...]
    origin: str
    node: Node | None
    owner: Any


@dataclass
class _Complaint:
    spot: _Spot
    expected: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    got: str = ""

    def add(self, error: Mapping[str, Any]) -> None:
        kind, key = error["type"], self.spot.keys[-1] if self.spot.keys else ""
        if kind == "extra_forbidden":
            self._say(f"unknown key{_nesting(key) or did_you_mean(key, _fields(self.spot.owner))}")
        elif kind == "missing":
            self._say("is missing")
        elif kind == "literal_error":
            choices = [str(choice) for choice in _choices(error["ctx"]["expected"])]
            self._say(did_you_mean(error["input"], choices, "one of").lstrip("; "), got=error["input"])
        elif kind in EXPECTED:
            expected = "a mapping such as {name: adapter}" if self.spot.keys == ("method",) else EXPECTED[kind]
            hint = _hint(kind, error["input"])
            self.got = _short(error["input"])
            if expected + hint not in self.expected:
                self.expected.append(expected + hint)
        else:
            told = error["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
            told = re.sub(r"^(Input|Tuple|List) should", "must", told).replace(" after validation", "")
            # Sections that disagree with themselves are not repeated with all their keys, defaults were not "got".
            silent = self.spot.node is None or isinstance(error["input"], dict)
            self._say(told, got=None if silent else error["input"])

    def _say(self, told: str, **got: Any) -> None:
        if got.get("got") is not None:
            self.got = _short(got["got"])
        if told not in self.others:
            self.others.append(told)

    def text(self) -> str:
        parts = [f"got {self.got}"] if self.got else []
        if self.expected:
            parts.append("expected " + " or ".join(self.expected))
        return "; ".join([*parts, *self.others]).replace("; (", " (")


def _find(error: Mapping[str, Any], model: type[BaseModel], tree: Node, at: tuple[str, ...]) -> _Spot:
    """Follow a pydantic location through values and models; parts that name a branch of a union are left out."""
    node: Node | None = tree
    for key in at:
        node = _child(node, key)
    keys, place, owner, annotation = list(at), origin(tree, at), model, model
    for position, part in enumerate(error["loc"]):
        key, below = str(part), _child(node, str(part))
        known = key in _fields(annotation)
        last = position == len(error["loc"]) - 1
        if below is None and not known and not (error["type"] == "missing" and last):
            continue
        keys.append(key)
        owner, annotation, node = annotation, _inner(annotation, key), below
        place = below.origin if below is not None else place
    return _Spot(tuple(keys), place, node, owner)


def _child(node: Node | None, key: str) -> Node | None:
    if node is None:
        return None
    if isinstance(node.value, dict):
        return node.value.get(key)
    if isinstance(node.value, list) and key.isdecimal() and int(key) < len(node.value):
        return node.value[int(key)]
    return None


def _alternatives(annotation: Any) -> Iterator[Any]:
    """The types that an annotation allows, unions and Annotated taken apart."""
    if get_origin(annotation) is Annotated:
        yield from _alternatives(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, types.UnionType):
        for one in get_args(annotation):
            yield from _alternatives(one)
    else:
        yield annotation


def _fields(annotation: Any) -> list[str]:
    """Keys of the models that an annotation allows."""
    models = [one for one in _alternatives(annotation) if isinstance(one, type) and issubclass(one, BaseModel)]
    return [name for model in models for name in model.model_fields]


def _inner(annotation: Any, key: str) -> Any:
    """The annotation of what stands under ``key``, None where it is not known."""
    for one in _alternatives(annotation):
        if isinstance(one, type) and issubclass(one, BaseModel):
            if key in one.model_fields:
                return one.model_fields[key].annotation
        elif get_origin(one) in (dict, list, tuple):
            return get_args(one)[-1 if get_origin(one) is dict else 0]
    return None


def _choices(expected: str) -> list[str]:
    """The words in pydantic's "'a', 'b' or 'c'"."""
    return re.findall(r"'([^']*)'", expected)


def _nesting(key: str) -> str:
    if "." not in key:
        return ""
    outer, _, inner = key.partition(".")
    return f" (dots join keys on the command line only; in a file write '{inner}:' indented under '{outer}:')"


def _hint(kind: str, value: Any) -> str:
    if value in ("None", "none"):
        return " (nothing is written null)"
    if kind in ("list_type", "tuple_type") and isinstance(value, str):
        return f", such as [{value}]"
    if kind == "string_type" and isinstance(value, int | float):
        return f" (in quotes: '{str(value).lower() if isinstance(value, bool) else value}')"
    return ""


def _short(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
