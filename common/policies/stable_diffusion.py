"""Stable Diffusion 1.x and 2.x, and latent consistency models of them, from any diffusers pipeline folder or hub id."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from common.diffusion.noising import DiscreteSchedule
from common.diffusion.prediction import Parameterisation, to_prediction
from common.errors import ConfigError
from common.policies.checkpoints import open_pipeline
from common.policies.folders import quiet_libraries, replacing
from common.policies.prompt_cache import PromptCache
from common.protocols import Conditioning, Prediction

Precision = Literal["float32", "bfloat16"]

ENCODE_BATCH, DECODE_BATCH = 32, 8  # bound the memory of text encoder and VAE, whatever the group size
PARAMETERISATIONS = {
    "epsilon": Parameterisation.EPSILON,
    "v_prediction": Parameterisation.V,
    "sample": Parameterisation.X0,
}


class StableDiffusion:
    """Policy over VAE latents [B, 4, H/8, W/8]; the UNet learns, text encoder and VAE are frozen.

    The UNet stays in eval mode while training: with dropout, the ratio between the policy and itself would not be 1.
    """

    def __init__(
        self,
        pipeline: Any,
        *,
        compute: Precision = "float32",
        image_size: tuple[int, int] | None = None,
        embedded_scale: float | None = None,
    ) -> None:
        """``pipeline`` is a diffusers StableDiffusionPipeline, which this object owns from now on.

        ``compute`` is the autocast regime of `predict`, one for sampling and training. ``image_size`` is (height,
        width) in pixels; by default what the UNet was trained on. ``embedded_scale`` is the guidance scale of models
        that are told it instead of being guided: latent consistency models.
        """
        self.pipeline = pipeline
        for module in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
            module.requires_grad_(module is pipeline.unet).eval()
        _check_channels(pipeline.unet.config)
        self.schedule = DiscreteSchedule.from_diffusers(pipeline.scheduler.config)
        self.parameterisation = _parameterisation(pipeline.scheduler.config.prediction_type)
        self.latent_shape = _latent_shape(pipeline, image_size)
        self._compute = compute
        self._scale_embedding = _scale_embedding(pipeline, embedded_scale)
        self._text = PromptCache(self._encode)

    @classmethod
    def load(
        cls,
        checkpoint: str | Path,
        *,
        device: str | torch.device = "cpu",
        dtype: Precision = "float32",
        compute: Precision = "float32",
        image_size: tuple[int, int] | None = None,
        embedded_scale: float | None = None,
    ) -> StableDiffusion:
        """Open a folder or a hub id; ``dtype`` is what the weights are kept in. Raises `ConfigError` if that fails."""
        pipeline = open_pipeline(checkpoint)
        with quiet_libraries():
            pipeline.to(device, getattr(torch, dtype))
        return cls(pipeline, compute=compute, image_size=image_size, embedded_scale=embedded_scale)

    @property
    def trainable(self) -> nn.Module:
        unet: nn.Module = self.pipeline.unet
        return unet

    @property
    def device(self) -> torch.device:
        return next(self.trainable.parameters()).device

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """{"text": [B, L, D]}, the last hidden state. Prompts are cut at the tokenizer's length, as in diffusers."""
        return {"text": self._text(prompts)}

    def predict(self, x: Tensor, time: Tensor, cond: Conditioning) -> Prediction:
        unet = self.pipeline.unet
        text = cond["text"].to(unet.dtype)
        scale = None if self._scale_embedding is None else self._scale_embedding.to(x.device).expand(len(x), -1)
        with self._autocast():
            output = unet(x.to(unet.dtype), time, encoder_hidden_states=text, timestep_cond=scale).sample
        return to_prediction(self.parameterisation, self.schedule, x, time, output)

    @torch.no_grad()
    def decode(self, x0: Tensor) -> np.ndarray:
        vae = self.pipeline.vae
        latents = x0.to(self.device, vae.dtype) / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)
        return np.concatenate([_to_uint8(vae.decode(chunk).sample) for chunk in latents.split(DECODE_BATCH)])

    def save_pipeline(self, folder: str | Path) -> None:
        """The whole diffusers pipeline with the current weights. The folder is replaced at once, or left as it was."""
        if getattr(self.pipeline.unet, "peft_config", None):
            raise ConfigError("a pipeline folder cannot hold adapters beside their base; use lora.save_lora")
        with replacing(folder) as written, quiet_libraries():
            self.pipeline.save_pretrained(written, safe_serialization=True)

    def _autocast(self) -> AbstractContextManager[Any]:
        if self._compute == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    @torch.no_grad()
    def _encode(self, prompts: list[str]) -> Tensor:
        chunks = [prompts[start : start + ENCODE_BATCH] for start in range(0, len(prompts), ENCODE_BATCH)]
        return torch.cat([self._encode_chunk(chunk) for chunk in chunks])

    def _encode_chunk(self, prompts: list[str]) -> Tensor:
        tokenizer, encoder = self.pipeline.tokenizer, self.pipeline.text_encoder
        length = tokenizer.model_max_length
        tokens = tokenizer(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        masked = getattr(encoder.config, "use_attention_mask", False)
        mask = tokens.attention_mask.to(self.device) if masked else None
        hidden: Tensor = encoder(tokens.input_ids.to(self.device), attention_mask=mask)[0]
        return hidden


def _to_uint8(images: Tensor) -> np.ndarray:
    """[B, H, W, 3] uint8 of images [B, 3, H, W] in [-1, 1]."""
    levels = ((images.float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    return levels.permute(0, 2, 3, 1).contiguous().cpu().numpy()


def _check_channels(config: Any) -> None:
    if config.in_channels != config.out_channels:
        raise ConfigError(
            f"the UNet reads {config.in_channels} channels and writes {config.out_channels}: it is an inpainting or "
            "editing model; give a text-to-image checkpoint"
        )


def _scale_embedding(pipeline: Any, scale: float | None) -> Tensor | None:
    """[1, D] what a UNet that is told its guidance scale receives, or none for the others."""
    width = pipeline.unet.config.time_cond_proj_dim
    if (width is None) != (scale is None):
        wants = "no guidance scale; leave out" if width is None else "its guidance scale as an input; set"
        raise ConfigError(f"the UNet takes {wants} embedded_scale")
    if scale is None:
        return None
    # Distillation counts the scale from 0, where diffusers' guidance counts from 1.
    embedding: Tensor = pipeline.get_guidance_scale_embedding(torch.tensor([scale - 1]), width, pipeline.unet.dtype)
    return embedding


def _parameterisation(prediction_type: str) -> Parameterisation:
    if prediction_type not in PARAMETERISATIONS:
        raise ConfigError(f"prediction_type {prediction_type!r} is none of {sorted(PARAMETERISATIONS)}")
    return PARAMETERISATIONS[prediction_type]


def _latent_shape(pipeline: Any, image_size: tuple[int, int] | None) -> tuple[int, ...]:
    config, factor = pipeline.unet.config, pipeline.vae_scale_factor
    if image_size is None:
        size = config.sample_size
        return (config.in_channels, *(size if isinstance(size, (tuple, list)) else (size, size)))
    # Each of the UNet's downsamplings must halve the latents evenly.
    multiple = factor * 2 ** (len(config.block_out_channels) - 1)
    if any(side <= 0 or side % multiple for side in image_size):
        raise ConfigError(f"image_size {image_size} must be positive multiples of {multiple} for this model")
    return (config.in_channels, *(side // factor for side in image_size))
