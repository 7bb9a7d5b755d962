"""What tests of the embedded world read: its files, its noun phrases, and what its programs and statements say."""

from __future__ import annotations

import json
import re
from pathlib import Path

from multitask_vl.synthetic import language
from multitask_vl.synthetic.scenes import (
    ATTRIBUTES,
    VALUES,
    Filter,
    Object,
    holds,
)
from multitask_vl.synthetic.writers import FILES


def read(world: Path, name: str, split: str = "train"):
    return json.loads((world / FILES[name].format(split=split)).read_text())


def lines(world: Path, split: str) -> list[dict]:
    return [json.loads(line) for line in (world / FILES["nlvr2"].format(split=split)).read_text().splitlines()]


def things(graph: dict) -> dict[str, Object]:
    """Objects of a scene graph by id; the centre is exact to half a pixel, which no cell line comes near."""
    return {
        key: Object(*one["attributes"], one["name"], one["x"] + one["w"] / 2, one["y"] + one["h"] / 2, one["w"] / 2)
        for key, one in graph["objects"].items()
    }


def parse(phrase: str) -> Filter:
    """The filter that a noun phrase names: the inverse of `language.noun`."""
    singular = {language.noun(Filter(shape=shape), plural=True): shape for shape in VALUES["shape"]}
    words = [singular.get(word, word) for word in phrase.split() if word not in ("a", "the", "thing", "things")]
    return Filter(**{next(n for n, values in VALUES.items() if word in values): word for word in words})


def texts(world: Path, split: str) -> list[str]:
    return [
        *(one["question"] for one in read(world, "vqa_questions", split)["questions"]),
        *(one["question"] for one in read(world, "gqa", split).values()),
        *(one["sentence"] for one in lines(world, split)),
        *(s["raw"] for image in read(world, "captions")["images"] for s in image["sentences"]),
    ]


def run_program(program: list[dict], objects: dict[str, Object]):
    """What a GQA program gives, by names and attributes alone: its object ids are checked, not used."""
    results: list = []
    for one in program:
        operation, argument = one["operation"], one["argument"]
        assert all(k < len(results) for k in one["dependencies"])
        before = [results[k] for k in one["dependencies"]]
        name = re.sub(r"(,.*)? \(.*\)$", "", argument)
        named = {key for key, thing in objects.items() if name in ("thing", thing.shape)}
        if operation == "select":
            results.append(named)
        elif operation.startswith("filter "):
            results.append({key for key in before[0] if getattr(objects[key], operation[7:]) == argument})
        elif operation in ("relate", "verify rel"):
            relation = argument.split(",")[1]
            (anchor,) = before[0] if operation == "relate" else (None,)
            if operation == "verify rel":
                target = objects[re.search(r"\((\d+)\)", argument)[1]]
                (subject,) = before[0]
                results.append("yes" if holds(relation, objects[subject], target) else "no")
            elif relation.startswith("same "):
                alike = {k for k in named - {anchor} if same(objects[k], objects[anchor], relation[5:])}
                results.append(alike)
            else:
                results.append({k for k in named if holds(relation, objects[k], objects[anchor])})
        elif operation == "query":
            (key,) = before[0]
            results.append(getattr(objects[key], {"name": "shape", "position": "place"}.get(argument, argument)))
        elif operation == "exist":
            results.append("yes" if before[0] else "no")
        elif operation in ("and", "or"):
            results.append("yes" if (all if operation == "and" else any)(b == "yes" for b in before) else "no")
        elif operation == "common":
            ((one,), (other,)) = before
            (shared,) = [n for n in ATTRIBUTES if same(objects[one], objects[other], n)]
            results.append(shared)
        elif operation.startswith("same "):
            ((one,), (other,)) = before
            results.append("yes" if same(objects[one], objects[other], operation[5:]) else "no")
        elif operation.startswith("choose "):
            (key,) = before[0]
            value = getattr(objects[key], operation[7:])
            assert value in argument.split("|")
            results.append(value)
        else:
            raise AssertionError(operation)
    return results[-1]


def same(one: Object, other: Object, attribute: str) -> bool:
    return getattr(one, attribute) == getattr(other, attribute)


def stated(sentence: str, sides: list[list[Object]]) -> bool | None:
    """Truth of the commonest statements, read from their words; None for the others."""
    if found := re.fullmatch(
        r"the (left|right) image contains a (.*)\.|there is a (.*) in the (left|right) image\.", sentence
    ):
        side = (found[1] or found[4]) == "right"
        return parse(found[2] or found[3]).count(sides[side]) > 0
    present = re.search(r"\ba (.*?)(?: in (?:both|only).*)?\.", sentence)
    if present is None or " more " in sentence or " least " in sentence:
        return None
    has = [parse(present[1]).count(side) > 0 for side in sides]
    if "both images" in sentence:
        return all(has)
    return has[0] != has[1] if "only one image" in sentence else None if "no image" not in sentence else not any(has)
