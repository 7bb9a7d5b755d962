"""Is the model built as described: visual tokens, seeded weights, tokenizers, losses, generation, forced choice?"""

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
from tests.tiny_models import SIZES, padded, shaken, tiny_batch, tiny_config, tiny_model

WORDS = torch.randn(100, 16, generator=torch.Generator().manual_seed(1))


def embedding(cell_rows: int = 50, **settings) -> VisualEmbedding:
    torch.manual_seed(0)
    config = VisualConfig(**{"feature_dim": 8, **settings})
    return VisualEmbedding(config, 16, nn.LayerNorm, 0.02, cell_rows)


class TestVisualEmbedding:
    """VL-Adapter's visual tokens."""

    def test_pooling_7x7_to_6x6_is_a_2x2_max_pool_of_each_image(self):
        features = torch.randn(2, 2, 49, 8)
        pooled = embedding().pool(features)
        for i in range(2):
            grid = features[:, i].reshape(2, 7, 7, 8).permute(0, 3, 1, 2)
            assert torch.equal(pooled[:, i], F.max_pool2d(grid, 2, 1).permute(0, 2, 3, 1).reshape(2, 36, 8))

    def test_a_grid_of_that_size_is_left_alone(self):
        features = torch.randn(1, 1, 36, 8)
        assert torch.equal(embedding().pool(features), features)
        assert torch.equal(embedding(pool=None).pool(features[:, :, :7]), features[:, :, :7])

    def test_the_sum_of_four_parts(self):
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

    def test_without_order_embeddings(self):
        visual = embedding(pool=None, order_embedding=False)
        tokens, projected = visual(torch.randn(1, 3, 4, 8), WORDS)
        torch.testing.assert_close(tokens, projected + visual.box_norm(visual.box.bias))
        assert not hasattr(visual, "image_order")

    def test_grid_boxes_are_the_cells_corners(self):
        visual = embedding(pool=(2, 3), boxes="grid")
        given = []
        visual.box.register_forward_hook(lambda module, args, result: given.append(args[0]))
        visual(torch.randn(1, 2, 36, 8), WORDS)
        third = pytest.approx(1 / 3)
        assert given[0].shape == (12, 5)
        assert given[0][1].tolist() == [third, pytest.approx(2 / 3), 0, 0.5, pytest.approx(1 / 6)]
        assert given[0][5].tolist() == [pytest.approx(2 / 3), 1, 0.5, 1, pytest.approx(1 / 6)]
        assert torch.equal(given[0][:6], given[0][6:])

    def test_grid_boxes_of_unpooled_cells(self):
        visual = embedding(pool=None, boxes="grid")
        assert visual(torch.randn(1, 1, 9, 8), WORDS)[0].shape == (1, 9, 16)
        with pytest.raises(InputError, match="needs square grids, but an image has 8 cells"):
            visual(torch.randn(1, 1, 8, 8), WORDS)

    def test_half_precision_features_are_raised(self):
        features = torch.randn(1, 1, 49, 8).half()
        visual = embedding()
        assert torch.equal(visual(features, WORDS)[0], visual(features.float(), WORDS)[0])

    def test_standardised_start(self):
        cells = torch.randn(500, 8) * torch.tensor([1, 2, 3, 4, 5, 6, 7, 0.0]) + torch.arange(8)
        visual = embedding()
        weight = visual.project.weight.detach().clone()
        visual.init_standardized(cells.mean(0), cells.std(0))
        spread = cells.std(0).clamp(min=1e-9)
        spread[7] = 1
        torch.testing.assert_close(
            visual.project(cells), ((cells - cells.mean(0)) / spread) @ weight.T, atol=1e-5, rtol=1e-4
        )

    def test_published_initial_values(self):
        visual = embedding(feature_dim=2048)
        assert float(visual.project.weight.detach().std()) == pytest.approx(0.02, rel=0.02)
        assert not visual.project.bias.any()
        assert not visual.box.bias.any()

    def test_what_does_not_fit_is_refused(self):
        with pytest.raises(InputError, match="needs square grids, but an image has 48 cells"):
            embedding()(torch.randn(1, 1, 48, 8), WORDS)
        with pytest.raises(InputError, match="max_images is 2, but a row has 3 images"):
            embedding()(torch.randn(1, 3, 49, 8), WORDS)
        with pytest.raises(InputError, match="has 36 cells after pooling, but the word table has rows for 35"):
            embedding(cell_rows=35)(torch.randn(1, 1, 49, 8), WORDS)


class TestBuilding:
    """Configuration to model."""

    def test_weights_follow_the_seed_and_nothing_else(self):
        torch.manual_seed(1)
        one = tiny_model("lora")
        drawn = torch.rand(1)
        torch.manual_seed(1)
        assert torch.equal(torch.rand(1), drawn), "building must not move torch's generator"
        other = tiny_model("lora")
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
        third = build_model(tiny_config("lora").model_copy(update={"seed": 8}))
        assert not torch.equal(one.visual.project.weight, third.visual.project.weight)

    def test_backbone_and_visual_embedding_start_alike_under_every_method(self):
        bare, adapted = tiny_model("frozen"), tiny_model("adapter")
        assert torch.equal(bare.visual.project.weight, adapted.visual.project.weight)
        assert torch.equal(bare.lm.model.shared.weight, adapted.lm.model.shared.weight)
        assert bare.description["backbone"] == adapted.description["backbone"]

    def test_added_rows_have_the_families_spread(self):
        config = tiny_config()
        config = config.model_copy(update={"backbone": config.backbone.model_copy(update={"extra_tokens": 2000})})
        table = build_model(config).lm.get_input_embeddings().weight
        assert len(table) == 2060
        assert float(table[60:].detach().std()) == pytest.approx(0.02, rel=0.05)

    def test_head_and_word_table_are_one_and_counted_once(self):
        model = tiny_model("full")
        assert model.lm.lm_head.weight is model.lm.model.shared.weight
        names = [name for name in model.trainable() if "shared" in name or "lm_head" in name or "embed_tokens" in name]
        assert names == ["lm.model.shared.weight"]

    def test_word_table_and_positions_are_frozen_in_efficient_methods(self):
        names = set(tiny_model("lora").trainable()) | set(tiny_model("adapter").trainable())
        assert not any("shared" in name or "embed_" in name for name in names)

    def test_one_dropout_rate_and_no_layerdrop(self):
        config = tiny_model().lm.config
        rates = config.dropout, config.attention_dropout, config.activation_dropout
        assert rates == (0.1, 0.1, 0.1)
        assert config.encoder_layerdrop == config.decoder_layerdrop == 0

    def test_pretrained_weights_from_a_folder(self, tmp_path):
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
        ("backbone", "why"),
        [
            ({"config": {"d_modle": 16}}, "backbone.config.d_modle: BartConfig has no such size"),
            ({"pretrained": "/nowhere/at/all"}, "backbone.pretrained: there is no folder /nowhere/at/all"),
            ({"pretrained": "x", "config": {"d_model": 16}}, "backbone.config is for random weights"),
            ({"config": SIZES | {"d_model": "wide"}}, r"backbone\.config: .*d_model"),
            ({"config": SIZES | {"decoder_attention_heads": 3}}, r"backbone\.config: .*divisible by num_heads"),
            ({"config": SIZES | {"attention_dropout": 0.3}}, "backbone.config.attention_dropout: set backbone.dropout"),
            ({"family": "bert"}, "unknown backbone family 'bert'"),
        ],
    )
    def test_wrong_backbones_are_told(self, backbone, why):
        config = tiny_config().model_copy(update={"backbone": BackboneConfig(**backbone)})
        with pytest.raises(InputError, match=why):
            build_model(config)

    def test_a_folder_of_another_model_is_told(self, tmp_path):
        (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
        config = tiny_config().model_copy(update={"backbone": BackboneConfig(pretrained=str(tmp_path))})
        with pytest.raises(InputError, match=r"is a gpt2 model, but backbone\.family is bart"):
            build_model(config)
        (tmp_path / "config.json").write_text('{"model_type": "bart"}')
        with pytest.raises(InputError, match=r"backbone\.pretrained: cannot load"):
            build_model(config)

    def test_no_method_is_an_error(self):
        with pytest.raises(InputError, match="method: none given"):
            build_model(tiny_config().model_copy(update={"method": []}))


class TestTokenizers:
    """Extra tokens, and special ids that must agree."""

    @pytest.fixture
    def folder(self, tmp_path):
        save_tokenizer(build_tokenizer(["cat", "dog"]), tmp_path)
        return tmp_path

    def test_extra_tokens_are_added_once(self, folder):
        tokenizer = load_tokenizer(BackboneConfig(tokenizer=str(folder), extra_tokens=200))
        assert tokenizer.convert_tokens_to_ids("<vis_extra_id_0>") == len(tokenizer) - 1
        assert tokenizer.convert_tokens_to_ids("<vis_extra_id_35>") == len(tokenizer) - 36

    def test_random_weights_take_rows_and_special_ids_from_it(self, folder):
        backbone = BackboneConfig(
            config={key: value for key, value in SIZES.items() if key != "vocab_size"}, tokenizer=str(folder)
        )
        tokenizer = load_tokenizer(backbone)
        model = build_model(tiny_config().model_copy(update={"backbone": backbone}), tokenizer)
        assert model.lm.get_input_embeddings().num_embeddings == len(tokenizer)
        assert model.lm.config.pad_token_id == tokenizer.pad_token_id
        assert model.lm.config.decoder_start_token_id == tokenizer.eos_token_id

    def test_ids_that_disagree_are_told(self, folder):
        config = SIZES | {"pad_token_id": 3, "vocab_size": 9999}
        backbone = BackboneConfig(config=config, tokenizer=str(folder))
        with pytest.raises(InputError) as caught:
            build_model(tiny_config().model_copy(update={"backbone": backbone}), load_tokenizer(backbone))
        assert "pad_token_id is 3 in the model but 1 in the tokenizer" in str(caught.value)
        assert "backbone.config.vocab_size: 9999" in str(caught.value)

    def test_tokens_behind_the_cells_are_refused(self, folder):
        tokenizer = load_tokenizer(BackboneConfig(tokenizer=str(folder)))
        tokenizer.add_tokens(["<late>"], special_tokens=True)
        tokenizer.save_pretrained(folder)
        with pytest.raises(InputError, match="<vis_extra_id_0> must be the last"):
            load_tokenizer(BackboneConfig(tokenizer=str(folder)))

    def test_none_is_an_error(self):
        with pytest.raises(InputError, match=r"backbone\.tokenizer: needed"):
            load_tokenizer(BackboneConfig())

    @pytest.mark.shared
    def test_barts_own_from_vocabulary_and_merges(self, shared):
        tokenizer = load_tokenizer(BackboneConfig(tokenizer=str(shared / "data" / "bart_tokenizer")))
        assert tokenizer("What color is the cat?").input_ids == [0, 2264, 3195, 16, 5, 4758, 116, 2]
        assert len(tokenizer) == 50_465
        assert tokenizer.convert_tokens_to_ids("<vis_extra_id_7>") == 50_464 - 7
        assert tokenizer.decode([0, 50_460, 4758, 2], skip_special_tokens=True).strip() == "cat"


class TestComputing:
    """Losses, generation and choice."""

    def test_token_losses_are_cross_entropy_and_zero_where_ignored(self):
        model, batch = shaken(tiny_model("adapter")), tiny_batch()
        with model.context.of(batch.task):
            inputs = torch.tensor([[2, *row[:-1]] for row in batch.labels.tolist()])
            logits = model.logits(model.decode(model.encode(batch), inputs.masked_fill(inputs < 0, 1)))
        expected = F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), reduction="none", ignore_index=-100)
        torch.testing.assert_close(model(batch), expected.reshape(batch.labels.shape))
        assert not model(batch)[batch.labels == -100].any()

    def test_a_batch_without_any_target_has_zero_loss(self):
        model, batch = tiny_model("adapter"), tiny_batch()
        losses = model(dataclasses.replace(batch, labels=torch.full_like(batch.labels, -100)))
        losses.sum().backward()
        assert not losses.any()

    def test_pictures_matter_and_their_order_too(self):
        model, batch = shaken(tiny_model("full")), tiny_batch("nlvr2", images=2)
        swapped = dataclasses.replace(batch, features=batch.features.flip(1))
        assert not torch.allclose(model(batch), model(swapped))

    def test_generation_starts_with_the_start_token_and_ends_by_its_settings(self):
        model, batch = shaken(tiny_model("adapter")), tiny_batch()
        model.lm.generation_config.max_length = 3
        greedy = model.generate(batch, DecodingConfig(max_length=11, no_repeat_ngram_size=0))
        assert greedy[:, 0].tolist() == [2, 2, 2]
        assert greedy.shape[1] <= 11
        assert greedy.shape[1] > 3, "the checkpoint's own generation settings play no part"
        beam = model.generate(batch, DecodingConfig(kind="beam", num_beams=3, max_length=6))
        assert all(2 in row[1:] for row in beam.tolist()), "beams are closed where the length runs out"
        again = model.generate(batch, DecodingConfig(kind="beam", num_beams=3, max_length=6))
        assert torch.equal(beam, again)

    def test_no_ngram_twice(self):
        model, batch = shaken(tiny_model("adapter")), tiny_batch()
        for row in model.generate(batch, DecodingConfig(max_length=20, no_repeat_ngram_size=1)).tolist():
            words = [word for word in row[1:] if word not in (1, 2)]
            assert len(words) == len(set(words))

    def test_choosing_compares_logits_behind_the_two_start_tokens(self):
        model, batch = shaken(tiny_model("adapter")), tiny_batch("nlvr2", images=2)
        candidates = [9, 30, 17]
        with model.context.of(batch.task):
            states = model.decode(model.encode(batch), torch.tensor([[2, 0]] * 3))
        expected = model.logits(states[:, 1])[:, candidates].argmax(-1)
        assert model.choose(batch, candidates).tolist() == expected.tolist()
        assert model.choose(batch, [9, 9, 9]).tolist() == [0, 0, 0], "the first wins a tie"
        assert torch.equal(model.choose(padded(batch, 4), candidates), expected)

    def test_choice_is_not_a_way_to_generate(self):
        with pytest.raises(InputError, match='"choice" does not generate'):
            tiny_model().generate(tiny_batch(), DecodingConfig(kind="choice", choices=("a", "b")))

    def test_what_is_longer_than_the_position_table_is_told(self):
        model, batch = tiny_model(), tiny_batch()
        with pytest.raises(InputError, match=r"tasks\.vqa: a text has 41 tokens, but .* positions for 40"):
            model(padded(batch, 34))
        long = dataclasses.replace(batch, labels=torch.full((3, 41), 5))
        with pytest.raises(InputError, match=r"set tasks\.vqa\.max_target_tokens=40 or less"):
            model(long)
        with pytest.raises(InputError, match=r"decoding\.max_length"):
            model.generate(batch, DecodingConfig(max_length=41))

    def test_under_bfloat16_losses_stay_in_float32(self):
        model, batch = shaken(tiny_model("adapter", {"function": "mm1"})), tiny_batch()
        with torch.autocast("cpu", torch.bfloat16):
            losses = model(batch)
            assert model.generate(batch, DecodingConfig(kind="beam", num_beams=2, max_length=5)).shape[0] == 3
        assert losses.dtype == torch.float32
        torch.testing.assert_close(losses, model(batch), atol=0.3, rtol=0.1)
