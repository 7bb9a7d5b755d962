"""What do others get of a saved adapter: its repository on the hub, its card, and what the export command writes?"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from huggingface_hub.errors import HTTPError

from multitask_vl.methods.artifact import hub
from multitask_vl.methods.artifact.adapter_io import add_scores, read_record, save_adapter
from multitask_vl.models.from_pretrained import from_pretrained
from tests import tiny_run
from tests.tiny_artifacts import built, refused, whole_config, whole_model, write_words
from tests.tiny_models import shaken, tiny_batch

SCORES = {"report": {"tasks": {"vqa": {"headline": "accuracy", "value": 61.25, "count": 8, "version": 1, "notes": {}}}}}


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> Path:
    """Folder of a tokenizer."""
    return write_words(tmp_path_factory.mktemp("words"))


class StandIn:
    """As much of HfApi as pushing needs: repositories are folders."""

    def __init__(self, root: Path, fails: Exception | None = None):
        self.root, self.fails, self.told = root, fails, []

    def __call__(self, token=None):
        self.told.append(token)
        return self

    def create_repo(self, repo_id, private, exist_ok):
        if self.fails:
            raise self.fails
        assert exist_ok
        (self.root / repo_id).mkdir(parents=True, exist_ok=True)
        self.told.append(private)
        return f"https://hub.example/{repo_id}"

    def upload_folder(self, repo_id, folder_path, commit_message, allow_patterns):
        assert commit_message
        for path in (path for path in Path(folder_path).rglob("*") if path.is_file()):
            assert any(path.match(pattern) for pattern in allow_patterns)
            target = self.root / repo_id / path.relative_to(folder_path)
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(path.read_bytes())

    def snapshot_download(self, name, revision, token, allow_patterns):
        if not (self.root / name).is_dir():
            raise OSError(f"404: no repository {name}\nRequest ID: 1")
        return str(self.root / name)


class TestHub:
    """What is pushed can be had by its name."""

    @pytest.fixture
    def api(self, tmp_path, monkeypatch):
        api = StandIn(tmp_path / "hub")
        monkeypatch.setattr(hub, "HfApi", api)
        monkeypatch.setattr(hub, "snapshot_download", api.snapshot_download)
        return api

    def test_there_and_back(self, words, api):
        model = whole_model(words)
        assert model.push_to_hub("someone/adapter", private=True, token="secret") == (
            "https://hub.example/someone/adapter"
        )
        assert api.told == ["secret", True]
        again, _ = from_pretrained("someone/adapter")
        assert torch.equal(again(tiny_batch()), model(tiny_batch()))

    def test_what_the_hub_refuses_is_one_line(self, words, api):
        refused(lambda: from_pretrained("someone/absent"), "someone/absent", "404", "hub name")
        refused(lambda: from_pretrained("./absent"), "there is no such folder")
        refused(lambda: from_pretrained("a/b/c"), "there is no such folder")
        for error in (OSError("403 Forbidden\nmore"), ValueError("no such name"), HTTPError("no connection")):
            api.fails = error
            refused(lambda: whole_model(words).push_to_hub("x/y"), "cannot push to x/y", str(error).splitlines()[0])

    def test_without_a_network(self, monkeypatch):
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        refused(lambda: hub.fetch("nobody/nothing-of-this-name"), "nobody/nothing-of-this-name", "local folder")


class TestCard:
    """The card says what the record knows."""

    def test_front_matter_and_tables(self, words, tmp_path):
        config = whole_config(words, "lora", {"function": {"vqa": "mul", "nlvr2": "none"}}, rank=6)
        model = built(config)
        run = {
            "data": {"vqa": {"train": {"examples": 1234, "files": {"questions.json": "ab" * 32}}}},
            "training": {"steps": 70},
        }
        save_adapter(model, tmp_path, config, run)
        add_scores(tmp_path, SCORES)
        card = ModelCard.load(tmp_path / "README.md")
        assert card.data.library_name == "multitask-vl"
        assert {"lora", "vqa", "nlvr2", "bart"} <= set(card.data.tags)
        assert card.data.base_model is None
        trainable, total = model.parameter_counts()
        for line in (
            "# lora for vqa, nlvr2",
            f"| all | {trainable:,} ({100 * trainable / total:.2f} %) | {total:,} |",
            f"| lora | {model.components()['lora']['trainable']:,} |",
            "| rank | 6 |",
            "| function, vqa | mul |",
            "| function, nlvr2 | none |",
            "| vqa | train | 1,234 | questions.json `abababababab` |",
            "| report | vqa | accuracy | 61.25 | 8 | 1 |",
            "| steps | 70 |",
            "family: bart",
            "launch/evaluate.py --config",
        ):
            assert line in card.content, line

    def test_a_hub_name_is_the_base_model_and_a_path_is_not(self, words, tmp_path):
        model = whole_model(words)
        named = {"facebook/bart-base": "facebook/bart-base", "t5-base": "t5-base"}
        for pretrained, expected in {
            **named,
            "/a/b": None,
            "./b": None,
            "embedded:bart": None,
            str(words): None,
        }.items():
            backbone = model.config.backbone.model_copy(update={"pretrained": pretrained})
            save_adapter(model, tmp_path, model.config.model_copy(update={"backbone": backbone}))
            assert ModelCard.load(tmp_path / "README.md").data.base_model == expected, pretrained

    def test_its_python_runs(self, words, tmp_path):
        model = whole_model(words)
        model.save_pretrained(tmp_path)
        code = (tmp_path / "README.md").read_text().split("```python\n")[1].split("```")[0]
        told = []
        names = {"print": told.append}
        exec(code.replace("FOLDER_OR_HUB_NAME", str(tmp_path)), names)
        assert told == ["{} of {} parameters trained".format(*model.parameter_counts())]
        assert isinstance(names["model"], type(model))

    def test_scores_stay_with_the_tensors_they_were_measured_with(self, words, tmp_path):
        model = whole_model(words)
        save_adapter(model, tmp_path, model.config, {"training": {"steps": 3}})
        add_scores(tmp_path, SCORES)
        again, _ = from_pretrained(tmp_path)
        again.save_pretrained(tmp_path / "same")
        assert (tmp_path / "same" / "README.md").read_text() == (tmp_path / "README.md").read_text()
        shaken(again).save_pretrained(tmp_path / "trained_on")
        assert "61.25" not in (tmp_path / "trained_on" / "README.md").read_text()
        assert read_record(tmp_path / "trained_on")["run"] == {}


@pytest.mark.slow
def test_a_run_writes_its_adapter_with_data_and_scores_and_the_command_gives_it_away(tmp_path, capsys, monkeypatch):
    tiny_run.write_files(tmp_path)
    config = tiny_run.write_config(
        tmp_path, method={"sharing": "single", "name": "lora"}, routing={"function": "none"}, training={"steps": 2}
    )
    assert tiny_run.launch("train_multitask", "--config", str(config)) == 0
    adapter = tmp_path / "run" / "adapter"
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())["splits"]["report"]["tasks"]
    card = (adapter / "README.md").read_text()
    for task, one in scores.items():
        assert f"| report | {task} | {one['headline']} | {one['value']:.2f} | 7 | {one['version']} |" in card
        assert f"| {task} | report | 7 | " in card
    assert "| steps | 2 |" in card
    model, _ = from_pretrained(adapter)
    assert model.config.tasks["vqa"].prompt == "vqa: "

    merged = tmp_path / "merged"
    assert tiny_run.launch("export", "--to", "merged", str(adapter), str(merged)) == 0
    losses = [one(run_batch()) for one in (model, from_pretrained(merged)[0])]
    torch.testing.assert_close(*losses, atol=1e-5, rtol=1e-5)
    assert tiny_run.launch("export", "--to", "merged", str(adapter), str(merged)) == 2
    assert tiny_run.launch("export", "--to", "peft", str(adapter), str(tmp_path / "peft")) == 0
    assert json.loads((tmp_path / "peft" / "adapter_config.json").read_text())["peft_type"] == "LORA"
    assert tiny_run.launch("export", "--to", "merged", str(tmp_path / "peft"), str(tmp_path / "no")) == 2
    assert "library peft" in capsys.readouterr().err
    api = StandIn(tmp_path / "hub")
    monkeypatch.setattr(hub, "HfApi", api)
    monkeypatch.setattr(hub, "snapshot_download", api.snapshot_download)
    assert tiny_run.launch("export", "--to", "hub", str(tmp_path / "run"), "someone/run") == 0
    assert "https://hub.example/someone/run" in capsys.readouterr().out
    pushed = {path.name: path.read_bytes() for path in (tmp_path / "hub/someone/run").iterdir()}
    assert pushed == {path.name: path.read_bytes() for path in adapter.iterdir()}
    assert tiny_run.launch("export", "--to", "hub", str(merged), "someone/merged") == 0
    assert torch.equal(from_pretrained("someone/merged")[0](run_batch()), losses[1])


def run_batch():
    """A batch for the features of `tiny_run`: 2x2 grids."""
    batch = tiny_batch()
    batch.features = batch.features[:, :, :4]
    return batch
