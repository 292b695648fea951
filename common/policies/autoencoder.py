"""Encode pictures as clean latents and decode them, by the frozen VAE of a diffusers pipeline."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from drover.common.media.pictures import Pictures

CHUNK = 8  # pictures at a time, which bounds the VAE's memory for any group size


class Autoencoder:
    """The VAE with the pipeline's normalisation of latents: x0 = (z - mean) / std x scaling_factor of the VAE's own z."""

    def __init__(self, vae: Any) -> None:
        config = vae.config
        self._vae = vae
        # Per channel where the config has them (some fine-tuned XL models), else one shift and no further scale.
        self._mean = torch.tensor(config.latents_mean or [config.shift_factor or 0.0]).reshape(-1, 1, 1)
        self._std = torch.tensor(config.latents_std or [1.0]).reshape(-1, 1, 1)

    @torch.no_grad()
    def decode(self, x0: Tensor) -> Pictures:
        """B pictures of latents [B, C, h, w]."""
        return Pictures(np.concatenate([self._decode(chunk) for chunk in x0.split(CHUNK)]))

    @torch.no_grad()
    def encode(self, media: Pictures) -> Tensor:
        """[B, C, h, w] float32 of B pictures: the mode of the posterior.

        The mode, not a draw, so that latents depend on the picture alone, and ranks and resumed runs agree without seeds.
        The difference is small: posteriors are narrow (0.03 of the latents' own deviation in worlds/shapes).
        """
        chunks = [media.pixels[start : start + CHUNK] for start in range(0, max(len(media), 1), CHUNK)]
        return torch.cat([self._encode(chunk) for chunk in chunks])

    def _decode(self, x0: Tensor) -> np.ndarray:
        vae = self._vae
        mean, std = self._mean.to(vae.device), self._std.to(vae.device)
        z = x0.to(vae.device, torch.float32) * std / vae.config.scaling_factor + mean
        images = vae.decode(z.to(vae.dtype)).sample
        levels = ((images.float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
        return levels.permute(0, 2, 3, 1).contiguous().cpu().numpy()

    def _encode(self, pixels: np.ndarray) -> Tensor:
        vae = self._vae
        mean, std = self._mean.to(vae.device), self._std.to(vae.device)
        images = torch.tensor(pixels, device=vae.device).permute(0, 3, 1, 2).float() / 127.5 - 1
        z: Tensor = vae.encode(images.to(vae.dtype)).latent_dist.mode().float()
        return (z - mean) / std * vae.config.scaling_factor
