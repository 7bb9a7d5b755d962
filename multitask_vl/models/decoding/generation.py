"""How is text generated without doing anything twice: the library's `generate`, given only the rows that need work.

Hooks for the length of one call stand around the language model. What comes in is cut to what must be computed: in the
first step one row an example, since its beams are still the same; later the beams of examples that are not finished;
in the last step, where an end is forced, next to nothing. The scores that come of it are spread over all rows again
(`next_token`), so that the library's loop sees what it always sees. The encoder's states, and what cross-attention
makes of them, have one row an example throughout (`beam_attention`).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import (
    DynamicCache,
    EncoderDecoderCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.modeling_outputs import BaseModelOutput

from multitask_vl.models.decoding import logits, shared_kv_attention
from multitask_vl.models.kernels.chunked_cross_entropy import Head
from multitask_vl.routing.context import Context


def generate(
    lm: PreTrainedModel,
    decoder: nn.Module,
    head: Head,
    context: Context,
    states: torch.Tensor,
    kinds: torch.Tensor,
    settings: GenerationConfig,
    processors: Sequence[LogitsProcessor] = (),
    share: bool = True,
) -> torch.Tensor:
    """Token ids [B, T] of the best beam, the start token included; call it while a task is running.

    Args:
        decoder: the decoder stack of ``lm``, with `Context.door` on it.
        head: of ``lm``.
        states, kinds: what `Encoded` holds.
        processors: see the scores of the next token before a token is chosen, as the library's `LogitsProcessor` does.
        share: False for the library's way alone, which is the same function of the same numbers.
    """
    if not (share and can_share(lm)):
        # a fresh container: the library repeats its rows per beam in place
        encoded = BaseModelOutput(last_hidden_state=states)
        return lm.generate(
            encoder_outputs=encoded,
            attention_mask=kinds,
            logits_processor=LogitsProcessorList(processors),
            generation_config=settings,
        )
    rows = _Rows(states, kinds, settings, DynamicCache(config=lm.config.get_text_config(decoder=True)))
    scores = logits.NextToken(head, rows.examples, rows.beams)
    handles = [
        lm.register_forward_pre_hook(lambda _, args, kwargs: (args, rows.cut(kwargs)), with_kwargs=True),
        lm.get_output_embeddings().register_forward_pre_hook(lambda _, args: scores.take(*args, rows.held)),
        lm.register_forward_hook(lambda _, args, output: scores.stand_in(output)),
    ]
    # processors of the library's own would come before the scores are there
    without = copy.copy(settings)
    without.no_repeat_ngram_size, without.forced_eos_token_id = 0, None
    try:
        with sharing(lm, decoder, context):
            return lm.generate(
                # only the number of rows is read of it, and a copy made for each beam: `_Rows` has the states
                encoder_outputs=BaseModelOutput(last_hidden_state=states[:, :1, :1]),
                attention_mask=kinds[:, :1],
                cache=rows.cache,
                stopping_criteria=StoppingCriteriaList([rows.ending]),
                logits_processor=LogitsProcessorList([scores, *logits.processors(settings), *processors]),
                generation_config=without,
            )
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def sharing(lm: PreTrainedModel, decoder: nn.Module, context: Context) -> Iterator[None]:
    """While this runs, the decoder takes several rows for a row of the encoder: they share its keys, values and x_R.

    Args:
        lm: attends by `shared_kv_attention.KERNEL`.
        decoder: its decoder stack, with `Context.door` on it.
    """

    def spread_x_r(stack: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        # behind the door, which has set an x_R for each row of the encoder's states
        times = len(kwargs["input_ids"]) // len(kwargs["encoder_hidden_states"])
        if times > 1 and context.wanted:
            x_r, valid = context.x_r("decoder")
            valid = None if valid is None else valid.repeat_interleave(times, 0)
            context.put("decoder", x_r.repeat_interleave(times, 0), valid)

    handle = decoder.register_forward_pre_hook(spread_x_r, with_kwargs=True)
    lm.set_attn_implementation(shared_kv_attention.SHARED)
    try:
        yield
    finally:
        lm.set_attn_implementation(shared_kv_attention.KERNEL)
        handle.remove()


def can_share(lm: PreTrainedModel) -> bool:
    """Whether `sharing` is for this model; otherwise the library's own way gives the same results, slower."""
    return lm.config._attn_implementation == shared_kv_attention.KERNEL


class _Rows:
    """Which rows a step computes, and where they lie.

    A row of the library's is ``example * beams + beam``; here only the examples in ``held`` have rows.

    Args:
        states, kinds: of the encoder, [B, S, d] and [B, S].
        settings: of the generation.
        self_attention: an empty cache.
    """

    def __init__(
        self, states: torch.Tensor, kinds: torch.Tensor, settings: GenerationConfig, self_attention: DynamicCache
    ):
        self.states, self.kinds, self.settings = states, kinds, settings
        self.examples, self.beams = len(states), settings.num_beams
        self.held = torch.arange(self.examples, device=states.device)
        self.width = 1
        """Rows of an example in the cache of self-attention."""
        self.ending = _Ending(self.examples, settings, states.device)
        self.cache = _Cache(self_attention, DynamicCache())

    def cut(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The language model's arguments for the rows that must be computed."""
        ids = kwargs["decoder_input_ids"]
        # nothing is cached before the first step, in which the beams of an example are the same
        ids = ids[:: self.beams] if self.cache.get_seq_length() == 0 else ids[self._next_rows()]
        encoded = BaseModelOutput(last_hidden_state=self.states)
        return kwargs | {"decoder_input_ids": ids, "encoder_outputs": encoded, "attention_mask": self.kinds}

    def _next_rows(self) -> torch.Tensor:
        """The library's rows to compute next, with everything that is held put into their order."""
        open_ = (~self.ending.finished[self.held]).nonzero().flatten()
        if not len(open_) or self._end_is_forced():
            # nobody looks at what comes out: one example stands for all. (None is left where processes that share the
            # weights' shards step on together until the last of them has finished.)
            open_ = open_.new_zeros(1)
        where = self.held.new_zeros(self.examples)
        where[self.held] = torch.arange(len(self.held), device=where.device)
        if len(open_) < len(self.held):
            self.held = self.held[open_]
            self.states, self.kinds = self.states[open_], self.kinds[open_]
            self.cache.cross_attention_cache.reorder_cache(open_)
        rows = (self.held.unsqueeze(1) * self.beams + torch.arange(self.beams, device=where.device)).flatten()
        source = rows if self.cache.order is None else self.cache.order[rows]
        example, beam = source // self.beams, source % self.beams
        source = where[example] * self.width + (beam if self.width > 1 else 0)
        self.cache.self_attention_cache.reorder_cache(source)
        self.width = self.beams
        return rows

    def _end_is_forced(self) -> bool:
        """Whether the next token is the end whatever the language model says."""
        length = self.cache.get_seq_length() + 1
        return self.settings.forced_eos_token_id is not None and length == self.settings.max_length - 1


class _Cache(EncoderDecoderCache):
    """Keys and values of the rows that `_Rows` computes, and which beams the library goes on with."""

    order: torch.Tensor | None = None

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Kept for `_Rows`, which moves rows once, with those that fall away."""
        self.order = beam_idx


class _Ending(StoppingCriteria):
    """Stops nothing; sees which examples are finished: those whose result the rest of the search cannot change.

    Args:
        examples: how many there are, B.
    """

    def __init__(self, examples: int, settings: GenerationConfig, device: torch.device):
        self.beams = settings.num_beams
        # without early stopping a finished example's beams may still be bettered, and only the library knows when not
        self.tells = self.beams == 1 or settings.early_stopping is True
        self.ends = torch.tensor(settings.eos_token_id, device=device).flatten()
        self.ended = torch.zeros(examples, dtype=torch.long, device=device)

    @property
    def finished(self) -> torch.Tensor:
        """Of each example [B]."""
        return self.ended >= (self.beams if self.tells else 10**9)

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs: Any) -> torch.BoolTensor:
        """False for every row.

        Args:
            input_ids: an example's candidates stand side by side, the best first; of a beam search there are more of
                them than beams, of which only so many may end.
        """
        candidates = input_ids[:, -1].unflatten(0, (len(self.ended), -1))[:, : self.beams]
        self.ended += torch.isin(candidates, self.ends).sum(1)
        return input_ids.new_zeros(len(input_ids), dtype=torch.bool)
