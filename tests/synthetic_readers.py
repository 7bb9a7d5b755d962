"""Readers of synthetic worlds for tests: files, noun phrases, programs and statements."""

from __future__ import annotations

import json
import re
from pathlib import Path

from multitask_vl.synthetic import language
from multitask_vl.synthetic.scenes import ATTRIBUTES, VALUES, Filter, Object, relation_holds
from multitask_vl.synthetic.writers import FILES


def read(world: Path, name: str, split: str = "train"):
    """Read a JSON file of a world by its key in `FILES`."""
    return json.loads((world / FILES[name].format(split=split)).read_text())


def read_statements(world: Path, split: str) -> list[dict]:
    """Read the rows of an NLVR2 file."""
    return [json.loads(line) for line in (world / FILES["nlvr2"].format(split=split)).read_text().splitlines()]


def graph_objects(graph: dict) -> dict[str, Object]:
    """Objects of a scene graph by id; centers are exact to half a pixel, far less than their margin to cell lines."""
    return {
        key: Object(
            *node["attributes"], node["name"], node["x"] + node["w"] / 2, node["y"] + node["h"] / 2, node["w"] / 2
        )
        for key, node in graph["objects"].items()
    }


def parse_phrase(phrase: str) -> Filter:
    """Filter that a noun phrase describes: the inverse of `language.noun_phrase`."""
    singular = {language.noun_phrase(Filter(shape=shape), plural=True): shape for shape in VALUES["shape"]}
    words = [singular.get(word, word) for word in phrase.split() if word not in ("a", "the", "thing", "things")]
    return Filter(**{next(n for n, values in VALUES.items() if word in values): word for word in words})


def split_texts(world: Path, split: str) -> list[str]:
    """Questions and statements of a split."""
    return [
        *(row["question"] for row in read(world, "vqa_questions", split)["questions"]),
        *(row["question"] for row in read(world, "gqa", split).values()),
        *(row["sentence"] for row in read_statements(world, split)),
    ]


def run_program(program: list[dict], objects: dict[str, Object]):
    """Result of a GQA program from names and attributes alone, without its object ids."""
    results: list = []
    for step in program:
        assert all(k < len(results) for k in step["dependencies"])
        results.append(run_step(step, [results[k] for k in step["dependencies"]], objects))
    return results[-1]


def run_step(step: dict, inputs: list, objects: dict[str, Object]):
    """Result of one operation given the results it depends on."""
    operation, argument = step["operation"], step["argument"]
    name = re.sub(r"(,.*)? \(.*\)$", "", argument)
    named = {key for key, thing in objects.items() if name in ("thing", thing.shape)}
    kind, _, attribute = operation.partition(" ")
    if operation == "select":
        return named
    if operation == "verify rel":
        target = objects[re.search(r"\((\d+)\)", argument)[1]]
        (subject,) = inputs[0]
        return "yes" if relation_holds(argument.split(",")[1], objects[subject], target) else "no"
    if operation == "relate":
        relation = argument.split(",")[1]
        (anchor,) = inputs[0]
        if relation.startswith("same "):
            return {k for k in named - {anchor} if same(objects[k], objects[anchor], relation[5:])}
        return {k for k in named if relation_holds(relation, objects[k], objects[anchor])}
    if operation in ("and", "or"):
        return "yes" if (all if operation == "and" else any)(value == "yes" for value in inputs) else "no"
    if operation == "exist":
        return "yes" if inputs[0] else "no"
    if kind == "filter":
        return {key for key in inputs[0] if getattr(objects[key], attribute) == argument}
    if operation == "query":
        (key,) = inputs[0]
        return getattr(objects[key], {"name": "shape", "position": "quadrant"}.get(argument, argument))
    if kind == "choose":
        (key,) = inputs[0]
        value = getattr(objects[key], attribute)
        assert value in argument.split("|")
        return value
    (first,), (second,) = inputs
    if operation == "common":
        (shared,) = [n for n in ATTRIBUTES if same(objects[first], objects[second], n)]
        return shared
    assert kind == "same", operation
    return "yes" if same(objects[first], objects[second], attribute) else "no"


def same(first: Object, second: Object, attribute: str) -> bool:
    """Whether two objects agree in an attribute."""
    return getattr(first, attribute) == getattr(second, attribute)


def statement_truth(sentence: str, sides: list[list[Object]]) -> bool | None:
    """Truth of the most common statements, read from their words; None for the others."""
    pattern = r"the (left|right) image contains a (.*)\.|there is a (.*) in the (left|right) image\."
    if match := re.fullmatch(pattern, sentence):
        side = (match[1] or match[4]) == "right"
        return parse_phrase(match[2] or match[3]).count(sides[side]) > 0
    present = re.search(r"\ba (.*?)(?: in (?:both|only).*)?\.", sentence)
    if present is None or " more " in sentence or " least " in sentence:
        return None
    has = [parse_phrase(present[1]).count(side) > 0 for side in sides]
    if "both images" in sentence:
        return all(has)
    if "only one image" in sentence:
        return has[0] != has[1]
    return None if "no image" not in sentence else not any(has)
