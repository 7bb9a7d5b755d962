"""T5 where it differs from BART: joint encoder, sites, head, tokenizer."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration, T5Tokenizer
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.t5.modeling_t5 import T5LayerNorm

from multitask_vl.config.schema import BackboneConfig, DecodingConfig
from multitask_vl.errors import InputError
from multitask_vl.models.build import build_model, load_tokenizer
from multitask_vl.synthetic.tokenizer import build_tokenizer
from tests import tiny_run
from tests.tiny_models import FAMILIES, perturb, tiny_batch, tiny_config, tiny_model

GATED = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
"""T5 1.1 and Flan."""


def config_of(**backbone):
    """The tiny configuration with a changed backbone section."""
    config = tiny_config(family="t5")
    return config.model_copy(update={"backbone": config.backbone.model_copy(update=backbone)})


def encode(model, input_ids: torch.Tensor, visual: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
    """Output of the joint encoder, without padding."""
    mask = torch.ones(len(input_ids), len(prompt) + input_ids.shape[1] + visual.shape[1], dtype=torch.long)
    return model.backbone.encode(model.lm, input_ids, visual, mask, prompt)


class TestEncoder:
    """The joint encoder compared with the encoder of transformers."""

    def test_encoder_equals_transformers_without_images(self):
        model, batch = tiny_model(family="t5"), tiny_batch()
        no_visual = torch.zeros(len(batch), 0, 16)
        ours = model.backbone.encode(model.lm, batch.input_ids, no_visual, batch.attention_mask, torch.zeros(0, 16))
        theirs = model.lm.encoder(input_ids=batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state
        assert torch.equal(ours, theirs)

    def test_prompt_and_text_share_positions(self):
        model, batch = tiny_model(family="t5"), tiny_batch(rows=1)
        visual = torch.randn(1, 5, 16)
        embeddings = model.lm.get_input_embeddings()
        expected = encode(model, batch.input_ids, visual, torch.zeros(0, 16))
        split = encode(model, batch.input_ids[:, 3:], visual, embeddings(batch.input_ids[0, :3]))
        torch.testing.assert_close(split, expected, atol=1e-6, rtol=1e-6)

    def test_pairs_with_visual_tokens_have_zero_bias(self):
        model, batch = tiny_model(family="t5"), tiny_batch(rows=1)
        biases = []
        for block in model.lm.encoder.block:
            block.register_forward_pre_hook(lambda module, args: biases.append(args[2]))
        encode(model, batch.input_ids, torch.randn(1, 5, 16), torch.randn(2, 16))
        assert len(biases) == 2
        for bias in biases:
            assert bias.shape == (1, 2, 14, 14)
            assert bias[..., :9, :9].abs().min() > 0
            assert not bias[..., 9:, :].any()
            assert not bias[..., 9:].any()

    def test_attention_implementations_agree(self):
        """Their masks differ in type: bool, float, or None without padding."""
        model = perturb(tiny_model("full", family="t5"))
        for batch in (tiny_batch(), tiny_batch(rows=1)):
            fused = model(batch)
            model.lm.set_attn_implementation("eager")
            torch.testing.assert_close(model(batch), fused, atol=2e-5, rtol=1e-5)
            model.lm.set_attn_implementation("sdpa")


@pytest.mark.parametrize("more", [{}, GATED], ids=["1.0", "1.1"])
class TestVersions:
    """T5 has one input projection in the feed-forward block and scales before its head; T5 1.1 has two, no scale."""

    def test_every_linear_and_norm_is_a_site(self, more):
        site_index = build_model(config_of(config=FAMILIES["t5"] | more)).methods[0].site_index
        lm = site_index.lm
        linears = {name: module for name, module in lm.named_modules() if isinstance(module, nn.Linear)}
        del linears["lm_head"]
        assert {site.name: (site.d_in, site.d_out) for site in site_index.sites} == {
            name: (linear.in_features, linear.out_features) for name, linear in linears.items()
        }
        norms = {name for name, module in lm.named_modules() if isinstance(module, T5LayerNorm)}
        assert {norm.name for norm in site_index.norms} == norms
        gates = [site for site in site_index.sites if site.role == "ffn_gate"]
        assert len(gates) == (4 if more else 0)
        assert (site_index.d_model, site_index.num_layers("encoder"), site_index.num_layers("decoder")) == (16, 2, 2)

    def test_logits_equal_transformers(self, more):
        model, batch = build_model(config_of(config=FAMILIES["t5"] | more)).eval(), tiny_batch()
        with model.context.task_scope("vqa"):
            encoded = model.encode(batch)
            ids = model.lm.prepare_decoder_input_ids_from_labels(batch.labels)
            ours = model.logits(model.decode(encoded, ids))
            outputs = BaseModelOutput(last_hidden_state=encoded.hidden_states)
            theirs = model.lm(decoder_input_ids=ids, encoder_outputs=outputs, attention_mask=encoded.token_types).logits
        assert torch.equal(ours, theirs)
        scaled = bool(model.lm.config.scale_decoder_outputs)
        assert scaled == (not more)


def test_classify_reads_first_position():
    model, batch = perturb(tiny_model("full", family="t5")), tiny_batch()
    with model.context.task_scope("vqa"):
        ids = model.lm.prepare_decoder_input_ids_from_labels(batch.labels)
        first = model.logits(model.decode(model.encode(batch), ids))[:, 0]
    assert ids[:, 0].tolist() == [model.lm.config.pad_token_id] * 3
    candidates = list(range(3, 60))
    assert model.classify_first_token(batch, candidates).tolist() == first[:, candidates].argmax(-1).tolist()


@pytest.mark.parametrize("depth", [1, 2])
def test_beams_have_no_forced_end(depth):
    """At the maximum length a hypothesis is kept unfinished; BART forces the end token."""
    model = build_model(config_of(config=FAMILIES["t5"] | {"num_decoder_layers": depth})).eval()
    batch = tiny_batch()
    decoding = DecodingConfig(mode="beam", num_beams=3, max_length=5, early_stopping=False, no_repeat_ngram_size=0)
    ids = model.generate(batch, decoding)
    assert ids[:, 0].tolist() == [0, 0, 0]
    assert any(1 not in row for row in ids.tolist())


def test_build_rejects_decoder_deeper_than_encoder():
    with pytest.raises(InputError, match="the decoder has 3 layers and the encoder 2"):
        build_model(config_of(config=FAMILIES["t5"] | {"num_decoder_layers": 3}))


def test_bitfit_trains_relative_position_biases():
    model = tiny_model("bitfit", family="t5")
    tables = [
        f"lm.{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight" for stack in ("encoder", "decoder")
    ]
    assert [name for name in model.trainable_parameters() if name.startswith("lm.")] == tables


class TestTokens:
    """Rows of the token embeddings, and texts without a start token."""

    WORDS = ("▁red", "▁blue", "▁what", "▁color", "▁is", "▁it", "▁yes", "▁no", "▁", "a", "b", "c")

    @pytest.fixture
    def t5_folder(self, tmp_path):
        """A folder with a T5 tokenizer: words, then <extra_id_99> to <extra_id_0>."""
        vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), *((word, -2.0) for word in self.WORDS)]
        vocabulary += [(f"<extra_id_{i}>", 0.0) for i in reversed(range(100))]
        T5Tokenizer(vocab=vocabulary).save_pretrained(tmp_path / "t5")
        return tmp_path / "t5"

    def test_existing_sentinels_are_not_added_again(self, t5_folder):
        config = config_of(tokenizer=str(t5_folder), extra_tokens=200, config={})
        tokenizer = load_tokenizer(config.backbone)
        words = 3 + len(self.WORDS)
        assert len(tokenizer) == words + 200
        assert tokenizer.convert_tokens_to_ids(["<extra_id_0>", "<vis_extra_id_99>"]) == [words + 99, words + 100]
        ids = tokenizer("what color is it").input_ids
        assert tokenizer.convert_ids_to_tokens(ids) == ["▁what", "▁color", "▁is", "▁it", "</s>"]

    def test_checkpoint_with_spare_rows_is_extended(self, t5_folder):
        """As T5-base: more rows than tokens, fewer than needed; half precision on disk; no start token given."""
        words = 3 + len(self.WORDS)
        torch.manual_seed(0)
        sizes = FAMILIES["t5"] | {"vocab_size": words + 100 + 28}
        saved = T5ForConditionalGeneration(T5Config(**sizes)).bfloat16()
        saved.save_pretrained(t5_folder)
        config = config_of(pretrained=str(t5_folder), extra_tokens=200, config={})
        lm = build_model(config, load_tokenizer(config.backbone)).lm
        table = lm.get_input_embeddings().weight
        assert {parameter.dtype for parameter in lm.parameters()} == {torch.float32}
        assert len(table) == words + 200
        assert torch.equal(table[: words + 128], saved.shared.weight.float())
        assert 0.9 < table[words + 128 :].std() < 1.1
        assert lm.lm_head.weight is table
        assert (lm.config.decoder_start_token_id, lm.config.pad_token_id, lm.config.eos_token_id) == (0, 0, 1)

    def test_untied_head_stays_untied(self, t5_folder):
        """As in T5 1.1 and Flan; transformers would tie it to the embeddings when they are resized."""
        words = 3 + len(self.WORDS)
        sizes = FAMILIES["t5"] | GATED | {"vocab_size": words + 100}
        T5ForConditionalGeneration(T5Config(**sizes)).save_pretrained(t5_folder)
        tensors = load_file(t5_folder / "model.safetensors")
        head = torch.randn(words + 100, 16, generator=torch.Generator().manual_seed(0))
        save_file(tensors | {"lm_head.weight": head}, t5_folder / "model.safetensors", {"format": "pt"})
        config = config_of(pretrained=str(t5_folder), extra_tokens=200, config={})
        lm = build_model(config, load_tokenizer(config.backbone)).lm
        assert torch.equal(lm.lm_head.weight[: words + 100], head)
        torch.testing.assert_close(lm.lm_head.weight[words + 100 :], head.mean(0).expand(100, -1))
        assert torch.equal(lm.shared.weight[: words + 100], tensors["shared.weight"])
        assert not lm.config.scale_decoder_outputs

    def test_tokenizer_start_token_is_removed(self, tmp_path):
        build_tokenizer(["red", "blue"]).save_pretrained(tmp_path)
        assert build_tokenizer(["red", "blue"])("red").input_ids[0] == 0
        config = config_of(tokenizer=str(tmp_path), extra_tokens=200, config=FAMILIES["t5"] | {"vocab_size": 5})
        tokenizer = load_tokenizer(config.backbone)
        pad, eos = tokenizer.convert_tokens_to_ids(["<pad>", "</s>"])
        ids = tokenizer("red").input_ids
        assert (len(ids), ids[-1]) == (2, eos)
        sizes = build_model(config, tokenizer).lm.config
        assert (sizes.pad_token_id, sizes.eos_token_id, sizes.decoder_start_token_id) == (pad, eos, pad)

    def test_tokenizer_without_end_token_is_rejected(self, tmp_path):
        backend = build_tokenizer(["red"]).backend_tokenizer
        PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>").save_pretrained(tmp_path)
        with pytest.raises(InputError, match="does not only append its end token"):
            load_tokenizer(BackboneConfig(family="t5", tokenizer=str(tmp_path)))


def test_run_from_annotations_to_scores(tmp_path):
    """Data, training and evaluation assume nothing about BART."""
    tiny_run.write_dataset(tmp_path)
    sizes = {key: value for key, value in FAMILIES["t5"].items() if key != "vocab_size"}
    config = tiny_run.write_config(tmp_path, backbone={"family": "t5", "config": sizes})
    assert tiny_run.launch("train", "--config", str(config), "training.max_steps=2") == 0
    assert [step for step, _, _ in tiny_run.read_losses(tmp_path / "run")] == [1, 2]
    for task in ("vqa", "gqa", "nlvr2", "coco_caption"):
        file = tmp_path / "run" / "predictions" / task / "test.jsonl"
        assert len(file.read_text().splitlines()) == tiny_run.SIZES["test"]
        assert "<" not in "".join(json.loads(line)["prediction"] for line in file.read_text().splitlines())
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert "test" in json.dumps(scores)
