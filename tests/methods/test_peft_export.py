"""Export to peft: the library loads the files and computes the same logits."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM

from multitask_vl.errors import InputError
from multitask_vl.methods.artifact.peft_export import export_peft
from multitask_vl.models.build import build_model
from multitask_vl.models.seq2seq import VLSeq2Seq
from tests.tiny_models import FAMILIES, perturb, tiny_batch, tiny_config, tiny_model


def logits(lm, batch, decoder_input_ids) -> torch.Tensor:
    """Logits of the language model without images [B, T, V]."""
    with torch.no_grad():
        return lm(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, decoder_input_ids=decoder_input_ids
        ).logits


def our_logits(model: VLSeq2Seq, decoder_input_ids) -> torch.Tensor:
    batch = tiny_batch()
    with model.context.task_scope(batch.task):
        return logits(model.lm, batch, decoder_input_ids)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("settings", "bias"),
    [
        ({"alpha": 5.0}, "all"),
        ({"biases": "targets", "targets": ("value", "output")}, "lora_only"),
        ({"biases": "none", "targets": ("query", "key", "ffn_in", "ffn_out"), "dropout": 0.3}, "none"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_peft_computes_the_same_logits(tmp_path, family, settings, bias):
    peft = pytest.importorskip("peft", reason="peft is not installed: pip install peft")
    model = perturb(tiny_model("lora", family=family, **settings))
    export_peft(model, tmp_path / "export")
    tiny_model(family=family).lm.save_pretrained(tmp_path / "base")
    base = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "base").eval()
    start = model.lm.prepare_decoder_input_ids_from_labels(tiny_batch().labels)
    bare, ours = logits(base, tiny_batch(), start), our_logits(model, start)
    loaded = peft.PeftModel.from_pretrained(base, str(tmp_path / "export")).eval()
    torch.testing.assert_close(logits(loaded, tiny_batch(), start), ours, atol=1e-6, rtol=1e-5)
    assert (bare - ours).abs().max() > 0.01, "the export could be empty"

    config = loaded.peft_config["default"]
    assert (config.r, config.lora_alpha, config.bias) == (16, model.methods[0].config.alpha, bias)
    assert (config.lora_dropout, config.task_type) == (model.methods[0].config.dropout, "SEQ_2_SEQ_LM")
    # peft would save the tensors that it loaded
    saved = set(peft.get_peft_model_state_dict(loaded)) - {"base_model.model.final_logits_bias"}
    written = set(load_file(tmp_path / "export" / "adapter_model.safetensors"))
    tables = {name for name in written if "relative_attention_bias" in name}
    assert {name for name in saved if "lora_" in name} == {name for name in written if "lora_" in name}
    assert written - saved == tables, "peft does not train T5's position tables, but it loads them"


def test_export_has_visual_embedding_in_extra_file(tmp_path):
    model = perturb(tiny_model("lora"))
    export_peft(model, tmp_path)
    visual = load_file(tmp_path / "visual_embedding.safetensors")
    assert visual.keys() == model.visual.state_dict().keys()
    assert all(torch.equal(visual[name], value) for name, value in model.visual.state_dict().items())
    assert not any("visual" in name for name in load_file(tmp_path / "adapter_model.safetensors"))
    card = (tmp_path / "README.md").read_text()
    assert "library_name: peft" in card
    assert "visual_embedding.safetensors" in card
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    assert settings["target_modules"] == ["q_proj", "v_proj"]


@pytest.mark.parametrize(
    ("method", "routing", "settings", "reason"),
    [
        ("lora", {"function": "mul"}, {}, "routed LoRA"),
        ("lora", {}, {"mapping": "split"}, "split LoRA"),
        ("lora", {}, {"sharing": "per_task"}, "per-task LoRA"),
        ("adapter", {}, {}, "this model has adapter"),
        ("bitfit", {}, {}, "this model has bitfit"),
    ],
)
def test_export_rejects_other_than_plain_lora(tmp_path, method, routing, settings, reason):
    with pytest.raises(InputError, match=f"peft export: .*{reason}"):
        export_peft(tiny_model(method, routing, **settings), tmp_path / "export")
    assert not (tmp_path / "export").exists()


def test_export_rejects_lora_with_another_method(tmp_path):
    one, two = tiny_config("lora"), tiny_config("adapter")
    model = build_model(one.model_copy(update={"method": [*one.method, *two.method]}))
    with pytest.raises(InputError, match="this model has lora, adapter"):
        export_peft(model, tmp_path)


def test_export_to_non_empty_folder_is_rejected(tmp_path):
    (tmp_path / "adapter_config.json").write_text("other")
    with pytest.raises(InputError, match="already exists"):
        export_peft(tiny_model("lora"), tmp_path)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["other"]
