"""Encode prompts and the picture's size for Stable Diffusion XL's UNet (Podell et al. 2023, arXiv 2307.01952).

The rest of XL is in `StableDiffusion`, which uses these encoders where the pipeline is one of XL.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from drover.common.errors import ConfigError
from drover.common.policies.prompt_cache import PromptCache
from drover.common.policies.stable_diffusion.text import run_clip
from drover.common.protocols import Conditioning


def is_xl(pipeline: Any) -> bool:
    """Whether the UNet takes sizes beside the text."""
    return pipeline.unet.config.addition_embed_type == "text_time"


class ClipTextPair:
    """The two text encoders of SDXL: {"text": [B, L, D1 + D2], "pooled": [B, P], "time_ids": [B, 6]}.

    ``text`` joins the last but one hidden states of both encoders, ``pooled`` is the projection of the second, ``time_ids``
    are height and width of the original, top and left of the crop, height and width of the target: an uncropped
    picture of the sampled size. The empty prompt has zeros for text and pooled where the pipeline says
    force_zeros_for_empty_prompt, because zeros meant "no prompt" in training; so guidance and dropped captions agree.
    """

    def __init__(self, pipeline: Any, image_size: tuple[int, int]) -> None:
        _check(pipeline)
        self._pipeline = pipeline
        self._time_ids = (*image_size, 0, 0, *image_size)
        self._rows = PromptCache(self._embed)

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        rows = self._rows(prompts)
        # float32 even if the encoders are bfloat16, which cannot represent 1016.
        time_ids = torch.tensor([self._time_ids], dtype=torch.float32, device=rows["text"].device)
        return {**rows, "time_ids": time_ids.expand(len(prompts), -1)}

    def inputs(self, cond: Conditioning, dtype: torch.dtype) -> dict[str, Any]:
        added = {"text_embeds": cond["pooled"].to(dtype), "time_ids": cond["time_ids"]}
        return {"encoder_hidden_states": cond["text"].to(dtype), "added_cond_kwargs": added}

    def _embed(self, prompts: list[str]) -> Conditioning:
        pipeline = self._pipeline
        first = run_clip(pipeline.tokenizer, pipeline.text_encoder, prompts)
        second = run_clip(pipeline.tokenizer_2, pipeline.text_encoder_2, prompts)
        text = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
        pooled = second.text_embeds
        if pipeline.config.force_zeros_for_empty_prompt:
            empty = torch.tensor([prompt == "" for prompt in prompts], device=text.device)
            text, pooled = text.masked_fill(empty[:, None, None], 0), pooled.masked_fill(empty[:, None], 0)
        return {"text": text, "pooled": pooled}


def _check(pipeline: Any) -> None:
    for name in ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"):
        if getattr(pipeline, name, None) is None:
            raise ConfigError(f"the pipeline has no {name}, as refiners do not; give a Stable Diffusion XL base model")
    unet, pooled = pipeline.unet, pipeline.text_encoder_2.config.projection_dim
    takes, gets = unet.add_embedding.linear_1.in_features, 6 * unet.config.addition_time_embed_dim + pooled
    if takes != gets:
        raise ConfigError(
            f"the UNet takes {takes} numbers about prompt and sizes, but text_encoder_2's {pooled} and six sizes make "
            f"{gets}; give the text encoder it was trained with"
        )
