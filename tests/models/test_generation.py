"""Generation returns the ids of transformers and computes only the rows that need work."""

from __future__ import annotations

import pytest
import torch
from transformers import LogitsProcessor, NoRepeatNGramLogitsProcessor

from multitask_vl.config.schema import DecodingConfig
from multitask_vl.models.decoding import generation, logits, shared_kv_attention
from multitask_vl.models.kernels.chunked_cross_entropy import LMHead
from tests.tiny_models import FAMILIES, perturb, tiny_batch, tiny_model

BEAM = DecodingConfig(mode="beam", num_beams=4, max_length=9)
BOTH = pytest.mark.parametrize("family", FAMILIES)


class EndsAt(LogitsProcessor):
    """Ends every row of example i when it has exactly ``lengths[i]`` tokens, including start and end token."""

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
    """Generated ids, and the number of (decoder, encoder) rows in each step."""
    rows, lm = [], model.lm
    decoder = model.backbone.decoder(lm)
    handle = decoder.register_forward_pre_hook(
        lambda _, args, kwargs: rows.append((len(kwargs["input_ids"]), len(kwargs["encoder_hidden_states"]))),
        with_kwargs=True,
    )
    with model.context.task_scope(batch.task):
        encoded = model.encode(batch)
        head = model.backbone.lm_head(lm)
        processors = [EndsAt(lengths, lm.config.eos_token_id)] if lengths else []
        settings = model._generation_config(decoding)
        ids = generation.generate(
            lm, decoder, head, model.context, encoded.hidden_states, encoded.token_types, settings, processors, share
        )
    handle.remove()
    return ids, rows


def routed_model(family, **more):
    return perturb(tiny_model("adapter", {"function": "mm1"}, family=family, **more))


@BOTH
@pytest.mark.parametrize("lengths", [[4, 9, 6], [5, 5, 5]])
@pytest.mark.parametrize("kind", ["greedy", "beam"])
def test_generation_drops_finished_examples(family, lengths, kind):
    model, decoding = routed_model(family), BEAM.model_copy(update={"mode": kind})
    ids, rows = generated(model, tiny_batch(), decoding, lengths)
    plain, every = generated(model, tiny_batch(), decoding, lengths, share=False)
    assert torch.equal(ids, plain)
    beams = 4 if kind == "beam" else 1
    assert every == [(3 * beams, 3 * beams)] * len(every)
    unfinished = [sum(length > step for length in lengths) for step in range(1, max(lengths))]
    expected = [(3, 3)] + [(beams * n, n) for n in unfinished[1:]]
    if kind == "beam" and family == "bart" and max(lengths) == 9:
        # BART's end token is forced at the last position: one example is computed, and its result is not used
        expected[-1] = (beams, 1)
    assert rows == expected


@BOTH
def test_generation_keeps_rows_without_early_stopping(family):
    decoding = BEAM.model_copy(update={"early_stopping": False})
    model = routed_model(family)
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
        {"mode": "greedy", "num_beams": 1, "max_length": 12},
    ],
    ids=str,
)
def test_generation_settings_give_transformers_ids(family, changes):
    model, decoding = routed_model(family), BEAM.model_copy(update=changes)
    for batch in (tiny_batch(images=2), tiny_batch("nlvr2", rows=1)):
        ids, _ = generated(model, batch, decoding)
        assert torch.equal(ids, generated(model, batch, decoding, share=False)[0])


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("length", [1, 2, 3, 9])
def test_no_repeated_ngram_equals_transformers(size, length):
    generator = torch.Generator().manual_seed(length)
    ids = torch.randint(3, (50, length), generator=generator)
    scores = torch.randn(50, 4, generator=generator)
    expected = NoRepeatNGramLogitsProcessor(size)(ids, scores)
    assert torch.equal(logits.NoRepeatedNgram(size)(ids, scores.clone()), expected)
    assert bool(expected.isinf().any()) or length <= size


@pytest.mark.parametrize("chunk", [1, 7, 10**6])
def test_chunked_logits_equal_full_product(chunk, monkeypatch):
    monkeypatch.setitem(logits.VOCAB_CHUNK, "cpu", chunk)
    generator = torch.Generator().manual_seed(0)
    head = LMHead(torch.randn(30, 4, generator=generator), torch.randn(30, generator=generator))
    hidden = torch.randn(6, 1, 4, generator=generator)
    scores = logits.ChunkedLogits(head, 3, 2)
    scores.capture_hidden(hidden, torch.arange(3))
    torch.testing.assert_close(scores(None, None), head.logits(hidden[:, 0]).log_softmax(-1))


@BOTH
def test_eager_attention_generates_without_sharing(family):
    model = routed_model(family)
    expected, _ = generated(model, tiny_batch(), BEAM)
    model.lm.set_attn_implementation("eager")
    ids, rows = generated(model, tiny_batch(), BEAM)
    assert torch.equal(ids, expected)
    assert set(rows) == {(12, 12)}


def test_failed_generation_removes_hooks():
    model = routed_model("bart")
    lm, decoder = model.lm, model.backbone.decoder(model.lm)
    hooks = [len(one._forward_pre_hooks) + len(one._forward_hooks) for one in (lm, decoder)]
    handle = lm.lm_head.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model.generate(tiny_batch(), BEAM)
    handle.remove()
    assert [len(one._forward_pre_hooks) + len(one._forward_hooks) for one in (lm, decoder)] == hooks
    assert lm.config._attn_implementation == shared_kv_attention.BASE_IMPL
    assert model.generate(tiny_batch(), BEAM).shape[0] == 3


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("length", [1, 3])
def test_shared_kv_equals_repeated_kv(bias, masked, length):
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    query, key, value = draw(6, 2, length, 4), draw(2, 2, 5, 4), draw(2, 2, 5, 4)
    mask = (draw(2, 1, 1, 5) > -0.5).expand(-1, -1, length, -1) if masked else None
    more = {"position_bias": draw(1, 2, 1, 5).expand(-1, -1, length, -1)} if bias else {}
    module = torch.nn.Module()
    module.is_causal = False
    shared, _ = shared_kv_attention.shared_kv_sdpa(module, query, key, value, mask, **more)
    key, value = key.repeat_interleave(3, 0), value.repeat_interleave(3, 0)
    mask = mask if mask is None else mask.repeat_interleave(3, 0)
    repeated, _ = shared_kv_attention.shared_kv_sdpa(module, query, key, value, mask, **more)
    torch.testing.assert_close(shared, repeated)
