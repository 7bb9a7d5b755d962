"""What do `key=value` words of the command line change: one more layer, laid over every file."""

from __future__ import annotations

from collections.abc import Sequence

from multitask_vl.config.compose import lay_over
from multitask_vl.config.yaml_nodes import OVERRIDE, Node, read_value


def read_overrides(words: Sequence[str], problems: list[str]) -> Node:
    """The layer that the words make together, so that their order matters only where two set the same key.

    Args:
        words: ``dotted.key=value`` each; values are YAML (``training.lr=1e-3``, ``evaluation.final=[report]``,
            ``routing.function={vqa: mul, gqa: add}``), positions count from 0 (``method.0.rank=8``).
        problems: gets a line for each word that is none of that.
    """
    layer = Node({}, OVERRIDE)
    for word in words:
        node = _read_word(word, problems)
        if node is not None:
            layer = _gather(layer, node, problems)
    return layer


def _read_word(word: str, problems: list[str]) -> Node | None:
    dotted, equals, text = word.partition("=")
    dotted = dotted.strip()
    if not equals:
        problems.append(f"override {word!r}: expected key=value, such as training.lr=1e-3")
        return None
    if dotted.startswith("-"):
        problems.append(f"override {word!r}: write it without dashes: {word.lstrip('-')!r}")
        return None
    keys = dotted.split(".")
    if not all(keys):
        problems.append(f"override {word!r}: a key is names joined by single dots, such as training.lr")
        return None
    if keys[0] == "compose":
        problems.append(f"override {word!r}: compose belongs in a file; write a YAML that composes what you want")
        return None
    node = read_value(text, f"override {word!r}", problems)
    if node is None:
        return None
    if keys == ["method"] and isinstance(node.value, str):
        keys = ["method", "name"]
    for key in reversed(keys):
        node = Node({key: node}, OVERRIDE)
    return node


def _gather(below: Node | None, above: Node, problems: list[str], at: tuple[str, ...] = ()) -> Node:
    # A list and then words about its items are one change too.
    if below is not None and isinstance(below.value, list) and isinstance(above.value, dict):
        return lay_over(below, above, problems, at)
    # Two words about one method (`method.name=lora method.rank=8`) are one change, whichever method stands below: the
    # rules for `method` apply only when the gathered layer meets the files.
    if not (above.value and isinstance(above.value, dict) and below is not None and isinstance(below.value, dict)):
        return above
    merged = dict(below.value)
    for key, node in above.value.items():
        merged[key] = _gather(merged.get(key), node, problems, (*at, key))
    return Node(merged, OVERRIDE)


def apply_overrides(tree: Node, words: Sequence[str], problems: list[str]) -> Node:
    """The tree with the words' values laid over it; see `read_overrides`."""
    layer = read_overrides(words, problems)
    return lay_over(tree, layer, problems) if layer.value else tree
