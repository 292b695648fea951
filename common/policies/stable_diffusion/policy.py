"""The policy of Stable Diffusion 1.x, 2.x, XL and their latent consistency models, from a diffusers folder or hub id."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from drover.common.diffusion.noising import DiscreteSchedule
from drover.common.diffusion.prediction import Parameterisation, to_output, to_prediction
from drover.common.errors import ConfigError
from drover.common.files import replacing
from drover.common.hub import quiet_diffusers
from drover.common.media.media import Media, of_kind
from drover.common.media.pictures import Pictures
from drover.common.policies.autoencoder import Autoencoder
from drover.common.policies.model import Precision
from drover.common.policies.stable_diffusion.checkpoints import (
    DIFFUSERS,
    TRANSFORMERS,
    Family,
    PipelineClass,
    check_scheduler,
    open_pipeline,
)
from drover.common.policies.stable_diffusion.text import ClipText, Text
from drover.common.policies.stable_diffusion.text_xl import ClipTextPair, is_xl
from drover.common.protocols import Conditioning, Prediction

_NETWORKS = {
    "unet": ("UNet2DConditionModel", DIFFUSERS),
    "vae": ("AutoencoderKL", DIFFUSERS),
    "text_encoder": ("CLIPTextModel", TRANSFORMERS),
}
_SECOND_ENCODER = {"text_encoder_2": ("CLIPTextModelWithProjection", TRANSFORMERS)}
_UNCHECKED = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
FAMILY: Family = {
    "StableDiffusionPipeline": PipelineClass(_NETWORKS, _UNCHECKED),
    "LatentConsistencyModelPipeline": PipelineClass(_NETWORKS, _UNCHECKED),
    "StableDiffusionXLPipeline": PipelineClass(_NETWORKS | _SECOND_ENCODER, {"add_watermarker": False}),
}
PARAMETERISATIONS = {
    "epsilon": Parameterisation.EPSILON,
    "v_prediction": Parameterisation.V,
    "sample": Parameterisation.X0,
}


class StableDiffusion:
    """A policy over VAE latents [B, 4, H/8, W/8]: the UNet learns, text encoders and VAE are frozen.

    The UNet stays in eval mode while training: with dropout, the ratio between the policy and itself would not be 1.
    """

    parts = 1

    def __init__(
        self,
        pipeline: Any,
        *,
        compute: Precision = "float32",
        image_size: tuple[int, int] | None = None,
        embedded_scale: float | None = None,
    ) -> None:
        """``pipeline`` is a diffusers StableDiffusionPipeline, or that of XL, which this object owns from now on.

        ``compute`` is the autocast regime of `predict`, the same for sampling and training. ``image_size`` is (height,
        width) in pixels, by default the size on which the UNet was trained. ``embedded_scale`` is the guidance scale for
        UNets that take it as an input instead of being guided: latent consistency models.
        """
        self.pipeline = pipeline
        for module in _modules(pipeline):
            module.requires_grad_(module is pipeline.unet).eval()
        _check_channels(pipeline.unet.config)
        self.schedule = DiscreteSchedule.from_diffusers(_config(pipeline.scheduler))
        self.parameterisation = _parameterisation(pipeline.scheduler.config.prediction_type)
        self.latent_shape = _latent_shape(pipeline, image_size)
        self._compute = compute
        self._scale_embedding = _scale_embedding(pipeline, embedded_scale)
        self._text: Text = ClipTextPair(pipeline, self.image_size) if is_xl(pipeline) else ClipText(pipeline)
        self._autoencoder = Autoencoder(pipeline.vae)

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
        """The policy of a folder or hub id; see `load_pipeline`."""
        pipeline = load_pipeline(checkpoint, device=device, dtype=dtype)
        return cls(pipeline, compute=compute, image_size=image_size, embedded_scale=embedded_scale)

    @property
    def trainable(self) -> nn.Module:
        unet: nn.Module = self.pipeline.unet
        return unet

    @property
    def device(self) -> torch.device:
        return next(self.trainable.parameters()).device

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels of the pictures that `decode` returns and `to_latents` takes."""
        height, width = (side * self.pipeline.vae_scale_factor for side in self.latent_shape[1:])
        return height, width

    @property
    def empty(self) -> str | None:
        """The empty prompt; None for a UNet that takes its guidance scale as an input, and is guided by that alone."""
        return "" if self._scale_embedding is None else None

    def encode(self, names: Sequence[str]) -> Conditioning:
        """The UNet's inputs for these prompts: see `ClipText`, and `ClipTextPair` for XL."""
        return self._text.encode(names)

    def predict(self, x: Tensor, time: Tensor, cond: Conditioning) -> Prediction:
        return to_prediction(self.parameterisation, self.schedule, x, time, self.output(x, time, cond))

    def output(self, x: Tensor, time: Tensor, cond: Conditioning) -> Tensor:
        unet = self.pipeline.unet
        scale = None if self._scale_embedding is None else self._scale_embedding.to(x.device).expand(len(x), -1)
        with self._autocast():
            output: Tensor = unet(
                x.to(unet.dtype), time, timestep_cond=scale, **self._text.inputs(cond, unet.dtype)
            ).sample
        return output.float()

    def target(self, x0: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        return to_output(self.parameterisation, self.schedule, time, Prediction(x0=x0, noise=noise))

    def decode(self, x0: Tensor, cond: Conditioning) -> Pictures:
        return self._autoencoder.decode(x0)

    def to_latents(self, media: Media) -> Tensor:
        """The latents by `Autoencoder.encode`. Raises `ConfigError` for pictures of another size, before it encodes any."""
        pictures, size = of_kind(media, Pictures), self.image_size
        if pictures.pixels.shape[1:3] != size:
            height, width = pictures.pixels.shape[1:3]
            raise ConfigError(
                f"the policy learns from pictures of {size[0]} x {size[1]} pixels, got {height} x {width}; "
                "bring pictures to that size, or set image_size"
            )
        return self._autoencoder.encode(pictures)

    def save_pipeline(self, folder: str | Path) -> None:
        """Write the whole diffusers pipeline with the current weights. The folder is replaced at once, or unchanged."""
        if getattr(self.pipeline.unet, "peft_config", None):
            raise ConfigError("a pipeline folder cannot hold adapters beside their base; use lora.save_lora")
        with replacing(folder) as written, quiet_diffusers():
            self.pipeline.save_pretrained(written, safe_serialization=True)

    def _autocast(self) -> AbstractContextManager[Any]:
        if self._compute == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)


def load_pipeline(checkpoint: str | Path, *, device: str | torch.device = "cpu", dtype: Precision = "float32") -> Any:
    """The diffusers pipeline of a folder or hub id on a device, with weights in ``dtype``.

    The VAE of XL stays in float32 where its config says force_upcast, as it overflows in half precision. Raises
    `ConfigError` where the pipeline cannot be opened.
    """
    pipeline = open_pipeline(checkpoint, FAMILY)
    check_scheduler(f"the scheduler of {str(checkpoint)!r}", _config(pipeline.scheduler))
    wide = [pipeline.vae] if is_xl(pipeline) and pipeline.vae.config.force_upcast else []
    with quiet_diffusers():
        pipeline.to(device)
        for module in _modules(pipeline):
            module.to(torch.float32 if module in wide else getattr(torch, dtype))
    return pipeline


def _config(scheduler: Any) -> dict[str, Any]:
    """The scheduler's config with the name of its class, also where it was not read from a file."""
    return {**scheduler.config, "_class_name": type(scheduler).__name__}


def _modules(pipeline: Any) -> list[nn.Module]:
    return [part for part in pipeline.components.values() if isinstance(part, nn.Module)]


def _check_channels(config: Any) -> None:
    if config.in_channels != config.out_channels:
        raise ConfigError(
            f"the UNet reads {config.in_channels} channels and writes {config.out_channels}: it is an inpainting or "
            "editing model; give a text-to-image checkpoint"
        )


def _scale_embedding(pipeline: Any, scale: float | None) -> Tensor | None:
    """[1, D] embedding for a UNet that takes its guidance scale as an input; None for other UNets."""
    width = pipeline.unet.config.time_cond_proj_dim
    if (width is None) != (scale is None):
        wants = "no guidance scale; leave out" if width is None else "its guidance scale as an input; set"
        raise ConfigError(f"the UNet takes {wants} embedded_scale")
    if scale is None:
        return None
    # In distillation a scale of 0 means no guidance; in diffusers' guidance it is 1.
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
