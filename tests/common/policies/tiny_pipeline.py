"""Stable Diffusion pipelines of random weights, small enough for a laptop's tests, written by diffusers itself."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import torch

LATENT = (4, 8, 8)
TEXT_LENGTH, TEXT_WIDTH = 16, 32
XL_TEXT_WIDTH, XL_POOLED = 56, 24  # of both encoders together


def write_tiny_pipeline(folder: Path, prediction_type: str = "epsilon", seed: int = 0, **scheduler: Any) -> Path:
    """Write the folder and return it. ``scheduler`` overrides entries of the DDIM config."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = _tokenizer()
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer), hidden_size=TEXT_WIDTH, intermediate_size=37, num_hidden_layers=2,
                num_attention_heads=4, max_position_embeddings=TEXT_LENGTH,
                bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
            )
        )  # fmt: skip
        unet = UNet2DConditionModel(
            block_out_channels=(16, 32), layers_per_block=1, sample_size=LATENT[1], in_channels=4, out_channels=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=TEXT_WIDTH, attention_head_dim=8, norm_num_groups=8, dropout=0.1,
        )  # fmt: skip
        vae = AutoencoderKL(
            block_out_channels=(16, 32), in_channels=3, out_channels=3, latent_channels=4, norm_num_groups=8,
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        )  # fmt: skip
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    usual = {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1, "prediction_type": prediction_type}
    pipeline = StableDiffusionPipeline(
        vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet,
        scheduler=DDIMScheduler(**{**betas, **usual, **scheduler}),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.save_pretrained(folder)
    return folder


def write_tiny_consistency_model(folder: Path, seed: int = 0, **scheduler: Any) -> Path:
    """Write a latent consistency model: the tiny pipeline with LCM's scheduler, and a UNet that takes the guidance scale.

    ``scheduler`` overrides entries of the scheduler's config.
    """
    from diffusers import LatentConsistencyModelPipeline, LCMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    plain = StableDiffusionPipeline.from_pretrained(write_tiny_pipeline(folder, seed=seed), safety_checker=None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = UNet2DConditionModel.from_config(dict(plain.unet.config), time_cond_proj_dim=16)
    LatentConsistencyModelPipeline(
        vae=plain.vae, text_encoder=plain.text_encoder, tokenizer=plain.tokenizer, unet=unet.eval(),
        scheduler=LCMScheduler(**scheduler), safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def write_tiny_xl_pipeline(folder: Path, seed: int = 0, **settings: Any) -> Path:
    """Write an XL pipeline: two text encoders, a UNet that takes sizes, XL's scheduler. ``settings`` go to the pipeline."""
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    widths = {
        "intermediate_size": 37, "num_hidden_layers": 3, "num_attention_heads": 4, "max_position_embeddings": TEXT_LENGTH,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        one, two = _tokenizer(), _tokenizer()
        words = {"vocab_size": len(one), "bos_token_id": one.bos_token_id, "eos_token_id": one.eos_token_id}
        text_encoder = CLIPTextModel(CLIPTextConfig(hidden_size=TEXT_WIDTH, **words, **widths))
        text_encoder_2 = CLIPTextModelWithProjection(
            CLIPTextConfig(hidden_size=XL_TEXT_WIDTH - TEXT_WIDTH, projection_dim=XL_POOLED, **words, **widths)
        )
        unet = UNet2DConditionModel(
            block_out_channels=(16, 32), layers_per_block=1, sample_size=LATENT[1], in_channels=4, out_channels=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), transformer_layers_per_block=(1, 2),
            cross_attention_dim=XL_TEXT_WIDTH, attention_head_dim=(2, 4), norm_num_groups=8, use_linear_projection=True,
            addition_embed_type="text_time", addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=XL_POOLED + 6 * 8,
        )  # fmt: skip
        vae = AutoencoderKL(
            block_out_channels=(16, 32), in_channels=3, out_channels=3, latent_channels=4, norm_num_groups=8,
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
            scaling_factor=0.13025,
        )  # fmt: skip
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    StableDiffusionXLPipeline(
        vae=vae, text_encoder=text_encoder, text_encoder_2=text_encoder_2, tokenizer=one, tokenizer_2=two, unet=unet,
        scheduler=EulerDiscreteScheduler(**betas, timestep_spacing="leading", steps_offset=1),
        add_watermarker=False, **settings,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def _tokenizer() -> Any:
    """CLIP's tokenizer over single letters: real code, a vocabulary of 54."""
    from transformers import CLIPTokenizer

    letters = [letter + end for letter in string.ascii_lowercase for end in ("", "</w>")]
    vocabulary = {token: index for index, token in enumerate([*letters, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=TEXT_LENGTH)
