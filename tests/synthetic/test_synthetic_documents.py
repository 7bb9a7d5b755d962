"""Documents of the BART pretraining: true and balanced answers, held-out wordings, tokens."""

import random
import re
from collections import Counter

import pytest
from transformers import AutoTokenizer

from multitask_vl.synthetic.language import NUMBER_WORDS, QUESTIONS, STATEMENTS
from multitask_vl.synthetic.pretraining.bart_probe import BUNDLED_BART, PROBED_SKILLS
from multitask_vl.synthetic.pretraining.text_batches import (
    DENOISE,
    HELD_OUT_WORDINGS,
    DocumentCollator,
    denoising_document,
    perturb_wording,
)
from multitask_vl.synthetic.pretraining.text_documents import GENERATORS, DocumentBuilder
from multitask_vl.synthetic.scenes import HELD_OUT_PAIRS, QUADRANTS, RELATIONS, VALUES, Filter, relation_holds
from tests.synthetic.document_samples import sample


def test_every_template_has_a_generator():
    assert set(GENERATORS) == {*QUESTIONS, *STATEMENTS, "caption"}


@pytest.mark.parametrize("template", sorted(PROBED_SKILLS))
def test_answers_are_balanced(template):
    answers = Counter(document.answer for document in sample(template, 400))
    if template == "count":
        assert answers["0"] > 40
        assert answers["3"] > 30
        return
    if template == "choose":
        return
    expected = 400 / len(answers)
    assert all(0.6 * expected < number < 1.4 * expected for number in answers.values()), answers


@pytest.mark.parametrize("template", sorted(PROBED_SKILLS))
def test_documents_contain_no_held_out_pair(template):
    for document in sample(template, 50):
        assert "{" not in document.question
        things = [thing for image in document.images for thing in image]
        assert not any((thing.color, thing.shape) in HELD_OUT_PAIRS for thing in things)
        assert [len(roles) for roles in document.roles] == [len(image) for image in document.images]
        for image in document.images:
            assert len({thing.cell for thing in image}) == len(image) <= 5


def read_filter(text):
    """Filter that a noun phrase describes."""
    words = re.findall(r"[a-z]+", text)
    singular = ["cross" if word.startswith("cross") else word.removesuffix("s") for word in words]
    return Filter(**{name: value for name, values in VALUES.items() for value in values if value in singular})


@pytest.mark.parametrize("template", ["exist", "count", *STATEMENTS])
@pytest.mark.parametrize("held_out", [False, True])
def test_presence_and_number_answers(template, held_out):
    for document in sample(template, 60, held_out=held_out):
        text = document.question
        counts = [read_filter(text).count(image) for image in document.images]
        if template == "exist":
            assert document.answer == ("yes" if counts[0] else "no")
        elif template == "count":
            assert document.answer == str(counts[0])
        else:
            side = 1 if re.search(r"^the right|in the right", text) else 0
            number = next((i for i, word in enumerate(NUMBER_WORDS) if re.search(rf"\b{word}\b", text)), None)
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
def test_relation_answers(attribute):
    for document in sample(f"relate_{attribute}", 60):
        relation = next(r for r in RELATIONS if f" {r} the " in document.question)
        before, after = document.question.split(f" {relation} the ")
        phrase = re.split(r"\bis the |\bof the ", before)[-1]
        (anchor,) = [thing for thing in document.images[0] if read_filter(after).matches(thing)]
        found = [
            thing for thing in document.images[0]
            if thing is not anchor and read_filter(phrase).matches(thing) and relation_holds(relation, thing, anchor)
        ]  # fmt: skip
        assert [getattr(thing, attribute) for thing in found] == [document.answer]


@pytest.mark.parametrize("template", ["query_color", "query_shape", "where", "shape_at"])
def test_single_object_answers(template):
    for document in sample(template, 60):
        if template == "shape_at":
            quadrant = next(name for name in QUADRANTS if name in document.question)
            (thing,) = [thing for thing in document.images[0] if thing.quadrant == quadrant]
        else:
            (thing,) = [t for t in document.images[0] if read_filter(document.question).matches(t)]
        assert document.answer == {"where": thing.quadrant}.get(
            template, getattr(thing, template.removeprefix("query_").removesuffix("_at"), None)
        )


def test_plain_documents_match_tokenized_text():
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED_BART)
    documents = [*sample("exist", 3), *sample("both_have", 3), denoising_document(DocumentBuilder(random.Random(1), 5))]
    batch = DocumentCollator(tokenizer)(documents, False, random.Random(0), vary=False)
    for i, document in enumerate(documents):
        ids = batch.input_ids[i][batch.text_mask[i].bool()].tolist()
        text = tokenizer.decode(ids, skip_special_tokens=document.template != DENOISE).removesuffix("</s>")
        assert tokenizer(text.removeprefix("<s>")).input_ids == ids
        positions = batch.object_positions[i, batch.object_mask[i].bool()]
        nouns = [tokenizer.decode(batch.input_ids[i, position]) for position in positions]
        assert nouns == [f" {thing.shape}" for image in document.images for thing in image]


def test_perturb_wording_keeps_meaning():
    rng = random.Random(0)
    texts = {perturb_wording("how many red stars can you see?", rng) for _ in range(40)}
    assert len(texts) > 10
    assert all(text.startswith("how many red stars") and text.endswith("?") and " ?" not in text for text in texts)


@pytest.mark.parametrize("template", sorted(PROBED_SKILLS))
def test_perturb_wording_avoids_held_out_wordings(template):
    assert all(HELD_OUT_WORDINGS.fullmatch(document.question) for document in sample(template, 20, held_out=True))
    rng = random.Random(0)
    texts = [perturb_wording(document.question, rng) for document in sample(template, 200)]
    assert not any(HELD_OUT_WORDINGS.fullmatch(text) for text in texts)


def test_denoising_document_masks_words():
    documents = [denoising_document(DocumentBuilder(random.Random(i), 5)) for i in range(40)]
    assert sum("<mask>" in document.question for document in documents) >= 30
    assert all("<mask>" not in document.answer and document.answer for document in documents)
