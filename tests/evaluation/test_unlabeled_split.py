"""A split without labels gets predictions and valid submissions, and no scores."""

import json

import yaml

from multitask_vl.cli.main import main
from tests import tiny_run


def without(item: dict, *names: str) -> dict:
    return {name: value for name, value in item.items() if name not in names}


def test_run_predicts_unlabeled_split_and_writes_submissions(tmp_path, capsys):
    tiny_run.write_dataset(tmp_path)
    values = yaml.safe_load(tiny_run.write_config(tmp_path).read_text())
    values["evaluation"]["final_splits"] = ["hidden"]
    values["training"]["max_steps"] = 1
    gqa = json.loads((tmp_path / "gqa_test.json").read_text())
    (tmp_path / "gqa_hidden.json").write_text(json.dumps({i: without(item, "answer") for i, item in gqa.items()}))
    lines = (tmp_path / "nlvr2_test.jsonl").read_text().splitlines()
    hidden = [json.dumps(without(json.loads(line), "label")) for line in lines]
    (tmp_path / "nlvr2_hidden.jsonl").write_text("\n".join(hidden) + "\n")
    images = [{"id": i, "file_name": f"{i:012d}.jpg"} for i in range(7)]
    (tmp_path / "captions_hidden.json").write_text(json.dumps({"images": images}))
    files = {
        "vqa": ("questions", "vqa_test_questions.json"),
        "gqa": ("questions", "gqa_hidden.json"),
        "nlvr2": ("items", "nlvr2_hidden.jsonl"),
        "coco_caption": ("captions", "captions_hidden.json"),
    }
    for task, (key, name) in files.items():
        values["tasks"][task]["splits"]["hidden"] = {key: name}
    values["tasks"]["vqa"]["splits"]["hidden"]["image_key"] = "{image_id:012d}"
    config = tmp_path / "hidden.yaml"
    config.write_text(yaml.safe_dump(values, sort_keys=False))
    assert tiny_run.launch("train", "--config", str(config)) == 0
    assert "hidden: vqa not scored, gqa not scored" in capsys.readouterr().err

    run = tmp_path / "run"
    scores = json.loads((run / "scores.json").read_text())["splits"]["hidden"]
    assert scores["average"] is None
    for task, (_, name) in files.items():
        assert scores["tasks"][task]["value"] is None
        (note,) = scores["tasks"][task]["notes"].values()
        assert note == f"tasks.{task}: the labels of the split are hidden; send the submission file to the server"
        rows = (run / "predictions" / task / "hidden.jsonl").read_text().splitlines()
        assert len(rows) == 7
        (sent,) = (path for path in (run / "submission" / "hidden").iterdir() if task.split("_")[-1][:4] in path.name)
        command = ["check-submission", "--task", task, "--questions", str(tmp_path / name), "--submission", str(sent)]
        assert main(command) == 0
    assert "the labels of the split are hidden" not in (run / "adapter" / "README.md").read_text()

    assert main(["report", str(run)]) == 0
    out = capsys.readouterr().out
    assert "vqa, accuracy: tasks.vqa: the labels of the split are hidden" in out
    (average,) = (line.split() for line in out.splitlines() if line.startswith("average"))
    assert average == ["average", "-"]
