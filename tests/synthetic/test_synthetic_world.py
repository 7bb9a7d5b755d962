"""Does a built world hold what it promises: official layouts, true answers, splits, blind ceilings, same bytes?"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from PIL import Image

from multitask_vl.errors import EXIT_BAD_INPUT, InputError
from multitask_vl.synthetic import build, language, text_only_baseline
from multitask_vl.synthetic.scenes import (
    CANVAS,
    HELD_OUT_PAIRS,
    PLACES,
)
from multitask_vl.synthetic.writers import FILES, SPLITS
from tests.synthetic_readers import lines, parse, read, run_program, stated, texts, things


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("synthetic") / "world"
    build.build(out, seed=3, scale=0.12, processes=2)
    return out


def test_the_world_speaks_only_words_of_the_vocabulary(world):
    known = set(language.vocabulary())
    spoken = {word for split in SPLITS for text in texts(world, split) for word in language.words_of(text)}
    answers = {a["answer"] for one in read(world, "vqa_annotations")["annotations"] for a in one["answers"]}
    answers |= {one["answer"] for one in read(world, "gqa").values()}
    assert spoken <= known
    assert {word for answer in answers for word in answer.split()} <= known
    assert all(len(answer.split()) <= 2 for answer in answers)


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
        truth = stated(row["sentence"], counts)
        assert truth is None or str(truth) == row["label"], row
    for group in groups.values():
        assert len({sentence for sentence, _ in group}) == 1
        assert Counter(label for _, label in group) == {"True": 2, "False": 2}


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
    assert text_only_baseline.main(["--world", str(world), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    for task, ceiling in text_only_baseline.CEILINGS.items():
        assert found[task]["learnt"] <= ceiling
        assert found[task]["majority"] <= found[task]["ceiling"] == ceiling
    assert found["nlvr2"]["learnt"] == found["nlvr2"]["fitted"] == 50
    assert 0 < found["captions"]["learnt"] <= found["captions"]["fitted"] < 60
    assert text_only_baseline.main(["--world", str(world), "--split", "heldout"]) == 0
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
    assert text_only_baseline.read_blind("nlvr2", tmp_path).learnt > 90
    assert text_only_baseline.main(["--world", str(tmp_path)]) == text_only_baseline.EXIT_TOO_EASY
    assert "nlvr2" in capsys.readouterr().out


def test_blind_reader_sees_form_but_no_attribute():
    assert text_only_baseline.skeleton("what color is the large striped star?") == "what color is the _ _ _?"
    assert text_only_baseline.template("is there a red thing left of the star?") == "is there a _ left of the _?"
    assert text_only_baseline.human_accuracy(10) == text_only_baseline.human_accuracy(4) == 1
    assert text_only_baseline.human_accuracy(1) == pytest.approx(0.3)
    items = [
        text_only_baseline.Item("is it red or blue?", {"blue": 1.0}, ""),
        text_only_baseline.Item("is it red or green?", {"green": 1.0}, ""),
    ]
    assert text_only_baseline._best_rules(items, text_only_baseline.skeleton)["is it _ or _?"] == 1


def test_blind_refuses_what_is_no_world(tmp_path, capsys):
    assert text_only_baseline.main(["--world", str(tmp_path)]) == EXIT_BAD_INPUT
    assert "Make one: python -m multitask_vl.synthetic.build" in capsys.readouterr().err
    path = tmp_path / FILES["vqa_questions"].format(split="train")
    path.parent.mkdir(parents=True)
    path.write_text('{"questions": [\n}')
    assert text_only_baseline.main(["--world", str(tmp_path)]) == EXIT_BAD_INPUT
    assert f"{path}:2: not JSON" in capsys.readouterr().err
