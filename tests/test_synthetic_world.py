"""Does the embedded world hold what it promises: official layouts, true answers, balance, splits, same bytes?"""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from multitask_vl.errors import EXIT_BAD_INPUT, InputError
from multitask_vl.synthetic import blind, build, language, questions_gqa, questions_vqa
from multitask_vl.synthetic.captions import captions_of, salience, standing_out
from multitask_vl.synthetic.questions import Asker, staged_scene
from multitask_vl.synthetic.render import RGB, render
from multitask_vl.synthetic.scenes import (
    ALL,
    APART,
    ATTRIBUTES,
    CANVAS,
    CELL,
    HELD_OUT,
    HELD_OUT_PAIRS,
    MARGIN,
    PLACES,
    SEEN,
    VALUES,
    Filter,
    Look,
    Object,
    Scene,
    holds,
    layout,
    sample_scene,
    stream,
)
from multitask_vl.synthetic.staging import (
    near_misses,
    scene_for_common,
    scene_for_relation,
    scene_for_value,
    scene_with_count,
    unique_filters,
)
from multitask_vl.synthetic.statements import KINDS, pair_set
from multitask_vl.synthetic.writers import FILES, SPLITS, question_type, ten_answers


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("synthetic") / "world"
    build.build(out, seed=3, scale=0.12, processes=2)
    return out


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


# ---- scenes


def test_layout_keeps_centres_apart_and_off_the_lines():
    rng = stream("test", "layout")
    for _ in range(60):
        sizes = [rng.choice(("small", "large")) for _ in range(rng.randint(1, 5))]
        placed = layout(sizes, rng)
        cells = {(int(x // CELL), int(y // CELL)) for x, y, _ in placed}
        assert len(cells) == len(placed) == len(sizes)
        for number, (x, y, radius) in enumerate(placed):
            assert all(MARGIN <= value % CELL <= CELL - MARGIN for value in (x, y))
            assert 0.8 * radius <= min(x, y, CANVAS - x, CANVAS - y)
            for u, v, other in placed[:number]:
                assert (x - u) ** 2 + (y - v) ** 2 >= (APART * (radius + other)) ** 2


def test_places_and_relations_agree_with_cells():
    one = Object("small", "solid", "red", "circle", 10, 100, 14)
    other = Object("small", "solid", "red", "circle", 90, 10, 14)
    assert (one.column, one.row, one.cell, one.place) == (0, 3, 12, "bottom left")
    assert other.place == "top right"
    assert holds("left of", one, other)
    assert holds("below", one, other)
    assert holds("right of", other, one)
    assert holds("above", other, one)
    assert not any(holds(relation, one, one) for relation in ("left of", "right of", "above", "below"))
    with pytest.raises(ValueError, match="behind"):
        holds("behind", one, other)


def test_seen_and_held_out_part_all_looks():
    assert len(ALL) == 180
    assert set(SEEN) | set(HELD_OUT) == set(ALL)
    assert not set(SEEN) & set(HELD_OUT)
    assert {color for color, _ in HELD_OUT_PAIRS} == set(VALUES["color"])
    assert {shape for _, shape in HELD_OUT_PAIRS} == set(VALUES["shape"])
    assert all(sample_scene(stream("t", k)) == sample_scene(stream("t", k)) for k in range(5))


@pytest.mark.parametrize("number", range(5))
def test_scene_with_count_has_exactly_that_many(number):
    rng = stream("test", "count", number)
    for wanted in (Filter(color="red"), Filter(shape="cross", pattern="dotted")):
        for near in (True, False, None):
            scene = scene_with_count(wanted, number, rng, near=near)
            assert wanted.count(scene.objects) == number
            if near and number < len(scene.objects) and len(wanted.named) == 2:
                misses = near_misses(wanted, SEEN)
                assert any(thing.look in misses for thing in scene.objects)


def test_scenes_are_built_for_their_answers():
    rng = stream("test", "built")
    for attribute, values in VALUES.items():
        for value in values:
            scene = scene_for_value(attribute, value, rng)
            assert any(
                getattr(thing, attribute) == value and unique_filters(scene.objects, k, asked=attribute)
                for k, thing in enumerate(scene.objects)
            )
            found = scene_for_relation(attribute, value, rng)
            anchor = next(thing for thing in found.scene.objects if found.anchor.matches(thing))
            fits = [
                thing
                for thing in found.scene.objects
                if thing is not anchor and found.target.matches(thing) and holds(found.relation, thing, anchor)
            ]
            assert fits == [found.answer]
            assert getattr(found.answer, attribute) == value
            assert found.anchor.count(found.scene.objects) == 1
        objects = scene_for_common(attribute, rng).objects
        shared = [
            [name for name in ATTRIBUTES if getattr(one, name) == getattr(other, name)]
            for one in objects
            for other in objects
            if one is not other
        ]
        assert [attribute] in shared


def test_unique_filters_are_unique_short_and_silent_about_what_is_asked():
    looks = [Look("small", "solid", "red", "star"), Look("large", "solid", "red", "star"), Look(*ALL[0])]
    found = unique_filters(looks, 0, asked="pattern")
    assert found
    assert all(one.count(looks) == 1 and "pattern" not in one.named for one in found)
    assert not any(set(one.named) < set(other.named) for one in found for other in found)
    assert unique_filters([looks[0], looks[0]], 0) == []


# ---- pictures


def test_render_is_a_function_of_the_scene():
    scene = sample_scene(stream("test", "render"), ALL, 4)
    first = render(scene)
    assert first.shape == (CANVAS, CANVAS, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, render(scene))
    assert not np.array_equal(first, render(dataclasses.replace(scene, style=scene.style + 1)))


@pytest.mark.parametrize("shape", VALUES["shape"])
def test_render_draws_shape_color_and_pattern(shape):
    drawn = {}
    for color, value in RGB.items():
        for pattern in VALUES["pattern"]:
            picture = render(Scene((Object("large", pattern, color, shape, 64, 64, 23),), 5)).astype(float)
            drawn[color, pattern] = picture
        centre = drawn[color, "solid"][60:68, 60:68].mean((0, 1))
        nearest = min(RGB, key=lambda name: np.abs(np.array(RGB[name]) - centre).sum())
        assert nearest == color, value
        assert all(
            np.abs(drawn[color, "solid"] - drawn[color, p])[50:78, 50:78].max() > 60 for p in ("striped", "dotted")
        )
    corner = np.abs(drawn["red", "solid"] - drawn["blue", "solid"]).max(-1) > 30
    assert 0.05 < corner.mean() < 0.16  # only the object differs, and it has a body
    with pytest.raises(ValueError, match="heart"):
        render(Scene((Object("large", "solid", "red", "heart", 64, 64, 23),), 5))


# ---- language


def test_noun_phrases():
    assert language.noun(Look("large", "striped", "red", "star")) == "large striped red star"
    assert language.noun(Filter(shape="cross"), plural=True) == "crosses"
    assert language.the(Filter(color="red")) == "the red thing"
    assert language.number_of(Filter(color="red", shape="star"), 2) == "two red stars"
    assert language.number_of(Filter(shape="star"), 1) == "one star"
    assert language.value_phrase("shape", "star") == "a star"
    assert language.value_phrase("color", "red") == "red"
    assert language.cell_words(Object("small", "solid", "red", "star", 5, 40, 14)) == "upper leftmost"
    wordings = language.QUESTIONS["exist"]
    assert wordings.pick(stream(1), x="star") in {
        "is there a star?",
        "can you see a star?",
        "is there a star in the picture?",
    }
    assert wordings.pick_held_out(stream(1), x="star") == "does the picture show a star?"


def test_every_template_has_wordings_of_its_own_kept_back():
    for table in (language.QUESTIONS, language.STATEMENTS, language.CAPTIONS):
        for wordings in table.values():
            assert wordings.held_out
            assert not set(wordings.seen) & set(wordings.held_out)
    asked = {one.name for one in (*questions_vqa.TEMPLATES, *questions_gqa.TEMPLATES)}
    assert asked == set(language.QUESTIONS)
    assert set(KINDS) == set(language.STATEMENTS)
    assert set(questions_gqa.TYPES) == {one.name for one in questions_gqa.TEMPLATES}


def texts(world: Path, split: str) -> list[str]:
    return [
        *(one["question"] for one in read(world, "vqa_questions", split)["questions"]),
        *(one["question"] for one in read(world, "gqa", split).values()),
        *(one["sentence"] for one in lines(world, split)),
        *(s["raw"] for image in read(world, "captions")["images"] for s in image["sentences"]),
    ]


def test_the_world_speaks_only_words_of_the_vocabulary(world):
    known = set(language.vocabulary())
    spoken = {word for split in SPLITS for text in texts(world, split) for word in language.words_of(text)}
    answers = {a["answer"] for one in read(world, "vqa_annotations")["annotations"] for a in one["answers"]}
    answers |= {one["answer"] for one in read(world, "gqa").values()}
    assert spoken <= known
    assert {word for answer in answers for word in answer.split()} <= known
    assert all(len(answer.split()) <= 2 for answer in answers)


# ---- official layouts


def official(shared: Path, name: str):
    return json.loads((shared / "data" / "official_format_samples" / name).read_text())


@pytest.mark.shared
def test_layouts_have_the_official_keys(world, shared):
    theirs = official(shared, "vqav2/v2_OpenEnded_mscoco_train2014_questions.json")
    ours = read(world, "vqa_questions")
    assert ours.keys() == theirs.keys()
    assert ours["questions"][0].keys() == theirs["questions"][0].keys()
    theirs, ours = official(shared, "vqav2/v2_mscoco_train2014_annotations.json"), read(world, "vqa_annotations")
    assert ours.keys() == theirs.keys()
    assert ours["annotations"][0].keys() == theirs["annotations"][0].keys()
    assert ours["annotations"][0]["answers"][0].keys() == theirs["annotations"][0]["answers"][0].keys()
    theirs, ours = official(shared, "gqa/questions_sample.json"), read(world, "gqa")
    theirs, ours = next(iter(theirs.values())), next(iter(ours.values()))
    assert ours.keys() == theirs.keys()
    assert all(ours[key].keys() == theirs[key].keys() for key in ("types", "groups", "annotations"))
    assert ours["semantic"][0].keys() == theirs["semantic"][0].keys()
    sample = (shared / "data" / "official_format_samples" / "nlvr2" / "dev_sample.jsonl").read_text().splitlines()
    assert lines(world, "tune")[0].keys() == json.loads(sample[0]).keys()


@pytest.mark.parametrize("split", SPLITS)
def test_vqa_files(world, split):
    questions = read(world, "vqa_questions", split)["questions"]
    annotations = {one["question_id"]: one for one in read(world, "vqa_annotations", split)["annotations"]}
    assert len({one["question_id"] for one in questions}) == len(questions) == len(annotations)
    assert len(questions) >= 0.9 * build.scaled(0.12)[split].questions
    disagreeing = 0
    for one in questions:
        found = annotations[one["question_id"]]
        assert one["image_id"] == found["image_id"] == one["question_id"] // 1000
        assert (world / "images" / f"{one['image_id']:012d}.png").is_file()
        given = Counter(answer["answer"] for answer in found["answers"])
        assert [answer["answer_id"] for answer in found["answers"]] == list(range(1, 11))
        assert given.most_common(1)[0][0] == found["multiple_choice_answer"]
        assert given[found["multiple_choice_answer"]] >= 7
        disagreeing += len(given) > 1
        kinds = {"yes": "yes/no", "no": "yes/no", **{str(k): "number" for k in range(10)}}
        assert found["answer_type"] == kinds.get(found["multiple_choice_answer"], "other")
        assert one["question"].startswith(found["question_type"])
    assert 0.25 < disagreeing / len(questions) < 0.55


def test_question_types_and_answers_like_peoples():
    assert question_type("what color is the star?") == "what color is the"
    assert question_type("what color is at the top left?") == "what"
    assert question_type("count them") == "none of the above"
    seen = {answer["answer"] for k in range(300) for answer in ten_answers("circle", stream("people", k))}
    assert {"circle", "round", "ball"} < seen
    assert seen & set(VALUES["shape"]) == set(VALUES["shape"])
    assert {a["answer"] for k in range(200) for a in ten_answers("0", stream("n", k))} == {"0", "1"}


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
                alike = {k for k in named - {anchor} if _same(objects[k], objects[anchor], relation[5:])}
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
            (shared,) = [n for n in ATTRIBUTES if _same(objects[one], objects[other], n)]
            results.append(shared)
        elif operation.startswith("same "):
            ((one,), (other,)) = before
            results.append("yes" if _same(objects[one], objects[other], operation[5:]) else "no")
        elif operation.startswith("choose "):
            (key,) = before[0]
            value = getattr(objects[key], operation[7:])
            assert value in argument.split("|")
            results.append(value)
        else:
            raise AssertionError(operation)
    return results[-1]


def _same(one: Object, other: Object, attribute: str) -> bool:
    return getattr(one, attribute) == getattr(other, attribute)


@pytest.mark.parametrize("split", ["report", "heldout"])
def test_gqa_programs_give_the_answers(world, split):
    questions, graphs = read(world, "gqa", split), read(world, "gqa_scenes", split)
    assert len(questions) >= 0.9 * build.scaled(0.12)[split].questions
    for key, one in questions.items():
        assert (world / "images" / f"{one['imageId']}.png").is_file()
        objects = things(graphs[one["imageId"]])
        named = {number for step in one["semantic"] for number in re.findall(r"\d+", step["argument"])}
        assert named <= set(objects)
        assert run_program(one["semantic"], objects) == one["answer"], (key, one["question"])
        assert one["semanticStr"].count("->") == len(one["semantic"]) - 1
        assert one["fullAnswer"].endswith(".")
    structural = Counter(one["types"]["structural"] for one in questions.values())
    assert set(structural) == {"query", "verify", "choose", "logical", "compare"}
    relational = sum(one["types"]["detailed"].startswith("relS") for one in questions.values())
    assert relational > 0.3 * len(questions)


def test_vqa_answers_are_true(world):
    graphs = read(world, "gqa_scenes", "report")
    right = {
        one["question_id"]: one["multiple_choice_answer"]
        for one in read(world, "vqa_annotations", "report")["annotations"]
    }
    checked = Counter()
    for one in read(world, "vqa_questions", "report")["questions"]:
        objects = things(graphs[f"{one['image_id']:012d}"]).values()
        text, answer = one["question"], right[one["question_id"]]
        if found := re.fullmatch(r"(?:how many|what is the number of) (.*?)(?: are there| can you see)?\?", text):
            assert answer == str(parse(found[1]).count(objects)), text
        elif found := re.fullmatch(r"(?:is there|can you see) a ([a-z ]*?)(?: in the picture)?\?", text):
            assert answer == ("yes" if parse(found[1]).count(objects) else "no"), text
        elif found := re.fullmatch(r"(?:are there|can you see) more (.*) than (.*)\?", text):
            more = parse(found[1]).count(objects) > parse(found[2]).count(objects)
            assert answer == ("yes" if more else "no"), text
        elif found := re.fullmatch(
            r"(?:what|which) (color|shape|pattern|size) (?:is|does) the ([a-z ]*?)(?: have)?\?", text
        ):
            if " at the " in text:
                continue
            (thing,) = (one for one in objects if parse(found[2]).matches(one))
            assert answer == getattr(thing, found[1]), text
        elif found := re.search(r"at the (top|bottom) (left|right)\?", text):
            (thing,) = (one for one in objects if one.place == f"{found[1]} {found[2]}")
            assert answer in thing.look, text
        else:
            continue
        checked[text.split()[0]] += 1
    assert sum(checked.values()) > 120


@pytest.mark.parametrize("split", SPLITS)
def test_nlvr2_labels_are_true_and_halved_in_each_sentence(world, split):
    graphs, groups = read(world, "nlvr2_scenes", split), defaultdict(list)
    rows = lines(world, split)
    assert len({row["identifier"] for row in rows}) == len(rows) == 8 * build.scaled(0.12)[split].sets
    for row in rows:
        name, index, pair, sentence = row["identifier"].split("-")
        assert name == split
        groups[index, sentence].append((row["sentence"], row["label"]))
        sides = [f"{split}-{index}-{pair}-img{side}" for side in (0, 1)]
        assert [row["left_url"], row["right_url"]] == [f"images/{key}.png" for key in sides]
        assert all((world / "images" / f"{key}.png").is_file() for key in sides)
        counts = [list(things(graphs[key]).values()) for key in sides]
        truth = _stated(row["sentence"], counts)
        assert truth is None or str(truth) == row["label"], row
    for group in groups.values():
        assert len({sentence for sentence, _ in group}) == 1
        assert Counter(label for _, label in group) == {"True": 2, "False": 2}


def _stated(sentence: str, sides: list[list[Object]]) -> bool | None:
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


def test_captions_are_karpathys_and_true(world):
    graphs = {split: read(world, "gqa_scenes", split) for split in SPLITS}
    images = read(world, "captions")["images"]
    assert Counter(image["split"] for image in images).keys() == {"train", "val", "test", "heldout"}
    assert len({image["imgid"] for image in images}) == len(images)
    assert len({s["sentid"] for image in images for s in image["sentences"]}) == 5 * len(images)
    back = {"val": "tune", "test": "report"}
    for image in images:
        assert len(image["sentences"]) == 5
        assert (world / image["filepath"] / image["filename"]).is_file()
        objects = things(graphs[back.get(image["split"], image["split"])][Path(image["filename"]).stem]).values()
        for sentence in image["sentences"]:
            assert sentence["tokens"] == language.words_of(sentence["raw"])[:-1]
            text = re.sub(r"^(there (is|are) |a picture of )", "", sentence["raw"].rstrip("."))
            for part in re.split(r" and | left of | right of | above | below | at the ", text):
                if part in PLACES:
                    continue
                number, phrase = part.split(" ", 1)
                count = parse(phrase).count(objects)
                assert count >= 1 if number == "a" else count == language.NUMBERS.index(number), sentence["raw"]


def test_captions_mention_what_stands_out():
    three = [Object("small", "solid", "red", "star", 16 + 32 * k, 16, 14) for k in range(3)]
    odd = Object("large", "striped", "blue", "cross", 80, 80, 23)
    group = standing_out([*three, odd])
    assert group == Filter(color="red", shape="star")
    found = captions_of(Scene((*three, odd)), stream("c"))
    assert all("three red stars" in caption for caption in found)
    assert salience(odd, [*three, odd]) > salience(three[0], [*three, odd])
    assert all("blue cross" in caption for caption in captions_of(Scene((odd,)), stream("c")))
    assert standing_out([three[0], odd]) is None


# ---- balance and splits


@pytest.mark.parametrize(("templates", "number"), [(questions_vqa.TEMPLATES, 900), (questions_gqa.TEMPLATES, 900)])
def test_answers_are_balanced_in_every_form_and_wording(templates, number):
    asker = Asker(templates)
    asked = []
    for index in range(number // 3):
        asked += asker.ask(staged_scene(9, "train", index), 3, stream("balance", index))
    assert len(asked) == number
    total = sum(one.share for one in templates)
    for template in templates:
        found = [one for one in asked if one.template == template.name]
        assert len(found) == pytest.approx(number * template.share / total, abs=3)
        for form in template.forms:
            for wording in range(len(language.QUESTIONS[template.name].seen)):
                cells = [asker.answers[template.name, form, wording, answer] for answer in template.answers]
                assert max(cells) - min(cells) <= 1
    assert len({(id(one), one.text) for one in asked}) == number


def test_no_held_out_combination_outside_its_split(world):
    for split in SPLITS:
        pairs = [
            (thing.color, thing.shape)
            for name in ("gqa_scenes", "nlvr2_scenes")
            for graph in read(world, name, split).values()
            for thing in things(graph).values()
        ]
        held = sum(pair in HELD_OUT_PAIRS for pair in pairs) / len(pairs)
        spoken = texts(world, split)[: -5 * len(read(world, "captions")["images"])]
        named = sum(any(f"{color} {shape}" in text for color, shape in HELD_OUT_PAIRS) for text in spoken)
        if split == "heldout":
            assert held > 0.3
            assert named > 0.1 * len(spoken)
        else:
            assert held == 0
            assert named == 0


def test_held_out_questions_are_about_held_out_combinations():
    asker = Asker(questions_vqa.TEMPLATES, only_held_out=True)
    for index in range(40):
        scene = staged_scene(4, "heldout", index)
        for one in asker.ask(scene, 2, stream("held", index)):
            about = {(scene.objects[k].color, scene.objects[k].shape) for k in one.about}
            assert about & HELD_OUT_PAIRS or any(x.names_held_out for x in one.named), one.text
    assert sum(asker.asked.values()) > 60


def test_other_tasks_do_not_change_a_tasks_questions(monkeypatch):
    size = build.Size(scenes=12, questions=24, sets=4)
    before = build.questions_of(2, "train", size, "vqa", questions_vqa.TEMPLATES)
    sets = pair_set(2, "train", 0)
    monkeypatch.setattr(questions_gqa, "TEMPLATES", questions_gqa.TEMPLATES[:1])
    build.questions_of(2, "train", size, "gqa", questions_gqa.TEMPLATES)
    assert build.questions_of(2, "train", size, "vqa", questions_vqa.TEMPLATES) == before
    assert pair_set(2, "train", 0) == sets


# ---- commands


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_same_seed_same_bytes(tmp_path, capsys):
    assert build.main(["--out", str(tmp_path / "one"), "--seed", "5", "--scale", "0.004", "--processes", "1"]) == 0
    assert "vqa/train" in capsys.readouterr().out
    build.build(tmp_path / "two", seed=5, scale=0.004, processes=2)
    build.build(tmp_path / "three", seed=6, scale=0.004, processes=1)
    one, two, three = (tree(tmp_path / name) for name in ("one", "two", "three"))
    assert one == two
    assert one.keys() == three.keys()
    assert one["gqa/train_balanced_questions.json"] != three["gqa/train_balanced_questions.json"]
    header = json.loads(one["world.json"])
    assert header["counts"]["images"] == sum(name.startswith("images/") for name in one)
    with Image.open(tmp_path / "one" / "images" / "train-0-0-img0.png") as picture:
        assert picture.size == (CANVAS, CANVAS)


def test_default_sizes_are_large_enough():
    assert min(build.SIZES["train"].questions, build.SIZES["train"].scenes, 8 * build.SIZES["train"].sets) >= 4000
    assert min(build.SIZES["report"].questions, build.SIZES["report"].scenes, 8 * build.SIZES["report"].sets) >= 800


def test_build_refuses_bad_input(tmp_path, capsys):
    (tmp_path / "there").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError) as caught:
        build.build(tmp_path / "there", seed=-1, scale=0, processes=0)
    assert [problem.split()[0] for problem in caught.value.problems] == ["--out", "--seed", "--scale", "--processes"]
    assert build.main(["--out", str(tmp_path / "file" / "world")]) == EXIT_BAD_INPUT
    assert "is a file, not a folder" in capsys.readouterr().err


def test_blind_reader_stays_under_its_ceilings(world, capsys):
    assert blind.main(["--world", str(world), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    for task, ceiling in blind.CEILINGS.items():
        assert found[task]["learnt"] <= ceiling
        assert found[task]["majority"] <= found[task]["ceiling"] == ceiling
    assert found["nlvr2"]["learnt"] == found["nlvr2"]["fitted"] == 50
    assert 0 < found["captions"]["learnt"] <= found["captions"]["fitted"] < 60
    assert blind.main(["--world", str(world), "--split", "heldout"]) == 0
    assert "items of heldout" in capsys.readouterr().out


def test_blind_reader_finds_a_leak(world, tmp_path, capsys):
    for split in ("train", "report"):
        for name in FILES:
            path = tmp_path / FILES[name].format(split=split)
            path.parent.mkdir(exist_ok=True)
            path.write_text((world / FILES[name].format(split=split)).read_text())
        path = tmp_path / FILES["nlvr2"].format(split=split)
        rows = [row for row in lines(world, split) if row["label"] == str("left" in row["sentence"])]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert blind.read_blind("nlvr2", tmp_path).learnt > 90
    assert blind.main(["--world", str(tmp_path)]) == blind.EXIT_TOO_EASY
    assert "nlvr2" in capsys.readouterr().out


def test_blind_reader_sees_form_but_no_attribute():
    assert blind.skeleton("what color is the large striped star?") == "what color is the _ _ _?"
    assert blind.template("is there a red thing left of the star?") == "is there a _ left of the _?"
    assert blind.human_accuracy(10) == blind.human_accuracy(4) == 1
    assert blind.human_accuracy(1) == pytest.approx(0.3)
    items = [blind.Item("is it red or blue?", {"blue": 1.0}, ""), blind.Item("is it red or green?", {"green": 1.0}, "")]
    assert blind._best_rules(items, blind.skeleton)["is it _ or _?"] == 1


def test_blind_refuses_what_is_no_world(tmp_path, capsys):
    assert blind.main(["--world", str(tmp_path)]) == EXIT_BAD_INPUT
    assert "Make one: python -m multitask_vl.synthetic.build" in capsys.readouterr().err
    path = tmp_path / FILES["vqa_questions"].format(split="train")
    path.parent.mkdir(parents=True)
    path.write_text('{"questions": [\n}')
    assert blind.main(["--world", str(tmp_path)]) == EXIT_BAD_INPUT
    assert f"{path}:2: not JSON" in capsys.readouterr().err
