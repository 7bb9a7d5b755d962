"""Sharing adapters: the Hugging Face hub, the model card, and the command that exports."""

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
from tests.tiny_artifacts import artifact_config, artifact_model, assert_input_error, build_from_config, write_tokenizer
from tests.tiny_models import perturb, tiny_batch

SCORE = {"primary_metric": "accuracy", "value": 61.25, "count": 8, "version": 1, "notes": {}}
SCORES = {"test": {"tasks": {"vqa": SCORE}}}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Path:
    """Folder of a tokenizer."""
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


class FakeHub:
    """The part of HfApi that pushing uses, with folders as repositories."""

    def __init__(self, root: Path, error: Exception | None = None):
        self.root, self.error, self.arguments = root, error, []

    def __call__(self, token=None):
        self.arguments.append(token)
        return self

    def create_repo(self, repo_id, private, exist_ok):
        if self.error:
            raise self.error
        assert exist_ok
        (self.root / repo_id).mkdir(parents=True, exist_ok=True)
        self.arguments.append(private)
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


@pytest.fixture
def api(tmp_path, monkeypatch) -> FakeHub:
    """A fake hub in place of the real one."""
    api = FakeHub(tmp_path / "hub")
    monkeypatch.setattr(hub, "HfApi", api)
    monkeypatch.setattr(hub, "snapshot_download", api.snapshot_download)
    return api


class TestHub:
    """A pushed adapter can be loaded by its name."""

    def test_push_and_load(self, tokenizer, api):
        model = artifact_model(tokenizer)
        url = model.push_to_hub("someone/adapter", private=True, token="secret")
        assert url == "https://hub.example/someone/adapter"
        assert api.arguments == ["secret", True]
        loaded, _ = from_pretrained("someone/adapter")
        assert torch.equal(loaded(tiny_batch()), model(tiny_batch()))

    def test_hub_errors_are_one_line(self, tokenizer, api):
        assert_input_error(lambda: from_pretrained("someone/absent"), "someone/absent", "404", "hub name")
        assert_input_error(lambda: from_pretrained("./absent"), "no such folder")
        assert_input_error(lambda: from_pretrained("a/b/c"), "no such folder")
        model = artifact_model(tokenizer)
        for error in (OSError("403 Forbidden\nmore"), ValueError("no such name"), HTTPError("no connection")):
            api.error = error
            assert_input_error(lambda: model.push_to_hub("x/y"), "cannot push to x/y", str(error).splitlines()[0])

    def test_offline_error(self, monkeypatch):
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        name = "nobody/nothing-of-this-name"
        assert_input_error(lambda: hub.resolve_artifact(name), name, "local folder")


class TestCard:
    """The model card shows what the record contains."""

    def test_front_matter_and_tables(self, tokenizer, tmp_path):
        config = artifact_config(tokenizer, "lora", {"function": {"vqa": "mul", "nlvr2": "none"}}, rank=6)
        model = build_from_config(config)
        run = {
            "data": {"vqa": {"train": {"examples": 1234, "files": {"questions.json": "ab" * 32}}}},
            "training": {"max_steps": 70},
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
            "Adapter for multitask vision-language learning on bart (random weights). It reads text and image features",
            f"| all | {trainable:,} ({100 * trainable / total:.2f} %) | {total:,} |",
            f"| lora | {model.parameter_breakdown()['lora']['trainable']:,} |",
            "| rank | 6 |",
            "| function, vqa | mul |",
            "| function, nlvr2 | none |",
            "| vqa | train | 1,234 | questions.json `abababababab` |",
            "| test | vqa | accuracy | 61.25 | 8 | 1 |",
            "| max_steps | 70 |",
            "family: bart",
            "multitask-vl evaluate --config",
        ):
            assert line in card.content, line

    def test_base_model_is_set_for_hub_names_only(self, tokenizer, tmp_path):
        model = artifact_model(tokenizer)
        names = {"facebook/bart-base": "facebook/bart-base", "t5-base": "t5-base"}
        for pretrained, expected in {
            **names,
            "/a/b": None,
            "./b": None,
            "bundled:bart": None,
            str(tokenizer): None,
        }.items():
            backbone = model.config.backbone.model_copy(update={"pretrained": pretrained})
            save_adapter(model, tmp_path, model.config.model_copy(update={"backbone": backbone}))
            assert ModelCard.load(tmp_path / "README.md").data.base_model == expected, pretrained

    def test_python_example_runs(self, tokenizer, tmp_path):
        model = artifact_model(tokenizer)
        model.save_pretrained(tmp_path)
        code = (tmp_path / "README.md").read_text().split("```python\n")[1].split("```")[0]
        printed = []
        names = {"print": printed.append}
        exec(code.replace("FOLDER_OR_HUB_NAME", str(tmp_path)), names)
        assert printed == ["{} of {} parameters are trainable".format(*model.parameter_counts())]
        assert isinstance(names["model"], type(model))

    def test_scores_are_kept_with_unchanged_tensors_only(self, tokenizer, tmp_path):
        model = artifact_model(tokenizer)
        save_adapter(model, tmp_path, model.config, {"training": {"max_steps": 3}})
        add_scores(tmp_path, SCORES)
        loaded, _ = from_pretrained(tmp_path)
        loaded.save_pretrained(tmp_path / "same")
        assert (tmp_path / "same" / "README.md").read_text() == (tmp_path / "README.md").read_text()
        perturb(loaded).save_pretrained(tmp_path / "changed")
        assert "61.25" not in (tmp_path / "changed" / "README.md").read_text()
        assert read_record(tmp_path / "changed")["run"] == {}


@pytest.mark.slow
def test_run_saves_adapter_and_command_exports_it(tmp_path, capsys, api):
    tiny_run.write_dataset(tmp_path)
    config = tiny_run.write_config(
        tmp_path, method={"sharing": "single", "name": "lora"}, routing={"function": "none"}, training={"max_steps": 2}
    )
    assert tiny_run.launch("train", "--config", str(config)) == 0
    adapter = tmp_path / "run" / "adapter"
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())["splits"]["test"]["tasks"]
    card = (adapter / "README.md").read_text()
    for task, score in scores.items():
        row = f"| test | {task} | {score['primary_metric']} | {score['value']:.2f} | 7 | {score['version']} |"
        assert row in card
        assert f"| {task} | test | 7 | " in card
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
