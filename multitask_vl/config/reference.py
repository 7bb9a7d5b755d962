"""Which keys may stand in a YAML: the page of all of them, written from the schema, the tasks' files and the methods'.

python -m multitask_vl.config.reference --write docs/configuration.md
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from multitask_vl.config.schema import Config, MethodConfig, Section, TaskConfig
from multitask_vl.errors import exits_cleanly
from multitask_vl.registry import METHODS, TASKS, Registry
from multitask_vl.storage.atomic import write_whole

COMMAND = "python -m multitask_vl.config.reference --write docs/configuration.md"
HEAD = f"""\
# Every key of a configuration

Written by `{COMMAND}`
from `multitask_vl/config/` and the files of tasks and methods: change a key there. A key that is not on this
page is an error, and so is a value of another type; both are told with file and line.

A YAML holds sections; `compose: [base.yaml, ...]` lays it over other files, a later one over an earlier. On the command
line a key is its path: `training.lr=3e-4`, `tasks.vqa.prompt='q: '`. The defaults below are the schema's;
`configs/base.yaml` spells out those of the published recipes, and the `resolved.yaml` of a run says where each of its
values came from.
"""
LIMITS = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<=", "multipleOf": "times"}
NAMES = {"integer": "int", "number": "float", "string": "text", "boolean": "bool", "null": "null"}
ELSEWHERE = {"tasks": "see [Tasks](#tasks)", "method": "see [Methods](#methods)"}
"""Keys of the top level that have chapters of their own."""


def page() -> str:
    """The whole page."""
    return "\n".join([HEAD, *_top(), *_tasks(), *_methods()]).rstrip() + "\n"


def _top() -> Iterator[str]:
    plain, sections = [], []
    for name, field in Config.model_fields.items():
        inner = _section(field)
        if inner is None or name in ELSEWHERE:
            plain.append(_row(name, field, Config, ELSEWHERE.get(name)))
        else:
            sections += [f"## `{name}`\n", f"{_first(inner)}\n", *_table(inner)]
    yield from ["## Top level\n", *_header(), *plain, "", *sections]


def _tasks() -> Iterator[str]:
    yield "## Tasks\n"
    yield "Under `tasks:` stands a name and its settings. The name says which task it is, unless `type` does."
    yield "Keys that every task has:\n"
    yield from _table(TaskConfig)
    yield "Keys of `decoding`, with the defaults of a task that has none of its own:\n"
    yield from _table(_section(TaskConfig.model_fields["decoding"]))
    yield from _kinds(TASKS, TaskConfig)


def _methods() -> Iterator[str]:
    yield "## Methods\n"
    yield "`method:` is a mapping with a `name`, or a list of such mappings for methods that combine. Beside `name`"
    yield "each takes its own keys:\n"
    yield from _kinds(METHODS, MethodConfig)


def _kinds(registry: Registry, base: type[Section]) -> Iterator[str]:
    """A chapter for each that the project itself has."""
    for name in registry.names():
        kind = registry.get(name)
        if kind.__module__.startswith(f"{registry.package}."):
            yield from [f"### `{name}`\n", f"{_first(kind)}\n", *_own(kind.Config, base)]


def _own(config: type[Section], base: type[Section]) -> Iterator[str]:
    """What a task or method adds to its base, or gives another default; then the sections below it."""
    other = [name for name in config.model_fields if _differs(config, base, name)]
    if not other:
        yield "No further keys.\n"
        return
    yield from [*_header(), *(_row(name, config.model_fields[name], config) for name in other), ""]
    for name in other:
        field = config.model_fields[name]
        inner, theirs = _section(field), _section(base.model_fields[name]) if name in base.model_fields else None
        if inner is None:
            continue
        rows = (
            list(inner.model_fields)
            if theirs is None
            else [n for n in inner.model_fields if _differs(inner, theirs, n)]
        )
        if rows:
            where = f"{name}.<split>" if name == "splits" else name
            yield f"Keys of `{where}`{'' if theirs is None else ' whose defaults are others'}:\n"
            yield from [*_header(), *(_row(one, inner.model_fields[one], inner) for one in rows), ""]


def _differs(config: type[BaseModel], base: type[BaseModel], name: str) -> bool:
    if name not in base.model_fields:
        return True
    mine, theirs = config.model_fields[name], base.model_fields[name]
    return _default(mine) != _default(theirs) or _section(mine) is not _section(theirs)


def _table(section: type[BaseModel]) -> list[str]:
    return [*_header(), *(_row(name, field, section) for name, field in section.model_fields.items()), ""]


def _header() -> list[str]:
    return ["| key | type | default | |", "|---|---|---|---|"]


def _row(name: str, field: FieldInfo, section: type[BaseModel], instead: str | None = None) -> str:
    default = "" if instead else "required" if field.is_required() else f"`{_value(_default(field))}`"
    kind = instead or _said(_schema(section)["properties"][name], _schema(section).get("$defs", {}))
    return f"| `{name}` | {_cell(kind)} | {_cell(default)} | {_cell(_meaning(name, section))} |"


def _meaning(name: str, section: type[BaseModel]) -> str:
    """A field's docstring, or the one that it inherits, or that of the section it holds."""
    for one in section.__mro__:
        fields = getattr(one, "model_fields", {})
        if name in fields and fields[name].description:
            return fields[name].description
    inner = _section(section.model_fields[name])
    return "" if inner is None else _first(inner)


def _first(section: type) -> str:
    """The first paragraph of a docstring."""
    return " ".join((section.__doc__ or "").strip().split("\n\n")[0].split())


def _section(field: FieldInfo) -> type[BaseModel] | None:
    """The section that a field holds, itself or as the values of a mapping."""

    def found(annotation: Any) -> Iterator[type[BaseModel]]:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield annotation
        for inner in getattr(annotation, "__args__", ()):
            yield from found(inner)

    return next(found(field.annotation), None)


def _default(field: FieldInfo) -> Any:
    value = None if field.is_required() else field.get_default(call_default_factory=True)
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else value


def _value(value: Any) -> str:
    if isinstance(value, dict) and value:
        return "{...}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return json.dumps(value, default=str, ensure_ascii=False)


@functools.cache
def _schema(section: type[BaseModel]) -> dict:
    return section.model_json_schema()


def _said(one: dict, known: dict) -> str:
    """A JSON schema's type in the words of a YAML."""
    if "$ref" in one:
        return "section" if "properties" in known[one["$ref"].rpartition("/")[2]] else "one of its names"
    if "anyOf" in one:
        return " or ".join(dict.fromkeys(_said(each, known) for each in one["anyOf"]))
    if "enum" in one or "const" in one:
        return ", ".join(f"`{value}`" for value in one.get("enum", [one.get("const")]))
    kind = one.get("type")
    if kind == "array":
        inner = one.get("prefixItems")
        if inner:
            return f"[{', '.join(_said(each, known) for each in inner)}]"
        return f"list of {_said(one.get('items', {}), known)}"
    if kind == "object":
        inner = one.get("additionalProperties")
        return f"mapping to {_said(inner, known)}" if isinstance(inner, dict) and inner else "mapping"
    if one.get("format") == "path":
        return "path"
    limits = [f"{sign} {one[limit]:g}" for limit, sign in LIMITS.items() if limit in one and one[limit] < 2**31]
    return " ".join([NAMES.get(kind, "anything"), ", ".join(limits)]).strip()


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


@exits_cleanly
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the page there instead of printing it")
    args = parser.parse_args()
    if args.write:
        write_whole(args.write, page())
        print(f"written: {args.write}")
    else:
        print(page(), end="")


if __name__ == "__main__":
    raise SystemExit(main())
