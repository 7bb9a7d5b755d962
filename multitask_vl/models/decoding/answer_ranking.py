"""Which of many candidate answers is the likeliest: exact, without computing those that cannot be.

The encoder runs once, and so does the decoder over what all candidates begin with. The likelihood of a candidate's
first own token bounds its whole likelihood; candidates are scored a few at a time, the most promising first, until none
of the others can be better. In the decoder they share their example's keys and values as beams do (`generation`).
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import torch

from multitask_vl.data.batch import Batch
from multitask_vl.models.decoding.generation import can_share, sharing
from multitask_vl.models.kernels.chunked_cross_entropy import IGNORED
from multitask_vl.models.seq2seq import Encoded, VLSeq2Seq

AT_ONCE = 32
"""Candidates of an example that are scored together."""
ROUNDING = {torch.float32: 1e-3}
"""How far two computations of the same logarithm may lie apart; in other precisions `COARSE`."""
COARSE = 0.3


@dataclass(frozen=True)
class Candidates:
    """Answers as the model would write them.

    Attributes:
        labels: tokens [C, T], special ones included, `IGNORED` where padded; no two rows are the same.
        by: ``sum``: the likelihood of the whole answer; ``mean``: that of its tokens on average (geometric mean).
    """

    labels: torch.Tensor
    by: str = "sum"

    def lengths(self) -> torch.Tensor:
        """Tokens of each [C]."""
        return (self.labels != IGNORED).sum(1)

    def shared(self) -> int:
        """How many tokens all of them begin with."""
        return int((self.labels == self.labels[0]).all(0).long().cumprod(0).sum())


@torch.no_grad()
def rank(
    model: VLSeq2Seq, batch: Batch, candidates: Candidates, at_once: int = AT_ONCE
) -> tuple[torch.Tensor, torch.Tensor]:
    """Index [B] of each row's likeliest candidate, the first of equals, and its score [B], a logarithm.

    Args:
        at_once: candidates of an example that are scored together; changes nothing but time and memory.
    """
    with model.context.of(batch.task):
        encoded = model.encode(batch)
        labels, lengths = (one.to(encoded.states.device) for one in (candidates.labels, candidates.lengths()))
        divisor = lengths.float() if candidates.by == "mean" else torch.ones_like(lengths, dtype=torch.float)
        bounds = _bounds(model, encoded, labels, candidates.shared()) / divisor
        order = bounds.argsort(dim=1, descending=True, stable=True)
        best = bounds.new_full((len(bounds),), -torch.inf)
        chosen, rows = order.new_zeros(len(bounds)), torch.arange(len(bounds), device=bounds.device)
        for start in range(0, len(labels), at_once):
            # the next candidate of a row bounds all that come behind it
            rows = rows[bounds[rows, order[rows, start]] >= best[rows]]
            if not len(rows):
                break
            # in the order of the list, so that of equals the first is taken
            few = order[rows, start : start + at_once].sort(1).values
            found, place = (_scores(model, encoded, rows, labels[few]) / divisor[few]).max(1)
            index = few.gather(1, place.unsqueeze(1)).squeeze(1)
            better = (found > best[rows]) | ((found == best[rows]) & (index < chosen[rows]))
            best[rows] = torch.where(better, found, best[rows])
            chosen[rows] = torch.where(better, index, chosen[rows])
    return chosen, best


def _bounds(model: VLSeq2Seq, encoded: Encoded, labels: torch.Tensor, shared: int) -> torch.Tensor:
    """What each candidate's logarithm is at most [B, C]: that of its part up to its first own token."""
    begin = labels[:1, : shared + 1]
    inputs = model.lm.prepare_decoder_input_ids_from_labels(begin)
    hidden = model.decode(encoded, inputs.expand(len(encoded.states), -1))
    logits = model.logits(hidden)
    shares = logits.float().log_softmax(-1)
    common = shares[:, :shared].gather(2, begin[:, :shared, None].expand(len(shares), -1, -1)).sum((1, 2))
    rounding = ROUNDING.get(logits.dtype, COARSE)
    return common.unsqueeze(1) + shares[:, shared, labels[:, shared]] + rounding


def _scores(model: VLSeq2Seq, encoded: Encoded, rows: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Logarithm of the likelihood [n, K] of candidates with labels [n, K, T], of the examples in some rows [n]."""
    count = labels.shape[:2]
    labels = labels.flatten(0, 1)
    labels = labels[:, : int((labels != IGNORED).sum(1).max())]
    share = can_share(model.lm)
    # without sharing each candidate has its own copy of what the encoder says
    rows = rows if share else rows.repeat_interleave(count[1])
    encoded = Encoded(encoded.states[rows], encoded.kinds[rows])
    around = sharing(model.lm, model.family.decoder(model.lm), model.context) if share else nullcontext()
    with around:
        hidden = model.decode(encoded, model.lm.prepare_decoder_input_ids_from_labels(labels))
    return -model.token_loss(hidden, labels).sum(1).unflatten(0, count)
