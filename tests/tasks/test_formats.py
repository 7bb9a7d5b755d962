"""Annotation formats other than the official ones: LXMERT's lists, Visual Genome, A-OKVQA, shards."""

import gzip
import json

import numpy as np
import pytest

from multitask_vl.data.example_table import load_table, table_provenance
from multitask_vl.errors import InputError
from tests.task_files import karpathy_file, make, read, vqa_files, write

TEN = [
    {"answer": answer, "answer_confidence": "yes", "answer_id": n} for n, answer in enumerate(["net"] * 7 + ["web"] * 3)
]
LXMERT = {
    "answer_type": "other",
    "img_id": "COCO_val2014_000000000007",
    "label": {"web": 0.9, "net": 1, "": 0.3},
    "question_id": 7001,
    "question_type": "what is this",
    "sent": "What is it taken through?",
}
GENOME = [
    {"id": image, "qas": [{"qa_id": 10 * image + n, "image_id": image, "question": "Why?", "answer": "The sun."}]}
    for n, image in enumerate((1, 2, 3, 4))
]


def annotations(folder, *ids, name="annotations.json"):
    items = [{"question_id": id_, "image_id": 7, "answers": TEN, "answer_type": "other"} for id_ in ids]
    return write(folder, name, {"annotations": items})


# ---- VQA


def test_lxmert_list_is_detected_by_content(tmp_path):
    (tmp_path / "v2_OpenEnded_questions.json").write_bytes(gzip.compress(json.dumps([LXMERT]).encode()))
    task = make("vqa", tmp_path, questions="v2_OpenEnded_questions.json")
    (example,) = read(task)
    assert (example.id, example.images, example.text) == ("7001", (LXMERT["img_id"],), LXMERT["sent"])
    # the highest score first, and a blank answer is not a target
    assert (example.answers, example.scores) == (("net", "web"), (1.0, 0.9))
    assert example.meta == {}


def test_lxmert_list_accepts_superset_annotations(tmp_path):
    items = [LXMERT, {**LXMERT, "question_id": 7002, "label": {}}]
    listed = write(tmp_path, "minival.json", items)
    superset = annotations(tmp_path, 7000, 7002, 7001, 7003)
    examples = {e.id: e for e in read(make("vqa", tmp_path, questions=listed, annotations=superset))}
    assert set(examples) == {"7001", "7002"}
    # targets come from the list, which has the published answers; the ten human answers are for scoring
    assert (examples["7001"].answers, examples["7002"].answers) == (("net", "web"), ())
    assert examples["7001"].meta["answers"] == ["net"] * 7 + ["web"] * 3
    twice = annotations(tmp_path, 7001, 7002, 7001, name="twice.json")
    with pytest.raises(InputError, match=r"or a second one: .*\(question 7001\)"):
        read(make("vqa", tmp_path, questions=listed, annotations=twice))
    with pytest.raises(InputError, match="question without annotation: question 7002"):
        read(make("vqa", tmp_path, questions=listed, annotations=annotations(tmp_path, 7001)))


def test_vl_t5_list_has_human_answers(tmp_path):
    listed = write(tmp_path, "karpathy_test.json", [{**LXMERT, "answers": TEN, "is_topk_optimal": True}])
    (example,) = read(make("vqa", tmp_path, questions=listed))
    assert example.answers == ("net", "web")
    assert example.meta["answers"] == ["net"] * 7 + ["web"] * 3
    assert (example.meta["answer_type"], example.meta["question_type"]) == ("other", "what is this")


def test_lxmert_test_list_has_no_labels(tmp_path):
    hidden = {"img_id": "COCO_test2015_000000000016", "question_id": 16000, "sent": "What is it?"}
    (example,) = read(make("vqa", tmp_path, questions=write(tmp_path, "test.json", [hidden])))
    assert (example.answers, example.meta) == ((), {})
    mixed = write(tmp_path, "mixed.json", [hidden, LXMERT])
    with pytest.raises(InputError, match="some have none: 1 of 2"):
        read(make("vqa", tmp_path, questions=mixed))


def test_vqa_unanswerable_questions_are_kept_or_dropped(tmp_path):
    listed = write(tmp_path, "train.json", [LXMERT, {**LXMERT, "question_id": 2, "label": {}}])
    write(tmp_path, "answers.json", ["web"])
    options = {"answer_list": "answers.json"}
    table = load_table(make("vqa", tmp_path, task_options=options, questions=listed), "s", tmp_path / "cache")
    assert table["answers"][:] == [["web"], []]
    assert table_provenance(table)["warnings"] == {"questions without a target, kept with weight 0": 1}
    task = make("vqa", tmp_path, unanswerable="drop", questions=listed)
    assert [e.id for e in read(task)] == ["7001"]
    assert task.warnings["s"] == {"questions without a target, dropped": 1}


def test_vqa_subset_selects_by_split_field(tmp_path):
    files = vqa_files(tmp_path)
    questions = json.loads((tmp_path / "q.json").read_text())
    for item, split in zip(questions["questions"], ("train", "valid", "valid"), strict=True):
        item["split"] = split
    write(tmp_path, "q.json", questions)
    assert [e.id for e in read(make("vqa", tmp_path, subset="valid", **files))] == ["11", "12"]
    with pytest.raises(InputError, match=r"no item has the split 'dev': q.json has train \(1\), valid \(2\)"):
        read(make("vqa", tmp_path, subset=["dev"], **files))


def test_visual_genome_is_read_next_to_official_files(tmp_path):
    files = vqa_files(tmp_path)
    write(tmp_path, "question_answers.json", GENOME)
    sources = [files["questions"], "question_answers.json"]
    task = make("vqa", tmp_path, questions=sources, annotations=files["annotations"])
    examples = {e.id: e for e in read(task)}
    assert set(examples) == {"10", "11", "12", "vg-10", "vg-21", "vg-32", "vg-43"}
    assert (examples["vg-10"].images, examples["vg-10"].answers, examples["vg-10"].scores) == (("1",), ("sun",), (1.0,))
    as_written = {"answers": "as_written", "image_key": "VG_{image_id:07d}"}
    (first, *_) = read(make("vqa", tmp_path, questions="question_answers.json", visual_genome=as_written))
    assert (first.images, first.answers) == (("VG_0000001",), ("The sun.",))


def test_visual_genome_drops_images_of_other_karpathy_splits(tmp_path):
    files = {**vqa_files(tmp_path, 4), "karpathy": karpathy_file(tmp_path)}
    write(tmp_path, "question_answers.json", GENOME)
    # Karpathy's file has 0 train, 1 restval, 2 val, 3 and 4 test
    data = [{"image_id": image, "coco_id": coco} for image, coco in ((1, 0), (2, 2), (3, None), (4, 1))]
    write(tmp_path, "image_data.json", data)
    files["questions"] = [files["questions"], "question_answers.json"]
    task = make("vqa", tmp_path, "train", visual_genome={"image_data": "image_data.json"}, **files)
    assert [e.id for e in read(task, "train")] == ["vg-10", "vg-32", "vg-43", "10", "11"]
    assert list(task.warnings["train"].values()) == [1]
    with pytest.raises(InputError, match=r"it is unknown which: 4 in all.*Set visual_genome.image_data"):
        read(make("vqa", tmp_path, "train", **files), "train")


def test_aokvqa_list_has_official_field_names(tmp_path):
    item = {"split": "val", "image_id": 872, "question_id": "gYU", "question": "Why?", "direct_answers": ["so"] * 10}
    task = make("vqa", tmp_path, questions=write(tmp_path, "a.json", [item]), image_key="{image_id:012d}")
    (example,) = read(task)
    assert (example.id, example.images, example.answers, example.scores) == ("gYU", ("000000000872",), ("so",), (1.0,))
    assert len(example.meta["answers"]) == 10


def test_image_key_requires_fields_of_the_item(tmp_path):
    listed = write(tmp_path, "train.json", [LXMERT])
    with pytest.raises(InputError, match=r"image_key '{image_id:012d}' names {image_id}, which the item does not have"):
        read(make("vqa", tmp_path, questions=listed, image_key="{image_id:012d}"))
    with pytest.raises(InputError, match="karpathy selects by image_id, which the item does not have"):
        read(make("vqa", tmp_path, "train", questions=listed, karpathy=karpathy_file(tmp_path)), "train")


# ---- GQA, NLVR2


def test_gqa_reads_lxmert_list(tmp_path):
    item = {"img_id": "n161313", "label": {"yes": 1.0}, "question_id": "201307251", "sent": "Is it overcast?"}
    listed = write(tmp_path, "testdev.json", [item])
    (example,) = read(make("gqa", tmp_path, questions=listed))
    assert (example.id, example.images, example.text) == ("201307251", ("n161313",), "Is it overcast?")
    assert (example.answers, example.meta["entailed"]) == (("yes",), [])
    del item["label"]
    (example,) = read(make("gqa", tmp_path, questions=write(tmp_path, "submit.json", [item])))
    assert example.answers == ()
    for label in ({"yes": 0.5}, {"yes": 1.0, "no": 1.0}, {}):
        listed = write(tmp_path, "bad.json", [{**item, "label": label}])
        with pytest.raises(InputError, match=r"'label' of GQA must be {correct answer: 1}: .*bad.json:1 has"):
            read(make("gqa", tmp_path, questions=listed))


def test_gqa_shards_are_folder_pattern_or_list(tmp_path):
    shards = tmp_path / "train_all_questions"
    shards.mkdir()
    for n in range(3):
        item = {"imageId": str(n), "question": "Is it?", "answer": "yes"}
        write(shards, f"train_all_questions_{n}.json", {str(n): item})
    (shards / ".DS_Store").write_text("not JSON")
    for questions in (
        "train_all_questions",
        "train_all_questions/*.json",
        str(shards / "train_all_questions_?.json"),
        [f"train_all_questions/train_all_questions_{n}.json" for n in range(3)],
    ):
        table = load_table(make("gqa", tmp_path, questions=questions), "s", tmp_path / "cache")
        assert table["id"][:] == ["0", "1", "2"]
        assert sorted(table_provenance(table)["files"]) == [f"train_all_questions_{n}.json" for n in range(3)]
    for n in range(2):
        (tmp_path / f"part{n}").mkdir()
        write(tmp_path / f"part{n}", "q.json", {str(n): {"imageId": "0", "question": "Is it?", "answer": "yes"}})
    parts = [f"part{n}/q.json" for n in range(2)]
    assert (
        sorted(table_provenance(load_table(make("gqa", tmp_path, questions=parts), "s", tmp_path / "cache"))["files"])
        == parts
    )
    (shards / "more").mkdir()
    with pytest.raises(InputError, match=r"splits.s.questions: the folder .* contains folders \(first: more\)"):
        make("gqa", tmp_path, questions="train_all_questions").sources("s")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"there is no file .*empty \(empty folder\); set it, or data_dir"):
        make("gqa", tmp_path, questions="empty").sources("s")
    with pytest.raises(InputError, match=r"\(no such path, and no match as a pattern\)"):
        make("gqa", tmp_path, questions="val_*.json").sources("s")


def test_nlvr2_reads_lxmert_list(tmp_path):
    pair = {"identifier": "train-10171-0-0", "img0": "train-10171-0-img0", "img1": "train-10171-0-img1"}
    items = [
        {**pair, "label": 0, "sent": "Two dogs.", "uid": "nlvr2_train_0"},
        {**pair, "identifier": "train-10171-0-1", "label": 1, "sent": "A dog.", "uid": "nlvr2_train_1"},
    ]
    first, second = read(make("nlvr2", tmp_path, items=write(tmp_path, "train.json", items)))
    assert (first.id, first.images, first.text) == (pair["identifier"], (pair["img0"], pair["img1"]), "Two dogs.")
    assert (first.answers, second.answers) == (("false",), ("true",))
    write(tmp_path, "bad.json", [{**items[0], "label": 2}])
    with pytest.raises(InputError, match=r"field 'label' must be text or true or false: .*bad.json:1 has 2"):
        read(make("nlvr2", tmp_path, items="bad.json"))
    del items[0]["img1"]
    with pytest.raises(InputError, match=r"image_keys '{img1}' names {img1}, which the item does not have"):
        read(make("nlvr2", tmp_path, items=write(tmp_path, "bad.json", items)))


def test_caption_karpathy_file_in_coco_format(tmp_path):
    # routing paper: captions_{train,val,test}_karpathy.json in COCO's format
    images = [{"id": 522418, "file_name": "COCO_val2014_000000522418.jpg", "height": 480, "width": 640}]
    captions = [{"id": 681330, "image_id": 522418, "caption": "A woman wearing a net."}]
    path = write(tmp_path, "captions_test_karpathy.json", {"images": images, "annotations": captions})
    (example,) = read(make("coco_caption", tmp_path, captions=path))
    assert (example.id, example.images) == ("522418", ("COCO_val2014_000000522418",))


def test_caption_unit_image_samples_one_caption_per_visit(tmp_path):
    task = make("coco_caption", tmp_path, "train", captions=karpathy_file(tmp_path), unit="image")
    first = read(task, "train")[0]

    def sampled():
        rngs = (np.random.default_rng([7, step]) for step in range(60))
        return [task.sample_target(first.answers, first.scores, rng) for rng in rngs]

    targets = sampled()
    assert {target.text for target in targets} == set(first.answers)
    assert {target.weight for target in targets} == {1.0}
    assert targets == sampled()
