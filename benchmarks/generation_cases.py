"""What generates in benchmarks/generation.py: the library's way and ours, on real texts that end where real ones do."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from transformers import LogitsProcessor

from multitask_vl.config import load_config
from multitask_vl.config.schema import DecodingConfig
from multitask_vl.data.batch import Batch
from multitask_vl.data.collate import Collator
from multitask_vl.data.example_table import compiled
from multitask_vl.evaluation.candidates import choice_ids
from multitask_vl.evaluation.precision import predicting_in
from multitask_vl.evaluation.predict import predict
from multitask_vl.models.build import build_model, load_tokenizer
from multitask_vl.models.decoding import generation
from multitask_vl.models.seq2seq import VLSeq2Seq
from multitask_vl.tasks.build import build_tasks

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
PADDED = {"coco_caption": 40}
"""Tokens that the plain way pads a task's texts to; elsewhere 20, as published."""
SHORT = {"kind": "greedy", "max_length": 20, "no_repeat_ngram_size": 3}
ASKED = {"prompt": "vqa: ", "max_input_tokens": 20, "too_long": "truncate", "decoding": SHORT}


def _questions(part: str) -> dict:
    names = {"questions": f"vqav2_60k/vqa_questions_{part}.json.gz"}
    names |= {"annotations": f"vqav2_60k/vqa_annotations_{part}.json.gz", "image_key": "{image_id:012d}"}
    return {"report": names}


TASKS = {
    "vqa": ASKED | {"splits": _questions("train")},
    # GQA's questions are not among the reference data; other questions of VQA v2 stand for them
    "gqa": ASKED | {"type": "vqa", "prompt": "gqa: ", "splits": _questions("valid")},
    "nlvr2": {"prompt": "nlvr: ", "splits": {"report": {"items": "nlvr2_text/dev_subset.json"}}},
    "coco_caption": {
        "prompt": "caption: ", "max_input_tokens": 40, "max_target_tokens": 20, "too_long": "truncate",
        "decoding": {"kind": "beam", "num_beams": 5, "max_length": 20, "no_repeat_ngram_size": 3},
        "splits": {"report": {"captions": "coco_captions_text/captions_val2017_part.json.gz", "one_per": "image"}},
    },
}  # fmt: skip


class RandomStore:
    """Features of any image: numbers, the same whenever it is asked for, so that batches may be made up in any way."""

    def __init__(self) -> None:
        numbers = np.random.default_rng(0).standard_normal((49, 2048), dtype=np.float32)
        self._numbers = numbers.astype(np.float16)  # drawn once: drawing is not what is timed

    def get_many(self, keys: list[str]) -> np.ndarray:
        """[N, 49, 2048]."""
        return np.stack([np.roll(self._numbers, zlib.crc32(key.encode())) for key in keys])


class EndsAt(LogitsProcessor):
    """Every row of example i ends when it has ``lengths[i]`` tokens, and not before: random weights know no end."""

    def __init__(self, lengths: Sequence[int], end: int):
        self.lengths, self.end = torch.tensor(lengths), end

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        now = (self.lengths == input_ids.shape[1] + 1).repeat_interleave(len(input_ids) // len(self.lengths))
        scores[:, self.end] = torch.where(now, 100.0, -100.0)
        return scores


class Case(NamedTuple):
    """A way of generating.

    Attributes:
        ours: `generation.generate` and `predict`; otherwise the library's `generate` on batches as they come.
        precision: ``fp32`` or ``bf16``; the plain way's bf16 is autocast, ours what `predicting_in` does.
    """

    ours: bool
    precision: str

    def around(self, model: VLSeq2Seq) -> AbstractContextManager:
        """The arithmetic."""
        if self.precision == "fp32":
            return nullcontext()
        return predicting_in(model, self.accelerator(), bf16_weights=self.ours)

    def accelerator(self) -> Accelerator:
        """One of this case's precision; a process has one at a time."""
        AcceleratorState._reset_state(reset_partial_state=True)
        return Accelerator(cpu=True, mixed_precision="no" if self.precision == "fp32" else "bf16")


CASES = {
    "plain, fp32": Case(False, "fp32"),
    "plain, bf16 autocast": Case(False, "bf16"),
    "ours, fp32": Case(True, "fp32"),
    "ours, bf16": Case(True, "bf16"),
}


class World:
    """A BART-base of random weights with single adapters, and the four tasks' texts.

    Args:
        data: the reference data.
        folder: for the compiled tables.
        rows: examples of each task's split.
    """

    def __init__(self, data: Path, folder: Path, rows: int):
        parts = [
            "base.yaml",
            "backbones/bart_base_random.yaml",
            "vision/rn101_random.yaml",
            "methods/adapter_single.yaml",
        ]
        settings = {
            "compose": [str(CONFIGS / part) for part in parts],
            "backbone": {"tokenizer": str(data / "bart_tokenizer")},
            "data_dir": str(data),
            "tasks": TASKS,
            "evaluation": {"during": [], "final": []},
        }
        path = folder / "benchmark.yaml"
        path.write_text(yaml.safe_dump(settings))
        config = load_config(path)
        self.tokenizer = load_tokenizer(config.backbone)
        self.model = build_model(config, self.tokenizer).eval()
        self.collators: dict[str, Collator] = {}
        self.lengths: dict[str, dict[str, int]] = {}
        for name, task in build_tasks(config).items():
            # the first rows of VQA v2's files are of few images
            table = compiled(task, "report", folder / "cache").shuffle(seed=0)
            table = table.select(range(min(rows, len(table))))
            self.collators[name] = Collator(task, table, self.tokenizer, RandomStore())
            said = [answers[0] if answers else "" for answers in table["answers"]]
            longest = task.decoding.max_length
            tokens = [min(len(ids) + 1, longest) for ids in self.tokenizer(said).input_ids]
            self.lengths[name] = dict(zip(table["id"], tokens, strict=True))

    def generator(self, share: bool, real: bool) -> Callable[[Batch, DecodingConfig], torch.Tensor]:
        """What takes the place of `VLSeq2Seq.generate`.

        Args:
            share: ours, or the library's way.
            real: rows end where their real answers do; otherwise all at the greatest length.
        """
        model = self.model

        @torch.inference_mode()
        def generate(batch: Batch, decoding: DecodingConfig) -> torch.Tensor:
            lengths = [self.lengths[batch.task][id_] if real else decoding.max_length for id_ in batch.ids]
            ends = EndsAt(lengths, model.lm.config.eos_token_id)
            with model.context.of(batch.task):
                encoded, settings = model.encode(batch), model._generation(decoding)
                decoder, head = model.family.decoder(model.lm), model.family.head(model.lm)
                return generation.generate(
                    model.lm, decoder, head, model.context, encoded.states, encoded.kinds, settings, [ends], share
                )

        return generate

    def split(self, case: Case, rows: int) -> dict[str, dict[str, str]]:
        """Predictions of all tasks, made in one way."""
        self.model.generate = self.generator(case.ours, real=True)
        if case.ours:
            accelerator = case.accelerator()
            return {name: predict(self.model, one, rows, accelerator) for name, one in self.collators.items()}
        with case.around(self.model), torch.inference_mode():
            return {name: self._plainly(one, rows) for name, one in self.collators.items()}

    def _plainly(self, collator: Collator, rows: int) -> dict[str, str]:
        found, decoding = {}, collator.task.decoding
        for start in range(0, len(collator.table), rows):
            batch = collator.predicting(range(start, min(start + rows, len(collator.table))))
            more = max(0, PADDED.get(collator.task.name, 20) - batch.input_ids.shape[1])
            batch.input_ids = F.pad(batch.input_ids, (0, more), value=self.tokenizer.pad_token_id)
            batch.attention_mask = F.pad(batch.attention_mask, (0, more))
            if decoding.kind == "choice":
                chosen = self.model.choose(batch, choice_ids(collator.task, self.tokenizer)).tolist()
                texts = [decoding.choices[index] for index in chosen]
            else:
                texts = self.tokenizer.batch_decode(self.model.generate(batch, decoding), skip_special_tokens=True)
            found |= dict(zip(batch.ids, texts, strict=True))
        return found
