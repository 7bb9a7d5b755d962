"""Built worlds: official formats, true answers, held-out splits, text-only baseline, reproducible bytes."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from PIL import Image

from multitask_vl.cli.main import main as cli
from multitask_vl.errors import EXIT_BAD_INPUT, InputError
from multitask_vl.synthetic import build, language, text_only_baseline
from multitask_vl.synthetic.scenes import CANVAS, HELD_OUT_PAIRS, QUADRANTS, SPLITS
from multitask_vl.synthetic.writers import FILES
from tests.synthetic_readers import (
    graph_objects,
    parse_phrase,
    read,
    read_statements,
    run_program,
    split_texts,
    statement_truth,
)

SCALE = 0.06


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("synthetic") / "world"
    build.build_world(out, seed=3, scale=SCALE, processes=1)
    return out


def test_world_uses_only_vocabulary_words(world):
    known = set(language.vocabulary())
    captions = [sentence["raw"] for image in read(world, "captions")["images"] for sentence in image["sentences"]]
    texts = [*captions, *(text for split in SPLITS for text in split_texts(world, split))]
    assert {word for text in texts for word in language.split_words(text)} <= known
    annotations = read(world, "vqa_annotations")["annotations"]
    answers = {answer["answer"] for row in annotations for answer in row["answers"]}
    answers |= {row["answer"] for row in read(world, "gqa").values()}
    assert {word for answer in answers for word in answer.split()} <= known
    assert all(len(answer.split()) <= 2 for answer in answers)


@pytest.mark.shared
def test_files_have_official_keys(world, shared):
    samples = shared / "data" / "official_format_samples"

    def official(name: str):
        return json.loads((samples / name).read_text())

    theirs, ours = official("vqav2/v2_OpenEnded_mscoco_train2014_questions.json"), read(world, "vqa_questions")
    assert ours.keys() == theirs.keys()
    assert ours["questions"][0].keys() == theirs["questions"][0].keys()
    theirs, ours = official("vqav2/v2_mscoco_train2014_annotations.json"), read(world, "vqa_annotations")
    assert ours.keys() == theirs.keys()
    assert ours["annotations"][0].keys() == theirs["annotations"][0].keys()
    assert ours["annotations"][0]["answers"][0].keys() == theirs["annotations"][0]["answers"][0].keys()
    theirs, ours = official("gqa/questions_sample.json"), read(world, "gqa")
    theirs, ours = next(iter(theirs.values())), next(iter(ours.values()))
    assert ours.keys() == theirs.keys()
    assert all(ours[key].keys() == theirs[key].keys() for key in ("types", "groups", "annotations"))
    assert ours["semantic"][0].keys() == theirs["semantic"][0].keys()
    sample = (samples / "nlvr2" / "dev_sample.jsonl").read_text().splitlines()
    assert read_statements(world, "val")[0].keys() == json.loads(sample[0]).keys()


@pytest.mark.parametrize("split", SPLITS)
def test_vqa_files_are_consistent(world, split):
    questions = read(world, "vqa_questions", split)["questions"]
    annotations = {row["question_id"]: row for row in read(world, "vqa_annotations", split)["annotations"]}
    assert len({row["question_id"] for row in questions}) == len(questions) == len(annotations)
    assert len(questions) >= 0.9 * build.scaled_sizes(SCALE)[split].questions
    answer_types = {"yes": "yes/no", "no": "yes/no", **{str(k): "number" for k in range(10)}}
    disagreeing = 0
    for question in questions:
        annotation = annotations[question["question_id"]]
        answer = annotation["multiple_choice_answer"]
        assert question["image_id"] == annotation["image_id"] == question["question_id"] // 1000
        assert (world / "images" / f"{question['image_id']:012d}.png").is_file()
        votes = Counter(vote["answer"] for vote in annotation["answers"])
        assert [vote["answer_id"] for vote in annotation["answers"]] == list(range(1, 11))
        assert votes.most_common(1)[0][0] == answer
        assert votes[answer] >= 7
        disagreeing += len(votes) > 1
        assert annotation["answer_type"] == answer_types.get(answer, "other")
        assert question["question"].startswith(annotation["question_type"])
    if split == "train":
        assert 0.3 < disagreeing / len(questions) < 0.5


@pytest.mark.parametrize("split", ["test", "ood"])
def test_gqa_programs_yield_answers(world, split):
    questions, graphs = read(world, "gqa", split), read(world, "gqa_scenes", split)
    assert len(questions) >= 0.9 * build.scaled_sizes(SCALE)[split].questions
    for key, question in questions.items():
        assert (world / "images" / f"{question['imageId']}.png").is_file()
        objects = graph_objects(graphs[question["imageId"]])
        program = question["semantic"]
        assert {number for step in program for number in re.findall(r"\d+", step["argument"])} <= set(objects)
        assert run_program(program, objects) == question["answer"], (key, question["question"])
        assert question["semanticStr"].count("->") == len(program) - 1
        assert question["fullAnswer"].endswith(".")
    structural = Counter(question["types"]["structural"] for question in questions.values())
    assert set(structural) == {"query", "verify", "choose", "logical", "compare"}
    relational = sum(question["types"]["detailed"].startswith("relS") for question in questions.values())
    assert relational > 0.3 * len(questions)


def test_vqa_answers_are_true(world):
    graphs = read(world, "gqa_scenes", "test")
    annotations = read(world, "vqa_annotations", "test")["annotations"]
    answers = {row["question_id"]: row["multiple_choice_answer"] for row in annotations}
    num_checked = 0
    for question in read(world, "vqa_questions", "test")["questions"]:
        objects = graph_objects(graphs[f"{question['image_id']:012d}"]).values()
        text, answer = question["question"], answers[question["question_id"]]
        if match := re.fullmatch(r"(?:how many|what is the number of) (.*?)(?: are there| can you see)?\?", text):
            assert answer == str(parse_phrase(match[1]).count(objects)), text
        elif match := re.fullmatch(r"(?:is there|can you see) a ([a-z ]*?)(?: in the picture)?\?", text):
            assert answer == ("yes" if parse_phrase(match[1]).count(objects) else "no"), text
        elif match := re.fullmatch(r"(?:are there|can you see) more (.*) than (.*)\?", text):
            more = parse_phrase(match[1]).count(objects) > parse_phrase(match[2]).count(objects)
            assert answer == ("yes" if more else "no"), text
        elif match := re.search(r"at the (top|bottom) (left|right)\?", text):
            (thing,) = (each for each in objects if each.quadrant == f"{match[1]} {match[2]}")
            assert answer in thing.appearance, text
        elif match := re.fullmatch(
            r"(?:what|which) (color|shape|pattern|size) (?:is|does) the ([a-z ]*?)(?: have)?\?", text
        ):
            (thing,) = (each for each in objects if parse_phrase(match[2]).matches(each))
            assert answer == getattr(thing, match[1]), text
        else:
            continue
        num_checked += 1
    assert num_checked > 60


@pytest.mark.parametrize("split", SPLITS)
def test_nlvr2_labels_are_true_and_balanced(world, split):
    graphs, groups = read(world, "nlvr2_scenes", split), defaultdict(list)
    rows = read_statements(world, split)
    assert len({row["identifier"] for row in rows}) == len(rows) == 8 * build.scaled_sizes(SCALE)[split].sets
    for row in rows:
        name, index, pair, sentence = row["identifier"].split("-")
        assert name == split
        groups[index, sentence].append((row["sentence"], row["label"]))
        keys = [f"{split}-{index}-{pair}-img{side}" for side in (0, 1)]
        assert [row["left_url"], row["right_url"]] == [f"images/{key}.png" for key in keys]
        assert all((world / "images" / f"{key}.png").is_file() for key in keys)
        truth = statement_truth(row["sentence"], [list(graph_objects(graphs[key]).values()) for key in keys])
        assert truth is None or str(truth) == row["label"], row
    for group in groups.values():
        assert len({sentence for sentence, _ in group}) == 1
        assert Counter(label for _, label in group) == {"True": 2, "False": 2}


def test_captions_are_true(world):
    graphs = {split: read(world, "gqa_scenes", split) for split in SPLITS}
    images = read(world, "captions")["images"]
    assert {image["split"] for image in images} == set(SPLITS)
    assert len({image["imgid"] for image in images}) == len(images)
    assert len({s["sentid"] for image in images for s in image["sentences"]}) == 5 * len(images)
    for image in images:
        assert len(image["sentences"]) == 5
        assert (world / image["filepath"] / image["filename"]).is_file()
        objects = graph_objects(graphs[image["split"]][Path(image["filename"]).stem]).values()
        for sentence in image["sentences"]:
            assert sentence["tokens"] == language.split_words(sentence["raw"])[:-1]
            text = re.sub(r"^(there (is|are) |a picture of )", "", sentence["raw"].rstrip("."))
            for part in re.split(r" and | left of | right of | above | below | at the ", text):
                if part in QUADRANTS:
                    continue
                number, phrase = part.split(" ", 1)
                count = parse_phrase(phrase).count(objects)
                assert count >= 1 if number == "a" else count == language.NUMBER_WORDS.index(number), sentence["raw"]


@pytest.mark.parametrize("split", SPLITS)
def test_held_out_pairs_occur_in_ood_only(world, split):
    graphs = [graph for name in ("gqa_scenes", "nlvr2_scenes") for graph in read(world, name, split).values()]
    pairs = [(thing.color, thing.shape) for graph in graphs for thing in graph_objects(graph).values()]
    texts = split_texts(world, split)
    drawn = sum(pair in HELD_OUT_PAIRS for pair in pairs) / len(pairs)
    named = sum(any(f"{color} {shape}" in text for color, shape in HELD_OUT_PAIRS) for text in texts) / len(texts)
    if split == "ood":
        assert drawn > 0.3
        assert named > 0.1
    else:
        assert (drawn, named) == (0, 0)


def read_tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_make_synthetic_same_seed_same_bytes(tmp_path, capsys):
    assert cli(["make-synthetic", "--out", str(tmp_path / "cli"), "--seed", "5", "--scale", "0.004"]) == 0
    assert "vqa/train" in capsys.readouterr().out
    build.build_world(tmp_path / "one", seed=5, scale=0.004, processes=1)
    tree = read_tree(tmp_path / "one")
    assert tree == read_tree(tmp_path / "cli")
    header = json.loads(tree["world.json"])
    assert header["counts"]["images"] == sum(name.startswith("images/") for name in tree)
    with Image.open(tmp_path / "one" / "images" / "train-0-0-img0.png") as image:
        assert image.size == (CANVAS, CANVAS)
    size = build.SplitSize(scenes=2, questions=4, sets=1)
    templates = build.questions_vqa.TEMPLATES
    samples = [build.sample_questions(seed, "train", size, "vqa", templates) for seed in (5, 6)]
    assert samples[0] != samples[1]


def test_default_split_sizes():
    for split, minimum in (("train", 4000), ("test", 800)):
        size = build.SPLIT_SIZES[split]
        assert min(size.questions, size.scenes, 8 * size.sets) >= minimum


def test_build_world_invalid_arguments(tmp_path, capsys):
    (tmp_path / "existing").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError) as caught:
        build.build_world(tmp_path / "existing", seed=-1, scale=0, processes=0)
    assert [problem.split()[0] for problem in caught.value.problems] == ["--out", "--seed", "--scale", "--processes"]
    assert cli(["make-synthetic", "--out", str(tmp_path / "file" / "world")]) == EXIT_BAD_INPUT
    assert "is a file, not a folder" in capsys.readouterr().err


def test_text_only_baseline_stays_below_maximum(world, capsys):
    assert text_only_baseline.main(["--world", str(world), "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    for task, maximum in text_only_baseline.MAX_TEXT_ONLY_SCORE.items():
        assert scores[task]["train_fit"] <= maximum
        assert scores[task]["majority"] <= scores[task]["max_score"] == maximum
    assert scores["nlvr2"]["train_fit"] == scores["nlvr2"]["oracle_fit"] == 50
    assert 0 < scores["captions"]["train_fit"] <= scores["captions"]["oracle_fit"] < 60
    ood = text_only_baseline.score_baseline("gqa", world, "ood")
    assert (ood.split, ood.max_score, ood.is_too_easy) == ("ood", None, False)


def test_text_only_baseline_detects_leak(world, tmp_path, capsys):
    for split in ("train", "test"):
        for name in FILES:
            path = tmp_path / FILES[name].format(split=split)
            path.parent.mkdir(exist_ok=True)
            path.write_text((world / FILES[name].format(split=split)).read_text())
        path = tmp_path / FILES["nlvr2"].format(split=split)
        rows = [row for row in read_statements(world, split) if row["label"] == str("left" in row["sentence"])]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert text_only_baseline.score_baseline("nlvr2", tmp_path).train_fit > 90
    assert text_only_baseline.main(["--world", str(tmp_path)]) == text_only_baseline.EXIT_TOO_EASY
    assert "examples of test" in capsys.readouterr().out


def test_text_only_baseline_ignores_attributes():
    assert text_only_baseline.skeleton("what color is the large striped star?") == "what color is the _ _ _?"
    assert text_only_baseline.template("is there a red thing left of the star?") == "is there a _ left of the _?"
    assert text_only_baseline.human_accuracy(10) == text_only_baseline.human_accuracy(4) == 1
    assert text_only_baseline.human_accuracy(1) == pytest.approx(0.3)
    items = [
        text_only_baseline.Item("is it red or blue?", {"blue": 1.0}, ""),
        text_only_baseline.Item("is it red or green?", {"green": 1.0}, ""),
    ]
    assert text_only_baseline._best_rules(items, text_only_baseline.skeleton)["is it _ or _?"] == 1


def test_text_only_baseline_missing_or_corrupt_world(tmp_path, capsys):
    assert text_only_baseline.main(["--world", str(tmp_path)]) == EXIT_BAD_INPUT
    assert "Make one: multitask-vl make-synthetic" in capsys.readouterr().err
    path = tmp_path / FILES["vqa_questions"].format(split="train")
    path.parent.mkdir(parents=True)
    path.write_text('{"questions": [\n}')
    assert text_only_baseline.main(["--world", str(tmp_path)]) == EXIT_BAD_INPUT
    assert f"{path}:2: not JSON" in capsys.readouterr().err
