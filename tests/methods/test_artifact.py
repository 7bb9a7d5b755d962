"""Saved adapters: rebuilding the model from its folder, moved or older folders, and merged models."""

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
from tests import tiny_run
from tests.method_cases import BART_SETTINGS
from tests.tiny_artifacts import artifact_config, artifact_model, assert_input_error, build_from_config, write_tokenizer
from tests.tiny_models import FAMILIES, perturb, tiny_batch, tiny_model

LOAD_ALL = """
import json, pathlib, sys
from multitask_vl.models.from_pretrained import from_pretrained
from tests.tiny_models import tiny_batch
losses = {}
for folder in pathlib.Path(sys.argv[1]).iterdir():
    model, tokenizer = from_pretrained(folder)
    assert not model.training and len(tokenizer) == model.lm.get_input_embeddings().num_embeddings
    losses[folder.name] = model(tiny_batch()).tolist()
print(json.dumps(losses))
"""


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Path:
    """Folder of a tokenizer."""
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def edit_record(folder: Path, change) -> None:
    """Change the record of an adapter in place."""
    record = read_record(folder)
    change(record)
    (folder / "adapter_config.json").write_text(json.dumps(record))


class TestFolder:
    """The folder of an adapter is all that is needed to rebuild the model."""

    def test_all_methods_load_in_fresh_process(self, tokenizer, tmp_path):
        """One process loads all methods and settings; routing adds nothing to save."""
        expected = {}
        for i, case in enumerate(BART_SETTINGS):
            arguments = case.arguments()
            model = artifact_model(tokenizer, arguments.pop("method"), arguments.pop("routing"), **arguments)
            model.save_pretrained(tmp_path / str(i))
            expected[str(i)] = model(tiny_batch()).tolist()
        done = subprocess.run(
            [sys.executable, "-c", LOAD_ALL, str(tmp_path)], cwd=tiny_run.ROOT, env=tiny_run.environment(),
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        found = json.loads(done.stdout)
        assert found.keys() == expected.keys()
        for i, losses in expected.items():
            torch.testing.assert_close(torch.tensor(found[i]), torch.tensor(losses), atol=1e-6, rtol=1e-6)

    def test_record_keeps_the_model_but_no_data_paths(self, tokenizer, tmp_path):
        config = artifact_config(tokenizer, routing={"function": {"vqa": "mul", "nlvr2": "mm1"}})
        decoding = DecodingConfig(mode="beam", num_beams=3, max_length=9)
        task = config.tasks["vqa"].model_copy(
            update={"prompt": "q: ", "decoding": decoding, "splits": {"train": {"questions": "/home/someone/q.json"}}}
        )
        config = config.model_copy(update={"tasks": {**config.tasks, "vqa": task}})
        save_adapter(build_from_config(config), tmp_path, config)
        assert "someone" not in (tmp_path / "adapter_config.json").read_text()
        model, _ = from_pretrained(tmp_path)
        assert (model.config.tasks["vqa"].prompt, model.config.tasks["vqa"].decoding) == ("q: ", decoding)
        for section in ("seed", "backbone", "visual", "vision", "method", "routing", "plugins"):
            assert getattr(model.config, section) == getattr(config, section), section

    def test_moved_and_wrong_backbone_weights(self, tokenizer, tmp_path):
        base, other = tmp_path / "base", tmp_path / "other"
        for folder, seed in ((base, 1), (other, 2)):
            config = artifact_config(tokenizer, "frozen").model_copy(update={"seed": seed})
            build_from_config(config).save_merged(folder)
        config = artifact_config(tokenizer)
        backbone = config.backbone.model_copy(update={"pretrained": str(base), "config": {}, "tokenizer": None})
        config = config.model_copy(update={"backbone": backbone})
        model = perturb(build_from_config(config))
        adapter = tmp_path / "adapter"
        model.save_pretrained(adapter)
        moved = base.rename(tmp_path / "moved")
        assert_input_error(lambda: from_pretrained(adapter), "there is no folder", str(base))
        loaded, _ = from_pretrained(adapter, backbone=str(moved))
        assert torch.equal(loaded(tiny_batch()), model(tiny_batch()))
        assert_input_error(
            lambda: from_pretrained(adapter, backbone=str(other)), "backbone.weights", "belongs to another backbone"
        )
        assert len(from_pretrained(adapter, backbone=str(moved), tokenizer=str(tokenizer))[1]) == len(
            load_tokenizer(backbone.model_copy(update={"pretrained": str(moved)}))
        )

    def test_missing_plugin_is_reported(self, tokenizer, tmp_path):
        artifact_model(tokenizer).save_pretrained(tmp_path)
        edit_record(tmp_path, lambda record: record["config"].update(plugins=["absent_plugin"]))
        assert_input_error(lambda: from_pretrained(tmp_path), "absent_plugin", "adapter_config.json")

    def test_other_task_list_is_rejected(self, tokenizer, tmp_path):
        artifact_model(tokenizer).save_pretrained(tmp_path)
        config = artifact_config(tokenizer)
        config = config.model_copy(update={"tasks": {"gqa": config.tasks["vqa"]}})
        other = build_from_config(config)
        assert_input_error(lambda: load_adapter(other, tmp_path), "another list of tasks", "gqa")

    def test_folder_of_format_version_1(self, tokenizer, tmp_path):
        model = artifact_model(tokenizer)
        model.save_pretrained(tmp_path)

        def to_version_1(record):
            for key in ("config", "run", "sha256", "merged", "multitask_vl"):
                del record[key]
            record["format_version"] = 1
            # settings that were added later
            del record["method"][0]["biases"], record["routing"]["control"]

        edit_record(tmp_path, to_version_1)
        assert_input_error(lambda: from_pretrained(tmp_path), "format_version 1", "configuration", "resolved.yaml")
        loaded = build_from_config(model.config)
        load_adapter(loaded, tmp_path)
        assert torch.equal(loaded(tiny_batch()), model(tiny_batch()))
        loaded.save_pretrained(tmp_path)
        assert torch.equal(from_pretrained(tmp_path)[0](tiny_batch()), model(tiny_batch()))
        # a missing setting counts as its default
        config = artifact_config(tokenizer, biases="none")
        edit_record(tmp_path, to_version_1)
        assert_input_error(lambda: load_adapter(build_from_config(config), tmp_path), "method.0.biases")

    def test_folder_of_peft_is_rejected(self, tmp_path):
        (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 8}))
        for call in (lambda: from_pretrained(tmp_path), lambda: load_adapter(tiny_model("lora"), tmp_path)):
            assert_input_error(call, "library peft (peft_type LORA)", "PeftModel")


class TestMerged:
    """A merged model computes the same function, with a plain language model of transformers."""

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
    def test_merged_model_computes_the_same(self, tokenizer, tmp_path, family, method, settings):
        model = artifact_model(tokenizer, method, None, family, **settings)
        before = model(tiny_batch()).detach()
        model.save_merged(tmp_path / "merged")
        assert torch.equal(model(tiny_batch()), before), "the model itself has changed"
        loaded, loaded_tokenizer = from_pretrained(tmp_path / "merged")
        torch.testing.assert_close(loaded(tiny_batch()), before, atol=1e-5, rtol=1e-5)
        assert [installed.config.name for installed in loaded.methods] == ["frozen"]
        assert f"# {method} for vqa, nlvr2" in (tmp_path / "merged" / "README.md").read_text()
        assert len(loaded_tokenizer) == len(load_tokenizer(model.config.backbone))
        # the folder can be moved
        moved, _ = from_pretrained((tmp_path / "merged").rename(tmp_path / "elsewhere"))
        assert torch.equal(moved(tiny_batch()), loaded(tiny_batch()))

    def test_transformers_loads_merged_model(self, tokenizer, tmp_path):
        model = artifact_model(tokenizer, alpha=5.0)
        model.save_merged(tmp_path)
        lm, loaded_tokenizer = AutoModelForSeq2SeqLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
        bare = artifact_model(tokenizer, "frozen").lm.model.encoder.layers[0].self_attn.q_proj.weight
        site = model.lm.model.encoder.layers[0].self_attn.q_proj
        a, b = (getattr(site, name)["every_task"].weight for name in "AB")
        assert torch.allclose(lm.model.encoder.layers[0].self_attn.q_proj.weight, bare + 5 / 16 * b @ a, atol=1e-6)
        assert torch.equal(lm.model.encoder.layers[0].fc1.bias, model.lm.model.encoder.layers[0].fc1.bias)
        assert lm.generate(**loaded_tokenizer("red", return_tensors="pt"), max_new_tokens=3).shape[0] == 1

    @pytest.mark.parametrize(
        ("method", "routing", "settings", "reason"),
        [
            ("lora", {"function": "mul"}, {}, "routed LoRA cannot be merged"),
            ("lora", {}, {"sharing": "per_task"}, "each task has its own update"),
            ("adapter", {}, {}, '"adapter" cannot be merged'),
        ],
    )
    def test_rejected_merge_writes_nothing(self, tmp_path, method, routing, settings, reason):
        model = tiny_model(method, routing, **settings)
        assert_input_error(lambda: model.save_merged(tmp_path / "merged"), reason)
        assert not (tmp_path / "merged").exists()

    def test_non_empty_folder_is_not_touched(self, tokenizer, tmp_path):
        model = artifact_model(tokenizer)
        model.save_pretrained(tmp_path)
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        assert_input_error(lambda: model.save_merged(tmp_path), "already exists")
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
