"""Answer ranking: the most likely of many candidate answers, exactly, with early termination.

The encoder runs once, and the decoder runs once over the candidates' common prefix. The log-likelihood up to a
candidate's first distinct token is an upper bound of its total. Candidates are scored in chunks, highest bound first,
until no remaining one can be better. In the decoder they share their example's keys and values as beams do
(`generation`).
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import torch

from multitask_vl.data.batch import Batch
from multitask_vl.models.decoding.generation import shared_encoder_rows, supports_sharing
from multitask_vl.models.kernels.chunked_cross_entropy import IGNORE_INDEX
from multitask_vl.models.seq2seq import Encoded, VLSeq2Seq

CANDIDATE_CHUNK = 32
"""Candidates per example that are scored together."""
LOGPROB_TOLERANCE = {torch.float32: 1e-3}
"""Maximum difference between two computations of the same log-likelihood; other dtypes: `LOW_PRECISION_TOLERANCE`."""
LOW_PRECISION_TOLERANCE = 0.3


@dataclass(frozen=True)
class Candidates:
    """Candidate answers as target tokens.

    Attributes:
        labels: token ids [C, T] including special tokens, `IGNORE_INDEX` where padded; rows are distinct.
        normalization: ``sum`` scores a candidate by its log-likelihood, ``mean`` by its average per token.
    """

    labels: torch.Tensor
    normalization: str = "sum"

    def lengths(self) -> torch.Tensor:
        """Number of tokens of each candidate [C]."""
        return (self.labels != IGNORE_INDEX).sum(1)

    def common_prefix_length(self) -> int:
        """Number of leading tokens that all candidates share."""
        return int((self.labels == self.labels[0]).all(0).long().cumprod(0).sum())


@torch.no_grad()
def rank_candidates(
    model: VLSeq2Seq, batch: Batch, candidates: Candidates, chunk_size: int = CANDIDATE_CHUNK
) -> tuple[torch.Tensor, torch.Tensor]:
    """Index [B] of each row's most likely candidate, the first of equal ones, and its log-likelihood [B].

    Args:
        model: model in eval mode.
        batch: examples; labels are not used.
        candidates: candidate answers.
        chunk_size: candidates per example that are scored together; affects only time and memory.
    """
    with model.context.task_scope(batch.task):
        encoded = model.encode(batch)
        device = encoded.hidden_states.device
        labels, lengths = candidates.labels.to(device), candidates.lengths().to(device)
        mean = candidates.normalization == "mean"
        divisor = lengths.float() if mean else torch.ones_like(lengths, dtype=torch.float)
        bounds = _upper_bounds(model, encoded, labels, candidates.common_prefix_length()) / divisor
        order = bounds.argsort(dim=1, descending=True, stable=True)
        best = bounds.new_full((len(bounds),), -torch.inf)
        chosen, rows = order.new_zeros(len(bounds)), torch.arange(len(bounds), device=bounds.device)
        for start in range(0, len(labels), chunk_size):
            # the bound of a row's next candidate bounds all that follow
            rows = rows[bounds[rows, order[rows, start]] >= best[rows]]
            if not len(rows):
                break
            # in list order, so that the first of equal candidates wins
            chunk = order[rows, start : start + chunk_size].sort(1).values
            scores, position = (_log_likelihoods(model, encoded, rows, labels[chunk]) / divisor[chunk]).max(1)
            index = chunk.gather(1, position.unsqueeze(1)).squeeze(1)
            better = (scores > best[rows]) | ((scores == best[rows]) & (index < chosen[rows]))
            best[rows] = torch.where(better, scores, best[rows])
            chosen[rows] = torch.where(better, index, chosen[rows])
    return chosen, best


def _upper_bounds(model: VLSeq2Seq, encoded: Encoded, labels: torch.Tensor, prefix_length: int) -> torch.Tensor:
    """Upper bound of each candidate's log-likelihood [B, C]: that of its tokens up to the first distinct one."""
    prefix = labels[:1, : prefix_length + 1]
    inputs = model.lm.prepare_decoder_input_ids_from_labels(prefix)
    hidden = model.decode(encoded, inputs.expand(len(encoded.hidden_states), -1))
    logits = model.logits(hidden)
    log_probs = logits.float().log_softmax(-1)
    prefix_ids = prefix[:, :prefix_length, None].expand(len(log_probs), -1, -1)
    common = log_probs[:, :prefix_length].gather(2, prefix_ids).sum((1, 2))
    tolerance = LOGPROB_TOLERANCE.get(logits.dtype, LOW_PRECISION_TOLERANCE)
    return common.unsqueeze(1) + log_probs[:, prefix_length, labels[:, prefix_length]] + tolerance


def _log_likelihoods(model: VLSeq2Seq, encoded: Encoded, rows: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Log-likelihoods [n, K] of candidates with labels [n, K, T] for the examples in ``rows`` [n]."""
    count = labels.shape[:2]
    labels = labels.flatten(0, 1)
    labels = labels[:, : int((labels != IGNORE_INDEX).sum(1).max())]
    share = supports_sharing(model.lm)
    # without sharing each candidate has its own copy of the encoder output
    rows = rows if share else rows.repeat_interleave(count[1])
    encoded = Encoded(encoded.hidden_states[rows], encoded.token_types[rows])
    decoder = model.backbone.decoder(model.lm)
    with shared_encoder_rows(model.lm, decoder, model.context) if share else nullcontext():
        hidden = model.decode(encoded, model.lm.prepare_decoder_input_ids_from_labels(labels))
    return -model.token_loss(hidden, labels).sum(1).unflatten(0, count)
