"""Is a saved adapter enough to have its model again: from its folder, moved, older, and merged?"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from multitask_vl.config.schema import DecodingConfig
from multitask_vl.methods.artifact.adapter_io import load_adapter, read_record, save_adapter
from multitask_vl.models.build import load_tokenizer
from multitask_vl.models.from_pretrained import from_pretrained
from multitask_vl.registry import METHODS
from tests import tiny_run
from tests.tiny_artifacts import built, refused, whole_config, whole_model, write_words
from tests.tiny_models import FAMILIES, shaken, tiny_batch, tiny_model

DECODING = DecodingConfig(max_length=9)


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> Path:
    """Folder of a tokenizer."""
    return write_words(tmp_path_factory.mktemp("words"))


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
            "from multitask_vl.models.from_pretrained import from_pretrained\n"
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
        save_adapter(built(config), tmp_path, config)
        assert "someone" not in (tmp_path / "adapter_config.json").read_text()
        model, _ = from_pretrained(tmp_path)
        assert (model.config.tasks["vqa"].prompt, model.config.tasks["vqa"].decoding) == ("q: ", decoding)
        for section in ("seed", "backbone", "visual", "clip", "method", "routing", "plugins"):
            assert getattr(model.config, section) == getattr(config, section), section

    def test_weights_that_have_moved_and_those_of_another_backbone(self, words, tmp_path):
        base, other = tmp_path / "base", tmp_path / "other"
        for folder, seed in ((base, 1), (other, 2)):
            config = whole_config(words, "frozen").model_copy(update={"seed": seed})
            built(config).save_merged(folder)
        config = whole_config(words)
        named = config.backbone.model_copy(update={"pretrained": str(base), "config": {}, "tokenizer": None})
        config = config.model_copy(update={"backbone": named})
        model = shaken(built(config))
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
        other = built(config)
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
        again = built(model.config)
        load_adapter(again, tmp_path)
        assert torch.equal(again(tiny_batch()), model(tiny_batch()))
        again.save_pretrained(tmp_path)
        assert torch.equal(from_pretrained(tmp_path)[0](tiny_batch()), model(tiny_batch()))
        # a setting that is not the default is one of another method
        config = whole_config(words, biases="none")
        edited(tmp_path, as_it_was)
        refused(lambda: load_adapter(built(config), tmp_path), "method.0.biases")

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
