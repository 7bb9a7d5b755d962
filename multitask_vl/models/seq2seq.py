"""Vision-language sequence-to-sequence model: losses, generation and classification by first token."""

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
from multitask_vl.models.kernels.chunked_cross_entropy import per_token_cross_entropy
from multitask_vl.models.kernels.cpu_dropout import CpuDropout, ReentrantContexts
from multitask_vl.models.merge_export import save_merged
from multitask_vl.models.visual import VisualEmbedding
from multitask_vl.routing.context import Context
from multitask_vl.routing.pooling import TokenType


@dataclass(frozen=True)
class Encoded:
    """Encoder output, as passed to the decoder.

    Attributes:
        hidden_states: [B, S, d]: prompts, text, visual tokens, then the rows of an x_R that was set before encoding.
        token_types: `TokenType` of every position [B, S]; rows of x_R count as padding.
    """

    hidden_states: torch.Tensor
    token_types: torch.Tensor


class VLSeq2Seq(nn.Module):
    """Multitask vision-language sequence-to-sequence model, built by `multitask_vl.models.build.build_model`.

    Args:
        backbone: family of the language model.
        lm: the language model, with methods installed.
        visual: embeds grid features.
        context: running task and x_R, shared with every bottleneck.
        methods: installed methods, in order.
        compatibility: record that a saved adapter must match (`multitask_vl.methods.artifact.adapter_io`).
        config: configuration of the model; holds the tasks' prompts and decoding.
    """

    def __init__(
        self,
        backbone: Backbone,
        lm: PreTrainedModel,
        visual: VisualEmbedding,
        context: Context,
        methods: Sequence[Method],
        compatibility: dict[str, Any],
        config: Config,
    ):
        super().__init__()
        self.backbone = backbone
        self.lm = lm
        self.visual = visual
        self.context = context
        self.methods = list(methods)
        self.shared_modules = nn.ModuleDict(
            {method.config.name: method.shared_module for method in methods if method.shared_module is not None}
        )
        self.compatibility = compatibility
        self.config = config
        self.adapter_record: dict[str, Any] | None = None
        self.frozen_dtype: torch.dtype | None = None
        self.compiled = False
        backbone.decoder(lm).register_forward_pre_hook(context.decoder_pre_hook, with_kwargs=True)

    # ---- training

    def forward(self, batch: Batch) -> torch.Tensor:
        """Cross-entropy of every target token [B, T] in float32, 0 where the label is ignored."""
        self._check_length("a target", batch.labels.shape[1], batch.task, "max_target_tokens")
        with self.context.task_scope(batch.task), self._dropout_context():
            encoded = self.encode(batch)
            hidden = self.decode(encoded, self.lm.prepare_decoder_input_ids_from_labels(batch.labels))
            return self.token_loss(hidden, batch.labels)

    def token_loss(self, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Losses [B, T] of decoder hidden states [B, T, d]; see `multitask_vl.models.kernels.chunked_cross_entropy`."""
        return per_token_cross_entropy(hidden, labels, self.backbone.lm_head(self.lm))

    # ---- forward in parts

    def encode(self, batch: Batch) -> Encoded:
        """Encode text and images with the joint encoder.

        Raises:
            InputError: a text longer than the backbone's position table.
        """
        self._check_length("a text", batch.input_ids.shape[1], batch.task, "max_input_tokens")
        with self.context.task_scope(batch.task):
            visual, projected = self.visual(
                batch.features, self.lm.get_input_embeddings().weight, image_index=batch.image_index
            )
            prompts = [prompt for method in self.methods if (prompt := method.prompt(batch.task)) is not None]
            prompt = torch.cat(prompts) if prompts else visual.new_zeros(0, visual.shape[-1])
            token_types = torch.cat(
                [
                    batch.attention_mask.new_full((len(visual), len(prompt)), TokenType.PROMPT),
                    (batch.attention_mask != 0) * TokenType.TEXT,
                    batch.attention_mask.new_full(visual.shape[:2], TokenType.VISUAL),
                ],
                1,
            )
            x_r = self.context.set_visual_x_r(projected, batch.ids, visual.shape[-1], self.training)
            self.context.set_token_types(token_types)
            mask = (token_types != TokenType.PADDING).long()
            hidden_states = self.backbone.encode(self.lm, batch.input_ids, visual, mask, prompt)
            if x_r is not None:
                hidden_states = torch.cat([hidden_states, x_r.to(hidden_states.dtype)], 1)
                token_types = torch.cat([token_types, token_types.new_full(x_r.shape[:2], TokenType.PADDING)], 1)
            return Encoded(hidden_states, token_types)

    def decode(self, encoded: Encoded, decoder_input_ids: torch.Tensor) -> torch.Tensor:
        """Decoder hidden states [B, T, d]. Call it inside `Context.task_scope`."""
        return self.backbone.decode(self.lm, decoder_input_ids, encoded.hidden_states, encoded.token_types)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits of the next token: [..., d] -> [..., V]."""
        return self.backbone.lm_head(self.lm).logits(hidden)

    # ---- prediction

    @torch.no_grad()
    def generate(self, batch: Batch, decoding: DecodingConfig) -> torch.Tensor:
        """Generated token ids [B, T], including the decoder's start token, padded after each row's end.

        Raises:
            InputError: ``decoding.max_length`` exceeds the position table, or ``decoding.mode`` does not generate.
        """
        self._check_length("an output", decoding.max_length, batch.task, "decoding.max_length")
        with self.context.task_scope(batch.task):
            encoded = self.encode(batch)
            return generate(
                self.lm,
                self.backbone.decoder(self.lm),
                self.backbone.lm_head(self.lm),
                self.context,
                encoded.hidden_states,
                encoded.token_types,
                self._generation_config(decoding),
            )

    @torch.no_grad()
    def classify_first_token(self, batch: Batch, candidate_ids: list[int]) -> torch.Tensor:
        """Index [B] into ``candidate_ids`` of the most likely first token of the answer; the first one wins ties."""
        with self.context.task_scope(batch.task):
            encoded = self.encode(batch)
            prefix = torch.tensor(self.backbone.choice_prefix_ids(self.lm), device=encoded.hidden_states.device)
            hidden = self.decode(encoded, prefix.expand(len(encoded.hidden_states), -1))
            return self.logits(hidden[:, -1])[:, candidate_ids].argmax(-1)

    def _check_length(self, what: str, length: int, task: str, key: str) -> None:
        """Reject sequences longer than the position table, which would be an index error deep inside a layer."""
        longest = self.backbone.max_positions(self.lm)
        if longest is not None and length > longest:
            raise InputError(
                f"tasks.{task}: {what} has {length} tokens, but the backbone has positions for {longest}; "
                f"set tasks.{task}.{key}={longest} or less"
            )

    def _generation_config(self, decoding: DecodingConfig) -> GenerationConfig:
        """Generation settings with every value explicit, so that no default of transformers or a checkpoint applies."""
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
        if decoding.mode == "greedy":
            return GenerationConfig(num_beams=1, **common)
        if decoding.mode != "beam":
            raise InputError(f'decoding.mode "{decoding.mode}" does not generate text; set it to greedy or beam')
        return GenerationConfig(
            num_beams=decoding.num_beams,
            length_penalty=decoding.length_penalty,
            early_stopping=decoding.early_stopping,
            **self.backbone.beam_search_kwargs(self.lm),
            **common,
        )

    # ---- parameters

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """Name -> trainable parameter, tied ones once. Exactly these are saved."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def trainable_base_parameters(self) -> list[nn.Parameter]:
        """Trainable parameters of the language model itself, without those that methods add."""
        new_parameters = {id(p) for method in self.methods for p in method.new_parameters}
        return [p for p in self.lm.parameters() if p.requires_grad and id(p) not in new_parameters]

    def parameter_counts(self) -> tuple[int, int]:
        """Number of trainable and of all parameters, tied ones counted once."""
        counts = [(parameter.requires_grad, parameter.numel()) for parameter in self.parameters()]
        return sum(size for trained, size in counts if trained), sum(size for _, size in counts)

    def parameter_breakdown(self) -> dict[str, dict[str, int]]:
        """Trainable and total counts by component: language model, visual embedding and each method's parameters."""
        owner = {id(p): method.config.name for method in self.methods for p in method.new_parameters}
        owner |= {id(p): "visual_embedding" for p in self.visual.parameters()}
        counts: dict[str, dict[str, int]] = {}
        for parameter in self.parameters():
            part = counts.setdefault(owner.get(id(parameter), "language_model"), {"trainable": 0, "total": 0})
            part["trainable"] += parameter.requires_grad * parameter.numel()
            part["total"] += parameter.numel()
        return counts

    def cast_frozen(self, dtype: torch.dtype) -> None:
        """Cast the language model's frozen linear layers and embeddings to ``dtype``.

        Autocast would cast them at every use. Afterwards the model must run under autocast to ``dtype``. Norms and
        relative position biases, which autocast leaves alone, stay in float32, as does everything trainable.
        """
        bias_tables = {id(self.lm.get_parameter(name)) for name in self.backbone.sites(self.lm).bias_tables}
        for module in self.lm.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                for parameter in module.parameters(recurse=False):
                    if not parameter.requires_grad and id(parameter) not in bias_tables:
                        parameter.data = parameter.data.to(dtype)
        self.frozen_dtype = dtype

    def merge(self) -> None:
        """Merge every method into the backbone's weights, in place.

        Raises:
            InputError: a method cannot be merged, or the frozen weights are in low precision. Nothing is changed.
        """
        if self.frozen_dtype is not None:
            raise InputError(
                f"the frozen weights are in {self.frozen_dtype}, too low a precision to merge into; save the adapter "
                "and load it with from_pretrained"
            )
        blockers = [reason for method in self.methods if (reason := method.merge_blocker())]
        if blockers:
            raise InputError(blockers)
        for method in self.methods:
            method.merge()

    # ---- execution

    def enable_gradient_checkpointing(self, use_reentrant: bool = False) -> None:
        """Recompute layers in the backward pass.

        Raises:
            InputError: ``use_reentrant``, since reentrant checkpointing cannot restore task and x_R.
        """
        if use_reentrant:
            raise InputError(
                "reentrant gradient checkpointing is not supported: it has no context_fn, so a recomputed layer would "
                "not know its task and x_R; set use_reentrant=False"
            )
        self.lm.activation_checkpointing_enable({"use_reentrant": False, "context_fn": self._checkpoint_context_fn})

    def compile_layers(self, **options: Any) -> None:
        """Compile every layer of the language model with torch.compile, including what methods installed.

        Layers are compiled one by one, so equal layers share their graphs and parameters keep their names. From then on
        dropout uses torch's masks. Predictions of `multitask_vl.evaluation` run uncompiled, since shapes change with
        every token.

        Args:
            options: of `torch.compile`.
        """
        # one graph per task's bottlenecks, with and without each shape that is 1; above the limit torch falls back to
        # eager without an error
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
        for module in self.lm.modules():
            if isinstance(module, GradientCheckpointingLayer):
                module.compile(**{"dynamic": True} | options)
        self.compiled = True

    def _dropout_context(self) -> AbstractContextManager:
        """Context of a forward pass: fast dropout masks when training on a CPU, else nothing."""
        on_cpu = self.visual.project.weight.device.type == "cpu"
        fast = self.training and on_cpu and not self.compiled and not torch.compiler.is_compiling()
        return CpuDropout() if fast else nullcontext()

    def _checkpoint_context_fn(self) -> tuple[AbstractContextManager, AbstractContextManager]:
        """``context_fn`` of a checkpoint: recompute a layer with its task, its x_R and its dropout masks."""
        forward, recompute = self.context.checkpoint_contexts()
        return forward, ReentrantContexts(recompute, self._dropout_context())

    # ---- artifacts, loaded by `multitask_vl.models.from_pretrained.from_pretrained`

    def save_pretrained(self, folder: Path | str) -> None:
        """Save the trainable parameters, the configuration and a model card, without the frozen weights."""
        save_adapter(self, Path(folder), self.config)

    def save_merged(self, folder: Path | str) -> None:
        """Save a transformers language model with every method merged, and the visual embedding as an adapter.

        Raises:
            InputError: a method cannot be merged, or ``folder`` is not empty.
        """
        save_merged(self, Path(folder))

    def push_to_hub(self, repo_id: str, private: bool | None = None, token: str | bool | None = None) -> str:
        """Upload `save_pretrained`'s folder to a Hugging Face hub repository, created if needed; returns its URL."""
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return hub.push_folder(Path(folder), repo_id, private, token)
