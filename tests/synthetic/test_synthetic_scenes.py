"""Are scenes built for their answers, drawn as they are, and asked about evenly?"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from multitask_vl.synthetic import build, language, questions_gqa, questions_vqa
from multitask_vl.synthetic.captions import captions_of, salience, standing_out
from multitask_vl.synthetic.questions import Asker, staged_scene
from multitask_vl.synthetic.render import RGB, render
from multitask_vl.synthetic.scene_construction import (
    near_misses,
    scene_for_common,
    scene_for_relation,
    scene_for_value,
    scene_with_count,
    unique_filters,
)
from multitask_vl.synthetic.scenes import (
    ALL,
    APART,
    ATTRIBUTES,
    CANVAS,
    CELL,
    HELD_OUT,
    HELD_OUT_PAIRS,
    MARGIN,
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
from multitask_vl.synthetic.statements import KINDS, pair_set
from multitask_vl.synthetic.writers import question_type, ten_answers


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


def test_question_types_and_answers_like_peoples():
    assert question_type("what color is the star?") == "what color is the"
    assert question_type("what color is at the top left?") == "what"
    assert question_type("count them") == "none of the above"
    seen = {answer["answer"] for k in range(300) for answer in ten_answers("circle", stream("people", k))}
    assert {"circle", "round", "ball"} < seen
    assert seen & set(VALUES["shape"]) == set(VALUES["shape"])
    assert {a["answer"] for k in range(200) for a in ten_answers("0", stream("n", k))} == {"0", "1"}


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
