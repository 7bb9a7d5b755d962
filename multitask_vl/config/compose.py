"""Which file of a composed configuration wins: `compose:` lists, and how one layer is laid over another."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from multitask_vl.config.yaml_nodes import OVERRIDE, Node, did_you_mean, read_nodes, read_text

REMOVABLE = ("tasks", "routing.function")
"""Mappings from which a later layer takes an entry out by setting it to null (and `splits` of each task)."""


def read_layers(path: Path, problems: list[str]) -> Node | None:
    """A file with everything it composes: the listed files in their order, each over those before it, itself last.

    Args:
        path: the YAML file; paths in its `compose:` start at its folder.
        problems: gets a line for each file that is missing, unreadable or composed in a circle.

    Returns:
        None where a file could not be read, since errors about the rest would mislead.
    """
    whole = _read(Path(path), problems, ())
    method = whole.value.get("method") if whole is not None else None
    if method is None or not isinstance(method.value, dict):
        return whole
    return Node({**whole.value, "method": Node([method], method.origin)}, whole.origin)


def lay_over(below: Node | None, above: Node, problems: list[str], at: tuple[str, ...] = ()) -> Node:
    """One layer over another: mappings merge key by key, everything else (lists too) is replaced.

    `method` is a mapping or a list; a method's name alone stands for one of default settings. A mapping of a later
    layer merges with the single method below if it has the same name or none, and replaces it otherwise, so that no
    key of the other method lingers. Command-line overrides reach into a list by position (``method.0.rank``).
    """
    if at == ("method",):
        return _lay_method(below, above, problems)
    if isinstance(above.value, dict) and above.value:
        if below is not None and isinstance(below.value, list) and _positions(above):
            return _lay_items(below, above, problems, at)
        under = below.value if below is not None and isinstance(below.value, dict) else {}
        merged = dict(under)
        for key, node in above.value.items():
            merged[key] = lay_over(under.get(key), node, problems, (*at, key))
        return Node(merged, above.origin)
    if isinstance(above.value, dict) and below is not None and isinstance(below.value, dict):
        return below
    return above


def without_removed(tree: Node, at: tuple[str, ...] = ()) -> Node:
    """The tree without the entries that a layer removed by null."""
    if not isinstance(tree.value, dict):
        return tree
    removable = ".".join(at) in REMOVABLE or (len(at) == 3 and at[0] == "tasks" and at[2] == "splits")
    kept = {
        key: without_removed(node, (*at, key))
        for key, node in tree.value.items()
        if not (removable and node.value is None)
    }
    return Node(kept, tree.origin)


def _read(path: Path, problems: list[str], chain: tuple[Path, ...]) -> Node | None:
    try:
        text = read_text(path)
    except FileNotFoundError:
        problems.append(f"{path}: no such file{_near(path)}")
        return None
    except (OSError, UnicodeDecodeError) as error:
        reason = "not UTF-8 text" if isinstance(error, UnicodeDecodeError) else error.strerror
        problems.append(f"{path}: cannot be read: {reason}")
        return None
    own = read_nodes(text, str(path), problems)
    if own is None:
        return None
    whole: Node | None = None
    readable = True
    for entry in _composed(own, problems):
        layer = _read_entry(entry, path, problems, (*chain, path))
        readable &= layer is not None
        if layer is not None:
            whole = lay_over(whole, layer, problems)
    rest = Node({key: node for key, node in own.value.items() if key != "compose"}, own.origin)
    return lay_over(whole, rest, problems) if readable else None


def _read_entry(entry: Node, path: Path, problems: list[str], chain: tuple[Path, ...]) -> Node | None:
    # normpath keeps `configs/experiments/x/../../base.yaml` readable in every later message.
    inner = Path(os.path.normpath(path.parent / Path(str(entry.value)).expanduser()))
    if any(inner.resolve() == other.resolve() for other in chain):
        circle = " -> ".join(str(one) for one in (*chain, inner))
        problems.append(f"{entry.origin}: compose: goes in a circle: {circle}")
        return None
    if not inner.is_file():
        problems.append(f"{entry.origin}: compose: no file {str(inner)!r}{_near(inner)}")
        return None
    return _read(inner, problems, chain)


def _near(path: Path) -> str:
    if not path.parent.is_dir():
        return f": there is no folder {path.parent}"
    stems = sorted(one.stem for one in path.parent.glob("*.yaml"))  # the common ending would make all names alike
    return did_you_mean(path.stem, stems, f"YAMLs in {path.parent}")


def _composed(own: Node, problems: list[str]) -> Sequence[Node]:
    compose = own.value.get("compose")
    if compose is None:
        return []
    if not isinstance(compose.value, list):
        problems.append(f"{compose.origin}: compose: got {compose.plain()!r}; expected a list, such as [base.yaml]")
        return []
    wrong = [entry for entry in compose.value if not isinstance(entry.value, str)]
    problems.extend(f"{entry.origin}: compose: got {entry.plain()!r}; expected the path of a YAML" for entry in wrong)
    return [entry for entry in compose.value if isinstance(entry.value, str)]


def _lay_method(below: Node | None, above: Node, problems: list[str]) -> Node:
    above = _named(Node([_named(one) for one in above.value], above.origin) if isinstance(above.value, list) else above)
    under = [] if below is None else below.value if isinstance(below.value, list) else [below]
    under = [_named(one) for one in under]
    if _positions(above):
        return _lay_items(Node(under, above.origin), above, problems, ("method",))
    if not isinstance(above.value, dict):
        return above
    if len(under) > 1 and "name" not in above.value:
        problems.append(
            f"{above.origin}: method: there are {len(under)} methods to choose from; say method.0, method.1, ... "
            "on the command line, or write the whole list again"
        )
        return Node(under, above.origin)
    one = _lay_one_method(under[0] if len(under) == 1 else None, above, problems)
    return Node([one], above.origin) if below is not None and isinstance(below.value, list) else one


def _named(method: Node) -> Node:
    """A method's name alone as a mapping that has it."""
    return Node({"name": method}, method.origin) if isinstance(method.value, str) else method


def _lay_one_method(below: Node | None, above: Node, problems: list[str]) -> Node:
    if below is not None and isinstance(below.value, dict) and isinstance(above.value, dict):
        name, former = above.value.get("name"), below.value.get("name")
        if name is not None and (former is None or name.value != former.value):
            return above
    return lay_over(below, above, problems, ("method", "*"))


def _lay_items(below: Node, above: Node, problems: list[str], at: tuple[str, ...]) -> Node:
    items = list(below.value)
    for key, node in above.value.items():
        position = int(key)
        if position >= len(items):
            problems.append(
                f"{node.origin}: {'.'.join((*at, key))}: there are only {len(items)}, counted from 0; "
                "write the whole list to add one"
            )
            continue
        if at == ("method",):
            items[position] = _lay_one_method(items[position], node, problems)
        else:
            items[position] = lay_over(items[position], node, problems, (*at, key))
    return Node(items, below.origin)


def _positions(above: Node) -> bool:
    """Whether a mapping made by overrides addresses the items of a list."""
    return (
        above.origin == OVERRIDE
        and isinstance(above.value, dict)
        and bool(above.value)
        and all(key.isdecimal() for key in above.value)
    )
