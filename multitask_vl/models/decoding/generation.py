"""Efficient generation: transformers' `generate`, computing only the rows that need work.

Hooks around the language model, installed for one call, trim its inputs to the rows that must be computed: in the first
step one row per example, since its beams are still equal; later the beams of unfinished examples; in the last step,
where the end token is forced, a single example. The resulting logits are expanded to all rows again (`logits`), so the
loop of transformers sees what it always sees. The encoder's hidden states and the keys and values of cross-attention
have one row per example throughout (`shared_kv_attention`).
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
from multitask_vl.models.kernels.chunked_cross_entropy import LMHead
from multitask_vl.routing.context import Context


def generate(
    lm: PreTrainedModel,
    decoder: nn.Module,
    head: LMHead,
    context: Context,
    hidden_states: torch.Tensor,
    token_types: torch.Tensor,
    generation_config: GenerationConfig,
    processors: Sequence[LogitsProcessor] = (),
    share: bool = True,
) -> torch.Tensor:
    """Token ids [B, T] of the best beam, including the start token. Call it inside `Context.task_scope`.

    Args:
        lm: language model.
        decoder: its decoder stack, with `Context.decoder_pre_hook` installed.
        head: its head.
        context: routing context of the model.
        hidden_states: encoder output [B, S, d], see `Encoded`.
        token_types: `TokenType` of every encoder position [B, S].
        generation_config: complete generation settings.
        processors: further `LogitsProcessor` objects, applied to the logits of the next token.
        share: False runs transformers' `generate` alone, which computes the same function.
    """
    if not (share and supports_sharing(lm)):
        # a new container: transformers repeats its rows per beam in place
        encoded = BaseModelOutput(last_hidden_state=hidden_states)
        return lm.generate(
            encoder_outputs=encoded,
            attention_mask=token_types,
            logits_processor=LogitsProcessorList(processors),
            generation_config=generation_config,
        )
    cache = DynamicCache(config=lm.config.get_text_config(decoder=True))
    rows = _ActiveRows(hidden_states, token_types, generation_config, cache)
    chunked = logits.ChunkedLogits(head, rows.num_examples, rows.num_beams)
    lm_head = lm.get_output_embeddings()
    handles = [
        lm.register_forward_pre_hook(lambda _, args, kwargs: (args, rows.trim_inputs(kwargs)), with_kwargs=True),
        lm_head.register_forward_pre_hook(lambda _, args: chunked.capture_hidden(*args, rows.active)),
        lm.register_forward_hook(lambda _, args, output: chunked.placeholder_output(output)),
    ]
    # transformers would run its own processors before the logits are computed
    without_processors = copy.copy(generation_config)
    without_processors.no_repeat_ngram_size, without_processors.forced_eos_token_id = 0, None
    try:
        with shared_encoder_rows(lm, decoder, context):
            return lm.generate(
                # only its number of rows is used, and copied per beam: `_ActiveRows` holds the hidden states
                encoder_outputs=BaseModelOutput(last_hidden_state=hidden_states[:, :1, :1]),
                attention_mask=token_types[:, :1],
                cache=rows.cache,
                stopping_criteria=StoppingCriteriaList([rows.tracker]),
                logits_processor=LogitsProcessorList([chunked, *logits.processors(generation_config), *processors]),
                generation_config=without_processors,
            )
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def shared_encoder_rows(lm: PreTrainedModel, decoder: nn.Module, context: Context) -> Iterator[None]:
    """Let the decoder take several rows per encoder row, which share its keys, values and x_R.

    Args:
        lm: uses attention implementation `shared_kv_attention.BASE_IMPL`.
        decoder: its decoder stack, with `Context.decoder_pre_hook` installed.
        context: routing context of the model.
    """

    def repeat_x_r(stack: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        # runs after the context's pre-hook, which has set one x_R per encoder row
        repeats = len(kwargs["input_ids"]) // len(kwargs["encoder_hidden_states"])
        if repeats > 1 and context.needs_x_r:
            x_r, valid = context.x_r("decoder")
            valid = None if valid is None else valid.repeat_interleave(repeats, 0)
            context.set_x_r("decoder", x_r.repeat_interleave(repeats, 0), valid)

    handle = decoder.register_forward_pre_hook(repeat_x_r, with_kwargs=True)
    lm.set_attn_implementation(shared_kv_attention.SHARED_KV_IMPL)
    try:
        yield
    finally:
        lm.set_attn_implementation(shared_kv_attention.BASE_IMPL)
        handle.remove()


def supports_sharing(lm: PreTrainedModel) -> bool:
    """Whether `shared_encoder_rows` works for this model. Without it results are the same, only slower."""
    return lm.config._attn_implementation == shared_kv_attention.BASE_IMPL


class _ActiveRows:
    """The rows a step computes, and their positions in the caches.

    Row ``example * num_beams + beam`` of transformers is computed only for the examples in ``active``.

    Args:
        hidden_states, token_types: encoder output [B, S, d] and types [B, S].
        generation_config: generation settings.
        self_attention_cache: an empty cache.
    """

    def __init__(
        self,
        hidden_states: torch.Tensor,
        token_types: torch.Tensor,
        generation_config: GenerationConfig,
        self_attention_cache: DynamicCache,
    ):
        self.hidden_states, self.token_types = hidden_states, token_types
        self.generation_config = generation_config
        self.num_examples, self.num_beams = len(hidden_states), generation_config.num_beams
        self.active = torch.arange(self.num_examples, device=hidden_states.device)
        self.rows_per_example = 1
        """Rows per example in the self-attention cache."""
        self.tracker = _FinishedTracker(self.num_examples, generation_config, hidden_states.device)
        self.cache = _Cache(self_attention_cache, DynamicCache())

    def trim_inputs(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The language model's arguments, restricted to the rows that must be computed."""
        ids = kwargs["decoder_input_ids"]
        # the cache is empty before the first step, in which the beams of an example are equal
        ids = ids[:: self.num_beams] if self.cache.get_seq_length() == 0 else ids[self._next_rows()]
        encoded = BaseModelOutput(last_hidden_state=self.hidden_states)
        return kwargs | {"decoder_input_ids": ids, "encoder_outputs": encoded, "attention_mask": self.token_types}

    def _next_rows(self) -> torch.Tensor:
        """Transformers' rows to compute next; reorders caches and encoder rows to match."""
        unfinished = (~self.tracker.finished[self.active]).nonzero().flatten()
        if not len(unfinished) or self._end_is_forced():
            # the result is not used, so one example is enough. (None is unfinished where processes that share sharded
            # weights keep stepping together until the last of them has finished.)
            unfinished = unfinished.new_zeros(1)
        position = self.active.new_zeros(self.num_examples)
        position[self.active] = torch.arange(len(self.active), device=position.device)
        if len(unfinished) < len(self.active):
            self.active = self.active[unfinished]
            self.hidden_states, self.token_types = self.hidden_states[unfinished], self.token_types[unfinished]
            self.cache.cross_attention_cache.reorder_cache(unfinished)
        beams = torch.arange(self.num_beams, device=position.device)
        rows = (self.active.unsqueeze(1) * self.num_beams + beams).flatten()
        source = rows if self.cache.beam_order is None else self.cache.beam_order[rows]
        example, beam = source // self.num_beams, source % self.num_beams
        source = position[example] * self.rows_per_example + (beam if self.rows_per_example > 1 else 0)
        self.cache.self_attention_cache.reorder_cache(source)
        self.rows_per_example = self.num_beams
        return rows

    def _end_is_forced(self) -> bool:
        """Whether the next token is the end token regardless of the logits."""
        length = self.cache.get_seq_length() + 1
        forced = self.generation_config.forced_eos_token_id is not None
        return forced and length == self.generation_config.max_length - 1


class _Cache(EncoderDecoderCache):
    """Keys and values of the rows that `_ActiveRows` computes, and the beams transformers continues with."""

    beam_order: torch.Tensor | None = None

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Record the order for `_ActiveRows`, which reorders and drops rows in one operation."""
        self.beam_order = beam_idx


class _FinishedTracker(StoppingCriteria):
    """Tracks examples whose result the rest of the search cannot change. Never stops generation itself.

    Args:
        num_examples: B.
        generation_config: generation settings.
        device: of the token ids.
    """

    def __init__(self, num_examples: int, generation_config: GenerationConfig, device: torch.device):
        self.num_beams = generation_config.num_beams
        # without early stopping a finished example's beams may still improve, and only transformers knows when not
        self.can_detect_finish = self.num_beams == 1 or generation_config.early_stopping is True
        self.eos_token_ids = torch.tensor(generation_config.eos_token_id, device=device).flatten()
        self.num_ended = torch.zeros(num_examples, dtype=torch.long, device=device)

    @property
    def finished(self) -> torch.Tensor:
        """Whether each example is finished [B]."""
        return self.num_ended >= (self.num_beams if self.can_detect_finish else 10**9)

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs: Any) -> torch.BoolTensor:
        """Count ended beams; returns False for every row.

        Args:
            input_ids: candidates of each example, adjacent and best first. Beam search has more candidates than beams,
                of which only ``num_beams`` may end.
        """
        candidates = input_ids[:, -1].unflatten(0, (len(self.num_ended), -1))[:, : self.num_beams]
        self.num_ended += torch.isin(candidates, self.eos_token_ids).sum(1)
        return input_ids.new_zeros(len(input_ids), dtype=torch.bool)
