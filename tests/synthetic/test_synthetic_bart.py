"""Bundled tiny BART: its files, its accuracy and its pretraining."""

import json
import random
import re
from dataclasses import dataclass

import pytest
import torch
from safetensors import safe_open
from transformers import AutoTokenizer, BartForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from multitask_vl.config.schema import BackboneConfig
from multitask_vl.errors import InputError
from multitask_vl.models.build import load_tokenizer
from multitask_vl.registry import BACKBONES
from multitask_vl.synthetic.pretraining import __main__ as command
from multitask_vl.synthetic.pretraining import bart_pretrain
from multitask_vl.synthetic.pretraining.bart_model import PretrainingModel, decode, embed_cells, encode
from multitask_vl.synthetic.pretraining.bart_pretrain import PretrainingRun, Recipe
from multitask_vl.synthetic.pretraining.bart_probe import (
    BUNDLED_BART,
    DOCUMENTS_PER_SKILL,
    PROBED_SKILLS,
    REQUIRED_ACCURACY,
    check_thresholds,
    probe,
)
from multitask_vl.synthetic.pretraining.text_batches import (
    VALUE_COUNTS,
    DocumentCollator,
    tokenizer_words,
)
from multitask_vl.synthetic.pretraining.text_documents import SKILLS
from multitask_vl.synthetic.tokenizer import build_tokenizer
from tests.synthetic.document_samples import sample


@dataclass(frozen=True)
class TinyRecipe(Recipe):
    """The recipe at a size that takes seconds."""

    updates: int = 30
    batch_size: int = 24
    d_model: int = 32
    encoder_layers: int = 1
    decoder_layers: int = 1
    lr: float = 5e-3
    warmup_steps: int = 3
    plain_start: float = 0.5


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(BUNDLED_BART)


@pytest.fixture(scope="module")
def collate(tokenizer):
    return DocumentCollator(tokenizer)


@pytest.fixture(scope="module")
def bart():
    return BartForConditionalGeneration.from_pretrained(BUNDLED_BART, dtype=torch.float32).eval()


# ---- tokenizer


def test_every_word_is_one_token(tokenizer):
    tokens = {word: tokenizer.tokenize(f"{word} {word}") for word in tokenizer_words() if word.isalnum()}
    assert [word for word, pair in tokens.items() if pair != [word, f"Ġ{word}"]] == []
    assert tokenizer.tokenize("vqa: what color is the red star?") == [
        "vqa", ":", "Ġwhat", "Ġcolor", "Ġis", "Ġthe", "Ġred", "Ġstar", "?",
    ]  # fmt: skip


def test_special_and_extra_token_ids(tokenizer):
    size = len(tokenizer)
    assert tokenizer.convert_tokens_to_ids(["<s>", "<pad>", "</s>", "<unk>", "<mask>"]) == [0, 1, 2, 3, 4]
    visual = [tokenizer.convert_tokens_to_ids(f"<vis_extra_id_{i}>") for i in range(100)]
    assert visual == [size - 1 - i for i in range(100)]
    assert tokenizer.convert_tokens_to_ids("<extra_id_0>") == size - 101
    assert tokenizer("yes").input_ids[0] == 0
    assert tokenizer("yes").input_ids[-1] == 2
    assert tokenizer("yes", "no").input_ids.count(2) == 3


@pytest.mark.parametrize("text", ["vqa: is there a red star?", "there are two red stars in total.", "Ünknown words!"])
def test_text_round_trip(tokenizer, text):
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text


def test_bundled_tokenizer_matches_recipe(tokenizer):
    assert build_tokenizer(tokenizer_words()).get_vocab() == tokenizer.get_vocab()


# ---- weights


def test_bundled_bart_loads_strictly(tokenizer):
    file = BUNDLED_BART / "model.safetensors"
    assert sum(path.stat().st_size for path in BUNDLED_BART.iterdir()) <= 8e6
    bart, report = BartForConditionalGeneration.from_pretrained(BUNDLED_BART, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert bart.config.vocab_size == len(tokenizer) == bart.model.shared.num_embeddings
    assert (bart.config.pad_token_id, bart.config.decoder_start_token_id) == (1, 2)
    with safe_open(file, "pt") as stored:
        assert {stored.get_slice(name).get_dtype() for name in stored.keys()} == {"F16"}  # noqa: SIM118


def test_bundled_bart_generates_answers(bart, collate, tokenizer):
    documents = sample("query_color", 40, held_out=True)
    batch = collate(documents, True, random.Random(0), vary=False)
    hidden_states, mask, _ = encode(bart, batch)
    ids = bart.generate(
        encoder_outputs=BaseModelOutput(last_hidden_state=hidden_states),
        attention_mask=mask.long(),
        max_length=8,
        num_beams=1,
    )
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
    assert ids[:, :2].tolist() == [[2, 0]] * 40
    assert sum(text == document.answer for text, document in zip(texts, documents, strict=True)) >= 32


def test_joint_encoder_matches_pretraining_encoder(bart, collate, tokenizer):
    """The joint encoder computes the same hidden states with collapsed cells as visual tokens."""
    backbone = BackboneConfig(pretrained=str(BUNDLED_BART))
    assert len(load_tokenizer(backbone)) == len(tokenizer) == bart.config.vocab_size
    batch = collate([*sample("both_have", 2), *sample("total", 2)], True, random.Random(0), vary=False)
    hidden_states, mask, _ = encode(bart, batch)
    with torch.no_grad():
        cells = embed_cells(bart, batch)
        no_prompt = cells.new_zeros(0, cells.shape[-1])
        joint = BACKBONES.get("bart")().encode(bart, batch.input_ids, cells, mask, no_prompt)
    assert torch.allclose(joint[mask], hidden_states[mask], atol=1e-5)


def test_cell_padding_and_order_do_not_matter(bart, collate):
    documents = [*sample("relate_color", 1), *sample("common", 3)]
    batch = collate(documents, True, random.Random(0), vary=False)
    alone = collate(documents[:1], True, random.Random(0), vary=False)
    start = torch.tensor([[2, 0]])
    together = decode(bart, *encode(bart, batch)[:2], start.expand(4, -1))[0]
    order = torch.randperm(alone.cell_mask.shape[1], generator=torch.Generator().manual_seed(0))
    for name in ("cell_words", "cell_positions", "cell_images", "cell_mask"):
        setattr(alone, name, getattr(alone, name)[:, order])
    assert torch.allclose(decode(bart, *encode(bart, alone)[:2], start)[0], together, atol=1e-3)


PER_SKILL = 48


@pytest.fixture(scope="module")
def thresholds():
    return check_thresholds(seed=7, per_skill=PER_SKILL)


def test_accuracies_match_card(thresholds):
    card = (BUNDLED_BART / "README.md").read_text()
    rows = {row[0]: row[1:] for row in re.findall(r"^\| ([\w-]+) \| ([\d.]+) \| .*?\| ([\d.]+) \| .*\|$", card, re.M)}
    assert {result.name.split("/")[2] for result in thresholds} == set(rows) == set(PROBED_SKILLS.values())
    for result in thresholds:
        _, form, skill = result.name.split("/")
        published = float(rows[skill][form == "plain"])
        # three standard errors, and 3 points since the templates differ in difficulty
        margin = 3 + 300 * (max(published / 100 * (1 - published / 100), 0.04) / PER_SKILL) ** 0.5
        assert result.value >= published - margin, result.name


def test_thresholds_are_those_required(thresholds):
    targets = {tuple(result.name.split("/")[1:]): result.target for result in thresholds}
    assert {key: target for key, target in targets.items() if target is not None} == REQUIRED_ACCURACY
    assert DOCUMENTS_PER_SKILL >= 400


def test_probe_of_one_form(bart, tokenizer):
    results = probe(bart, tokenizer, 3, per_skill=8, held_out=False, forms=("collapsed",))
    assert set(results) == {"collapsed"}
    assert set(results["collapsed"]) == set(PROBED_SKILLS) | set(PROBED_SKILLS.values())


def test_check_thresholds_without_weights(tmp_path):
    with pytest.raises(InputError, match=r"to create it: .*pretraining bart"):
        check_thresholds(0, tmp_path)


# ---- pretraining


def test_updates_lower_loss_and_resume_exactly(tmp_path):
    torch.set_num_threads(1)
    run = PretrainingRun(TinyRecipe())
    losses = [run.update(step, step / 30)["answer"] for step in range(20)]
    run.save(tmp_path / "state.pt", 20)
    losses += [run.update(step, step / 30)["answer"] for step in range(20, 24)]
    assert sum(losses[10:15]) < 0.8 * sum(losses[:5])
    again = PretrainingRun(TinyRecipe())
    assert again.load(tmp_path / "state.pt") == 20
    assert [again.update(step, step / 30)["answer"] for step in range(20, 24)] == losses[20:]


def test_bart_command_writes_loadable_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bart_pretrain, "Recipe", TinyRecipe)
    options = ["--updates", "3", "--probe-every", "2", "--probe-documents", "8"]
    assert command.main(["bart", "--out", str(tmp_path / "bart"), "--state", str(tmp_path / "s.pt"), *options]) == 0
    bart = BartForConditionalGeneration.from_pretrained(tmp_path / "bart")
    assert len(AutoTokenizer.from_pretrained(tmp_path / "bart")) == bart.config.vocab_size
    card = (tmp_path / "bart" / "README.md").read_text()
    assert "Not standard denoising" in card
    assert "| relate_color |" in card
    assert json.loads((tmp_path / "bart" / "config.json").read_text())["d_model"] == 32
    assert "look-up" in capsys.readouterr().out


def test_auxiliary_heads_are_not_saved(bart):
    model = PretrainingModel(bart, VALUE_COUNTS)
    assert sum(VALUE_COUNTS) == 16
    assert {name for name, _ in model.named_children()} == {"bart", "roles", "related", "values"}
    with safe_open(BUNDLED_BART / "model.safetensors", "pt") as stored:
        assert all(name.startswith(("model.", "lm_head", "final_logits_bias")) for name in stored.keys())  # noqa: SIM118
    assert SKILLS["caption"] == "caption"
