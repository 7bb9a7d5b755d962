"""Metrics: equality with the official scorers, and notes on metrics that cannot be computed."""

import json
import os
import shutil
from pathlib import Path

import pytest

from multitask_vl.cli.main import main
from multitask_vl.errors import InputError
from multitask_vl.metrics import caption
from multitask_vl.metrics.caption import caption_scores
from multitask_vl.metrics.caption_tokenizer import simple_tokenize, tokenize
from multitask_vl.metrics.gqa import GQAQuestion, gqa_scores
from multitask_vl.metrics.nlvr2 import nlvr2_scores, sentence_of
from multitask_vl.metrics.vqa_accuracy import HumanAnswers, normalize, question_accuracy, vqa_accuracy
from multitask_vl.training.preemption import Interrupted

JAVA_OPTIONS = "-XX:+UseSerialGC -XX:TieredStopAtLevel=1"
"""Less processor time for short Java processes."""
needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="no java on PATH")
DOGS = {"1": ["A dog runs.", "The dog is running"], "2": ["A red car", "A car is parked"], "3": ["Two cats sleep."]}
CAPTIONS = {"1": "a dog is running", "2": "a blue car", "3": "two cats"}


def load(path: Path):
    return json.loads(path.read_text())


def failing_scorer(truth, result):
    raise ValueError("broken scorer")


# ---- VQA


@pytest.mark.shared
def test_vqa_score_command_equals_official_scorer(shared, tmp_path, capsys):
    oracle = shared / "data" / "vqa_accuracy_oracle"
    out = tmp_path / "scores.json"
    arguments = ["--task", "vqa", "--references", str(oracle / "annotations.json")]
    assert main(["score", *arguments, "--predictions", str(oracle / "predictions.json"), "--out", str(out)]) == 0
    found, summary = load(out), load(oracle / "expected_summary.json")
    assert found["per_question"] == load(oracle / "expected_per_question.json")
    assert len(found["per_question"]) == 500
    assert {name: found[name] for name in summary} == summary
    low, high = found["intervals"]["overall"]["interval"]
    assert 54 < low < 58.32 < high < 63  # 500 questions whose accuracies have a standard deviation of 46
    out = capsys.readouterr().out
    assert "overall 58.32" in out
    assert f"overall: 95 % interval {low:.2f} to {high:.2f}, resampling questions" in out


@pytest.mark.parametrize(("agreeing", "expected"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (9, 1.0)])
def test_question_accuracy_averages_over_leave_one_out(agreeing, expected):
    humans = ["yes"] * agreeing + [f"other {i}" for i in range(10 - agreeing)]
    assert question_accuracy("yes", humans) == pytest.approx(expected)


def test_question_accuracy_normalizes_only_if_humans_differ():
    assert question_accuracy("yes", ["Yes"] * 10) == 0
    assert question_accuracy("yes", ["Yes"] * 9 + ["no"]) == 1


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("The Cat.", "cat"),
        ("two  dogs", "2 dogs"),
        ("none", "0"),
        ("dont know", "don't know"),
        ("somebody'd", "somebodyd"),
        ("couldnt've", "couldn't've"),
        ("1,000", "1000"),
        ("1.5", "1.5"),
        ("x-ray", "x ray"),
        ("x- ray", "x ray"),
        ("red/blue", "red blue"),
        ("red / blue", "red blue"),
        ("what?", "what"),
        ("a.b." * 20, "ab" * 16 + ".".join("ab" * 4) + "."),
    ],
)
def test_normalize_equals_official_scorer(answer, expected):
    assert normalize(answer) == expected


def test_vqa_accuracy_per_group():
    humans = {
        "1": HumanAnswers(["wall"] * 10, "other", "where is the"),
        "2": HumanAnswers(["sky"] * 10, "other", "where is the"),
        "3": HumanAnswers(["floor"] * 10, "other", "what is on the"),
        "4": HumanAnswers(["x"] * 10),
    }
    found = vqa_accuracy({"1": "wall", "2": "sky", "3": "no", "4": "x"}, humans)
    assert found.per_group == {"where": 66.67}
    assert found.per_group_macro == {"where": 50.0}
    assert found.per_answer_type == {"other": 66.67}
    assert found.per_question_type == {"where is the": 100.0, "what is on the": 0.0}
    assert found.overall == 75.0


# ---- GQA and NLVR2


def test_gqa_scores_groups_and_consistency():
    choose, query = {"structural": "choose", "semantic": "attr"}, {"structural": "query", "semantic": "rel"}
    questions = {
        "a": GQAQuestion("left", choose, ["b", "c", "elsewhere", "a"]),
        "b": GQAQuestion("yes", choose),
        "c": GQAQuestion("man", query, ["a"]),
    }
    found = gqa_scores({"a": "left", "b": "Yes", "c": "man"}, questions)
    assert found.accuracy == pytest.approx(200 / 3)
    assert found.per_question == {"a": 100, "b": 0, "c": 100}
    assert found.groups["structural"] == {"choose": 50, "query": 100}
    assert found.groups["semantic"] == {"attr": 50, "rel": 100}
    assert found.groups["answer"] == {"binary": 50, "open": 100}
    assert found.consistency == pytest.approx(75)  # a entails b (wrong) and c (correct); c entails a (correct)
    assert found.missing_entailed == 1
    assert gqa_scores({"b": "no"}, questions).consistency is None


def test_gqa_scores_use_balanced_questions_only():
    """As in GQA's official evaluation on a file of all questions, the others are used as entailed ones only."""
    kind = {"structural": "verify", "detailed": "existAttr"}
    questions = {
        "1": GQAQuestion("yes", kind, ["1", "2", "3"]),
        "2": GQAQuestion("no", kind, ["1"], balanced=False),
        "3": GQAQuestion("dog", kind, ["1"], balanced=False),
        "4": GQAQuestion("red", {**kind, "detailed": "chooseAttr"}, ["2"]),
    }
    found = gqa_scores({"1": "yes", "2": "no", "3": "cat", "4": "blue"}, questions)
    assert found.accuracy == 50  # 1 is correct, 4 is not
    assert found.consistency == 50  # only 1 counts; of 2 and 3, one is correct
    assert found.missing_entailed == 0
    assert found.groups == {
        "structural": {"verify": 50}, "detailed": {"existAttr": 100, "chooseAttr": 0}, "answer": {"binary": 50}
    }  # fmt: skip
    assert set(found.per_question) == set(questions)
    assert set(found.balanced) == {"1", "4"}
    assert gqa_scores({"2": "no", "3": "no"}, questions).accuracy == 50


def test_nlvr2_consistency_needs_every_pair_of_a_sentence():
    truth = {"dev-1-0-0": True, "dev-1-1-0": False, "dev-1-0-1": True, "dev-2-0-0": False}
    found = nlvr2_scores({"dev-1-0-0": True, "dev-1-1-0": True, "dev-1-0-1": True, "dev-2-0-0": None}, truth)
    assert found.accuracy == 50
    assert found.consistency == pytest.approx(100 / 3)
    assert found.per_item["dev-2-0-0"] == 0
    assert found.per_sentence == {"dev-1--0": 0, "dev-1--1": 100, "dev-2--0": 0}


@pytest.mark.parametrize(
    ("identifier", "sentence"), [("dev-12-3-1", "dev-12--1"), ("939-0", "939"), ("mine", "mine"), ("a-b-c", "a-b-c")]
)
def test_sentence_of_identifier(identifier, sentence):
    assert sentence_of(identifier) == sentence


# ---- captions


@needs_java
@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "images", "meteor"), [("human_300", 300, False), ("fakecap_126", 126, True)], ids=["human", "generated"]
)
def test_caption_score_command_equals_official_toolkit(shared, tmp_path, monkeypatch, name, images, meteor):
    """METEOR, which takes 10 s of processor time, runs on the smaller set only; on the other it fails."""
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", JAVA_OPTIONS)
    if not meteor:
        monkeypatch.setitem(caption._RUN, "METEOR", failing_scorer)
    prefix = shared / "data" / "caption_eval" / name
    out = tmp_path / "scores.json"
    arguments = ["--task", "caption", "--references", f"{prefix}_references.json"]
    assert main(["score", *arguments, "--predictions", f"{prefix}_results.json", "--out", str(out)]) == 0
    found, expected = load(out), load(Path(f"{prefix}_expected_scores.json"))["scores"]
    assert found["images"] == expected.pop("images") == len(found["per_image"]) == images
    metrics = {"Bleu_4", "METEOR", "ROUGE_L", "CIDEr"}
    if not meteor:
        assert found["notes"]["METEOR"] == "not computed: ValueError: broken scorer"
        metrics.remove("METEOR")
        expected["METEOR"] = None
    assert {metric: found[metric] for metric in expected} == {
        metric: None if value is None else pytest.approx(100 * value, abs=1e-4) for metric, value in expected.items()
    }
    per_image = load(Path(f"{prefix}_expected_per_image.json"))
    assert set(per_image) == set(found["per_image"])
    for image, values in per_image.items():
        for metric in metrics:
            assert found["per_image"][image][metric] == pytest.approx(100 * values[metric], abs=1e-3)
    low, high = found["intervals"]["CIDEr"]["interval"]
    assert low < found["CIDEr"] < high
    assert found["SPICE"] is None
    assert "stanford-corenlp-3.6.0.jar" in found["notes"]["SPICE"]


@pytest.mark.shared
def test_caption_scores_without_java_equal_official_toolkit(shared, monkeypatch):
    monkeypatch.setenv("PATH", "")
    name = shared / "data" / "caption_eval" / "fakecap_126"
    references: dict[str, list[str]] = {}
    for item in load(Path(f"{name}_references.json"))["annotations"]:
        references.setdefault(str(item["image_id"]), []).append(item["caption"])
    captions = {str(item["image_id"]): item["caption"] for item in load(Path(f"{name}_results.json"))}
    found = caption_scores(references, captions, tokenizer="python")
    expected = load(Path(f"{name}_expected_scores.json"))["scores"]
    for metric in ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L", "CIDEr"):
        assert found.corpus[metric] == pytest.approx(100 * expected[metric], abs=1e-4)
    assert found.corpus["METEOR"] is None
    assert found.notes["METEOR"] == "not computed: METEOR needs Java, and there is no 'java' on PATH"
    with pytest.raises(InputError, match="choose the tokenizer python"):
        caption_scores(references, captions, tokenizer="ptb")


@needs_java
@pytest.mark.shared
def test_python_tokenizer_equals_ptb(shared, monkeypatch):
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", JAVA_OPTIONS)
    data = shared / "data" / "caption_eval"
    texts = [item["caption"] for item in load(data / "human_300_results.json")]
    texts += [item["caption"] for item in load(data / "fakecap_126_references.json")["annotations"]]
    texts += ["The U.S. sign (at 10:30) isn't St. John's\nman/woman e-mail: 22 3/4 \"oh\" can't cannot", "", "..."]
    texts += ["a \ud83d dog", "a ? dog"]
    assert len(texts) == 300 + 631 + 3 + 2
    official, plain = tokenize(texts, "ptb"), tokenize(texts, "python")
    assert [pair for pair in zip(official, plain, strict=True) if pair[0] != pair[1]] == []
    assert official[-2] == official[-1]  # a lone surrogate is tokenized as a question mark


def test_simple_tokenize():
    assert tokenize(["A man's dog, isn't it?\n(Yes!)"], "python") == ["a man 's dog is n't it -lrb- yes -rrb-"]
    assert simple_tokenize("It cost 1,000.50 at 5 p.m. – ok") == [
        "it", "cost", "1,000.50", "at", "5", "p.m.", "--", "ok",
    ]  # fmt: skip
    with pytest.raises(InputError, match="'spacy' is not known"):
        tokenize(["a"], "spacy")


def test_caption_scores_keep_other_metrics_if_one_scorer_fails(monkeypatch):
    monkeypatch.setitem(caption._RUN, "Bleu", failing_scorer)
    found = caption_scores(DOGS, CAPTIONS, tokenizer="python", scorers=["Bleu", "CIDEr"])
    assert found.corpus["Bleu_4"] is None
    assert found.notes["Bleu_4"] == "not computed: ValueError: broken scorer"
    assert found.corpus["CIDEr"] == pytest.approx(sum(v["CIDEr"] for v in found.per_image.values()) / 3)


def test_cider_of_single_image_has_note():
    found = caption_scores({"1": DOGS["1"]}, {"1": DOGS["1"][0]}, tokenizer="python", scorers=["CIDEr"])
    assert found.corpus["CIDEr"] == 0
    assert found.notes["CIDEr"].startswith("always 0 for a single image")
    assert "CIDEr" not in caption_scores(DOGS, CAPTIONS, tokenizer="python", scorers=["CIDEr"]).notes


def test_caption_scores_do_not_catch_preemption(monkeypatch):
    def stopped(*_):
        raise Interrupted("stopped by SIGTERM")

    monkeypatch.setitem(caption._RUN, "Bleu", stopped)
    with pytest.raises(Interrupted):
        caption_scores(DOGS, CAPTIONS, tokenizer="python", scorers=["Bleu"])


def test_caption_scores_survive_java_crash(tmp_path, monkeypatch):
    java = tmp_path / "java"
    java.write_text("#!/bin/sh\nexit 3\n")
    java.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/bin")
    found = caption_scores(DOGS, CAPTIONS, tokenizer="python", scorers=["METEOR", "ROUGE_L"])
    assert found.corpus["METEOR"] is None
    assert found.notes["METEOR"].startswith("not computed: ")
    assert found.corpus["ROUGE_L"] > 0
    with pytest.raises(InputError, match="java exited with code 3"):
        tokenize(["a dog"], "ptb")


def test_spice_runs_if_its_jars_exist(tmp_path, monkeypatch):
    lib = tmp_path / "lib"
    lib.mkdir()
    for jar in caption._SPICE_JARS:
        (lib / jar).touch()
    monkeypatch.setattr(caption.spice, "__file__", str(tmp_path / "spice.py"))
    monkeypatch.setattr(caption.shutil, "which", lambda name: "/usr/bin/java")

    class Spice:
        def compute_score(self, truth, result):
            return 0.5, [{"All": {"f": value}} for value in (0.25, float("nan"), 0.75)]

    monkeypatch.setattr(caption.spice, "Spice", Spice)
    reordered = {image: CAPTIONS[image] for image in ("3", "1", "2")}
    found = caption_scores(DOGS, reordered, tokenizer="python", scorers=["SPICE"])
    assert found.corpus["SPICE"] == 50
    assert {image: values["SPICE"] for image, values in found.per_image.items()} == {"3": 75, "1": 25, "2": 0}
    monkeypatch.setattr(caption.shutil, "which", lambda name: None)
    assert "needs Java" in caption_scores(DOGS, CAPTIONS, "python", ["SPICE"]).notes["SPICE"]


@pytest.mark.parametrize(
    ("references", "captions", "scorers", "message"),
    [
        (DOGS, {}, ["CIDEr"], "no captions"),
        (DOGS, {"1": "a", "9": "b"}, ["CIDEr"], r"1 of 2 images have no reference captions \(first: 9\)"),
        (DOGS, CAPTIONS, ["BERT"], "'BERT' is not known"),
    ],
)
def test_captions_that_cannot_be_scored(references, captions, scorers, message):
    with pytest.raises(InputError, match=message):
        caption_scores(references, captions, "python", scorers)
