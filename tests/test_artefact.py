"""Is a saved adapter enough to have its model again: from its folder, from the hub, merged, and told in its card?"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from huggingface_hub.errors import HTTPError
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from multitask_vl.config.schema import DecodingConfig
from multitask_vl.errors import InputError
from multitask_vl.methods import hub
from multitask_vl.methods.io import add_scores, load_adapter, read_record, save_adapter
from multitask_vl.models.build import build_model, load_tokenizer
from multitask_vl.models.pretrained import from_pretrained
from multitask_vl.registry import METHODS
from multitask_vl.synthetic.tokenizer import build_tokenizer, save_tokenizer
from tests import tiny_run
from tests.tiny_models import FAMILIES, shaken, tiny_batch, tiny_config, tiny_model

DECODING = DecodingConfig(max_length=9)
SCORES = {"report": {"tasks": {"vqa": {"headline": "accuracy", "value": 61.25, "count": 8, "version": 1, "notes": {}}}}}


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> Path:
    """Folder of a tokenizer."""
    folder = tmp_path_factory.mktemp("words")
    save_tokenizer(build_tokenizer(["red", "blue"]), folder)
    return folder


def whole_config(words: Path, method: str = "lora", routing=None, family: str = "bart", **settings):
    """A configuration that names everything that its model is made of."""
    config = tiny_config(method, routing, family, **settings)
    sizes = {key: value for key, value in config.backbone.config.items() if key != "vocab_size"}
    backbone = {"config": sizes, "tokenizer": str(words), "extra_tokens": 200}
    return config.model_copy(update={"backbone": config.backbone.model_copy(update=backbone)})


def whole_model(words: Path, *args, **settings):
    config = whole_config(words, *args, **settings)
    return shaken(build_model(config, load_tokenizer(config.backbone)).eval())


def refused(call, *parts: str) -> None:
    """``call`` says each of ``parts``, one line a problem."""
    with pytest.raises(InputError) as caught:
        call()
    for part in parts:
        assert part in str(caught.value)
    assert all("\n" not in problem for problem in caught.value.problems)


class TestFolder:
    """The folder of an adapter is enough."""

    def test_every_method_of_every_family_in_a_fresh_process(self, words, tmp_path):
        expected = {}
        for family in FAMILIES:
            for name in METHODS.names():
                for i, variant in enumerate(({}, *METHODS.get(name).variants)):
                    model = whole_model(words, name, variant.get("routing"), family, **_settings(variant))
                    model.save_pretrained(tmp_path / f"{family}-{name}-{i}")
                    expected[f"{family}-{name}-{i}"] = model.generate(tiny_batch(), DECODING).tolist()
        program = (
            "import json, pathlib, sys\n"
            "from multitask_vl.config.schema import DecodingConfig\n"
            "from multitask_vl.models.pretrained import from_pretrained\n"
            "from tests.tiny_models import tiny_batch\n"
            "found = {}\n"
            "for folder in pathlib.Path(sys.argv[1]).iterdir():\n"
            "    model, tokenizer = from_pretrained(folder)\n"
            "    assert not model.training and len(tokenizer) == model.lm.get_input_embeddings().num_embeddings\n"
            "    found[folder.name] = model.generate(tiny_batch(), DecodingConfig(max_length=9)).tolist()\n"
            "print(json.dumps(found))\n"
        )
        command = [sys.executable, "-c", program, str(tmp_path)]
        done = subprocess.run(
            command, cwd=tiny_run.ROOT, env=tiny_run.environment(), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert json.loads(done.stdout) == expected

    def test_what_decides_the_model_is_kept_and_nothing_of_where_the_data_were(self, words, tmp_path):
        config = whole_config(words, routing={"function": {"vqa": "mul", "nlvr2": "mm1"}})
        decoding = DecodingConfig(kind="beam", num_beams=3, max_length=9)
        task = config.tasks["vqa"].model_copy(
            update={"prompt": "q: ", "decoding": decoding, "splits": {"train": {"questions": "/home/someone/q.json"}}}
        )
        config = config.model_copy(update={"tasks": {**config.tasks, "vqa": task}})
        save_adapter(build_model(config, load_tokenizer(config.backbone)), tmp_path, config)
        assert "someone" not in (tmp_path / "adapter_config.json").read_text()
        model, _ = from_pretrained(tmp_path)
        assert (model.config.tasks["vqa"].prompt, model.config.tasks["vqa"].decoding) == ("q: ", decoding)
        for section in ("seed", "backbone", "visual", "clip", "method", "routing", "plugins"):
            assert getattr(model.config, section) == getattr(config, section), section

    def test_weights_that_have_moved_and_those_of_another_backbone(self, words, tmp_path):
        base, other = tmp_path / "base", tmp_path / "other"
        for folder, seed in ((base, 1), (other, 2)):
            config = whole_config(words, "frozen").model_copy(update={"seed": seed})
            build_model(config, load_tokenizer(config.backbone)).save_merged(folder)
        config = whole_config(words)
        named = config.backbone.model_copy(update={"pretrained": str(base), "config": {}, "tokenizer": None})
        config = config.model_copy(update={"backbone": named})
        model = shaken(build_model(config, load_tokenizer(config.backbone)).eval())
        model.save_pretrained(tmp_path / "adapter")
        moved = base.rename(tmp_path / "moved")
        refused(lambda: from_pretrained(tmp_path / "adapter"), "there is no folder", str(base))
        again, _ = from_pretrained(tmp_path / "adapter", backbone=str(moved))
        assert torch.equal(again(tiny_batch()), model(tiny_batch()))
        refused(
            lambda: from_pretrained(tmp_path / "adapter", backbone=str(other)), "backbone.weights", "another backbone"
        )
        assert len(from_pretrained(tmp_path / "adapter", backbone=str(moved), tokenizer=str(words))[1]) == len(
            load_tokenizer(named.model_copy(update={"pretrained": str(moved)}))
        )

    def test_a_plugin_that_is_not_here(self, words, tmp_path):
        whole_model(words).save_pretrained(tmp_path)
        edited(tmp_path, lambda record: record["config"].update(plugins=["absent_plugin"]))
        refused(lambda: from_pretrained(tmp_path), "absent_plugin", "adapter_config.json")

    def test_an_adapter_of_another_task_list(self, words, tmp_path):
        whole_model(words).save_pretrained(tmp_path)
        config = whole_config(words)
        config = config.model_copy(update={"tasks": {"gqa": config.tasks["vqa"]}})
        other = build_model(config, load_tokenizer(config.backbone))
        refused(lambda: load_adapter(other, tmp_path), "another list of tasks", "gqa")

    def test_an_older_folder(self, words, tmp_path):
        model = whole_model(words)
        model.save_pretrained(tmp_path)

        def as_it_was(record):
            for key in ("config", "run", "sha256", "merged", "multitask_vl"):
                del record[key]
            record["format_version"] = 1
            # settings that came later
            del record["method"][0]["biases"], record["routing"]["control"]

        edited(tmp_path, as_it_was)
        refused(lambda: from_pretrained(tmp_path), "format_version 1 does not hold the configuration", "resolved.yaml")
        again = build_model(model.config, load_tokenizer(model.config.backbone)).eval()
        load_adapter(again, tmp_path)
        assert torch.equal(again(tiny_batch()), model(tiny_batch()))
        again.save_pretrained(tmp_path)
        assert torch.equal(from_pretrained(tmp_path)[0](tiny_batch()), model(tiny_batch()))
        # a setting that is not the default is one of another method
        config = whole_config(words, biases="none")
        edited(tmp_path, as_it_was)
        refused(lambda: load_adapter(build_model(config, load_tokenizer(config.backbone)), tmp_path), "method.0.biases")

    def test_a_folder_of_peft(self, tmp_path):
        (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 8}))
        for call in (lambda: from_pretrained(tmp_path), lambda: load_adapter(tiny_model("lora"), tmp_path)):
            refused(call, "library peft (peft_type LORA)", "PeftModel")


def _settings(variant):
    return {key: value for key, value in variant.items() if key != "routing"}


def edited(folder: Path, change) -> None:
    """Change the record of an adapter in place."""
    record = read_record(folder)
    change(record)
    (folder / "adapter_config.json").write_text(json.dumps(record))


class TestMerged:
    """A merged model is the same function, as the library's own language model."""

    @pytest.mark.parametrize("family", FAMILIES)
    @pytest.mark.parametrize(
        ("method", "settings"),
        [
            ("lora", {"alpha": 5.0}),
            ("lora", {"targets": ("key", "output", "ffn_in", "ffn_out"), "biases": "none"}),
            ("bitfit", {}),
            ("full", {}),
        ],
    )
    def test_it_answers_as_before(self, words, tmp_path, family, method, settings):
        model = whole_model(words, method, None, family, **settings)
        before = model(tiny_batch()).detach()
        model.save_merged(tmp_path / "merged")
        assert torch.equal(model(tiny_batch()), before), "the model itself has changed"
        again, tokenizer = from_pretrained(tmp_path / "merged")
        torch.testing.assert_close(again(tiny_batch()), before, atol=1e-5, rtol=1e-5)
        assert [one.config.name for one in again.methods] == ["frozen"]
        assert f"# {method} for vqa, nlvr2" in (tmp_path / "merged" / "README.md").read_text()
        assert len(tokenizer) == len(load_tokenizer(model.config.backbone))
        # the folder may lie anywhere
        moved, _ = from_pretrained((tmp_path / "merged").rename(tmp_path / "elsewhere"))
        assert torch.equal(moved(tiny_batch()), again(tiny_batch()))

    def test_the_library_reads_it_by_itself(self, words, tmp_path):
        model = whole_model(words, alpha=5.0)
        model.save_merged(tmp_path)
        lm, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
        bare = whole_model(words, "frozen").lm.model.encoder.layers[0].self_attn.q_proj.weight
        site = model.lm.model.encoder.layers[0].self_attn.q_proj
        a, b = (getattr(site, name)["every_task"].weight for name in "AB")
        assert torch.allclose(lm.model.encoder.layers[0].self_attn.q_proj.weight, bare + 5 / 16 * b @ a, atol=1e-6)
        assert torch.equal(lm.model.encoder.layers[0].fc1.bias, model.lm.model.encoder.layers[0].fc1.bias)
        assert lm.generate(**tokenizer("red", return_tensors="pt"), max_new_tokens=3).shape[0] == 1

    @pytest.mark.parametrize(
        ("method", "routing", "settings", "why"),
        [
            ("lora", {"function": "mul"}, {}, "routed LoRA cannot be merged"),
            ("lora", {}, {"sharing": "per_task"}, "every task has its own update"),
            ("adapter", {}, {}, '"adapter" cannot be merged'),
        ],
    )
    def test_what_cannot_be_merged_leaves_nothing(self, tmp_path, method, routing, settings, why):
        model = tiny_model(method, routing, **settings)
        refused(lambda: model.save_merged(tmp_path / "merged"), why)
        assert not (tmp_path / "merged").exists()

    def test_a_folder_with_something_in_it_is_left_alone(self, words, tmp_path):
        model = whole_model(words)
        model.save_pretrained(tmp_path)
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        refused(lambda: model.save_merged(tmp_path), "there is something already")
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


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
        for path in Path(folder_path).iterdir():
            assert any(path.match(pattern) for pattern in allow_patterns)
            (self.root / repo_id / path.name).write_bytes(path.read_bytes())

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
        model = build_model(config, load_tokenizer(config.backbone))
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
    assert tiny_run.launch("export", "--to", "hub", str(adapter), "someone/run") == 0
    assert (tmp_path / "hub/someone/run/README.md").read_text() == card
    assert "https://hub.example/someone/run" in capsys.readouterr().out


def run_batch():
    """A batch for the features of `tiny_run`: 2x2 grids."""
    batch = tiny_batch()
    batch.features = batch.features[:, :, :4]
    return batch
