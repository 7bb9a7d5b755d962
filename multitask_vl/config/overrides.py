"""Command-line overrides (`key=value`) as a configuration layer above all files."""

from __future__ import annotations

from collections.abc import Sequence

from multitask_vl.config.compose import merge
from multitask_vl.config.yaml_nodes import OVERRIDE, Node, read_value


def apply_overrides(tree: Node, overrides: Sequence[str], problems: list[str]) -> Node:
    """Merge the values of the overrides over the tree; see `read_overrides`."""
    layer = read_overrides(overrides, problems)
    return merge(tree, layer, problems) if layer.value else tree


def read_overrides(overrides: Sequence[str], problems: list[str]) -> Node:
    """Parse the overrides into one layer; their order matters only where two of them set the same key.

    Args:
        overrides: ``dotted.key=value`` each; values are YAML (``training.lr=1e-3``, ``evaluation.final_splits=[test]``,
            ``routing.function={vqa: mul, gqa: add}``), positions count from 0 (``method.0.rank=8``).
        problems: receives a line for each invalid override.
    """
    layer = Node({}, OVERRIDE)
    for override in overrides:
        node = _parse(override, problems)
        if node is not None:
            layer = _combine(layer, node, problems)
    return layer


def _parse(override: str, problems: list[str]) -> Node | None:
    dotted, equals, text = override.partition("=")
    dotted = dotted.strip()
    if not equals:
        problems.append(f"override {override!r}: expected key=value, such as training.lr=1e-3")
        return None
    if dotted.startswith("-"):
        problems.append(f"override {override!r}: remove the leading dashes: {override.lstrip('-')!r}")
        return None
    keys = dotted.split(".")
    if not all(keys):
        problems.append(f"override {override!r}: a key is a list of names joined by single dots, such as training.lr")
        return None
    if keys[0] == "compose":
        problems.append(f"override {override!r}: compose is allowed in files only; write a YAML file with this compose")
        return None
    node = read_value(text, f"override {override!r}", problems)
    if node is None:
        return None
    if keys == ["method"] and isinstance(node.value, str):
        keys = ["method", "name"]
    for key in reversed(keys):
        node = Node({key: node}, OVERRIDE)
    return node


def _combine(below: Node | None, above: Node, problems: list[str], at: tuple[str, ...] = ()) -> Node:
    # a list followed by overrides of its items is a single change
    if below is not None and isinstance(below.value, list) and isinstance(above.value, dict):
        return merge(below, above, problems, at)
    # Two overrides of one method (`method.name=lora method.rank=8`) are a single change, whatever method the files
    # have: the merge rules of `method` apply only when the combined layer meets the files.
    if not (above.value and isinstance(above.value, dict) and below is not None and isinstance(below.value, dict)):
        return above
    merged = dict(below.value)
    for key, node in above.value.items():
        merged[key] = _combine(merged.get(key), node, problems, (*at, key))
    return Node(merged, OVERRIDE)
