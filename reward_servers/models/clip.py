"""Embed images and prompts by a CLIP model from a folder or hub id, in batches that bound memory. Knows no reward.

Axes: N samples, D features, H and W pixels. Source: CLIP (arXiv 2103.00020), in the format of transformers' CLIPModel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from drover.common.errors import ConfigError
from drover.common.hub import first_line, is_folder, quiet_transformers
from drover.common.protocols import Scores

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Precision = Literal["float32", "bfloat16", "float16"]
_FIX = "give a folder written by transformers' save_pretrained or a hub id such as openai/clip-vit-large-patch14"


@dataclass(frozen=True, slots=True)
class Clip:
    """A CLIP model with its tokenizer and image processor, for example ``Clip.load("openai/clip-vit-base-patch32", "cpu")``.

    Embeddings are [N, D] float32 of length 1 at any precision of the model. They are not finite where the model's output is
    not finite or all zero. Prompts are cut at the model's context, 77 tokens in the published models.
    """

    model: Any
    tokenizer: Any
    processor: Any
    device: torch.device
    batch_size: int
    logit_scale: float  # exp of the learned logarithm, about 100; read before the weights lose precision
    context: int  # tokens

    @classmethod
    def load(cls, checkpoint: str, device: str, *, batch_size: int = 64, precision: Precision = "float32") -> Clip:
        """Load from safetensors only. Raises `ConfigError` for a missing, incomplete or damaged model, or no CLIP model."""
        import torch

        is_local = _is_clip_folder(checkpoint)
        fix = f"restore what is missing, or {_FIX}" if is_local else f"check the id and the network, or {_FIX}"
        try:
            with quiet_transformers():
                model, tokenizer, processor = _from_pretrained(checkpoint, local_files_only=is_local)
        except ConfigError:
            raise
        # The libraries' errors for damaged files depend on the file; each of them means that this checkpoint is unusable.
        except Exception as error:
            raise ConfigError(f"cannot load {checkpoint!r}: {first_line(error)}; {fix}") from error
        _check_tokenizer(checkpoint, tokenizer, model.config.text_config)
        _check_processor(checkpoint, processor, model.config.vision_config.image_size)
        logit_scale = math.exp(model.logit_scale.item())
        return cls(
            model=model.requires_grad_(False).eval().to(device, getattr(torch, precision)),
            tokenizer=tokenizer,
            processor=processor,
            device=torch.device(device),
            batch_size=batch_size,
            logit_scale=logit_scale,
            context=model.config.text_config.max_position_embeddings,
        )

    @property
    def dim(self) -> int:
        """The number of features, D."""
        return int(self.model.config.projection_dim)

    def embed_images(self, pixels: np.ndarray) -> Tensor:
        """[N, D] embeddings of pixels [N, H, W, 3] uint8 in 0..255, resized and normalised by the model's own processor."""
        return self._embed(pixels, self._image_features)

    def embed_prompts(self, prompts: Sequence[str]) -> Tensor:
        """[N, D] embeddings in order; a prompt that occurs several times is encoded once."""
        import torch

        rows = {prompt: row for row, prompt in enumerate(dict.fromkeys(prompts))}
        embeddings = self._embed(list(rows), self._text_features)
        return embeddings[torch.tensor([rows[prompt] for prompt in prompts], device=self.device)]

    def cosines(self, prompts: Sequence[str], pixels: np.ndarray) -> Tensor:
        """[N] cosine similarity of each image to its prompt, in -1..1."""
        return (self.embed_images(pixels) * self.embed_prompts(prompts)).sum(-1)

    def _embed(self, rows: Any, features: Callable[[Any], Tensor]) -> Tensor:
        import torch

        batches = [features(rows[i : i + self.batch_size]).float() for i in range(0, len(rows), self.batch_size)]
        features_ND = torch.cat(batches)
        # Not F.normalize: a row of zeros must become NaN, not a similarity of 0.
        return features_ND / features_ND.norm(dim=-1, keepdim=True)

    def _image_features(self, pixels: np.ndarray) -> Tensor:
        images = process(self.processor, pixels)
        if self.device.type == "cuda":
            images = images.pin_memory()  # so that the next images are resized while the accelerator computes
        return self.model.get_image_features(images.to(self.device, non_blocking=True)).pooler_output

    def _text_features(self, prompts: list[str]) -> Tensor:
        tokens = self.tokenizer(prompts, padding=True, truncation=True, max_length=self.context, return_tensors="pt")
        ids, mask = tokens.input_ids.to(self.device), tokens.attention_mask.to(self.device)
        return self.model.get_text_features(ids, attention_mask=mask).pooler_output


def process(processor: Any, pixels: np.ndarray) -> Tensor:
    """Prepare pixels [N, H, W, 3] uint8 by the processor: [N, 3, size, size] float32.

    The axes are named to the processor, which would otherwise take an image of three rows for one of three channels.
    """
    return processor(list(pixels), input_data_format="channels_last", return_tensors="pt").pixel_values


def check_options(checkpoint: str, batch_size: int, precision: str) -> None:
    """Raise `ConfigError` for options that fit no model. `Clip.load` finds out whether the folder exists."""
    if not checkpoint:
        raise ConfigError(f"checkpoint is empty; {_FIX}")
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}, wanted at least 1; 64 fits most devices")
    if precision not in get_args(Precision):
        raise ConfigError(f"precision is {precision!r}; use one of {', '.join(get_args(Precision))}")


def masked(values: Tensor) -> Scores:
    """The scores of values [N]; values that are not finite are masked with the word ``nan``."""
    numbers: list[float] = values.double().tolist()
    finite = [math.isfinite(number) for number in numbers]
    return Scores(
        [number if ok else math.nan for number, ok in zip(numbers, finite, strict=True)],
        ["" if ok else "nan" for ok in finite],
    )


def _from_pretrained(checkpoint: str, *, local_files_only: bool) -> tuple[Any, Any, Any]:
    import torch
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

    kind = CLIPConfig.get_config_dict(checkpoint, local_files_only=local_files_only)[0].get("model_type")
    if kind != "clip":
        raise ConfigError(f"{checkpoint!r} holds a model of type {kind!r}, wanted 'clip'; {_FIX}")
    # The PIL processor is the reference of the published models, and needs no torchvision.
    processor = CLIPImageProcessorPil.from_pretrained(checkpoint, local_files_only=local_files_only)
    tokenizer = CLIPTokenizer.from_pretrained(checkpoint, local_files_only=local_files_only)
    model, found = CLIPModel.from_pretrained(
        checkpoint,
        dtype=torch.float32,
        use_safetensors=True,
        local_files_only=local_files_only,
        output_loading_info=True,
    )
    if missing := sorted(found["missing_keys"]):  # transformers would go on with random weights
        raise ConfigError(
            f"{checkpoint!r} lacks {len(missing)} weights such as {missing[0]}; copy the checkpoint again"
        )
    return model, tokenizer, processor


def _is_clip_folder(checkpoint: str) -> bool:
    """Whether the checkpoint is a folder. Raises `ConfigError` for a folder without the files of a CLIP model."""
    if not is_folder(checkpoint, _FIX):
        return False
    folder = Path(checkpoint)
    # Without a vocabulary transformers builds a tokenizer that knows no word, without an error.
    for names in (
        ("config.json",),
        ("tokenizer.json", "vocab.json"),
        ("preprocessor_config.json", "processor_config.json"),
    ):
        if not any((folder / name).is_file() for name in names):
            raise ConfigError(f"{checkpoint!r} holds no {' or '.join(names)}; {_FIX}")
    return True


def _check_tokenizer(checkpoint: str, tokenizer: Any, text: Any) -> None:
    """Check that the tokenizer fits the model, which embeds a prompt by its last token.

    With the last token of another tokenizer, all prompts would have the same embedding.
    """
    largest = max(tokenizer.get_vocab().values())
    # Old configs wrongly have 2; transformers then takes the largest token for the last.
    end = largest if text.eos_token_id == 2 else text.eos_token_id
    if tokenizer.eos_token_id != end or largest >= text.vocab_size:
        raise ConfigError(
            f"the tokenizer of {checkpoint!r} ends prompts with token {tokenizer.eos_token_id} of {largest + 1}, its model "
            f"reads them at {end} and knows {text.vocab_size}; put the tokenizer it was trained with into the folder"
        )


def _check_processor(checkpoint: str, processor: Any, image_size: int) -> None:
    """Check the size and the range of the processor's output by a black and a white picture."""
    black, white = process(processor, np.stack([np.zeros((8, 12, 3), np.uint8), np.full((8, 12, 3), 255, np.uint8)]))
    if white.shape != (3, image_size, image_size):
        raise ConfigError(
            f"the image processor of {checkpoint!r} makes {list(white.shape)}, its model wants [3, {image_size}, "
            f"{image_size}]; set size and crop_size in preprocessor_config.json to {image_size}"
        )
    span = (white - black).max().item()
    if not 0.5 < span < 20:  # 1 / std: 3.8 as published, 1 without normalisation, 0.015 or 970 when the range is wrong
        raise ConfigError(
            f"the image processor of {checkpoint!r} puts white {span:.3g} above black, wanted about 4; "
            "set do_rescale to true and rescale_factor to 1/255 in preprocessor_config.json"
        )
