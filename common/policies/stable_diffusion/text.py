"""Encode prompts for a Stable Diffusion UNet: the hidden states of a CLIP text encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from drover.common.policies.prompt_cache import PromptCache
from drover.common.protocols import Conditioning


class Text(Protocol):
    """The frozen text encoders of a pipeline, and the UNet's inputs made from them."""

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """A row for each prompt, in order, without gradient."""

    def inputs(self, cond: Conditioning, dtype: torch.dtype) -> dict[str, Any]:
        """The UNet's keyword arguments for those rows; ``dtype`` is that of the UNet's weights."""


class ClipText:
    """The text encoder of SD 1.x, SD 2.x and their consistency models: {"text": [B, L, D]}, the last hidden state."""

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline
        self._rows = PromptCache(self._embed)

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        return self._rows(prompts)

    def inputs(self, cond: Conditioning, dtype: torch.dtype) -> dict[str, Any]:
        return {"encoder_hidden_states": cond["text"].to(dtype)}

    def _embed(self, prompts: list[str]) -> Conditioning:
        hidden: Tensor = run_clip(self._pipeline.tokenizer, self._pipeline.text_encoder, prompts)[0]
        return {"text": hidden}


def run_clip(tokenizer: Any, encoder: Any, prompts: list[str]) -> Any:
    """The encoder's output with all hidden states. Prompts are cut at the tokenizer's length, as in diffusers."""
    length = tokenizer.model_max_length
    tokens = tokenizer(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    masked = getattr(encoder.config, "use_attention_mask", False)
    mask = tokens.attention_mask.to(encoder.device) if masked else None
    return encoder(tokens.input_ids.to(encoder.device), attention_mask=mask, output_hidden_states=True)
