"""What are the scores of the next token: the vocabulary product of the rows that need it, into memory that is kept.

The library's loop makes a new [rows, V] tensor for the product, its bias, a copy, the logarithm and each processor of
scores. Here its model stops before the vocabulary product, and the first of the loop's processors, which are a public
door, has the scores made. They are the same numbers.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from transformers import ForcedEOSTokenLogitsProcessor, GenerationConfig, LogitsProcessor

from multitask_vl.models.kernels.chunked_cross_entropy import Head

WORDS_AT_ONCE = {"cpu": 2048}
"""Words of the vocabulary in a product, by type of device; elsewhere all. On a CPU a product of few rows with all words
runs at half the speed in float32, and a part of it is put into its place while it is in the cache."""


class NextToken(LogitsProcessor):
    """Scores of all of the library's rows, from the decoder states of those that were computed.

    Args:
        head: what scores the next token; `Head.scale` is left to the library.
        examples, beams: the library has ``examples * beams`` rows.
    """

    def __init__(self, head: Head, examples: int, beams: int):
        kind = head.weight.device.type
        # under autocast it is cast once here, not once a step
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else head.weight.dtype
        self.weight = head.weight.to(dtype)
        self.bias = None if head.bias is None else head.bias.to(dtype)
        self.words = WORDS_AT_ONCE.get(kind, len(self.weight))
        self.scores = self.weight.new_zeros((examples, beams, len(self.weight)), dtype=torch.float32)
        self.products = torch.empty_like(self.scores).flatten(0, 1)
        self.hidden = self.held = torch.empty(0)

    def take(self, hidden: torch.Tensor, held: torch.Tensor) -> torch.Tensor:
        """Decoder states of a step; returns what is left for the library to multiply, nothing: [R, 0, d].

        Args:
            hidden: [R, T, d] of the examples ``held`` [n], R / n rows each: one, or their beams.
        """
        self.hidden, self.held = hidden[:, -1], held
        return hidden[:, :0]

    def stand_in(self, output: Any) -> Any:
        """The library's output with logits for each of its rows [examples * beams, 1, 1], which nobody looks at."""
        output.logits = self.scores.new_zeros(self.scores.shape[:2].numel(), 1, 1)
        return output

    def __call__(self, input_ids: torch.LongTensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores [examples * beams, V]; those of examples that are not held are of an earlier step.

        They are logarithms of likelihoods where there are several beams, as in the library's loops. The next step
        writes over them.
        """
        found, several = self._multiplied(), self.scores.shape[1] > 1
        if several and len(found) == len(self.products):
            return torch.log_softmax(found, -1, out=self.scores.flatten(0, 1))
        found = found.log_softmax(-1) if several else found
        # the first step's one row an example is that of all its beams
        found = found.unflatten(0, (len(self.held), -1)).expand(-1, self.scores.shape[1], -1)
        return self.scores.index_copy_(0, self.held, found).flatten(0, 1)

    def _multiplied(self) -> torch.Tensor:
        """The vocabulary product [R, V] in float32."""
        found = self.products[: len(self.hidden)]
        with torch.autocast(found.device.type, enabled=False):
            hidden = self.hidden.to(self.weight.dtype)
            for start in range(0, len(self.weight), self.words):
                some = slice(start, start + self.words)
                found[:, some] = F.linear(hidden, self.weight[some], None if self.bias is None else self.bias[some])
        return found


class NoRepeatedNgram(LogitsProcessor):
    """The library's processor of this name does the same with a copy of all scores and dictionaries in Python.

    Args:
        size: no sequence of so many tokens may come twice.
    """

    def __init__(self, size: int):
        self.size = size

    def __call__(self, input_ids: torch.LongTensor, scores: torch.Tensor) -> torch.Tensor:
        """``scores`` [N, V], in place: -inf for tokens that would repeat a sequence of ``input_ids`` [N, T]."""
        if input_ids.shape[1] >= self.size:
            there = input_ids.unfold(1, self.size, 1)
            begun = input_ids[:, input_ids.shape[1] - self.size + 1 :].unsqueeze(1)
            row, place = (there[..., :-1] == begun).all(-1).nonzero(as_tuple=True)
            scores[row, there[row, place, -1]] = -torch.inf
        return scores


def processors(settings: GenerationConfig) -> list[LogitsProcessor]:
    """What the library would do to the scores under ``settings``, for use behind `NextToken`."""
    found: list[LogitsProcessor] = []
    if settings.no_repeat_ngram_size:
        found.append(NoRepeatedNgram(settings.no_repeat_ngram_size))
    if settings.forced_eos_token_id is not None:
        found.append(ForcedEOSTokenLogitsProcessor(settings.max_length, settings.forced_eos_token_id))
    return found
