"""Predictions in any batch size and precision, and ranking of candidate answers."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from multitask_vl.config.schema import DecodingConfig, EvaluationConfig
from multitask_vl.data.collate import Collator
from multitask_vl.errors import InputError
from multitask_vl.evaluation.candidates import tokenize_candidates
from multitask_vl.evaluation.precision import inference_precision
from multitask_vl.evaluation.predict import longest_first, predict
from multitask_vl.models.decoding.answer_ranking import Candidates, rank_candidates
from multitask_vl.models.kernels.chunked_cross_entropy import IGNORE_INDEX
from multitask_vl.registry import TASKS
from tests.tiny_models import FAMILIES, padded, perturb, tiny_batch, tiny_model

WORDS = ("what", "is", "red", "a", "blue", "thing", "no", "yes")


class Store:
    """Features that depend on the image's key alone."""

    def get_many(self, keys):
        features = [np.random.default_rng(int(key)).standard_normal((49, 8)) for key in keys]
        return np.stack(features).astype(np.float16)


def collator(decoding, rows=11, **more):
    """Collator of questions of one to seven words, the long ones last."""
    config = TASKS.get("vqa").Config(decoding=decoding, **more)
    text = [" ".join(WORDS[(i + k) % len(WORDS)] for k in range(1 + i * 7 // rows)) for i in range(rows)]
    table = Dataset.from_dict(
        {"id": [f"q{i}" for i in range(rows)], "images": [[str(i)] for i in range(rows)], "text": text}
    )
    return Collator(TASKS.get("vqa")("vqa", config, "."), table, tokenizer(), Store())


def tokenizer():
    """Word-level tokenizer with the vocabulary size of the tiny models and BART's special tokens."""
    vocabulary = ["<s>", "<pad>", "</s>", "<unk>", "vqa", ":", *WORDS]
    vocabulary += [f"word{i}" for i in range(140 - len(vocabulary))]
    inner = Tokenizer(WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    inner.pre_tokenizer = Whitespace()
    inner.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def test_longest_first_sorts_by_token_count():
    one = collator(DecodingConfig())
    lengths = [len(one.tokenizer(f"vqa: {text}").input_ids) for text in one.table["text"]]
    order = longest_first(one).tolist()
    assert order == sorted(range(11), key=lambda row: (-lengths[row], row))
    assert order[0] >= 9


@pytest.mark.parametrize(
    "decoding",
    [
        DecodingConfig(max_length=6),
        DecodingConfig(mode="beam", num_beams=3, max_length=6),
        DecodingConfig(mode="classify", choices=WORDS),
        DecodingConfig(mode="rank", choices=(*WORDS, "a red thing", "a blue thing")),
    ],
    ids=lambda decoding: decoding.mode,
)
def test_predict_does_not_depend_on_batch_size(decoding):
    model, one = perturb(tiny_model("full"), 0.6), collator(decoding)
    accelerator = Accelerator(cpu=True)
    expected = predict(model, one, 1, accelerator)
    assert list(expected) == [f"q{i}" for i in range(11)]
    assert len(set(expected.values())) > 1
    for size in (4, 64):
        assert predict(model, one, size, accelerator) == expected


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("normalization", ["sum", "mean"])
def test_rank_candidates_finds_most_likely(family, normalization):
    model, batch = perturb(tiny_model("adapter", {"function": "mm1"}, family=family)), tiny_batch(images=2)
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(3, 50, (20, 5), generator=generator)
    labels[:, 0] = 7  # common prefix, as <s> of BART
    labels[10:] = labels[:10]  # pairs that differ in the last token only
    labels[10:, 4] += 1
    ends = torch.tensor([2, 3, 4, 5] * 2 + [5, 5] + [5] * 10)
    labels[torch.arange(5) >= ends[:, None]] = IGNORE_INDEX
    candidates = Candidates(labels, normalization)
    assert candidates.common_prefix_length() == 1
    with model.context.task_scope(batch.task), torch.no_grad():
        encoded, losses = model.encode(batch), []
        for targets in labels[:, None].expand(-1, len(batch), -1):
            hidden = model.decode(encoded, model.lm.prepare_decoder_input_ids_from_labels(targets))
            losses.append(model.token_loss(hidden, targets).sum(1))
    scores = -torch.stack(losses, 1)
    scores = scores / candidates.lengths() if normalization == "mean" else scores
    expected = scores.argmax(1).tolist()
    for chunk in (1, 3, 50):
        chosen, best = rank_candidates(model, batch, candidates, chunk)
        assert chosen.tolist() == expected
        torch.testing.assert_close(best, scores.max(1).values, atol=1e-5, rtol=1e-5)
    assert rank_candidates(model, padded(batch, 4), candidates, 3)[0].tolist() == expected
    model.lm.set_attn_implementation("eager")
    assert rank_candidates(model, batch, candidates, 3)[0].tolist() == expected


def test_rank_candidates_breaks_ties_and_prunes():
    model, batch = perturb(tiny_model("adapter")), tiny_batch(rows=2)
    labels = torch.tensor([[7, first, 2] for first in range(10, 50)])
    rows = []
    model.lm.model.decoder.register_forward_pre_hook(
        lambda _, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    model.lm.lm_head.weight.data[10:50] = model.lm.lm_head.weight[10].clone()  # all tokens score the same
    assert rank_candidates(model, batch, Candidates(labels), 8)[0].tolist() == [0, 0]
    assert sum(rows) == 2 + 2 * 40, "every tied candidate has to be computed"
    rows.clear()
    model = perturb(tiny_model("full"))
    model.lm.final_logits_bias[0, 2] = 100.0  # every answer ends after one token
    model.lm.model.decoder.register_forward_pre_hook(
        lambda _, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    chosen = rank_candidates(model, batch, Candidates(labels), 2)[0]
    assert sum(rows) <= 2 + 2 * 6
    assert chosen.tolist() == rank_candidates(model, batch, Candidates(labels), 40)[0].tolist()


def test_tokenize_candidates_reads_list_or_file(tmp_path):
    (tmp_path / "answers.json").write_text(json.dumps(["yes", "no", "red"]))
    (tmp_path / "numbered.json").write_text(json.dumps({"yes": 0, "no": 1}))
    (tmp_path / "answers.txt").write_text("\ufeffyes\n\nno\n")

    def found(**settings):
        return tokenize_candidates(collator(DecodingConfig(mode="rank", **settings)).task, tokenizer())

    answers, tokens = found(choices_file=tmp_path / "answers.json")
    assert answers == ["yes", "no", "red"]
    assert tokens.labels.shape == (3, 3)
    assert found(choices_file=tmp_path / "numbered.json")[0] == found(choices_file=tmp_path / "answers.txt")[0]
    assert found(choices=("yes", "no"), length_normalize=True)[1].normalization == "mean"
    with pytest.raises(InputError, match="there is no file"):
        found(choices_file=tmp_path / "none.json")
    with pytest.raises(InputError, match=r"decoding: 'yes' is listed twice"):
        found(choices=("yes", "no", "yes"))
    with pytest.raises(InputError, match="the number of answers to rank is 1"):
        found(choices=("yes",))
    with pytest.raises(ValueError, match="set either choices or choices_file"):
        DecodingConfig(mode="rank")


@pytest.mark.parametrize("family", FAMILIES)
def test_inference_precision_restores_float32_weights(family):
    model, one = perturb(tiny_model("adapter", family=family)), collator(DecodingConfig(max_length=5))
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    before = {name: (id(value), value.clone()) for name, value in model.state_dict(keep_vars=True).items()}
    accumulators = [
        value.expand_as(value).grad_fn.next_functions[0][0] for value in model.trainable_parameters().values()
    ]
    with inference_precision(model, accelerator, cast_weights_bf16=True):
        assert {value.dtype for value in model.parameters()} == {torch.bfloat16}
        assert not torch.is_autocast_enabled("cpu")
        tied = model.lm.get_output_embeddings().weight
        assert tied is model.lm.get_input_embeddings().weight
    assert list(predict(model, one, 4, accelerator)) == [f"q{i}" for i in range(11)]
    with inference_precision(model, accelerator, cast_weights_bf16=False):
        assert {value.dtype for value in model.parameters()} == {torch.float32}
        assert torch.is_autocast_enabled("cpu")
    for name, value in model.state_dict(keep_vars=True).items():
        assert id(value) == before[name][0]
        assert torch.equal(value, before[name][1])
    # DDP's hooks are on these gradient accumulators, which a cast of the parameters would have replaced
    after = [value.expand_as(value).grad_fn.next_functions[0][0] for value in model.trainable_parameters().values()]
    assert after == accumulators
    assert EvaluationConfig().cast_weights_bf16
    AcceleratorState._reset_state(reset_partial_state=True)
