"""Cases of benchmarks/generation.py: plain `generate` and ours, on real texts with real answer lengths."""

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
from multitask_vl.data.example_table import load_table
from multitask_vl.evaluation.candidates import choice_token_ids
from multitask_vl.evaluation.precision import inference_precision
from multitask_vl.evaluation.predict import predict
from multitask_vl.models.build import build_model, load_tokenizer
from multitask_vl.models.decoding import generation
from multitask_vl.models.seq2seq import VLSeq2Seq
from multitask_vl.tasks.build import build_tasks

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
PADDED = {"coco_caption": 40}
"""Length that the plain implementation pads a task's texts to; 20 for other tasks, as published."""
GREEDY = {"mode": "greedy", "max_length": 20, "no_repeat_ngram_size": 3}
VQA = {"prompt": "vqa: ", "max_input_tokens": 20, "overflow": "truncate", "decoding": GREEDY}


def _questions(part: str) -> dict:
    names = {"questions": f"vqav2_60k/vqa_questions_{part}.json.gz"}
    names |= {"annotations": f"vqav2_60k/vqa_annotations_{part}.json.gz", "image_key": "{image_id:012d}"}
    return {"test": names}


TASKS = {
    "vqa": VQA | {"splits": _questions("train")},
    # the reference data has no GQA questions; other questions of VQA v2 replace them
    "gqa": VQA | {"type": "vqa", "prompt": "gqa: ", "splits": _questions("valid")},
    "nlvr2": {"prompt": "nlvr: ", "splits": {"test": {"items": "nlvr2_text/dev_subset.json"}}},
    "coco_caption": {
        "prompt": "caption: ", "max_input_tokens": 40, "max_target_tokens": 20, "overflow": "truncate",
        "decoding": {"mode": "beam", "num_beams": 5, "max_length": 20, "no_repeat_ngram_size": 3},
        "splits": {"test": {"captions": "coco_captions_text/captions_val2017_part.json.gz", "unit": "image"}},
    },
}  # fmt: skip


class RandomStore:
    """Feature store that returns random features for any image, always the same ones for a key."""

    def __init__(self) -> None:
        features = np.random.default_rng(0).standard_normal((49, 2048), dtype=np.float32)
        self._features = features.astype(np.float16)  # generated once, to keep it out of the measured time

    def get_many(self, keys: list[str]) -> np.ndarray:
        """[N, 49, 2048]."""
        return np.stack([np.roll(self._features, zlib.crc32(key.encode())) for key in keys])


class ForcedLength(LogitsProcessor):
    """Ends every row of example i at exactly ``lengths[i]`` tokens.

    Args:
        lengths: one per example.
        eos_token_id: the token that ends a text.
    """

    def __init__(self, lengths: Sequence[int], eos_token_id: int):
        self.lengths, self.eos_token_id = torch.tensor(lengths), eos_token_id

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        at_end = (self.lengths == input_ids.shape[1] + 1).repeat_interleave(len(input_ids) // len(self.lengths))
        scores[:, self.eos_token_id] = torch.where(at_end, 100.0, -100.0)
        return scores


class Case(NamedTuple):
    """An implementation and precision.

    Attributes:
        ours: `generation.generate` and `predict`; otherwise `generate` of transformers on batches in file order.
        precision: ``fp32`` or ``bf16``. For bf16, the plain implementation uses autocast and ours also casts the
            weights (`inference_precision`).
    """

    ours: bool
    precision: str

    def precision_context(self, model: VLSeq2Seq) -> AbstractContextManager:
        """Context manager that applies the precision to a model."""
        if self.precision == "fp32":
            return nullcontext()
        return inference_precision(model, self.accelerator(), cast_weights_bf16=self.ours)

    def accelerator(self) -> Accelerator:
        """An accelerator with this precision; replaces the current one, since a process has one at a time."""
        AcceleratorState._reset_state(reset_partial_state=True)
        return Accelerator(cpu=True, mixed_precision="no" if self.precision == "fp32" else "bf16")


CASES = {
    "plain, fp32": Case(False, "fp32"),
    "plain, bf16 autocast": Case(False, "bf16"),
    "ours, fp32": Case(True, "fp32"),
    "ours, bf16": Case(True, "bf16"),
}


class Workload:
    """BART-base with random weights and single adapters, and the texts of four tasks.

    Args:
        data: folder of the reference data.
        folder: receives the compiled tables.
        rows: examples per task.
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
            "evaluation": {"eval_splits": [], "final_splits": []},
        }
        path = folder / "benchmark.yaml"
        path.write_text(yaml.safe_dump(settings))
        config = load_config(path)
        self.tokenizer = load_tokenizer(config.backbone)
        self.model = build_model(config, self.tokenizer).eval()
        self.collators: dict[str, Collator] = {}
        self.lengths: dict[str, dict[str, int]] = {}
        for name, task in build_tasks(config).items():
            # the first rows of the VQA v2 files belong to few images
            table = load_table(task, "test", folder / "cache").shuffle(seed=0)
            table = table.select(range(min(rows, len(table))))
            self.collators[name] = Collator(task, table, self.tokenizer, RandomStore())
            answers = [answers[0] if answers else "" for answers in table["answers"]]
            limit = task.decoding.max_length
            lengths = [min(len(ids) + 1, limit) for ids in self.tokenizer(answers).input_ids]
            self.lengths[name] = dict(zip(table["id"], lengths, strict=True))

    def generator(self, ours: bool, real: bool) -> Callable[[Batch, DecodingConfig], torch.Tensor]:
        """A replacement of `VLSeq2Seq.generate` with forced lengths.

        Args:
            ours: share encoder outputs between beams, or use plain `generate` of transformers.
            real: end rows at the length of their real answers; otherwise at the maximum length.
        """
        model = self.model

        @torch.inference_mode()
        def generate(batch: Batch, decoding: DecodingConfig) -> torch.Tensor:
            lengths = [self.lengths[batch.task][id_] if real else decoding.max_length for id_ in batch.ids]
            processors = [ForcedLength(lengths, model.lm.config.eos_token_id)]
            with model.context.task_scope(batch.task):
                encoded, settings = model.encode(batch), model._generation_config(decoding)
                decoder, head = model.backbone.decoder(model.lm), model.backbone.lm_head(model.lm)
                return generation.generate(
                    model.lm,
                    decoder,
                    head,
                    model.context,
                    encoded.hidden_states,
                    encoded.token_types,
                    settings,
                    processors,
                    ours,
                )

        return generate

    def predict_split(self, case: Case, rows: int) -> dict[str, dict[str, str]]:
        """Task -> example id -> prediction, in batches of ``rows``."""
        self.model.generate = self.generator(case.ours, real=True)
        if case.ours:
            accelerator = case.accelerator()
            return {name: predict(self.model, one, rows, accelerator) for name, one in self.collators.items()}
        with case.precision_context(self.model), torch.inference_mode():
            return {name: self._predict_plain(one, rows) for name, one in self.collators.items()}

    def _predict_plain(self, collator: Collator, rows: int) -> dict[str, str]:
        predictions, decoding = {}, collator.task.decoding
        for start in range(0, len(collator.table), rows):
            batch = collator.eval_batch(range(start, min(start + rows, len(collator.table))))
            missing = max(0, PADDED.get(collator.task.name, 20) - batch.input_ids.shape[1])
            batch.input_ids = F.pad(batch.input_ids, (0, missing), value=self.tokenizer.pad_token_id)
            batch.attention_mask = F.pad(batch.attention_mask, (0, missing))
            if decoding.mode == "classify":
                chosen = self.model.classify_first_token(
                    batch, choice_token_ids(collator.task, self.tokenizer)
                ).tolist()
                texts = [decoding.choices[index] for index in chosen]
            else:
                texts = self.tokenizer.batch_decode(self.model.generate(batch, decoding), skip_special_tokens=True)
            predictions |= dict(zip(batch.ids, texts, strict=True))
        return predictions
