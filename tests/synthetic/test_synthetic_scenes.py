"""Scene sampling and construction, rendering, language, and balanced questions."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from multitask_vl.synthetic import build, language, questions_gqa, questions_vqa
from multitask_vl.synthetic.captions import caption_scene, salience, salient_group
from multitask_vl.synthetic.questions import QuestionSampler, world_scene
from multitask_vl.synthetic.render import RGB, render
from multitask_vl.synthetic.scene_construction import (
    near_misses,
    scene_for_relation,
    scene_for_shared_attribute,
    scene_for_value,
    scene_with_count,
    shared_attributes,
    unique_filters,
)
from multitask_vl.synthetic.scenes import (
    ALL_APPEARANCES,
    CANVAS,
    CELL,
    HELD_OUT,
    HELD_OUT_PAIRS,
    MARGIN,
    MIN_SEPARATION,
    SEEN,
    VALUES,
    Appearance,
    Filter,
    Object,
    Scene,
    relation_holds,
    rng_for,
    sample_layout,
    sample_scene,
)
from multitask_vl.synthetic.statements import STATEMENT_KINDS, pair_set
from multitask_vl.synthetic.writers import question_type, ten_answers


def test_layout_separates_centers():
    rng = rng_for("test", "layout")
    for _ in range(60):
        sizes = [rng.choice(("small", "large")) for _ in range(rng.randint(1, 5))]
        placed = sample_layout(sizes, rng)
        cells = {(int(x // CELL), int(y // CELL)) for x, y, _ in placed}
        assert len(cells) == len(placed) == len(sizes)
        for number, (x, y, radius) in enumerate(placed):
            assert all(MARGIN <= value % CELL <= CELL - MARGIN for value in (x, y))
            assert 0.8 * radius <= min(x, y, CANVAS - x, CANVAS - y)
            for u, v, other in placed[:number]:
                assert (x - u) ** 2 + (y - v) ** 2 >= (MIN_SEPARATION * (radius + other)) ** 2


def test_object_cell_quadrant_and_relations():
    lower = Object("small", "solid", "red", "circle", 10, 100, 14)
    upper = Object("small", "solid", "red", "circle", 90, 10, 14)
    assert (lower.column, lower.row, lower.cell, lower.quadrant) == (0, 3, 12, "bottom left")
    assert upper.quadrant == "top right"
    assert relation_holds("left of", lower, upper)
    assert relation_holds("below", lower, upper)
    assert relation_holds("right of", upper, lower)
    assert relation_holds("above", upper, lower)
    assert not any(relation_holds(relation, lower, lower) for relation in ("left of", "right of", "above", "below"))
    with pytest.raises(ValueError, match="behind"):
        relation_holds("behind", lower, upper)


def test_seen_and_held_out_partition_appearances():
    assert len(ALL_APPEARANCES) == 180
    assert set(SEEN) | set(HELD_OUT) == set(ALL_APPEARANCES)
    assert not set(SEEN) & set(HELD_OUT)
    assert {color for color, _ in HELD_OUT_PAIRS} == set(VALUES["color"])
    assert {shape for _, shape in HELD_OUT_PAIRS} == set(VALUES["shape"])
    assert all(sample_scene(rng_for("t", k)) == sample_scene(rng_for("t", k)) for k in range(5))


@pytest.mark.parametrize("count", range(5))
def test_scene_with_count(count):
    rng = rng_for("test", "count", count)
    for target in (Filter(color="red"), Filter(shape="cross", pattern="dotted")):
        for near in (True, False, None):
            scene = scene_with_count(target, count, rng, near=near)
            assert target.count(scene.objects) == count
            if near and count < len(scene.objects) and len(target.attributes) == 2:
                misses = near_misses(target, SEEN)
                assert any(thing.appearance in misses for thing in scene.objects)


@pytest.mark.parametrize("attribute", VALUES)
def test_scenes_are_built_for_their_answers(attribute):
    rng = rng_for("test", "built", attribute)
    for value in VALUES[attribute]:
        scene = scene_for_value(attribute, value, rng)
        assert any(
            getattr(thing, attribute) == value and unique_filters(scene.objects, k, exclude=attribute)
            for k, thing in enumerate(scene.objects)
        )
        found = scene_for_relation(attribute, value, rng)
        (anchor,) = (thing for thing in found.scene.objects if found.anchor.matches(thing))
        matches = [
            thing
            for thing in found.scene.objects
            if thing is not anchor and found.target.matches(thing) and relation_holds(found.relation, thing, anchor)
        ]
        assert matches == [found.answer]
        assert getattr(found.answer, attribute) == value
    objects = scene_for_shared_attribute(attribute, rng).objects
    pairs = [(first, second) for first in objects for second in objects if first is not second]
    assert [attribute] in [shared_attributes(*pair) for pair in pairs]


def test_unique_filters_are_minimal():
    appearances = [
        Appearance("small", "solid", "red", "star"),
        Appearance("large", "solid", "red", "star"),
        ALL_APPEARANCES[0],
    ]
    found = unique_filters(appearances, 0, exclude="pattern")
    assert found
    assert all(each.count(appearances) == 1 and "pattern" not in each.attributes for each in found)
    assert not any(set(first.attributes) < set(second.attributes) for first in found for second in found)
    assert unique_filters([appearances[0], appearances[0]], 0) == []


def test_render_is_deterministic():
    scene = sample_scene(rng_for("test", "render"), ALL_APPEARANCES, 4)
    first = render(scene)
    assert first.shape == (CANVAS, CANVAS, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, render(scene))
    assert not np.array_equal(first, render(dataclasses.replace(scene, style=scene.style + 1)))


@pytest.mark.parametrize("shape", VALUES["shape"])
def test_render_shape_color_and_pattern(shape):
    images = {}
    for color in RGB:
        for pattern in VALUES["pattern"]:
            scene = Scene((Object("large", pattern, color, shape, 64, 64, 23),), 5)
            images[color, pattern] = render(scene).astype(float)
        solid = images[color, "solid"]
        center = solid[60:68, 60:68].mean((0, 1))
        assert min(RGB, key=lambda name, center=center: np.abs(np.array(RGB[name]) - center).sum()) == color
        for pattern in ("striped", "dotted"):
            assert np.abs(solid - images[color, pattern])[50:78, 50:78].max() > 60
    changed = np.abs(images["red", "solid"] - images["blue", "solid"]).max(-1) > 30
    assert 0.05 < changed.mean() < 0.16  # only the object differs, and it has an area
    with pytest.raises(ValueError, match="heart"):
        render(Scene((Object("large", "solid", "red", "heart", 64, 64, 23),), 5))


def test_noun_phrases():
    assert language.noun_phrase(Appearance("large", "striped", "red", "star")) == "large striped red star"
    assert language.noun_phrase(Filter(shape="cross"), plural=True) == "crosses"
    assert language.definite(Filter(color="red")) == "the red thing"
    assert language.indefinite(Filter(shape="star")) == "a star"
    assert language.number_phrase(Filter(color="red", shape="star"), 2) == "two red stars"
    assert language.number_phrase(Filter(shape="star"), 1) == "one star"
    assert language.value_phrase("shape", "star") == "a star"
    assert language.value_phrase("color", "red") == "red"
    assert language.cell_phrase(Object("small", "solid", "red", "star", 5, 40, 14)) == "upper leftmost"
    wordings = language.QUESTIONS["exist"]
    assert wordings.sample(rng_for(1), x="star") in {text.format(x="star") for text in wordings.seen}
    assert wordings.sample(rng_for(1), held_out=True, x="star") == "does the picture show a star?"


def test_every_template_has_held_out_wordings():
    for table in (language.QUESTIONS, language.STATEMENTS, language.CAPTIONS):
        for wordings in table.values():
            assert wordings.held_out
            assert not set(wordings.seen) & set(wordings.held_out)
    names = {template.name for template in (*questions_vqa.TEMPLATES, *questions_gqa.TEMPLATES)}
    assert names == set(language.QUESTIONS)
    assert set(STATEMENT_KINDS) == set(language.STATEMENTS)
    assert set(questions_gqa.TYPES) == {template.name for template in questions_gqa.TEMPLATES}


def test_question_types_and_ten_answers():
    assert question_type("what color is the star?") == "what color is the"
    assert question_type("what color is at the top left?") == "what"
    assert question_type("count them") == "none of the above"
    answers = {vote["answer"] for k in range(300) for vote in ten_answers("circle", rng_for("people", k))}
    assert {"circle", "round", "ball"} < answers
    assert answers & set(VALUES["shape"]) == set(VALUES["shape"])
    assert {vote["answer"] for k in range(200) for vote in ten_answers("0", rng_for("n", k))} == {"0", "1"}


def test_captions_mention_salient_content():
    stars = [Object("small", "solid", "red", "star", 16 + 32 * k, 16, 14) for k in range(3)]
    cross = Object("large", "striped", "blue", "cross", 80, 80, 23)
    assert salient_group([*stars, cross]) == Filter(color="red", shape="star")
    captions = caption_scene(Scene((*stars, cross)), rng_for("c"))
    assert all("three red stars" in caption for caption in captions)
    assert salience(cross, [*stars, cross]) > salience(stars[0], [*stars, cross])
    assert all("blue cross" in caption for caption in caption_scene(Scene((cross,)), rng_for("c")))
    assert salient_group([stars[0], cross]) is None


@pytest.mark.parametrize("templates", [questions_vqa.TEMPLATES, questions_gqa.TEMPLATES], ids=["vqa", "gqa"])
def test_answers_are_balanced_in_every_form_and_wording(templates):
    number = 450
    sampler = QuestionSampler(templates)
    questions = []
    for index in range(number // 3):
        questions += sampler.sample(world_scene(9, "train", index), 3, rng_for("balance", index))
    assert len(questions) == number
    total_weight = sum(template.weight for template in templates)
    for template in templates:
        expected = number * template.weight / total_weight
        assert sum(q.template == template.name for q in questions) == pytest.approx(expected, abs=3)
        for form in template.forms:
            for wording in range(len(language.QUESTIONS[template.name].seen)):
                counts = [sampler.answer_counts[template.name, form, wording, answer] for answer in template.answers]
                assert max(counts) - min(counts) <= 1


def test_ood_questions_are_about_held_out_pairs():
    sampler = QuestionSampler(questions_vqa.TEMPLATES, only_held_out=True)
    for index in range(40):
        scene = world_scene(4, "ood", index)
        for question in sampler.sample(scene, 2, rng_for("held", index)):
            pairs = {(scene.objects[k].color, scene.objects[k].shape) for k in question.object_indices}
            named = any(x.names_held_out_pair for x in question.descriptions)
            assert pairs & HELD_OUT_PAIRS or named, question.text
    assert sum(sampler.template_counts.values()) > 60


def test_questions_do_not_depend_on_other_tasks(monkeypatch):
    size = build.SplitSize(scenes=12, questions=24, sets=4)
    before = build.sample_questions(2, "train", size, "vqa", questions_vqa.TEMPLATES)
    sets = pair_set(2, "train", 0)
    monkeypatch.setattr(questions_gqa, "TEMPLATES", questions_gqa.TEMPLATES[:1])
    build.sample_questions(2, "train", size, "gqa", questions_gqa.TEMPLATES)
    assert build.sample_questions(2, "train", size, "vqa", questions_vqa.TEMPLATES) == before
    assert pair_set(2, "train", 0) == sets


@pytest.mark.parametrize(
    ("split", "style", "sentence"),
    [
        ("train", 3018285001, "the left image contains a striped white thing."),
        ("val", 1061613806, "the right image contains a green thing."),
        ("test", 238236951, "the left image contains more red things than the right image."),
        ("ood", 2210201273, "the right image contains a blue thing."),
    ],
)
def test_random_streams_are_pinned(split, style, sentence):
    """The strings that seed the streams must not change: recorded scores belong to these scenes."""
    assert world_scene(0, split, 1).style == style
    assert pair_set(0, split, 1).sentences[0].text == sentence
