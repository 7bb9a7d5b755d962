"""Does the tiny BART load as promised, read what its card says, and come out of its recipe?"""

import json
import random
import re
from collections import Counter
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
from multitask_vl.synthetic.language import NUMBERS, PLACES, QUESTIONS, RELATIONS, STATEMENTS
from multitask_vl.synthetic.pretraining import bart_pretrain
from multitask_vl.synthetic.pretraining.bart_model import Reader, collapsed_cells, decode, encode
from multitask_vl.synthetic.pretraining.bart_pretrain import Recipe, Run
from multitask_vl.synthetic.pretraining.bart_probe import ASKED, PER_SKILL, REQUIRED, WEIGHTS, gates, probe
from multitask_vl.synthetic.pretraining.text_batches import (
    DENOISE,
    KEPT_FROM_TRAINING,
    VALUE_COUNTS,
    Collator,
    all_words,
    garbled,
    make_denoising,
)
from multitask_vl.synthetic.pretraining.text_documents import GENERATORS, SKILLS, Maker
from multitask_vl.synthetic.scenes import HELD_OUT_PAIRS, VALUES, Filter, holds
from multitask_vl.synthetic.tokenizer import build_tokenizer


@dataclass(frozen=True)
class Tiny(Recipe):
    """The recipe at a size that takes seconds."""

    updates: int = 30
    documents: int = 24
    d_model: int = 32
    encoder_layers: int = 1
    decoder_layers: int = 1
    lr: float = 5e-3
    warmup: int = 3
    plain_from: float = 0.5


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(WEIGHTS)


@pytest.fixture(scope="module")
def collate(tokenizer):
    return Collator(tokenizer)


@pytest.fixture(scope="module")
def bart():
    return BartForConditionalGeneration.from_pretrained(WEIGHTS, dtype=torch.float32).eval()


def some(template, number, most=5, held_out=False):
    rng = random.Random(template)
    return [GENERATORS[template](Maker(rng, rng.randint(2, most), held_out)) for _ in range(number)]


# ---- tokenizer


def test_every_word_is_one_token_at_the_start_and_after_a_blank(tokenizer):
    cut = {word: tokenizer.tokenize(f"{word} {word}") for word in all_words() if word.isalnum()}
    assert [word for word, tokens in cut.items() if tokens != [word, f"Ġ{word}"]] == []
    assert tokenizer.tokenize("vqa: what color is the red star?") == [
        "vqa", ":", "Ġwhat", "Ġcolor", "Ġis", "Ġthe", "Ġred", "Ġstar", "?",
    ]  # fmt: skip


def test_ids_of_special_and_extra_tokens(tokenizer):
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


def test_the_shipped_tokenizer_is_the_one_the_recipe_builds(tokenizer):
    assert build_tokenizer(all_words()).get_vocab() == tokenizer.get_vocab()


# ---- weights


def test_weights_are_small_and_load_strictly(tokenizer):
    file = WEIGHTS / "model.safetensors"
    assert sum(path.stat().st_size for path in WEIGHTS.iterdir()) <= 8e6
    bart, report = BartForConditionalGeneration.from_pretrained(WEIGHTS, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert bart.config.vocab_size == len(tokenizer) == bart.model.shared.num_embeddings
    assert (bart.config.pad_token_id, bart.config.decoder_start_token_id) == (1, 2)
    with safe_open(file, "pt") as stored:
        assert {stored.get_slice(name).get_dtype() for name in stored.keys()} == {"F16"}  # noqa: SIM118


def test_it_generates_like_any_bart(bart, collate, tokenizer):
    documents = some("query_color", 40, held_out=True)
    batch = collate(documents, True, random.Random(0), vary=False)
    states, mask, _ = encode(bart, batch)
    ids = bart.generate(
        encoder_outputs=BaseModelOutput(last_hidden_state=states), attention_mask=mask.long(), max_length=8, num_beams=1
    )
    written = tokenizer.batch_decode(ids, skip_special_tokens=True)
    assert ids[:, :2].tolist() == [[2, 0]] * 40
    assert sum(text == document.answer for text, document in zip(written, documents, strict=True)) >= 32


def test_the_multitask_model_meets_what_pretraining_showed(bart, collate, tokenizer):
    """The joint encoder, given collapsed cells for visual tokens, computes what pretraining computed."""
    backbone = BackboneConfig(pretrained=str(WEIGHTS))
    assert len(load_tokenizer(backbone)) == len(tokenizer) == bart.config.vocab_size
    batch = collate([*some("both_have", 2), *some("total", 2)], True, random.Random(0), vary=False)
    states, mask, _ = encode(bart, batch)
    with torch.no_grad():
        cells = collapsed_cells(bart, batch)
        no_prompt = cells.new_zeros(0, cells.shape[-1])
        joint = BACKBONES.get("bart")().encode(bart, batch.input_ids, cells, mask, no_prompt)
    assert torch.allclose(joint[mask], states[mask], atol=1e-5)


def test_padding_and_order_of_cells_change_nothing(bart, collate):
    documents = [*some("relate_color", 1), *some("common", 3)]
    batch = collate(documents, True, random.Random(0), vary=False)
    alone = collate(documents[:1], True, random.Random(0), vary=False)
    start = torch.tensor([[2, 0]])
    together = decode(bart, *encode(bart, batch)[:2], start.expand(4, -1))[0]
    order = torch.randperm(alone.cell_mask.shape[1], generator=torch.Generator().manual_seed(0))
    for name in ("cell_words", "cell_place", "cell_image", "cell_mask"):
        setattr(alone, name, getattr(alone, name)[:, order])
    assert torch.allclose(decode(bart, *encode(bart, alone)[:2], start)[0], together, atol=1e-3)


def test_shipped_weights_do_what_the_card_says():
    card = (WEIGHTS / "README.md").read_text()
    rows = {row[0]: row[1:] for row in re.findall(r"^\| ([\w-]+) \| ([\d.]+) \| .*?\| ([\d.]+) \| .*\|$", card, re.M)}
    found = {gate.name: gate for gate in gates(seed=7, per_skill=64)}
    assert {name.split("/")[2] for name in found} == set(rows) == set(ASKED.values())
    for name, gate in found.items():
        _, form, skill = name.split("/")
        promised = float(rows[skill][form == "plain"])
        # three standard errors of 64 answers, and 3 points for the templates not being equally hard
        assert gate.value >= promised - 3 - 300 * (max(promised / 100 * (1 - promised / 100), 0.04) / 64) ** 0.5, name


def test_probe_without_weights_says_how_to_make_them(tmp_path):
    with pytest.raises(InputError, match="pretrain bart"):
        gates(0, tmp_path)


def test_gates_are_those_required(bart, tokenizer):
    asked = {(f, s): t for f, s, t in ((*name.split("/")[1:], target) for name, target in _targets())}
    assert {key: target for key, target in asked.items() if target is not None} == REQUIRED
    assert PER_SKILL >= 400
    seen = probe(bart, tokenizer, 3, per_skill=8, held_out=False, forms=("collapsed",))
    assert set(seen) == {"collapsed"}
    assert set(seen["collapsed"]) == set(ASKED) | set(ASKED.values())


def _targets():
    return [(gate.name, gate.target) for gate in gates(0, per_skill=8)]


# ---- documents


def test_every_template_of_the_language_has_documents():
    assert set(GENERATORS) == {*QUESTIONS, *STATEMENTS, "caption"}


@pytest.mark.parametrize("template", sorted(ASKED))
def test_answers_are_balanced(template):
    answers = Counter(document.answer for document in some(template, 400))
    if template == "count":
        assert answers["0"] > 40
        assert answers["3"] > 30
        return
    if template == "choose":
        return
    expected = 400 / len(answers)
    assert all(0.6 * expected < number < 1.4 * expected for number in answers.values()), answers


@pytest.mark.parametrize("template", sorted(ASKED))
def test_no_held_out_combination_is_shown_and_no_wording_slot_is_left(template):
    for document in some(template, 50):
        assert "{" not in document.question
        things = [thing for picture in document.pictures for thing in picture]
        assert not any((thing.color, thing.shape) in HELD_OUT_PAIRS for thing in things)
        assert [len(roles) for roles in document.roles] == [len(picture) for picture in document.pictures]
        for picture in document.pictures:
            assert len({thing.cell for thing in picture}) == len(picture) <= 5


def read_filter(text):
    """The filter that a noun phrase names."""
    words = re.findall(r"[a-z]+", text)
    singular = ["cross" if word.startswith("cross") else word.removesuffix("s") for word in words]
    return Filter(**{name: value for name, values in VALUES.items() for value in values if value in singular})


@pytest.mark.parametrize("template", ["exist", "count", *STATEMENTS])
@pytest.mark.parametrize("held_out", [False, True])
def test_answers_about_presence_and_number_are_right(template, held_out):
    for document in some(template, 60, held_out=held_out):
        text = document.question
        counts = [read_filter(text).count(picture) for picture in document.pictures]
        if template == "exist":
            assert document.answer == ("yes" if counts[0] else "no")
        elif template == "count":
            assert document.answer == str(counts[0])
        else:
            side = 1 if re.search(r"^the right|in the right", text) else 0
            number = next((i for i, word in enumerate(NUMBERS) if re.search(rf"\b{word}\b", text)), None)
            if number == 1 and "one image" in text:
                number = None
            truth = {
                "side_has": counts[side] > 0,
                "both_have": min(counts) > 0,
                "only_one": (counts[0] > 0) != (counts[1] > 0),
                "any_has": max(counts) > 0,
                "none_has": max(counts) == 0,
                "side_number": counts[side] == number,
                "more_on_side": counts[side] > counts[1 - side],
                "total": sum(counts) == number,
            }[template]
            assert document.answer == ("true" if truth else "false"), document


@pytest.mark.parametrize("attribute", sorted(VALUES))
def test_relational_answers_are_right(attribute):
    for document in some(f"relate_{attribute}", 60):
        relation = next(r for r in RELATIONS if f" {r} the " in document.question)
        before, after = document.question.split(f" {relation} the ")
        phrase = re.split(r"\bis the |\bof the ", before)[-1]
        (anchor,) = [thing for thing in document.pictures[0] if read_filter(after).matches(thing)]
        found = [
            thing for thing in document.pictures[0]
            if thing is not anchor and read_filter(phrase).matches(thing) and holds(relation, thing, anchor)
        ]  # fmt: skip
        assert [getattr(thing, attribute) for thing in found] == [document.answer]


@pytest.mark.parametrize("template", ["query_color", "query_shape", "where", "shape_at"])
def test_answers_about_one_object_are_right(template):
    for document in some(template, 60):
        if template == "shape_at":
            place = next(place for place in PLACES if place in document.question)
            (thing,) = [thing for thing in document.pictures[0] if thing.place == place]
        else:
            (thing,) = [t for t in document.pictures[0] if read_filter(document.question).matches(t)]
        assert document.answer == {"where": thing.place}.get(
            template, getattr(thing, template.removeprefix("query_").removesuffix("_at"), None)
        )


def test_plain_documents_are_the_same_tokens_as_their_text(collate, tokenizer):
    documents = [*some("exist", 3), *some("both_have", 3), make_denoising(Maker(random.Random(1), 5))]
    batch = collate(documents, False, random.Random(0), vary=False)
    for i, document in enumerate(documents):
        ids = batch.input_ids[i][batch.text_mask[i].bool()].tolist()
        text = tokenizer.decode(ids, skip_special_tokens=document.template != DENOISE).removesuffix("</s>")
        assert tokenizer(text.removeprefix("<s>")).input_ids == ids
        nouns = [tokenizer.decode(batch.input_ids[i, at]) for at in batch.anchor[i, batch.anchor_mask[i].bool()]]
        assert nouns == [f" {thing.shape}" for picture in document.pictures for thing in picture]


def test_garbling_keeps_what_matters():
    rng = random.Random(0)
    made = {garbled("how many red stars can you see?", rng) for _ in range(40)}
    assert len(made) > 10
    assert all(text.startswith("how many red stars") and text.endswith("?") and " ?" not in text for text in made)


@pytest.mark.parametrize("template", sorted(ASKED))
def test_training_never_shows_a_held_out_wording(template):
    assert all(KEPT_FROM_TRAINING.fullmatch(document.question) for document in some(template, 20, held_out=True))
    rng = random.Random(0)
    texts = [garbled(document.question, rng) for document in some(template, 200)]
    assert not any(KEPT_FROM_TRAINING.fullmatch(text) for text in texts)


def test_denoising_masks_words_and_keeps_the_text():
    made = [make_denoising(Maker(random.Random(i), 5)) for i in range(40)]
    assert sum("<mask>" in document.question for document in made) >= 30
    assert all("<mask>" not in document.answer and document.answer for document in made)


# ---- recipe


def test_a_few_updates_lower_the_loss_and_resuming_changes_nothing(tmp_path):
    torch.set_num_threads(1)
    run = Run(Tiny())
    losses = [run.update(step, step / 30)["answer"] for step in range(20)]
    run.save(tmp_path / "state.pt", 20)
    losses += [run.update(step, step / 30)["answer"] for step in range(20, 24)]
    assert sum(losses[10:15]) < 0.8 * sum(losses[:5])
    again = Run(Tiny())
    assert again.restore(tmp_path / "state.pt") == 20
    assert [again.update(step, step / 30)["answer"] for step in range(20, 24)] == losses[20:]


def test_the_command_writes_a_folder_that_loads(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bart_pretrain, "Recipe", Tiny)
    options = ["--updates", "4", "--probe-every", "2", "--probe-documents", "8"]
    assert bart_pretrain.main(["--out", str(tmp_path / "bart"), "--state", str(tmp_path / "s.pt"), *options]) == 0
    bart = BartForConditionalGeneration.from_pretrained(tmp_path / "bart")
    assert len(AutoTokenizer.from_pretrained(tmp_path / "bart")) == bart.config.vocab_size
    card = (tmp_path / "bart" / "README.md").read_text()
    assert "Not standard denoising" in card
    assert "| relate_color |" in card
    assert json.loads((tmp_path / "bart" / "config.json").read_text())["d_model"] == 32
    assert "look-up" in capsys.readouterr().out


def test_throw_away_heads_are_not_shipped(bart):
    reader = Reader(bart, VALUE_COUNTS)
    assert sum(VALUE_COUNTS) == 16
    assert {name for name, _ in reader.named_children()} == {"bart", "roles", "related", "values"}
    with safe_open(WEIGHTS / "model.safetensors", "pt") as stored:
        assert all(name.startswith(("model.", "lm_head", "final_logits_bias")) for name in stored.keys())  # noqa: SIM118
    assert SKILLS["caption"] == "caption"
