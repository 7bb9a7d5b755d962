"""Cross-attention of the decoder over visual tokens, one map per predicted word."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from multitask_vl.data.batch import Batch
from multitask_vl.models.attention_maps import cross_attention_modules, eager_attention, record_attention
from multitask_vl.models.seq2seq import VLSeq2Seq
from multitask_vl.routing.pooling import TokenType

DIGITS = 4
WORD_START = ("Ġ", "▁")
"""Prefixes that mark the first token of a word in the vocabularies of BART and T5."""


@torch.inference_mode()
def attention_maps(model: VLSeq2Seq, tokenizer, batch: Batch, texts: Sequence[str]) -> list[dict[str, Any]]:
    """Cross-attention while the decoder predicts given texts (teacher forcing), averaged over layers and heads.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        batch: examples of one task, B rows.
        texts: predicted text of each row, length B.

    Returns:
        one dict per row: ``prediction``; ``words``; ``maps`` [words][images][visual tokens], shares of all attention,
        visual tokens row-major; ``grid`` (rows, columns); ``image_share`` [words], share of the attention on visual
        tokens. The map of a token is that of the position that predicts it; tokens of a word are averaged.
    """
    labels = tokenizer(list(texts), padding=True, return_tensors="pt")
    ids = labels.input_ids.to(batch.input_ids.device)
    modules = cross_attention_modules(model)
    with model.context.task_scope(batch.task), eager_attention(model.lm), record_attention(modules) as recorded:
        encoded = model.encode(batch)
        model.decode(encoded, model.lm.prepare_decoder_input_ids_from_labels(ids))
    # [layers, B, heads, T, S] -> [B, T, S]; rows of x_R at the end of the hidden states are not attended to
    weights = torch.stack([layer.float() for layer in recorded]).mean((0, 2)).cpu()
    token_types = encoded.token_types[:, : weights.shape[-1]].cpu()
    rows = []
    for row, text in enumerate(texts):
        visual = (token_types[row] == TokenType.VISUAL).nonzero().flatten()
        visual_attention = weights[row][:, visual].unflatten(-1, (batch.images_per_row, -1))
        words, positions = _words(tokenizer, ids[row].tolist(), labels.attention_mask[row].tolist())
        maps = [visual_attention[of_word].mean(0) for of_word in positions]
        rows.append(
            {
                "prediction": text,
                "words": words,
                "grid": grid(model, len(visual) // batch.images_per_row),
                "maps": [[[round(v, DIGITS) for v in image] for image in of_word.tolist()] for of_word in maps],
                "image_share": [round(of_word.sum().item(), DIGITS) for of_word in maps],
            }
        )
    return rows


def grid(model: VLSeq2Seq, num_tokens: int) -> list[int]:
    """Rows and columns of the visual tokens of an image; a single row if their number is not a square."""
    if model.config.visual.pool is not None:
        return list(model.config.visual.pool)
    side = math.isqrt(num_tokens)
    return [side, side] if side * side == num_tokens else [1, num_tokens]


def _words(tokenizer, ids: Sequence[int], mask: Sequence[int]) -> tuple[list[str], list[list[int]]]:
    """Words of a token sequence and the positions of their tokens; special tokens are skipped."""
    words: list[str] = []
    positions: list[list[int]] = []
    for position, (token, valid) in enumerate(zip(ids, mask, strict=True)):
        if not valid or token in tokenizer.all_special_ids:
            continue
        piece, text = tokenizer.convert_ids_to_tokens(token), tokenizer.decode([token])
        if words and not piece.startswith(WORD_START):
            words[-1] += text.strip()
            positions[-1].append(position)
        else:
            words.append(text.strip())
            positions.append([position])
    return words, positions
