"""Next-token logits computed in vocabulary chunks, only for the rows that need them, into a reused buffer.

The generation loop of transformers allocates a new [rows, V] tensor for the product, its bias, a copy, the log-softmax
and each logits processor. Here the language model stops before the vocabulary product, and the first logits processor
of the loop, a public extension point, computes the same numbers.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from transformers import ForcedEOSTokenLogitsProcessor, GenerationConfig, LogitsProcessor

from multitask_vl.models.kernels.chunked_cross_entropy import LMHead

VOCAB_CHUNK = {"cpu": 2048}
"""Vocabulary entries per product, by device type; elsewhere all. On a CPU a product of few rows with the whole
vocabulary runs at half the speed in float32, and a chunk of it is copied while it is in the cache."""


class ChunkedLogits(LogitsProcessor):
    """Logits of all of transformers' rows, from the decoder hidden states of the rows that were computed.

    Args:
        head: language-model head; transformers applies `LMHead.scale`.
        num_examples, num_beams: transformers has ``num_examples * num_beams`` rows.
    """

    def __init__(self, head: LMHead, num_examples: int, num_beams: int):
        device_type = head.weight.device.type
        # under autocast cast once here, not once per step
        autocast = torch.is_autocast_enabled(device_type)
        dtype = torch.get_autocast_dtype(device_type) if autocast else head.weight.dtype
        self.weight = head.weight.to(dtype)
        self.bias = None if head.bias is None else head.bias.to(dtype)
        self.chunk_size = VOCAB_CHUNK.get(device_type, len(self.weight))
        self.scores = self.weight.new_zeros((num_examples, num_beams, len(self.weight)), dtype=torch.float32)
        self.products = torch.empty_like(self.scores).flatten(0, 1)
        self.hidden = self.active = torch.empty(0)

    def capture_hidden(self, hidden: torch.Tensor, active: torch.Tensor) -> torch.Tensor:
        """Store the decoder hidden states of a step; returns an empty input [R, 0, d] for transformers' head.

        Args:
            hidden: [R, T, d] of the ``active`` examples [n], R / n rows each: one, or one per beam.
            active: indices of the active examples.
        """
        self.hidden, self.active = hidden[:, -1], active
        return hidden[:, :0]

    def placeholder_output(self, output: Any) -> Any:
        """Transformers' output with placeholder logits [num_examples * num_beams, 1, 1], which are never read."""
        output.logits = self.scores.new_zeros(self.scores.shape[:2].numel(), 1, 1)
        return output

    def __call__(self, input_ids: torch.LongTensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores [num_examples * num_beams, V]; those of inactive examples are from an earlier step.

        With several beams they are log-probabilities, as in transformers' loop. The next step overwrites them.
        """
        logits, several = self._matmul(), self.scores.shape[1] > 1
        if several and len(logits) == len(self.products):
            return torch.log_softmax(logits, -1, out=self.scores.flatten(0, 1))
        logits = logits.log_softmax(-1) if several else logits
        # the first step has one row per example, shared by all its beams
        logits = logits.unflatten(0, (len(self.active), -1)).expand(-1, self.scores.shape[1], -1)
        return self.scores.index_copy_(0, self.active, logits).flatten(0, 1)

    def _matmul(self) -> torch.Tensor:
        """The vocabulary product [R, V] in float32."""
        logits = self.products[: len(self.hidden)]
        with torch.autocast(logits.device.type, enabled=False):
            hidden = self.hidden.to(self.weight.dtype)
            for start in range(0, len(self.weight), self.chunk_size):
                chunk = slice(start, start + self.chunk_size)
                bias = None if self.bias is None else self.bias[chunk]
                logits[:, chunk] = F.linear(hidden, self.weight[chunk], bias)
        return logits


class NoRepeatedNgram(LogitsProcessor):
    """`NoRepeatNGramLogitsProcessor` of transformers, vectorized and in place.

    Args:
        size: n-gram length that may not occur twice.
    """

    def __init__(self, size: int):
        self.size = size

    def __call__(self, input_ids: torch.LongTensor, scores: torch.Tensor) -> torch.Tensor:
        """``scores`` [N, V], in place: -inf for tokens that would repeat an n-gram of ``input_ids`` [N, T]."""
        if input_ids.shape[1] >= self.size:
            ngrams = input_ids.unfold(1, self.size, 1)
            prefix = input_ids[:, input_ids.shape[1] - self.size + 1 :].unsqueeze(1)
            row, position = (ngrams[..., :-1] == prefix).all(-1).nonzero(as_tuple=True)
            scores[row, ngrams[row, position, -1]] = -torch.inf
        return scores


def processors(generation_config: GenerationConfig) -> list[LogitsProcessor]:
    """Logits processors that transformers would create for ``generation_config``, to run after `ChunkedLogits`."""
    processors: list[LogitsProcessor] = []
    if generation_config.no_repeat_ngram_size:
        processors.append(NoRepeatedNgram(generation_config.no_repeat_ngram_size))
    if generation_config.forced_eos_token_id is not None:
        processors.append(
            ForcedEOSTokenLogitsProcessor(generation_config.max_length, generation_config.forced_eos_token_id)
        )
    return processors
