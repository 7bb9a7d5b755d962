"""Does a split whose answers only a server has get its predictions and valid submissions, and no scores?"""

import json

import yaml

from multitask_vl.evaluation.submission import main
from multitask_vl.reports.__main__ import main as report
from tests import tiny_run


def without(item: dict, *names: str) -> dict:
    return {name: value for name, value in item.items() if name not in names}


def test_a_run_predicts_a_hidden_split_and_writes_what_servers_take(tmp_path, capsys):
    tiny_run.write_files(tmp_path)
    values = yaml.safe_load(tiny_run.write_config(tmp_path).read_text())
    values["evaluation"]["final"] = ["hidden"]
    values["training"]["steps"] = 1
    gqa = json.loads((tmp_path / "gqa_report.json").read_text())
    (tmp_path / "gqa_hidden.json").write_text(json.dumps({i: without(one, "answer") for i, one in gqa.items()}))
    lines = (tmp_path / "nlvr2_report.jsonl").read_text().splitlines()
    hidden = [json.dumps(without(json.loads(line), "label")) for line in lines]
    (tmp_path / "nlvr2_hidden.jsonl").write_text("\n".join(hidden) + "\n")
    images = [{"id": i, "file_name": f"{i:012d}.jpg"} for i in range(7)]
    (tmp_path / "captions_hidden.json").write_text(json.dumps({"images": images}))
    files = {
        "vqa": ("questions", "vqa_report_questions.json"),
        "gqa": ("questions", "gqa_hidden.json"),
        "nlvr2": ("items", "nlvr2_hidden.jsonl"),
        "coco_caption": ("captions", "captions_hidden.json"),
    }
    for task, (key, name) in files.items():
        values["tasks"][task]["splits"]["hidden"] = {key: name}
    values["tasks"]["vqa"]["splits"]["hidden"]["image_key"] = "{image_id:012d}"
    config = tmp_path / "hidden.yaml"
    config.write_text(yaml.safe_dump(values, sort_keys=False))
    assert tiny_run.launch("train_multitask", "--config", str(config)) == 0
    assert "hidden: vqa not scored, gqa not scored" in capsys.readouterr().err

    run = tmp_path / "run"
    scores = json.loads((run / "scores.json").read_text())["splits"]["hidden"]
    assert scores["average"] is None
    for task, (_, name) in files.items():
        assert scores["tasks"][task]["value"] is None
        (note,) = scores["tasks"][task]["notes"].values()
        assert note == f"tasks.{task}: the split hides its answers; send the submission file to the server"
        rows = (run / "predictions" / task / "hidden.jsonl").read_text().splitlines()
        assert len(rows) == 7
        (sent,) = (path for path in (run / "submission" / "hidden").iterdir() if task.split("_")[-1][:4] in path.name)
        assert main(["--task", task, "--questions", str(tmp_path / name), "--submission", str(sent)]) == 0
    assert "hides its answers" not in (run / "adapter" / "README.md").read_text()

    assert report([str(run)]) == 0
    said = capsys.readouterr().out
    assert "vqa, accuracy: tasks.vqa: the split hides its answers" in said
    (average,) = (line.split() for line in said.splitlines() if line.startswith("average"))
    assert average == ["average", "-"]
