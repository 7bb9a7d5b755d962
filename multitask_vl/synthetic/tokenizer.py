"""Tokenizer of the synthetic world: a byte-level BPE in BART's layout with one token per word."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
"""Ids 0 to 4; the first three are BART's."""
NUM_EXTRA = 100
"""Number of ``<extra_id_i>`` tokens, and of ``<vis_extra_id_i>`` tokens, at the end of the vocabulary."""


def extra_tokens() -> list[str]:
    """Return the last 200 tokens in order of id: ``<vis_extra_id_i>`` has id V-1-i, ``<extra_id_i>`` V-101-i."""
    return [f"<{kind}_{i}>" for kind in ("extra_id", "vis_extra_id") for i in reversed(range(NUM_EXTRA))]


def build_tokenizer(words: Iterable[str]) -> PreTrainedTokenizerFast:
    """Train a tokenizer in which each of ``words`` is one token, at the start of a text and after a space.

    Any other text is encoded as bytes. Every word occurs equally often in the training text, so that all merges are
    found.
    """
    words = sorted(set(words))
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=5000,
        min_frequency=1,
        special_tokens=[
            AddedToken(text, lstrip=text == "<mask>", normalized=False, special=True) for text in SPECIAL_TOKENS
        ],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([form for word in words for form in (word, f" {word}")], trainer)
    tokenizer.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in extra_tokens()])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        cls_token="<s>",
        sep_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        mask_token="<mask>",
        additional_special_tokens=extra_tokens(),
        model_max_length=192,
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json, which AutoTokenizer reads offline."""
    tokenizer.save_pretrained(folder)
