"""Does generation give the library's own ids, and compute only the rows that it must?"""

from __future__ import annotations

import pytest
import torch
from transformers import LogitsProcessor, NoRepeatNGramLogitsProcessor

from multitask_vl.config.schema import DecodingConfig
from multitask_vl.models.decoding import generation, logits, shared_kv_attention
from multitask_vl.models.kernels.chunked_cross_entropy import Head
from tests.tiny_models import FAMILIES, shaken, tiny_batch, tiny_model

BEAM = DecodingConfig(kind="beam", num_beams=4, max_length=9)
BOTH = pytest.mark.parametrize("family", FAMILIES)


class EndsAt(LogitsProcessor):
    """Every row of example i ends when it has ``lengths[i]`` tokens, the start and the end among them, not before."""

    def __init__(self, lengths, end):
        self.lengths, self.end = torch.tensor(lengths), end

    def __call__(self, input_ids, scores):
        length = input_ids.shape[1] + 1
        now = (self.lengths == length).repeat_interleave(len(input_ids) // len(self.lengths))
        scores = scores.clone()
        scores[:, self.end] = torch.where(now, 100.0, -100.0)
        return scores


@torch.no_grad()
def generated(model, batch, decoding, lengths=None, share=True):
    """Ids, and how many rows the decoder saw in each step."""
    rows, lm = [], model.lm
    decoder = model.family.decoder(lm)
    handle = decoder.register_forward_pre_hook(
        lambda _, args, kwargs: rows.append((len(kwargs["input_ids"]), len(kwargs["encoder_hidden_states"]))),
        with_kwargs=True,
    )
    with model.context.of(batch.task):
        encoded = model.encode(batch)
        head = model.family.head(lm)
        processors = [EndsAt(lengths, lm.config.eos_token_id)] if lengths else []
        settings = model._generation(decoding)
        ids = generation.generate(
            lm, decoder, head, model.context, encoded.states, encoded.kinds, settings, processors, share
        )
    handle.remove()
    return ids, rows


def model_of(family, **more):
    return shaken(tiny_model("adapter", {"function": "mm1"}, family=family, **more))


@BOTH
@pytest.mark.parametrize("lengths", [[4, 9, 6], [5, 5, 5], [3, 8, 8]])
@pytest.mark.parametrize("kind", ["greedy", "beam"])
def test_finished_examples_fall_away_and_nothing_else_changes(family, lengths, kind):
    model, decoding = model_of(family), BEAM.model_copy(update={"kind": kind})
    ids, rows = generated(model, tiny_batch(), decoding, lengths)
    plain, every = generated(model, tiny_batch(), decoding, lengths, share=False)
    assert torch.equal(ids, plain)
    beams = 4 if kind == "beam" else 1
    assert every == [(3 * beams, 3 * beams)] * len(every)
    left = [sum(length > step for length in lengths) for step in range(1, max(lengths))]
    expected = [(3, 3)] + [(beams * n, n) for n in left[1:]]
    if kind == "beam" and family == "bart" and max(lengths) == 9:
        # BART's beams end at the last place in any case: one example is computed, and nobody looks at it
        expected[-1] = (beams, 1)
    assert rows == expected


@BOTH
def test_nothing_falls_away_where_only_the_library_knows_when_a_search_is_over(family):
    decoding = BEAM.model_copy(update={"early_stopping": False})
    model = model_of(family)
    ids, rows = generated(model, tiny_batch(), decoding, [4, 8, 6])
    plain, every = generated(model, tiny_batch(), decoding, [4, 8, 6], share=False)
    assert torch.equal(ids, plain)
    assert len(rows) == len(every)
    assert {first for first, _ in rows[1:]} <= {12, 4}


@BOTH
@pytest.mark.parametrize(
    "changes",
    [
        {"num_beams": 2, "max_length": 12},
        {"no_repeat_ngram_size": 0, "max_length": 12},
        {"no_repeat_ngram_size": 1, "length_penalty": 2.0},
        {"early_stopping": False, "length_penalty": 0.0},
        {"max_length": 2},
        {"kind": "greedy", "num_beams": 1, "max_length": 12},
    ],
    ids=str,
)
def test_every_setting_gives_the_librarys_ids(family, changes):
    model, decoding = model_of(family), BEAM.model_copy(update=changes)
    for batch in (tiny_batch(images=2), tiny_batch(rows=1), tiny_batch("nlvr2", rows=2)):
        ids, _ = generated(model, batch, decoding)
        assert torch.equal(ids, generated(model, batch, decoding, share=False)[0])


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("length", [1, 2, 3, 9])
def test_the_tokens_that_would_repeat_are_the_librarys(size, length):
    generator = torch.Generator().manual_seed(length)
    ids = torch.randint(3, (50, length), generator=generator)
    scores = torch.randn(50, 4, generator=generator)
    expected = NoRepeatNGramLogitsProcessor(size)(ids, scores)
    assert torch.equal(logits.NoRepeatedNgram(size)(ids, scores.clone()), expected)
    assert bool(expected.isinf().any()) or length <= size


@pytest.mark.parametrize("at_once", [1, 7, 10**6])
def test_the_vocabulary_in_pieces_is_the_whole(at_once, monkeypatch):
    monkeypatch.setitem(logits.WORDS_AT_ONCE, "cpu", at_once)
    generator = torch.Generator().manual_seed(0)
    head = Head(torch.randn(30, 4, generator=generator), torch.randn(30, generator=generator))
    hidden = torch.randn(6, 1, 4, generator=generator)
    scores = logits.NextToken(head, 3, 2)
    scores.take(hidden, torch.arange(3))
    torch.testing.assert_close(scores(None, None), head.scores(hidden[:, 0]).log_softmax(-1))


@BOTH
def test_another_attention_generates_as_the_library_does(family):
    model = model_of(family)
    expected, _ = generated(model, tiny_batch(), BEAM)
    model.lm.set_attn_implementation("eager")
    ids, rows = generated(model, tiny_batch(), BEAM)
    assert torch.equal(ids, expected)
    assert set(rows) == {(12, 12)}


def test_a_call_leaves_nothing_behind_even_if_it_fails():
    model = model_of("bart")
    lm, decoder = model.lm, model.family.decoder(model.lm)
    hooks = [len(one._forward_pre_hooks) + len(one._forward_hooks) for one in (lm, decoder)]
    handle = lm.lm_head.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model.generate(tiny_batch(), BEAM)
    handle.remove()
    assert [len(one._forward_pre_hooks) + len(one._forward_hooks) for one in (lm, decoder)] == hooks
    assert lm.config._attn_implementation == shared_kv_attention.KERNEL
    assert model.generate(tiny_batch(), BEAM).shape[0] == 3


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("length", [1, 3])
def test_shared_keys_are_repeated_keys(bias, masked, length):
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    query, key, value = draw(6, 2, length, 4), draw(2, 2, 5, 4), draw(2, 2, 5, 4)
    mask = (draw(2, 1, 1, 5) > -0.5).expand(-1, -1, length, -1) if masked else None
    more = {"position_bias": draw(1, 2, 1, 5).expand(-1, -1, length, -1)} if bias else {}
    module = torch.nn.Module()
    module.is_causal = False
    shared, _ = shared_kv_attention.attend(module, query, key, value, mask, **more)
    key, value = key.repeat_interleave(3, 0), value.repeat_interleave(3, 0)
    mask = mask if mask is None else mask.repeat_interleave(3, 0)
    repeated, _ = shared_kv_attention.attend(module, query, key, value, mask, **more)
    torch.testing.assert_close(shared, repeated)
