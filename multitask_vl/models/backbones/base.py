"""Base class of language-model families: loading, sites and the joint encoder."""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from multitask_vl.config.resources import locate
from multitask_vl.config.schema import BackboneConfig
from multitask_vl.errors import InputError
from multitask_vl.methods.sites import SiteIndex
from multitask_vl.models.kernels.chunked_cross_entropy import LMHead


class Backbone(ABC):
    """One encoder-decoder family, registered with ``@BACKBONES.register(name)``. Stateless.

    The classes of transformers are used unchanged. The joint encoder calls the encoder's layers directly, so features
    of the encoder stack's own forward (its hooks, layerdrop, recorded outputs) do not apply.
    """

    model_class: ClassVar[type[PreTrainedModel]]
    config_class: ClassVar[type[PreTrainedConfig]]
    norm: ClassVar[type[nn.Module]]
    """Norm class of the visual embedding."""

    # ---- loading

    @abstractmethod
    def config_overrides(self, config: BackboneConfig) -> dict[str, Any]:
        """Values set in the transformers configuration of every model (dropout rates, no layerdrop)."""

    def hf_config(self, config: BackboneConfig) -> PreTrainedConfig:
        """The transformers configuration of the model to build, including `config_overrides`.

        Raises:
            InputError: a key of ``backbone.config`` that transformers does not know, or no such pretrained model.
        """
        if config.pretrained is None:
            return self._new_hf_config(config)
        if config.config:
            raise InputError(
                "backbone.config: only for random weights; remove it, backbone.pretrained has its own configuration"
            )
        loaded = _from_hub("backbone.pretrained", config.pretrained, AutoConfig.from_pretrained)
        if not isinstance(loaded, self.config_class):
            raise InputError(
                f"backbone.pretrained: {config.pretrained} is a {loaded.model_type} model, "
                f"but backbone.family is {config.family}"
            )
        loaded.update(self.config_overrides(config))
        return loaded

    def _new_hf_config(self, config: BackboneConfig) -> PreTrainedConfig:
        """The transformers configuration given by ``backbone.config``."""
        known, overrides = self.config_class().to_dict(), self.config_overrides(config)
        problems = [
            f"backbone.config.{key}: {self.config_class.__name__} has no such key"
            for key in config.config
            if key not in known
        ]
        problems += [
            f"backbone.config.{key}: set backbone.dropout instead" for key in config.config if key in overrides
        ]
        if problems:
            raise InputError(problems)
        try:
            return self.config_class(**config.config | overrides)
        except (StrictDataclassError, TypeError, ValueError) as error:
            raise InputError(f"backbone.config: {' '.join(str(error).split())}") from error

    def load(self, config: BackboneConfig, hf_config: PreTrainedConfig) -> PreTrainedModel:
        """The language model in float32: pretrained, or with random weights from torch's generator."""
        if config.pretrained is None:
            return self.from_config(hf_config)
        return _from_hub(
            "backbone.pretrained",
            config.pretrained,
            lambda path: self.model_class.from_pretrained(path, config=hf_config, dtype=torch.float32),
        )

    def from_config(self, hf_config: PreTrainedConfig) -> PreTrainedModel:
        """A language model with random weights."""
        try:
            return self.model_class(hf_config)
        except ValueError as error:
            raise InputError(f"backbone.config: {error}") from error

    def tokenizer(self, config: BackboneConfig) -> PreTrainedTokenizerBase:
        """The tokenizer at ``backbone.tokenizer``, or the one stored with the weights."""
        source = config.tokenizer or config.pretrained
        if source is None:
            raise InputError("backbone.tokenizer: required when backbone.pretrained is not set")
        return _from_hub("backbone.tokenizer", source, self._tokenizer)

    def _tokenizer(self, path: str) -> PreTrainedTokenizerBase:
        return AutoTokenizer.from_pretrained(path)

    def resize_token_embeddings(self, lm: PreTrainedModel, rows: int) -> None:
        """Resize the token embeddings to ``rows``. New rows are normal with the family's std, as published."""
        # transformers' default is a normal distribution fitted to the existing rows
        lm.resize_token_embeddings(rows, mean_resizing=False)

    def decoder_start_token_id(self, hf_config: PreTrainedConfig) -> int:
        """Decoder start token of a model whose configuration does not set one."""
        return hf_config.eos_token_id

    # ---- structure

    @abstractmethod
    def sites(self, lm: PreTrainedModel) -> SiteIndex:
        """Sites and norms of the language model."""

    @abstractmethod
    def decoder(self, lm: PreTrainedModel) -> nn.Module:
        """The decoder stack, called with ``encoder_hidden_states`` and ``encoder_attention_mask`` as keywords."""

    def max_positions(self, lm: PreTrainedModel) -> int | None:
        """Maximum length of an input or output text in tokens; None with relative positions."""
        return None

    # ---- computation

    @abstractmethod
    def encode(
        self,
        lm: PreTrainedModel,
        input_ids: torch.Tensor,
        visual: torch.Tensor,
        mask: torch.Tensor,
        prompt: torch.Tensor,
    ) -> torch.Tensor:
        """Joint encoder: hidden states [B, P + L + N, d] of prompt, text and visual tokens.

        Args:
            input_ids: text [B, L].
            visual: visual tokens [B, N, d].
            mask: 1 where a position is valid [B, P + L + N].
            prompt: embeddings [P, d] put before every row's text, without positions; P is 0 without a prompt.
        """

    @abstractmethod
    def decode(
        self,
        lm: PreTrainedModel,
        decoder_input_ids: torch.Tensor,
        hidden_states: torch.Tensor,
        token_types: torch.Tensor,
    ) -> torch.Tensor:
        """Decoder hidden states [B, T, d], the input of `lm_head`.

        Args:
            decoder_input_ids: [B, T].
            hidden_states: encoder output [B, S, d].
            token_types: `TokenType` of every encoder position [B, S].
        """

    @abstractmethod
    def lm_head(self, lm: PreTrainedModel) -> LMHead:
        """Language-model head."""

    @abstractmethod
    def choice_prefix_ids(self, lm: PreTrainedModel) -> Sequence[int]:
        """Decoder input whose last position predicts the first token of an answer."""

    def beam_search_kwargs(self, lm: PreTrainedModel) -> dict[str, Any]:
        """Extra arguments of transformers' beam search, to search as the published code does."""
        return {}


def _from_hub(key: str, name: str, load):
    """``load(path)``, with errors reduced to one line. Local folders take precedence over the hub."""
    path = locate(name)
    if (path.startswith((".", "/", "~")) or path.count("/") > 1) and not Path(path).expanduser().is_dir():
        raise InputError(f"{key}: there is no folder {path}")
    path = str(Path(path).expanduser()) if Path(path).expanduser().is_dir() else path
    try:
        return load(path)
    except (OSError, ValueError, KeyError, StrictDataclassError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"{key}: cannot load {name}: {first}. Give a local folder or, with network access, a hub name"
        ) from error


def weights_checksum(lm: PreTrainedModel) -> str:
    """CRC-32 over a sample of every weight, to recognize equal backbones whatever their path."""
    checksum = 0
    for parameter in lm.parameters():
        flat = parameter.detach().flatten()
        sample = torch.cat([flat[:: max(1, len(flat) // 256)], flat[-256:]])
        checksum = zlib.crc32(sample.float().cpu().numpy().tobytes(), checksum)
    return f"{checksum:08x}"
