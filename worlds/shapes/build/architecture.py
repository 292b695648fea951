"""Build the untrained parts of the small Stable Diffusion pipeline, with about 1.5 M parameters in all.

Everything is a stock diffusers or transformers class with a small config, so that the saved folder
loads with `StableDiffusionPipeline.from_pretrained` and none of our code.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from drover.worlds.shapes.prompts import VOCABULARY
from drover.worlds.shapes.scenes import CANVAS

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

TEXT_WIDTH = 64
TEXT_LENGTH = 16  # tokens: the longest caption has 8 words, and a start and an end
LATENT_CHANNELS = 4
LATENT_SIZE = 8

START, END, UNKNOWN = "<|startoftext|>", "<|endoftext|>", "<|unknown|>"


def build_tokenizer(folder: Path) -> CLIPTokenizer:
    """One token per word of the vocabulary; each byte of any other word is `UNKNOWN`.

    Writes vocab.json and merges.txt into `folder` on the way.
    """
    from transformers import CLIPTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    merges = word_merges(VOCABULARY)
    pieces = [UNKNOWN, *(word + "</w>" for word in VOCABULARY)]
    pieces += [piece for merge in merges for piece in (*merge, "".join(merge))]
    pieces += [START, END]  # last: the end has the highest id, as in CLIP's own vocabulary
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    lines = ["#version: 0.2", *(" ".join(merge) for merge in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")
    return CLIPTokenizer.from_pretrained(
        folder,
        unk_token=UNKNOWN,
        bos_token=START,
        eos_token=END,
        pad_token=END,
        model_max_length=TEXT_LENGTH,
    )


def word_merges(words: tuple[str, ...]) -> list[tuple[str, str]]:
    """Byte-pair merges that build each word whole, learned until no word is in pieces any more.

    Every merge is applied to all words as it is learned, so repeating the merges in order cannot
    split one word by a merge meant for another.
    """
    split = [[*word[:-1], word[-1] + "</w>"] for word in words]
    merges = []
    while pair := next(((word[0], word[1]) for word in split if len(word) > 1), None):
        merges.append(pair)
        split = [_merged(word, pair) for word in split]
    return merges


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=TEXT_LENGTH,
        projection_dim=TEXT_WIDTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def build_vae() -> AutoencoderKL:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 32),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=CANVAS,
        mid_block_add_attention=False,
    )


def build_unet() -> UNet2DConditionModel:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        mid_block_type="UNetMidBlock2DCrossAttn",
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        block_out_channels=(32, 64),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=4,
        cross_attention_dim=TEXT_WIDTH,
    )


def build_scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise schedule."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="epsilon",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="leading",
    )


def assemble(
    vae: AutoencoderKL,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    unet: UNet2DConditionModel,
) -> StableDiffusionPipeline:
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _merged(word: list[str], pair: tuple[str, str]) -> list[str]:
    merged, index = [], 0
    while index < len(word):
        if tuple(word[index : index + 2]) == pair:
            merged.append("".join(pair))
            index += 2
        else:
            merged.append(word[index])
            index += 1
    return merged
