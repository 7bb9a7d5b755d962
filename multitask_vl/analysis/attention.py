"""Where does the decoder look while it writes: cross-attention of each word over the cells of the pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from multitask_vl.data.batch import Batch
from multitask_vl.models.attention_maps import cross_attentions, eager, recorded
from multitask_vl.models.seq2seq import VLSeq2Seq
from multitask_vl.routing.context import VISUAL

DIGITS = 4
NEW_WORD = ("Ġ", "▁")
"""What tokenizers of BART and T5 put before a token that begins a word."""


@torch.inference_mode()
def attention_maps(model: VLSeq2Seq, tokenizer, batch: Batch, texts: Sequence[str]) -> list[dict[str, Any]]:
    """Cross-attention, averaged over layers and heads, while the model writes given texts.

    Args:
        batch: rows of one task.
        texts: what each row's model has written, length B.

    Returns:
        a row each: ``words``; ``maps`` [words][images][cells] as shares of all attention, cells row by row; ``grid``
        (rows, columns); ``on_pictures`` [words], the share that goes to cells at all. Tokens of a word are averaged;
        the map of a word is that of the position from which it was predicted.
    """
    labels = tokenizer(list(texts), padding=True, return_tensors="pt")
    ids = labels.input_ids.to(batch.input_ids.device)
    with model.context.of(batch.task), eager(model.lm), recorded(cross_attentions(model)) as seen:
        encoded = model.encode(batch)
        model.decode(encoded, model.lm.prepare_decoder_input_ids_from_labels(ids))
    # [layers, B, heads, T, S] -> [B, T, S]; x_R rows at the end of the states never reach the stack
    weights = torch.stack([found.float() for found in seen]).mean((0, 2)).cpu()
    kinds = encoded.kinds[:, : weights.shape[-1]].cpu()
    rows = []
    for row, text in enumerate(texts):
        cells = (kinds[row] == VISUAL).nonzero().flatten()
        on_cells = weights[row][:, cells].unflatten(-1, (batch.pictures, -1))
        words, places = _words(tokenizer, ids[row].tolist(), labels.attention_mask[row].tolist())
        maps = [on_cells[some].mean(0) for some in places]
        rows.append(
            {
                "prediction": text,
                "words": words,
                "grid": grid(model, len(cells) // batch.pictures),
                "maps": [[[round(v, DIGITS) for v in one] for one in found.tolist()] for found in maps],
                "on_pictures": [round(found.sum().item(), DIGITS) for found in maps],
            }
        )
    return rows


def grid(model: VLSeq2Seq, cells: int) -> list[int]:
    """Rows and columns of an image's cells, as the model gets them; one row where they are no square."""
    if model.config.visual.pool is not None:
        return list(model.config.visual.pool)
    side = math.isqrt(cells)
    return [side, side] if side * side == cells else [1, cells]


def _words(tokenizer, ids: Sequence[int], mask: Sequence[int]) -> tuple[list[str], list[list[int]]]:
    """Words, and the positions of each one's tokens; special tokens are none."""
    words: list[str] = []
    places: list[list[int]] = []
    for place, (token, valid) in enumerate(zip(ids, mask, strict=True)):
        if not valid or token in tokenizer.all_special_ids:
            continue
        piece, text = tokenizer.convert_ids_to_tokens(token), tokenizer.decode([token])
        if words and not piece.startswith(NEW_WORD):
            words[-1] += text.strip()
            places[-1].append(place)
        else:
            words.append(text.strip())
            places.append([place])
    return words, places
