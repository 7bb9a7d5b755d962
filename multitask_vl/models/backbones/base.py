"""What must the rest know of a language-model family: loading, sites, the joint encoder, the decoder's door."""

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
from multitask_vl.methods.sites import Layout
from multitask_vl.models.kernels.chunked_cross_entropy import Head


class Backbone(ABC):
    """One encoder-decoder family, registered with ``@BACKBONES.register(name)``; holds no state.

    The library's classes are used as they are. The joint encoder drives the library's own layers, so what the encoder
    stack's own forward does besides (its hooks, layerdrop, recording of outputs) does not happen.
    """

    model_class: ClassVar[type[PreTrainedModel]]
    config_class: ClassVar[type[PreTrainedConfig]]
    norm: ClassVar[type[nn.Module]]
    """Norm of the visual embedding."""

    # ---- loading

    @abstractmethod
    def settings(self, config: BackboneConfig) -> dict[str, Any]:
        """Values of the library's configuration that every model of ours gets (dropout rates, no layerdrop)."""

    def sizes(self, config: BackboneConfig) -> PreTrainedConfig:
        """The library's configuration of the model to build, with our `settings`.

        Raises:
            InputError: a key of ``backbone.config`` that the library does not know, or no such pretrained model.
        """
        if config.pretrained is None:
            known, ours = self.config_class().to_dict(), self.settings(config)
            problems = [
                f"backbone.config.{key}: {self.config_class.__name__} has no such size"
                for key in config.config
                if key not in known
            ]
            problems += [f"backbone.config.{key}: set backbone.dropout instead" for key in config.config if key in ours]
            if problems:
                raise InputError(problems)
            try:
                return self.config_class(**config.config | ours)
            except (StrictDataclassError, TypeError, ValueError) as error:
                raise InputError(f"backbone.config: {' '.join(str(error).split())}") from error
        if config.config:
            raise InputError("backbone.config is for random weights; with backbone.pretrained the sizes are its own")
        loaded = _from_hub("backbone.pretrained", config.pretrained, AutoConfig.from_pretrained)
        if not isinstance(loaded, self.config_class):
            raise InputError(
                f"backbone.pretrained: {config.pretrained} is a {loaded.model_type} model, "
                f"but backbone.family is {config.family}"
            )
        loaded.update(self.settings(config))
        return loaded

    def load(self, config: BackboneConfig, sizes: PreTrainedConfig) -> PreTrainedModel:
        """The language model in float32: pretrained, or with random weights from torch's generator."""
        if config.pretrained is None:
            return self.random(sizes)
        return _from_hub(
            "backbone.pretrained",
            config.pretrained,
            lambda path: self.model_class.from_pretrained(path, config=sizes, dtype=torch.float32),
        )

    def random(self, sizes: PreTrainedConfig) -> PreTrainedModel:
        """A language model with new weights."""
        try:
            return self.model_class(sizes)
        except ValueError as error:
            raise InputError(f"backbone.config: {error}") from error

    def tokenizer(self, config: BackboneConfig) -> PreTrainedTokenizerBase:
        """The family's tokenizer, from ``backbone.tokenizer`` or beside the weights."""
        source = config.tokenizer or config.pretrained
        if source is None:
            raise InputError("backbone.tokenizer: needed, since backbone.pretrained is not given")
        return _from_hub("backbone.tokenizer", source, self._tokenizer)

    def _tokenizer(self, path: str) -> PreTrainedTokenizerBase:
        return AutoTokenizer.from_pretrained(path)

    def resize(self, lm: PreTrainedModel, rows: int) -> None:
        """Give the word table ``rows`` rows. New ones are normal with the family's spread, as published."""
        # the library's default would be a normal distribution fitted to the other rows
        lm.resize_token_embeddings(rows, mean_resizing=False)

    def start_token(self, sizes: PreTrainedConfig) -> int:
        """What decoding starts with in a model that does not say so itself."""
        return sizes.eos_token_id

    # ---- structure

    @abstractmethod
    def layout(self, lm: PreTrainedModel) -> Layout:
        """Sites and norms."""

    @abstractmethod
    def decoder(self, lm: PreTrainedModel) -> nn.Module:
        """The decoder stack, called with ``encoder_hidden_states`` and ``encoder_attention_mask`` as keywords."""

    def positions(self, lm: PreTrainedModel) -> int | None:
        """The longest text, read or written, in tokens; None where positions are relative."""
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
        """The joint encoder: states [B, P + L + N, d] of prompts, text [B, L] and visual tokens [B, N, d].

        Args:
            mask: 1 where a position is valid [B, P + L + N].
            prompt: embeddings [P, d] put before every row's text, without positions; P is 0 without a prompt.
        """

    @abstractmethod
    def decode(
        self, lm: PreTrainedModel, decoder_input_ids: torch.Tensor, states: torch.Tensor, kinds: torch.Tensor
    ) -> torch.Tensor:
        """Decoder states [B, T, d] that `head` reads."""

    @abstractmethod
    def head(self, lm: PreTrainedModel) -> Head:
        """What scores the next token."""

    @abstractmethod
    def choice_start(self, lm: PreTrainedModel) -> Sequence[int]:
        """Decoder input whose last position predicts an answer's first token."""

    def beam_settings(self, lm: PreTrainedModel) -> dict[str, Any]:
        """What the library's beam search needs besides, to search as the published code does."""
        return {}


def _from_hub(key: str, name: str, load):
    """``load(path)`` with the library's complaint turned into one line. Folders are looked up before the hub."""
    path = locate(name)
    if (path.startswith((".", "/", "~")) or path.count("/") > 1) and not Path(path).expanduser().is_dir():
        raise InputError(f"{key}: there is no folder {path}")
    path = str(Path(path).expanduser()) if Path(path).expanduser().is_dir() else path
    try:
        return load(path)
    except (OSError, ValueError, KeyError, StrictDataclassError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"{key}: cannot load {name}: {first}. Give a local folder or, with a network, a hub name"
        ) from error


def fingerprint(lm: PreTrainedModel) -> str:
    """A checksum over a sample of every weight: two backbones with the same one are the same, whatever their path."""
    checksum = 0
    for parameter in lm.parameters():
        flat = parameter.detach().flatten()
        sample = torch.cat([flat[:: max(1, len(flat) // 256)], flat[-256:]])
        checksum = zlib.crc32(sample.float().cpu().numpy().tobytes(), checksum)
    return f"{checksum:08x}"
