"""Is T5 what it should be where it is not like BART?"""

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
from tests.tiny_models import FAMILIES, shaken, tiny_batch, tiny_config, tiny_model

GATED = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
"""T5 1.1 and Flan."""


def config_of(**backbone):
    """A tiny configuration with another backbone section."""
    config = tiny_config(family="t5")
    return config.model_copy(update={"backbone": config.backbone.model_copy(update=backbone)})


def encode(model, words: torch.Tensor, cells: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
    """The joint encoder alone, nothing padded."""
    mask = torch.ones(len(words), len(prompt) + words.shape[1] + cells.shape[1], dtype=torch.long)
    return model.family.encode(model.lm, words, cells, mask, prompt)


class TestEncoder:
    """What the joint encoder computes besides the library's."""

    def test_without_cells_it_is_the_library_s(self):
        model, batch = tiny_model(family="t5"), tiny_batch()
        nothing = torch.zeros(len(batch), 0, 16)
        ours = model.family.encode(model.lm, batch.input_ids, nothing, batch.attention_mask, torch.zeros(0, 16))
        theirs = model.lm.encoder(input_ids=batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state
        assert torch.equal(ours, theirs)

    def test_prompts_are_counted_with_the_words(self):
        model, batch = tiny_model(family="t5"), tiny_batch(rows=1)
        cells = torch.randn(1, 5, 16)
        table = model.lm.get_input_embeddings()
        whole = encode(model, batch.input_ids, cells, torch.zeros(0, 16))
        parted = encode(model, batch.input_ids[:, 3:], cells, table(batch.input_ids[0, :3]))
        torch.testing.assert_close(parted, whole, atol=1e-6, rtol=1e-6)

    def test_every_pair_with_a_cell_has_bias_zero_in_every_block(self):
        model, batch = tiny_model(family="t5"), tiny_batch(rows=1)
        seen = []
        for block in model.lm.encoder.block:
            block.register_forward_pre_hook(lambda module, given: seen.append(given[2]))
        encode(model, batch.input_ids, torch.randn(1, 5, 16), torch.randn(2, 16))
        assert len(seen) == 2
        for bias in seen:
            assert bias.shape == (1, 2, 14, 14)
            assert bias[..., :9, :9].abs().min() > 0
            assert not bias[..., 9:, :].any()
            assert not bias[..., 9:].any()

    def test_attention_kernels_agree(self):
        """Their masks differ in kind: bools, floats, or none where nothing is padded."""
        model = shaken(tiny_model("full", family="t5"))
        for batch in (tiny_batch(), tiny_batch(rows=1)):
            fused = model(batch)
            model.lm.set_attn_implementation("eager")
            torch.testing.assert_close(model(batch), fused, atol=2e-5, rtol=1e-5)
            model.lm.set_attn_implementation("sdpa")


@pytest.mark.parametrize("more", [{}, GATED], ids=["1.0", "1.1"])
class TestVersions:
    """T5 has one map into the feed-forward block and scales before its head; T5 1.1 has two, and does not scale."""

    def test_every_map_and_norm_is_a_site(self, more):
        layout = build_model(config_of(config=FAMILIES["t5"] | more)).methods[0].layout
        lm = layout.lm
        maps = {name: module for name, module in lm.named_modules() if isinstance(module, nn.Linear)}
        del maps["lm_head"]
        assert {site.name: (site.d_in, site.d_out) for site in layout.sites} == {
            name: (linear.in_features, linear.out_features) for name, linear in maps.items()
        }
        norms = {name for name, module in lm.named_modules() if isinstance(module, T5LayerNorm)}
        assert {norm.name for norm in layout.norms} == norms
        gates = [site for site in layout.sites if site.role == "ffn_gate"]
        assert len(gates) == (4 if more else 0)
        assert (layout.width, layout.depth("encoder"), layout.depth("decoder")) == (16, 2, 2)

    def test_logits_are_the_library_s(self, more):
        model, batch = build_model(config_of(config=FAMILIES["t5"] | more)).eval(), tiny_batch()
        with model.context.of("vqa"):
            encoded = model.encode(batch)
            ids = model.lm.prepare_decoder_input_ids_from_labels(batch.labels)
            ours = model.logits(model.decode(encoded, ids))
            states = BaseModelOutput(last_hidden_state=encoded.states)
            theirs = model.lm(decoder_input_ids=ids, encoder_outputs=states, attention_mask=encoded.kinds).logits
        assert torch.equal(ours, theirs)
        scaled = bool(model.lm.config.scale_decoder_outputs)
        assert scaled == (not more)


def test_a_choice_is_made_at_the_first_position():
    model, batch = shaken(tiny_model("full", family="t5")), tiny_batch()
    with model.context.of("vqa"):
        ids = model.lm.prepare_decoder_input_ids_from_labels(batch.labels)
        first = model.logits(model.decode(model.encode(batch), ids))[:, 0]
    assert ids[:, 0].tolist() == [model.lm.config.pad_token_id] * 3
    candidates = list(range(3, 60))
    assert model.choose(batch, candidates).tolist() == first[:, candidates].argmax(-1).tolist()


@pytest.mark.parametrize("depth", [1, 2])
def test_beams_are_not_made_to_end(depth):
    """Where the length runs out a hypothesis is kept as it is; BART's ends there."""
    model = build_model(config_of(config=FAMILIES["t5"] | {"num_decoder_layers": depth})).eval()
    batch = tiny_batch()
    decoding = DecodingConfig(kind="beam", num_beams=3, max_length=5, early_stopping=False, no_repeat_ngram_size=0)
    ids = model.generate(batch, decoding)
    assert ids[:, 0].tolist() == [0, 0, 0]
    assert any(1 not in row for row in ids.tolist())


def test_a_decoder_deeper_than_the_encoder_is_refused():
    with pytest.raises(InputError, match="the decoder has 3 layers and the encoder 2"):
        build_model(config_of(config=FAMILIES["t5"] | {"num_decoder_layers": 3}))


def test_biases_are_the_position_tables():
    model = tiny_model("bitfit", family="t5")
    tables = [
        f"lm.{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight" for stack in ("encoder", "decoder")
    ]
    assert [name for name in model.trainable() if name.startswith("lm.")] == tables


class TestTokens:
    """Rows of the word table, and texts that nothing opens."""

    WORDS = ("▁red", "▁blue", "▁what", "▁color", "▁is", "▁it", "▁yes", "▁no", "▁", "a", "b", "c")

    @pytest.fixture
    def own(self, tmp_path):
        """A folder with a tokenizer of T5's kind: words, then <extra_id_99> to <extra_id_0>."""
        vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), *((word, -2.0) for word in self.WORDS)]
        vocabulary += [(f"<extra_id_{i}>", 0.0) for i in reversed(range(100))]
        T5Tokenizer(vocab=vocabulary).save_pretrained(tmp_path / "own")
        return tmp_path / "own"

    def test_the_sentinels_it_has_are_not_added_again(self, own):
        config = config_of(tokenizer=str(own), extra_tokens=200, config={})
        tokenizer = load_tokenizer(config.backbone)
        words = 3 + len(self.WORDS)
        assert len(tokenizer) == words + 200
        assert tokenizer.convert_tokens_to_ids(["<extra_id_0>", "<vis_extra_id_99>"]) == [words + 99, words + 100]
        ids = tokenizer("what color is it").input_ids
        assert tokenizer.convert_ids_to_tokens(ids) == ["▁what", "▁color", "▁is", "▁it", "</s>"]

    def test_a_published_checkpoint_has_spare_rows_and_gets_the_rest(self, own, tmp_path):
        """As T5-base: more rows than tokens, fewer than with ours; half precision on disk; start token not said."""
        words = 3 + len(self.WORDS)
        torch.manual_seed(0)
        sizes = FAMILIES["t5"] | {"vocab_size": words + 100 + 28}
        saved = T5ForConditionalGeneration(T5Config(**sizes)).bfloat16()
        saved.save_pretrained(own)
        config = config_of(pretrained=str(own), extra_tokens=200, config={})
        lm = build_model(config, load_tokenizer(config.backbone)).lm
        table = lm.get_input_embeddings().weight
        assert {parameter.dtype for parameter in lm.parameters()} == {torch.float32}
        assert len(table) == words + 200
        assert torch.equal(table[: words + 128], saved.shared.weight.float())
        assert 0.9 < table[words + 128 :].std() < 1.1
        assert lm.lm_head.weight is table
        assert (lm.config.decoder_start_token_id, lm.config.pad_token_id, lm.config.eos_token_id) == (0, 0, 1)

    def test_a_head_of_its_own_stays_its_own(self, own):
        """As T5 1.1 and Flan have; the library would tie it to the word table when that is resized."""
        words = 3 + len(self.WORDS)
        sizes = FAMILIES["t5"] | GATED | {"vocab_size": words + 100}
        T5ForConditionalGeneration(T5Config(**sizes)).save_pretrained(own)
        tensors = load_file(own / "model.safetensors")
        head = torch.randn(words + 100, 16, generator=torch.Generator().manual_seed(0))
        save_file(tensors | {"lm_head.weight": head}, own / "model.safetensors", {"format": "pt"})
        config = config_of(pretrained=str(own), extra_tokens=200, config={})
        lm = build_model(config, load_tokenizer(config.backbone)).lm
        assert torch.equal(lm.lm_head.weight[: words + 100], head)
        torch.testing.assert_close(lm.lm_head.weight[words + 100 :], head.mean(0).expand(100, -1))
        assert torch.equal(lm.shared.weight[: words + 100], tensors["shared.weight"])
        assert not lm.config.scale_decoder_outputs

    def test_a_tokenizer_that_opens_texts_is_told_not_to(self, tmp_path):
        build_tokenizer(["red", "blue"]).save_pretrained(tmp_path)
        assert build_tokenizer(["red", "blue"])("red").input_ids[0] == 0
        config = config_of(tokenizer=str(tmp_path), extra_tokens=200, config=FAMILIES["t5"] | {"vocab_size": 5})
        tokenizer = load_tokenizer(config.backbone)
        pad, eos = tokenizer.convert_tokens_to_ids(["<pad>", "</s>"])
        ids = tokenizer("red").input_ids
        assert (len(ids), ids[-1]) == (2, eos)
        sizes = build_model(config, tokenizer).lm.config
        assert (sizes.pad_token_id, sizes.eos_token_id, sizes.decoder_start_token_id) == (pad, eos, pad)

    def test_one_that_has_no_end_is_refused(self, tmp_path):
        backend = build_tokenizer(["red"]).backend_tokenizer
        PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>").save_pretrained(tmp_path)
        with pytest.raises(InputError, match="does not close a text with its end token"):
            load_tokenizer(BackboneConfig(family="t5", tokenizer=str(tmp_path)))


def test_a_run_from_annotation_files_to_scores(tmp_path):
    """Nothing in data, training and evaluation takes the backbone for BART."""
    tiny_run.write_files(tmp_path)
    sizes = {key: value for key, value in FAMILIES["t5"].items() if key != "vocab_size"}
    config = tiny_run.write_config(tmp_path, backbone={"family": "t5", "config": sizes})
    assert tiny_run.launch("train_multitask", "--config", str(config), "training.steps=2") == 0
    assert [step for step, _, _ in tiny_run.losses(tmp_path / "run")] == [1, 2]
    for task in ("vqa", "gqa", "nlvr2", "coco_caption"):
        file = tmp_path / "run" / "predictions" / task / "report.jsonl"
        assert len(file.read_text().splitlines()) == tiny_run.SIZES["report"]
        assert "<" not in "".join(json.loads(line)["prediction"] for line in file.read_text().splitlines())
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert "report" in json.dumps(scores)
