"""What is the model: visual embedding, joint encoder, decoder; losses per token, generation, forced choice."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from multitask_vl.config.schema import Config, DecodingConfig
from multitask_vl.data.batch import Batch
from multitask_vl.errors import InputError
from multitask_vl.methods.artifact import hub
from multitask_vl.methods.artifact.adapter_io import save_adapter
from multitask_vl.methods.base import Method
from multitask_vl.models.backbones.base import Backbone
from multitask_vl.models.decoding.generation import generate
from multitask_vl.models.kernels.chunked_cross_entropy import token_loss
from multitask_vl.models.kernels.cpu_dropout import CpuDropout, Nested
from multitask_vl.models.merge_export import write_merged
from multitask_vl.models.visual import VisualEmbedding
from multitask_vl.routing.context import PADDING, PROMPT, TEXT, VISUAL, Context


@dataclass(frozen=True)
class Encoded:
    """What the decoder is given.

    Attributes:
        states: encoder output [B, S, d]: prompts, text, cells; with an x_R known early, its rows are the last.
        kinds: what each position is [B, S]: 0 padding (and x_R), 1 text, 2 cell, 3 prompt.
    """

    states: torch.Tensor
    kinds: torch.Tensor


class VLSeq2Seq(nn.Module):
    """A multitask vision-language sequence-to-sequence model. Build one with `multitask_vl.models.build.build_model`.

    Args:
        family: knows the language model's layers.
        lm: the language model, methods installed.
        visual: makes tokens of grid features.
        context: task and x_R, known to every bottleneck.
        methods: what is installed, in order.
        description: what a saved adapter must agree with (see `multitask_vl.methods.artifact.adapter_io`).
        config: what it was built from; prompts and decoding of the tasks stand there.
    """

    def __init__(
        self,
        family: Backbone,
        lm: PreTrainedModel,
        visual: VisualEmbedding,
        context: Context,
        methods: Sequence[Method],
        description: dict[str, Any],
        config: Config,
    ):
        super().__init__()
        self.family = family
        self.lm = lm
        self.visual = visual
        self.context = context
        self.methods = list(methods)
        self.beside = nn.ModuleDict({one.config.name: one.module for one in methods if one.module is not None})
        self.description = description
        self.config = config
        self.loaded: dict[str, Any] | None = None
        self.held: torch.dtype | None = None
        self.compiled = False
        family.decoder(lm).register_forward_pre_hook(context.door, with_kwargs=True)

    # ---- training

    def forward(self, batch: Batch) -> torch.Tensor:
        """Cross-entropy of every target token [B, T] in float32, 0 where the label is ignored."""
        self._fits("a target", batch.labels.shape[1], batch.task, "max_target_tokens")
        with self.context.of(batch.task), self._masks():
            encoded = self.encode(batch)
            hidden = self.decode(encoded, self.lm.prepare_decoder_input_ids_from_labels(batch.labels))
            return self.token_loss(hidden, batch.labels)

    def token_loss(self, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Losses [B, T] of decoder states [B, T, d]; see `multitask_vl.models.kernels.chunked_cross_entropy`."""
        return token_loss(hidden, labels, self.family.head(self.lm))

    # ---- parts

    def encode(self, batch: Batch) -> Encoded:
        """Text and cells through the joint encoder."""
        self._fits("a text", batch.input_ids.shape[1], batch.task, "max_input_tokens")
        with self.context.of(batch.task):
            tokens, projected = self.visual(
                batch.features, self.lm.get_input_embeddings().weight, repeated=batch.images
            )
            prompts = [prompt for method in self.methods if (prompt := method.prompt(batch.task)) is not None]
            prompt = torch.cat(prompts) if prompts else tokens.new_zeros(0, tokens.shape[-1])
            kinds = torch.cat(
                [
                    batch.attention_mask.new_full((len(tokens), len(prompt)), PROMPT),
                    (batch.attention_mask != 0) * TEXT,
                    batch.attention_mask.new_full(tokens.shape[:2], VISUAL),
                ],
                1,
            )
            x_r = self.context.early(projected, batch.ids, tokens.shape[-1], self.training)
            self.context.positions(kinds)
            states = self.family.encode(self.lm, batch.input_ids, tokens, (kinds != PADDING).long(), prompt)
            if x_r is not None:
                states = torch.cat([states, x_r.to(states.dtype)], 1)
                kinds = torch.cat([kinds, kinds.new_full(x_r.shape[:2], PADDING)], 1)
            return Encoded(states, kinds)

    def decode(self, encoded: Encoded, decoder_input_ids: torch.Tensor) -> torch.Tensor:
        """Decoder states [B, T, d]; call it while a task is running."""
        return self.family.decode(self.lm, decoder_input_ids, encoded.states, encoded.kinds)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Scores of the next token [..., V]."""
        return self.family.head(self.lm).scores(hidden)

    # ---- prediction

    @torch.no_grad()
    def generate(self, batch: Batch, decoding: DecodingConfig) -> torch.Tensor:
        """Token ids [B, T], the decoder's start token included, padded behind the end of each row."""
        self._fits("an output", decoding.max_length, batch.task, "decoding.max_length")
        with self.context.of(batch.task):
            encoded = self.encode(batch)
            decoder, head = self.family.decoder(self.lm), self.family.head(self.lm)
            settings = self._generation(decoding)
            return generate(self.lm, decoder, head, self.context, encoded.states, encoded.kinds, settings)

    @torch.no_grad()
    def choose(self, batch: Batch, choice_ids: list[int]) -> torch.Tensor:
        """Index [B] into ``choice_ids`` of the likeliest first token of the answer; the first wins a tie."""
        with self.context.of(batch.task):
            encoded = self.encode(batch)
            start = torch.tensor(self.family.choice_start(self.lm), device=encoded.states.device)
            hidden = self.decode(encoded, start.expand(len(encoded.states), -1))
            return self.logits(hidden[:, -1])[:, choice_ids].argmax(-1)

    def _fits(self, what: str, length: int, task: str, key: str) -> None:
        """Refuse what is longer than the position table, which would be an index error deep in a layer."""
        longest = self.family.positions(self.lm)
        if longest is not None and length > longest:
            raise InputError(
                f"tasks.{task}: {what} has {length} tokens, but the backbone has positions for {longest}; "
                f"set tasks.{task}.{key}={longest} or less"
            )

    def _generation(self, decoding: DecodingConfig) -> GenerationConfig:
        """Every setting said aloud; the library's defaults and the checkpoint's own play no part."""
        config = self.lm.config
        common = {
            "max_length": decoding.max_length,
            "no_repeat_ngram_size": decoding.no_repeat_ngram_size,
            "do_sample": False,
            "decoder_start_token_id": config.decoder_start_token_id,
            "bos_token_id": getattr(config, "bos_token_id", None),
            "eos_token_id": config.eos_token_id,
            "pad_token_id": config.pad_token_id,
        }
        if decoding.kind == "greedy":
            return GenerationConfig(num_beams=1, **common)
        if decoding.kind != "beam":
            raise InputError(f'decoding.kind "{decoding.kind}" does not generate; it is for choose()')
        return GenerationConfig(
            num_beams=decoding.num_beams,
            length_penalty=decoding.length_penalty,
            early_stopping=decoding.early_stopping,
            **self.family.beam_settings(self.lm),
            **common,
        )

    # ---- parameters

    def trainable(self) -> dict[str, nn.Parameter]:
        """Name -> parameter of all that is trained, each object once: exactly what is saved."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def pretrained(self) -> list[nn.Parameter]:
        """Those of the trainable ones that are the language model's own, not new."""
        added = {id(p) for method in self.methods for p in method.added}
        return [p for p in self.lm.parameters() if p.requires_grad and id(p) not in added]

    def parameter_counts(self) -> tuple[int, int]:
        """Trainable and total, tied parameters counted once."""
        counts = [(parameter.requires_grad, parameter.numel()) for parameter in self.parameters()]
        return sum(size for trained, size in counts if trained), sum(size for _, size in counts)

    def components(self) -> dict[str, dict[str, int]]:
        """Trainable and total by component: language model, visual embedding, and what each method added."""
        owner = {id(p): method.config.name for method in self.methods for p in method.added}
        owner |= {id(p): "visual_embedding" for p in self.visual.parameters()}
        counts: dict[str, dict[str, int]] = {}
        for parameter in self.parameters():
            part = counts.setdefault(owner.get(id(parameter), "language_model"), {"trainable": 0, "total": 0})
            part["trainable"] += parameter.requires_grad * parameter.numel()
            part["total"] += parameter.numel()
        return counts

    def hold_frozen(self, dtype: torch.dtype) -> None:
        """Keep the language model's frozen maps and embeddings in ``dtype``, which autocast would cast at every use.

        From then on the model runs only under autocast to ``dtype``. Norms and position biases, which autocast leaves
        alone, stay in float32, and so does everything that is trained.
        """
        tables = {id(self.lm.get_parameter(name)) for name in self.family.layout(self.lm).bias_tables}
        for module in self.lm.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                for parameter in module.parameters(recurse=False):
                    if not parameter.requires_grad and id(parameter) not in tables:
                        parameter.data = parameter.data.to(dtype)
        self.held = dtype

    def merge(self) -> None:
        """Fold every method into the backbone's weights, in place; InputError, with nothing done, if one cannot."""
        if self.held is not None:
            raise InputError(
                f"the frozen weights are held in {self.held}, too coarse to fold anything into; save the adapter and "
                "load it with from_pretrained"
            )
        refusals = [reason for method in self.methods if (reason := method.cannot_merge())]
        if refusals:
            raise InputError(refusals)
        for method in self.methods:
            method.merge()

    def enable_gradient_checkpointing(self, use_reentrant: bool = False) -> None:
        """Recompute layers in the backward pass. The reentrant kind is refused: it cannot bring task and x_R back."""
        if use_reentrant:
            raise InputError(
                "reentrant gradient checkpointing is refused: it has no context_fn, so a recomputed layer would not "
                "know its task and x_R; leave use_reentrant at False"
            )
        self.lm.activation_checkpointing_enable({"use_reentrant": False, "context_fn": self._recomputed})

    def compile_layers(self, **options: Any) -> None:
        """Let torch.compile work on every layer of the language model, with what methods put there.

        Layer by layer, since alike ones share what is compiled, and parameters keep their names. Dropout takes torch's
        own masks from then on. Predictions of `multitask_vl.evaluation` stay uncompiled: shapes change at every token.

        Args:
            options: of `torch.compile`.
        """
        # a graph for each task's own bottlenecks, with and without each shape that is 1; beyond the limit nothing is
        # compiled, without an error
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
        for module in self.lm.modules():
            if isinstance(module, GradientCheckpointingLayer):
                module.compile(**{"dynamic": True} | options)
        self.compiled = True

    def _masks(self) -> AbstractContextManager:
        """Where a forward pass in training takes its dropout masks from."""
        on_cpu = self.visual.project.weight.device.type == "cpu"
        cheap = self.training and on_cpu and not self.compiled and not torch.compiler.is_compiling()
        return CpuDropout() if cheap else nullcontext()

    def _recomputed(self) -> tuple[AbstractContextManager, AbstractContextManager]:
        """``context_fn`` of a checkpoint: a layer is recomputed with its task, its x_R and its dropout masks."""
        first, again = self.context.checkpoint_contexts()
        return first, Nested(again, self._masks())

    # ---- artefacts; `multitask_vl.models.from_pretrained.from_pretrained` is the way back

    def save_pretrained(self, folder: Path | str) -> None:
        """Write what is trained, what the model is built from, and a card: megabytes, without the frozen weights."""
        save_adapter(self, Path(folder), self.config)

    def save_merged(self, folder: Path | str) -> None:
        """Write a language model of the library with every method folded in, and the visual embedding beside it.

        Raises:
            InputError: a method that cannot be merged, and why; or ``folder`` holds something.
        """
        write_merged(self, Path(folder))

    def push_to_hub(self, repo_id: str, private: bool | None = None, token: str | bool | None = None) -> str:
        """`save_pretrained` into a repository of the Hugging Face hub, made if need be; returns its address."""
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return hub.push(Path(folder), repo_id, private, token)
