"""Model: visual tokens, seeded weights, tokenizers, losses, generation, classification by first token."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import BartConfig, BartForConditionalGeneration

from multitask_vl.config.schema import BackboneConfig, DecodingConfig, VisualConfig
from multitask_vl.errors import InputError
from multitask_vl.models.build import build_model, load_tokenizer
from multitask_vl.models.visual import VisualEmbedding
from multitask_vl.synthetic.tokenizer import build_tokenizer, save_tokenizer
from tests.tiny_models import SIZES, padded, perturb, tiny_batch, tiny_config, tiny_model

WORDS = torch.randn(100, 16, generator=torch.Generator().manual_seed(1))


def embedding(num_order_tokens: int = 50, **settings) -> VisualEmbedding:
    torch.manual_seed(0)
    config = VisualConfig(**{"feature_dim": 8, **settings})
    return VisualEmbedding(config, 16, nn.LayerNorm, 0.02, num_order_tokens)


class TestVisualEmbedding:
    """Visual tokens as in VL-Adapter."""

    def test_pool_7x7_to_6x6_is_2x2_max_pool(self):
        features = torch.randn(2, 2, 49, 8)
        pooled = embedding().max_pool_grid(features)
        for i in range(2):
            grid = features[:, i].reshape(2, 7, 7, 8).permute(0, 3, 1, 2)
            assert torch.equal(pooled[:, i], F.max_pool2d(grid, 2, 1).permute(0, 2, 3, 1).reshape(2, 36, 8))

    def test_pool_keeps_grid_of_target_size(self):
        features = torch.randn(1, 1, 36, 8)
        assert torch.equal(embedding().max_pool_grid(features), features)
        assert torch.equal(embedding(pool=None).max_pool_grid(features[:, :, :7]), features[:, :, :7])

    def test_tokens_are_sum_of_four_embeddings(self):
        visual = embedding(pool=None)
        features = torch.randn(2, 2, 9, 8)
        tokens, projected = visual(features, WORDS)
        assert tokens.shape == (2, 18, 16)
        torch.testing.assert_close(projected, visual.project_norm(visual.project(features.flatten(1, 2))))
        rest = tokens - projected - visual.box_norm(visual.box.bias)
        for image in range(2):
            for cell in range(9):
                expected = visual.image_order.weight[image] + WORDS[-1 - cell]
                torch.testing.assert_close(rest[1, 9 * image + cell], expected, atol=1e-5, rtol=1e-4)

    def test_tokens_without_order_embeddings(self):
        visual = embedding(pool=None, order_embedding=False)
        tokens, projected = visual(torch.randn(1, 3, 4, 8), WORDS)
        torch.testing.assert_close(tokens, projected + visual.box_norm(visual.box.bias))
        assert not hasattr(visual, "image_order")

    def test_grid_boxes_are_cell_corners(self):
        visual = embedding(pool=(2, 3), box_coords="grid")
        boxes = []
        visual.box.register_forward_hook(lambda module, args, result: boxes.append(args[0]))
        visual(torch.randn(1, 2, 36, 8), WORDS)
        third = pytest.approx(1 / 3)
        assert boxes[0].shape == (12, 5)
        assert boxes[0][1].tolist() == [third, pytest.approx(2 / 3), 0, 0.5, pytest.approx(1 / 6)]
        assert boxes[0][5].tolist() == [pytest.approx(2 / 3), 1, 0.5, 1, pytest.approx(1 / 6)]
        assert torch.equal(boxes[0][:6], boxes[0][6:])

    def test_grid_boxes_of_unpooled_cells(self):
        visual = embedding(pool=None, box_coords="grid")
        assert visual(torch.randn(1, 1, 9, 8), WORDS)[0].shape == (1, 9, 16)
        with pytest.raises(InputError, match="needs square grids, but an image has 8 cells"):
            visual(torch.randn(1, 1, 8, 8), WORDS)

    def test_half_precision_features_are_cast(self):
        features = torch.randn(1, 1, 49, 8).half()
        visual = embedding()
        assert torch.equal(visual(features, WORDS)[0], visual(features.float(), WORDS)[0])

    def test_init_input_normalization(self):
        cells = torch.randn(500, 8) * torch.tensor([1, 2, 3, 4, 5, 6, 7, 0.0]) + torch.arange(8)
        visual = embedding()
        weight = visual.project.weight.detach().clone()
        visual.init_input_normalization(cells.mean(0), cells.std(0))
        std = cells.std(0).clamp(min=1e-9)
        std[7] = 1
        torch.testing.assert_close(
            visual.project(cells), ((cells - cells.mean(0)) / std) @ weight.T, atol=1e-5, rtol=1e-4
        )

    def test_initial_values_as_published(self):
        visual = embedding(feature_dim=2048)
        assert float(visual.project.weight.detach().std()) == pytest.approx(0.02, rel=0.02)
        assert not visual.project.bias.any()
        assert not visual.box.bias.any()

    def test_visual_embedding_rejects_unfit_inputs(self):
        with pytest.raises(InputError, match="needs square grids, but an image has 48 cells"):
            embedding()(torch.randn(1, 1, 48, 8), WORDS)
        with pytest.raises(InputError, match="max_images is 2, but a row has 3 images"):
            embedding()(torch.randn(1, 3, 49, 8), WORDS)
        with pytest.raises(InputError, match="has 36 cells after pooling, but only 35 word embeddings are reserved"):
            embedding(num_order_tokens=35)(torch.randn(1, 1, 49, 8), WORDS)


class TestBuilding:
    """Configuration to model."""

    def test_weights_depend_on_seed_only(self):
        torch.manual_seed(1)
        one = tiny_model("lora")
        sample = torch.rand(1)
        torch.manual_seed(1)
        assert torch.equal(torch.rand(1), sample), "building must not advance torch's generator"
        other = tiny_model("lora")
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
        third = build_model(tiny_config("lora").model_copy(update={"seed": 8}))
        assert not torch.equal(one.visual.project.weight, third.visual.project.weight)

    def test_methods_share_initial_backbone_and_visual(self):
        bare, adapted = tiny_model("frozen"), tiny_model("adapter")
        assert torch.equal(bare.visual.project.weight, adapted.visual.project.weight)
        assert torch.equal(bare.lm.model.shared.weight, adapted.lm.model.shared.weight)
        assert bare.compatibility["backbone"] == adapted.compatibility["backbone"]

    def test_added_embeddings_have_family_std(self):
        config = tiny_config()
        config = config.model_copy(update={"backbone": config.backbone.model_copy(update={"extra_tokens": 2000})})
        table = build_model(config).lm.get_input_embeddings().weight
        assert len(table) == 2060
        assert float(table[60:].detach().std()) == pytest.approx(0.02, rel=0.05)

    def test_tied_head_is_counted_once(self):
        model = tiny_model("full")
        assert model.lm.lm_head.weight is model.lm.model.shared.weight
        names = [
            name
            for name in model.trainable_parameters()
            if "shared" in name or "lm_head" in name or "embed_tokens" in name
        ]
        assert names == ["lm.model.shared.weight"]

    def test_efficient_methods_freeze_embeddings(self):
        names = set(tiny_model("lora").trainable_parameters()) | set(tiny_model("adapter").trainable_parameters())
        assert not any("shared" in name or "embed_" in name for name in names)

    def test_single_dropout_rate_and_no_layerdrop(self):
        config = tiny_model().lm.config
        rates = config.dropout, config.attention_dropout, config.activation_dropout
        assert rates == (0.1, 0.1, 0.1)
        assert config.encoder_layerdrop == config.decoder_layerdrop == 0

    def test_pretrained_weights_load_from_folder(self, tmp_path):
        torch.manual_seed(4)
        saved = BartForConditionalGeneration(BartConfig(**SIZES, encoder_layerdrop=0.5))
        saved.generation_config.num_beams = 7
        saved.save_pretrained(tmp_path)
        config = tiny_config()
        backbone = BackboneConfig(pretrained=str(tmp_path), extra_tokens=80, dropout=0.2)
        model = build_model(config.model_copy(update={"backbone": backbone}))
        table = model.lm.get_input_embeddings().weight
        assert torch.equal(table[:60], saved.model.shared.weight)
        assert len(table) == 140
        assert torch.equal(model.lm.model.encoder.layers[0].fc1.weight, saved.model.encoder.layers[0].fc1.weight)
        assert model.lm.config.dropout == 0.2
        assert model.lm.config.encoder_layerdrop == 0
        assert model.generate(tiny_batch(), DecodingConfig(max_length=5)).shape[0] == 3

    @pytest.mark.parametrize(
        ("backbone", "message"),
        [
            ({"config": {"d_modle": 16}}, "backbone.config.d_modle: BartConfig has no such key"),
            ({"pretrained": "/nowhere/at/all"}, "backbone.pretrained: there is no folder /nowhere/at/all"),
            ({"pretrained": "x", "config": {"d_model": 16}}, "backbone.config: only for random weights"),
            ({"config": SIZES | {"d_model": "wide"}}, r"backbone\.config: .*d_model"),
            ({"config": SIZES | {"decoder_attention_heads": 3}}, r"backbone\.config: .*divisible by num_heads"),
            ({"config": SIZES | {"attention_dropout": 0.3}}, "backbone.config.attention_dropout: set backbone.dropout"),
            ({"family": "bert"}, "unknown backbone family 'bert'"),
        ],
    )
    def test_build_rejects_wrong_backbone(self, backbone, message):
        config = tiny_config().model_copy(update={"backbone": BackboneConfig(**backbone)})
        with pytest.raises(InputError, match=message):
            build_model(config)

    def test_build_rejects_folder_of_other_model(self, tmp_path):
        (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
        config = tiny_config().model_copy(update={"backbone": BackboneConfig(pretrained=str(tmp_path))})
        with pytest.raises(InputError, match=r"is a gpt2 model, but backbone\.family is bart"):
            build_model(config)
        (tmp_path / "config.json").write_text('{"model_type": "bart"}')
        with pytest.raises(InputError, match=r"backbone\.pretrained: cannot load"):
            build_model(config)

    def test_build_requires_a_method(self):
        with pytest.raises(InputError, match="method: none given"):
            build_model(tiny_config().model_copy(update={"method": []}))


class TestTokenizers:
    """Extra tokens and special ids."""

    @pytest.fixture
    def folder(self, tmp_path):
        save_tokenizer(build_tokenizer(["cat", "dog"]), tmp_path)
        return tmp_path

    def test_extra_tokens_are_added_once(self, folder):
        tokenizer = load_tokenizer(BackboneConfig(tokenizer=str(folder), extra_tokens=200))
        assert tokenizer.convert_tokens_to_ids("<vis_extra_id_0>") == len(tokenizer) - 1
        assert tokenizer.convert_tokens_to_ids("<vis_extra_id_35>") == len(tokenizer) - 36

    def test_random_weights_adopt_tokenizer_ids(self, folder):
        backbone = BackboneConfig(
            config={key: value for key, value in SIZES.items() if key != "vocab_size"}, tokenizer=str(folder)
        )
        tokenizer = load_tokenizer(backbone)
        model = build_model(tiny_config().model_copy(update={"backbone": backbone}), tokenizer)
        assert model.lm.get_input_embeddings().num_embeddings == len(tokenizer)
        assert model.lm.config.pad_token_id == tokenizer.pad_token_id
        assert model.lm.config.decoder_start_token_id == tokenizer.eos_token_id

    def test_build_rejects_disagreeing_special_ids(self, folder):
        config = SIZES | {"pad_token_id": 3, "vocab_size": 9999}
        backbone = BackboneConfig(config=config, tokenizer=str(folder))
        with pytest.raises(InputError) as caught:
            build_model(tiny_config().model_copy(update={"backbone": backbone}), load_tokenizer(backbone))
        assert "pad_token_id is 3 in the model but 1 in the tokenizer" in str(caught.value)
        assert "backbone.config.vocab_size: 9999" in str(caught.value)

    def test_tokenizer_rejects_tokens_after_cells(self, folder):
        tokenizer = load_tokenizer(BackboneConfig(tokenizer=str(folder)))
        tokenizer.add_tokens(["<late>"], special_tokens=True)
        tokenizer.save_pretrained(folder)
        with pytest.raises(InputError, match="<vis_extra_id_0> must be the last"):
            load_tokenizer(BackboneConfig(tokenizer=str(folder)))

    def test_tokenizer_is_required(self):
        with pytest.raises(InputError, match=r"backbone\.tokenizer: required"):
            load_tokenizer(BackboneConfig())

    @pytest.mark.shared
    def test_bart_tokenizer_from_vocabulary_and_merges(self, shared):
        tokenizer = load_tokenizer(BackboneConfig(tokenizer=str(shared / "data" / "bart_tokenizer")))
        assert tokenizer("What color is the cat?").input_ids == [0, 2264, 3195, 16, 5, 4758, 116, 2]
        assert len(tokenizer) == 50_465
        assert tokenizer.convert_tokens_to_ids("<vis_extra_id_7>") == 50_464 - 7
        assert tokenizer.decode([0, 50_460, 4758, 2], skip_special_tokens=True).strip() == "cat"


class TestComputing:
    """Losses, generation and classification."""

    def test_token_losses_are_cross_entropy(self):
        model, batch = perturb(tiny_model("adapter")), tiny_batch()
        with model.context.task_scope(batch.task):
            inputs = torch.tensor([[2, *row[:-1]] for row in batch.labels.tolist()])
            logits = model.logits(model.decode(model.encode(batch), inputs.masked_fill(inputs < 0, 1)))
        expected = F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), reduction="none", ignore_index=-100)
        torch.testing.assert_close(model(batch), expected.reshape(batch.labels.shape))
        assert not model(batch)[batch.labels == -100].any()

    def test_batch_without_targets_has_zero_loss(self):
        model, batch = tiny_model("adapter"), tiny_batch()
        losses = model(dataclasses.replace(batch, labels=torch.full_like(batch.labels, -100)))
        losses.sum().backward()
        assert not losses.any()

    def test_loss_depends_on_image_order(self):
        model, batch = perturb(tiny_model("full")), tiny_batch("nlvr2", images=2)
        swapped = dataclasses.replace(batch, features=batch.features.flip(1))
        assert not torch.allclose(model(batch), model(swapped))

    def test_generation_follows_decoding_settings(self):
        model, batch = perturb(tiny_model("adapter")), tiny_batch()
        model.lm.generation_config.max_length = 3
        greedy = model.generate(batch, DecodingConfig(max_length=11, no_repeat_ngram_size=0))
        assert greedy[:, 0].tolist() == [2, 2, 2]
        assert greedy.shape[1] <= 11
        assert greedy.shape[1] > 3, "the checkpoint's generation settings are ignored"
        beam = model.generate(batch, DecodingConfig(mode="beam", num_beams=3, max_length=6))
        assert all(2 in row[1:] for row in beam.tolist()), "beams end at the maximum length"
        assert torch.equal(beam, model.generate(batch, DecodingConfig(mode="beam", num_beams=3, max_length=6)))

    def test_generation_repeats_no_ngram(self):
        model, batch = perturb(tiny_model("adapter")), tiny_batch()
        for row in model.generate(batch, DecodingConfig(max_length=20, no_repeat_ngram_size=1)).tolist():
            tokens = [token for token in row[1:] if token not in (1, 2)]
            assert len(tokens) == len(set(tokens))

    def test_classify_compares_logits_after_prefix(self):
        model, batch = perturb(tiny_model("adapter")), tiny_batch("nlvr2", images=2)
        candidates = [9, 30, 17]
        with model.context.task_scope(batch.task):
            hidden = model.decode(model.encode(batch), torch.tensor([[2, 0]] * 3))
        expected = model.logits(hidden[:, 1])[:, candidates].argmax(-1)
        assert model.classify_first_token(batch, candidates).tolist() == expected.tolist()
        assert model.classify_first_token(batch, [9, 9, 9]).tolist() == [0, 0, 0], "the first one wins ties"
        assert torch.equal(model.classify_first_token(padded(batch, 4), candidates), expected)

    def test_classify_mode_does_not_generate(self):
        with pytest.raises(InputError, match='"classify" does not generate'):
            tiny_model().generate(tiny_batch(), DecodingConfig(mode="classify", choices=("a", "b")))

    def test_model_rejects_sequences_beyond_positions(self):
        model, batch = tiny_model(), tiny_batch()
        with pytest.raises(InputError, match=r"tasks\.vqa: a text has 41 tokens, but .* positions for 40"):
            model(padded(batch, 34))
        long = dataclasses.replace(batch, labels=torch.full((3, 41), 5))
        with pytest.raises(InputError, match=r"set tasks\.vqa\.max_target_tokens=40 or less"):
            model(long)
        with pytest.raises(InputError, match=r"decoding\.max_length"):
            model.generate(batch, DecodingConfig(max_length=41))

    def test_losses_are_float32_under_bfloat16(self):
        model, batch = perturb(tiny_model("adapter", {"function": "mm1"})), tiny_batch()
        with torch.autocast("cpu", torch.bfloat16):
            losses = model(batch)
            assert model.generate(batch, DecodingConfig(mode="beam", num_beams=2, max_length=5)).shape[0] == 3
        assert losses.dtype == torch.float32
        torch.testing.assert_close(losses, model(batch), atol=0.3, rtol=0.1)
