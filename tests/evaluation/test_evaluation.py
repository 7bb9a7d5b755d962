"""Are predictions the same in any order, precision and number of processes, and is the likeliest candidate found?"""

from __future__ import annotations

import json
import subprocess
import sys

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
from multitask_vl.evaluation.candidates import candidates
from multitask_vl.evaluation.precision import predicting_in
from multitask_vl.evaluation.predict import by_length, predict
from multitask_vl.models.decoding.answer_ranking import Candidates, rank
from multitask_vl.models.kernels.chunked_cross_entropy import IGNORED
from multitask_vl.registry import TASKS
from tests import tiny_run
from tests.tiny_models import FAMILIES, padded, shaken, tiny_batch, tiny_model

WORDS = ("what", "is", "red", "a", "blue", "thing", "no", "yes")
BOTH = pytest.mark.parametrize("family", FAMILIES)


class Store:
    """Features that depend on the image's key alone."""

    def get_many(self, keys):
        drawn = [np.random.default_rng(int(key)).standard_normal((49, 8)) for key in keys]
        return np.stack(drawn).astype(np.float16)


def collator(decoding, rows=11, **more):
    """Questions of one to seven words, the long ones last."""
    config = TASKS.get("vqa").Config(decoding=decoding, **more)
    text = [" ".join(WORDS[(i + k) % len(WORDS)] for k in range(1 + i * 7 // rows)) for i in range(rows)]
    table = Dataset.from_dict(
        {"id": [f"q{i}" for i in range(rows)], "images": [[str(i)] for i in range(rows)], "text": text}
    )
    return Collator(TASKS.get("vqa")("vqa", config, "."), table, tokenizer(), Store())


def tokenizer():
    """Words are tokens, as many as the tiny models have, in BART's layout."""
    every = ["<s>", "<pad>", "</s>", "<unk>", "vqa", ":", *WORDS]
    every += [f"word{i}" for i in range(140 - len(every))]
    inner = Tokenizer(WordLevel({word: i for i, word in enumerate(every)}, unk_token="<unk>"))
    inner.pre_tokenizer = Whitespace()
    inner.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def test_rows_are_taken_by_their_tokens_the_longest_first():
    one = collator(DecodingConfig())
    lengths = [len(one.tokenizer(f"vqa: {text}").input_ids) for text in one.table["text"]]
    order = by_length(one).tolist()
    assert order == sorted(range(11), key=lambda row: (-lengths[row], row))
    assert order[0] >= 9


@pytest.mark.parametrize(
    "decoding",
    [
        DecodingConfig(max_length=6),
        DecodingConfig(kind="beam", num_beams=3, max_length=6),
        DecodingConfig(kind="choice", choices=WORDS),
        DecodingConfig(kind="rank", choices=(*WORDS, "a red thing", "a blue thing")),
    ],
    ids=lambda one: one.kind,
)
def test_the_size_of_a_batch_and_the_order_of_rows_change_nothing(decoding):
    model, one = shaken(tiny_model("full"), 0.6), collator(decoding)
    accelerator = Accelerator(cpu=True)
    expected = predict(model, one, 1, accelerator)
    assert list(expected) == [f"q{i}" for i in range(11)]
    assert len(set(expected.values())) > 1
    for size in (4, 64):
        assert predict(model, one, size, accelerator) == expected


@BOTH
@pytest.mark.parametrize("by", ["sum", "mean"])
@pytest.mark.parametrize("at_once", [1, 3, 50])
def test_the_likeliest_candidate_is_found(family, by, at_once):
    model, batch = shaken(tiny_model("adapter", {"function": "mm1"}, family=family)), tiny_batch(images=2)
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(3, 50, (20, 5), generator=generator)
    labels[:, 0] = 7  # what all begin with, as BART's begin with <s>
    labels[10:] = labels[:10]  # pairs that differ in the last token alone
    labels[10:, 4] += 1
    ends = torch.tensor([2, 3, 4, 5] * 2 + [5, 5] + [5] * 10)
    labels[torch.arange(5) >= ends[:, None]] = IGNORED
    every = Candidates(labels, by)
    assert every.shared() == 1
    with model.context.of(batch.task), torch.no_grad():
        encoded = model.encode(batch)
        scores = torch.stack(
            [
                -model.token_loss(model.decode(encoded, model.lm.prepare_decoder_input_ids_from_labels(one)), one).sum(
                    1
                )
                for one in labels[:, None].expand(-1, len(batch), -1)
            ],
            1,
        )
    scores = scores / every.lengths() if by == "mean" else scores
    chosen, best = rank(model, batch, every, at_once)
    assert chosen.tolist() == scores.argmax(1).tolist()
    torch.testing.assert_close(best, scores.max(1).values, atol=1e-5, rtol=1e-5)
    assert rank(model, padded(batch, 4), every, at_once)[0].tolist() == chosen.tolist()
    model.lm.set_attn_implementation("eager")
    assert rank(model, batch, every, at_once)[0].tolist() == chosen.tolist()


def test_of_equals_the_first_wins_and_few_candidates_are_computed():
    model, batch = shaken(tiny_model("adapter")), tiny_batch(rows=2)
    labels = torch.tensor([[7, first, 2] for first in range(10, 50)])
    rows = []
    model.lm.model.decoder.register_forward_pre_hook(
        lambda _, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    model.lm.lm_head.weight.data[10:50] = model.lm.lm_head.weight[10].clone()  # all words score the same
    assert rank(model, batch, Candidates(labels), 8)[0].tolist() == [0, 0]
    assert sum(rows) == 2 + 2 * 40, "ties have all to be looked at"
    rows.clear()
    model = shaken(tiny_model("full"))
    model.lm.final_logits_bias[0, 2] = 100.0  # it is sure that an answer has one word
    model.lm.model.decoder.register_forward_pre_hook(
        lambda _, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    chosen = rank(model, batch, Candidates(labels), 2)[0]
    assert sum(rows) <= 2 + 2 * 6
    assert chosen.tolist() == rank(model, batch, Candidates(labels), 40)[0].tolist()


def test_candidates_come_from_a_list_or_a_file(tmp_path):
    (tmp_path / "answers.json").write_text(json.dumps(["yes", "no", "red"]))
    (tmp_path / "numbered.json").write_text(json.dumps({"yes": 0, "no": 1}))
    (tmp_path / "answers.txt").write_text("\ufeffyes\n\nno\n")

    def found(**settings):
        return candidates(collator(DecodingConfig(kind="rank", **settings)).task, tokenizer())

    answers, tokens = found(choices_file=tmp_path / "answers.json")
    assert answers == ["yes", "no", "red"]
    assert tokens.labels.shape == (3, 3)
    assert found(choices_file=tmp_path / "numbered.json")[0] == found(choices_file=tmp_path / "answers.txt")[0]
    assert found(choices=("yes", "no"), rank_by="mean")[1].by == "mean"
    with pytest.raises(InputError, match="there is no file"):
        found(choices_file=tmp_path / "none.json")
    with pytest.raises(InputError, match=r"decoding: 'yes' stands among the answers twice"):
        found(choices=("yes", "no", "yes"))
    with pytest.raises(InputError, match="there is 1 answer to choose among"):
        found(choices=("yes",))
    with pytest.raises(ValueError, match="choices_file set; one of the two"):
        DecodingConfig(kind="rank")


@pytest.mark.parametrize("family", FAMILIES)
def test_bf16_weights_are_for_predictions_alone(family):
    model, one = shaken(tiny_model("adapter", family=family)), collator(DecodingConfig(max_length=5))
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    before = {name: (id(value), value.clone()) for name, value in model.state_dict(keep_vars=True).items()}
    accumulators = [value.expand_as(value).grad_fn.next_functions[0][0] for value in model.trainable().values()]
    with predicting_in(model, accelerator, bf16_weights=True):
        assert {value.dtype for value in model.parameters()} == {torch.bfloat16}
        assert not torch.is_autocast_enabled("cpu")
        tied = model.lm.get_output_embeddings().weight
        assert tied is model.lm.get_input_embeddings().weight
    assert list(predict(model, one, 4, accelerator)) == [f"q{i}" for i in range(11)]
    with predicting_in(model, accelerator, bf16_weights=False):
        assert {value.dtype for value in model.parameters()} == {torch.float32}
        assert torch.is_autocast_enabled("cpu")
    for name, value in model.state_dict(keep_vars=True).items():
        assert id(value) == before[name][0]
        assert torch.equal(value, before[name][1])
    # DDP's hooks hang on these, which a change of a parameter's type would have thrown away
    after = [value.expand_as(value).grad_fn.next_functions[0][0] for value in model.trainable().values()]
    assert after == accumulators
    assert EvaluationConfig().bf16_weights
    AcceleratorState._reset_state(reset_partial_state=True)


def test_a_slow_scorer_keeps_nobody_waiting_too_long():
    """Two processes whose group loses patience after 5 s, and scores that take 12 s; then scores that fail."""
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "tests.slow_scorer"]
    done = subprocess.run(
        [sys.executable, *command], cwd=tiny_run.ROOT, env=tiny_run.environment(),
        capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    told = sorted(json.loads(line)["told"] for line in done.stdout.splitlines() if line.startswith("{"))
    assert told == [[0, 2, "scored", "no answers"], [1, 2, None, "no answers"]]
