"""Composition of YAML files: `compose:` lists and the merging of layers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from multitask_vl.config.yaml_nodes import OVERRIDE, Node, did_you_mean, read_nodes, read_text

REMOVABLE = ("tasks", "routing.function")
"""Mappings whose entries a later layer removes by setting them to null (as well as `splits` of each task)."""
NOT_INHERITED = ("compose", "reproduces")
"""Keys that describe one file alone; a file that composes it does not get them."""


def read_layers(path: Path, problems: list[str]) -> Node | None:
    """Read a file and everything it composes, merged in order, the file itself last.

    Args:
        path: the YAML file; paths in its `compose:` are relative to its folder.
        problems: receives a line for each file that is missing, unreadable or composed in a cycle.

    Returns:
        The merged tree; None if a file could not be read, because further errors would be misleading.
    """
    tree = _read(Path(path), problems, ())
    method = tree.value.get("method") if tree is not None else None
    if method is None or not isinstance(method.value, dict):
        return tree
    return Node({**tree.value, "method": Node([method], method.origin)}, tree.origin)


def merge(below: Node | None, above: Node, problems: list[str], at: tuple[str, ...] = ()) -> Node:
    """Merge one layer over another: mappings merge by key; everything else, lists included, is replaced.

    `method` is a mapping or a list; the name of a method alone means its default settings. A mapping in a later layer
    merges with the single method below if it has the same name or none; otherwise it replaces it, so that no key of
    the other method remains. Command-line overrides address list items by position (``method.0.rank``).
    """
    if at == ("method",):
        return _merge_methods(below, above, problems)
    if isinstance(above.value, dict) and above.value:
        if below is not None and isinstance(below.value, list) and _addresses_items(above):
            return _merge_items(below, above, problems, at)
        under = below.value if below is not None and isinstance(below.value, dict) else {}
        merged = dict(under)
        for key, node in above.value.items():
            merged[key] = merge(under.get(key), node, problems, (*at, key))
        return Node(merged, above.origin)
    if isinstance(above.value, dict) and below is not None and isinstance(below.value, dict):
        return below
    return above


def drop_removed(tree: Node, at: tuple[str, ...] = ()) -> Node:
    """The tree without the entries that a layer set to null to remove them."""
    if not isinstance(tree.value, dict):
        return tree
    removable = ".".join(at) in REMOVABLE or (len(at) == 3 and at[0] == "tasks" and at[2] == "splits")
    kept = {
        key: drop_removed(node, (*at, key))
        for key, node in tree.value.items()
        if not (removable and node.value is None)
    }
    return Node(kept, tree.origin)


def _read(path: Path, problems: list[str], parents: tuple[Path, ...]) -> Node | None:
    try:
        text = read_text(path)
    except FileNotFoundError:
        problems.append(f"{path}: file not found{_suggestion(path)}")
        return None
    except (OSError, UnicodeDecodeError) as error:
        reason = "not UTF-8 text" if isinstance(error, UnicodeDecodeError) else error.strerror
        problems.append(f"{path}: cannot be read: {reason}")
        return None
    own = read_nodes(text, str(path), problems)
    if own is None:
        return None
    base: Node | None = None
    readable = True
    for entry in _compose_entries(own, problems):
        layer = _read_entry(entry, path, problems, (*parents, path))
        readable &= layer is not None
        if layer is not None:
            base = merge(base, _without(layer, NOT_INHERITED), problems)
    return merge(base, _without(own, ("compose",)), problems) if readable else None


def _without(tree: Node, keys: Sequence[str]) -> Node:
    return Node({key: node for key, node in tree.value.items() if key not in keys}, tree.origin)


def _read_entry(entry: Node, path: Path, problems: list[str], parents: tuple[Path, ...]) -> Node | None:
    # normpath shortens `configs/experiments/x/../../base.yaml` in every later message
    file = Path(os.path.normpath(path.parent / Path(str(entry.value)).expanduser()))
    if any(file.resolve() == parent.resolve() for parent in parents):
        cycle = " -> ".join(str(parent) for parent in (*parents, file))
        problems.append(f"{entry.origin}: compose: cycle: {cycle}")
        return None
    if not file.is_file():
        problems.append(f"{entry.origin}: compose: file not found: {str(file)!r}{_suggestion(file)}")
        return None
    return _read(file, problems, parents)


def _suggestion(path: Path) -> str:
    if not path.parent.is_dir():
        return f": the folder {path.parent} does not exist"
    stems = sorted(file.stem for file in path.parent.glob("*.yaml"))  # with the suffix, all names would be similar
    return did_you_mean(path.stem, stems, f"YAML files in {path.parent}")


def _compose_entries(own: Node, problems: list[str]) -> Sequence[Node]:
    compose = own.value.get("compose")
    if compose is None:
        return []
    if not isinstance(compose.value, list):
        problems.append(f"{compose.origin}: compose: got {compose.to_python()!r}; expected a list, such as [base.yaml]")
        return []
    problems.extend(
        f"{entry.origin}: compose: got {entry.to_python()!r}; expected the path of a YAML file"
        for entry in compose.value
        if not isinstance(entry.value, str)
    )
    return [entry for entry in compose.value if isinstance(entry.value, str)]


def _merge_methods(below: Node | None, above: Node, problems: list[str]) -> Node:
    if isinstance(above.value, list):
        above = Node([_as_mapping(item) for item in above.value], above.origin)
    above = _as_mapping(above)
    under = [] if below is None else below.value if isinstance(below.value, list) else [below]
    under = [_as_mapping(method) for method in under]
    if _addresses_items(above):
        return _merge_items(Node(under, above.origin), above, problems, ("method",))
    if not isinstance(above.value, dict):
        return above
    if len(under) > 1 and "name" not in above.value:
        problems.append(
            f"{above.origin}: method: {len(under)} methods are configured; use method.0, method.1, ... on the command "
            "line, or write the complete list"
        )
        return Node(under, above.origin)
    method = _merge_method(under[0] if len(under) == 1 else None, above, problems)
    return Node([method], above.origin) if below is not None and isinstance(below.value, list) else method


def _as_mapping(method: Node) -> Node:
    """The name of a method as a mapping with the key `name`; anything else unchanged."""
    return Node({"name": method}, method.origin) if isinstance(method.value, str) else method


def _merge_method(below: Node | None, above: Node, problems: list[str]) -> Node:
    if below is not None and isinstance(below.value, dict) and isinstance(above.value, dict):
        name, previous = above.value.get("name"), below.value.get("name")
        if name is not None and (previous is None or name.value != previous.value):
            return above
    return merge(below, above, problems, ("method", "*"))


def _merge_items(below: Node, above: Node, problems: list[str], at: tuple[str, ...]) -> Node:
    items = list(below.value)
    for key, node in above.value.items():
        position = int(key)
        if position >= len(items):
            problems.append(
                f"{node.origin}: {'.'.join((*at, key))}: the list has {len(items)} items, counted from 0; "
                "write the complete list to add one"
            )
            continue
        if at == ("method",):
            items[position] = _merge_method(items[position], node, problems)
        else:
            items[position] = merge(items[position], node, problems, (*at, key))
    return Node(items, below.origin)


def _addresses_items(above: Node) -> bool:
    """Whether a mapping of overrides addresses list items by position."""
    return (
        above.origin == OVERRIDE
        and isinstance(above.value, dict)
        and bool(above.value)
        and all(key.isdecimal() for key in above.value)
    )
