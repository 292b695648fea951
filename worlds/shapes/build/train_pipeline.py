"""Train the shapes pipeline from nothing: `python -m drover.worlds.shapes.build.train_pipeline --out DIR`.

Four stages share the budget: the autoencoder; the text encoder, with a throw-away head that paints
a coarse label map from the caption, so that its states carry word order and binding before
any diffusion; then the UNet on cached latents and cached text states, first for detail and then for
layout. Progress and checkpoints are in `DIR.checkpoints`; the same command continues an interrupted run.

Axes: B batch, N pictures, P cells of the label map, T tokens, W text width, C H W picture or latent.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from drover.worlds.fitting import Budget, fit
from drover.worlds.shapes import prompts, renderer
from drover.worlds.shapes.build import architecture, pretraining
from drover.worlds.shapes.scenes import COLOURS, OCCUPATIONS, SHAPES, Portrait, Scene

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

PICTURES = 50_000
DATA_SEED = 20261121
MINUTES = {"vae": 9.0, "text": 5.0, "unet": 28.2, "layout": 14.2}
LEARNING_RATES = {"vae": 2e-3, "text": 1.5e-3, "unet": 1.2e-3, "layout": 6e-4}
BATCHES = {"vae": 32, "text": 128, "unet": 64}
KL_WEIGHT = 1e-4  # per latent number
CAPTION_DROPOUT = 0.1
SNR_CAP = 5.0
LAYOUT_FLOOR = 0.5

MAP_SIZE = 8
_GARMENTS = tuple(renderer.PALETTE)
LABELS = 1 + len(prompts.KINDS) + len(renderer.SKIN) + len(_GARMENTS)


@dataclass(frozen=True)
class Data:
    """Training data: pictures uint8 [N, 3, 32, 32]; labels uint8 [N, 16, 16]; captions as indices [N] into texts.

    `texts[0]` is the empty caption.
    """

    pictures: torch.Tensor
    labels: torch.Tensor
    captions: torch.Tensor
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Examples:
    """Encoded training data: latents [N, 4, 8, 8]; text states [texts, T, W]; captions as indices [N] into the states."""

    latents: torch.Tensor
    states: torch.Tensor
    captions: torch.Tensor


class PaintingHead(torch.nn.Module):
    """Computes label logits [B, P, LABELS] from text states [B, T, W], by one attention from learned cell positions."""

    def __init__(self, width: int):
        super().__init__()
        self.places_PW = torch.nn.Parameter(torch.randn(MAP_SIZE**2, width))
        self.attention = torch.nn.MultiheadAttention(width, 4, batch_first=True)
        self.output = torch.nn.Sequential(
            torch.nn.Linear(width, 2 * width), torch.nn.GELU(), torch.nn.Linear(2 * width, LABELS)
        )

    def forward(self, states_BTW: torch.Tensor) -> torch.Tensor:
        places = self.places_PW.expand(len(states_BTW), -1, -1)
        return self.output(places + self.attention(places, states_BTW, states_BTW, need_weights=False)[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the pipeline")
    parser.add_argument("--minutes", type=float, default=sum(MINUTES.values()), help="of training, all stages together")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    checkpoints = options.out.with_name(options.out.name + ".checkpoints")
    checkpoints.mkdir(parents=True, exist_ok=True)
    train(options.out, checkpoints, options.minutes)


def train(out: Path, checkpoints: Path, minutes: float) -> None:
    data = make_data(PICTURES)
    scale = minutes / sum(MINUTES.values())
    budgets = {name: Budget(scale * MINUTES[name], LEARNING_RATES[name]) for name in MINUTES}
    tokenizer = architecture.build_tokenizer(out / "tokenizer")
    vae = train_vae(data, budgets["vae"], checkpoints / "vae.pt")
    latents = standardise(vae, data)
    text_encoder = train_text(data, tokenizer, budgets["text"], checkpoints / "text.pt")
    states = text_states(text_encoder, tokenizer, data.texts)
    examples = Examples(latents, states, data.captions)
    unet = train_unet(architecture.build_unet(), examples, 0.0, budgets["unet"], checkpoints / "unet.pt")
    unet = train_unet(unet.requires_grad_(True), examples, LAYOUT_FLOOR, budgets["layout"], checkpoints / "layout.pt")
    architecture.assemble(vae, text_encoder, tokenizer, unet).save_pretrained(out)
    print(f"saved {out}", flush=True)


def make_data(pictures: int) -> Data:
    began = time.monotonic()
    rng = np.random.default_rng(DATA_SEED)
    texts = ("", *prompts.every_prompt())
    index = {text: i for i, text in enumerate(texts)}
    pairs = [pretraining.sample_pair(rng) for _ in range(pictures)]
    painted = np.stack([renderer.render(scene) for scene, _ in pairs])
    data = Data(
        torch.from_numpy(painted).permute(0, 3, 1, 2).contiguous(),
        torch.from_numpy(np.stack([label_map(scene) for scene, _ in pairs])),
        torch.tensor([index[text] for _, text in pairs]),
        texts,
    )
    print(f"data: {pictures} pictures in {time.monotonic() - began:.0f} s", flush=True)
    return data


def label_map(scene: Scene | Portrait) -> np.ndarray:
    """uint8 [16, 16]: the label of every second pixel of a picture; 0 is background."""
    labels = np.zeros((2 * MAP_SIZE, 2 * MAP_SIZE), np.uint8)
    for (coverage, _), label in zip(renderer.layers(scene), _layer_labels(scene), strict=True):
        labels[coverage[1::2, 1::2] > 0.5] = label
    return labels


def label_shares(data: Data) -> torch.Tensor:
    """[texts, P, LABELS] share of pictures of a caption that have each label in each cell.

    For the empty caption all pictures count.
    """
    axis = torch.arange(2 * MAP_SIZE) // 2
    cells = axis[:, None] * MAP_SIZE + axis
    counts = torch.zeros(len(data.texts) * MAP_SIZE**2 * LABELS)
    for labels, captions in zip(data.labels.split(2000), data.captions.split(2000), strict=True):
        places = (captions[:, None, None] * MAP_SIZE**2 + cells) * LABELS + labels
        counts.index_add_(0, places.flatten(), torch.ones(places.numel()))
    counts = counts.view(len(data.texts), MAP_SIZE**2, LABELS)
    counts[0] = counts.sum(0)
    return counts / counts.sum(-1, keepdim=True)


def train_vae(data: Data, budget: Budget, checkpoint: Path) -> AutoencoderKL:
    vae = architecture.build_vae()

    def loss(generator: torch.Generator) -> torch.Tensor:
        chosen = torch.randint(len(data.pictures), (BATCHES["vae"],), generator=generator)
        pixels = as_pixels(data.pictures[chosen])
        posterior = vae.encode(pixels).latent_dist
        error = vae.decode(posterior.sample(generator)).sample - pixels
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        return error.abs().mean() + error.square().mean() + KL_WEIGHT * kl

    return fit(vae, loss, budget, checkpoint).eval()


@torch.no_grad()
def standardise(vae: AutoencoderKL, data: Data) -> torch.Tensor:
    """Latents [N, 4, 8, 8] with mean 0 per channel and standard deviation 1 over all numbers.

    The mean is put into the VAE's own 1x1 convolutions, since the pipeline only scales; the
    deviation becomes `scaling_factor`.
    """
    latents = torch.cat([vae.encode(as_pixels(part)).latent_dist.mean for part in data.pictures.split(500)])
    mean = latents.mean((0, 2, 3))
    vae.quant_conv.bias[: len(mean)] -= mean
    vae.post_quant_conv.bias += vae.post_quant_conv.weight[:, :, 0, 0] @ mean
    latents = latents - mean[:, None, None]
    factor = 1 / latents.std().item()
    vae.register_to_config(scaling_factor=factor)
    print(f"latents: channel means {mean.tolist()}, scaling_factor {factor:.4f}", flush=True)
    return latents * factor


def train_text(data: Data, tokenizer: CLIPTokenizer, budget: Budget, checkpoint: Path) -> CLIPTextModel:
    encoder = architecture.build_text_encoder(tokenizer)
    head = PaintingHead(architecture.TEXT_WIDTH)
    modules = torch.nn.ModuleList([encoder, head])
    tokens = tokenize(tokenizer, data.texts)
    # The average of a caption's pictures is one soft target. With single pictures, 3 of 10 with the wrong relation,
    # the word order is lost in noise: after 3,000 steps left and right are still at chance.
    shares = label_shares(data)

    def loss(generator: torch.Generator) -> torch.Tensor:
        chosen = torch.randint(len(tokens), (BATCHES["text"],), generator=generator)
        logits = head(encoder(tokens[chosen])[0])
        return F.cross_entropy(logits.flatten(0, 1), shares[chosen].flatten(0, 1))

    average: torch.nn.ModuleList = fit(modules, loss, budget, checkpoint)
    return average[0].eval()


@torch.no_grad()
def text_states(encoder: CLIPTextModel, tokenizer: CLIPTokenizer, texts: tuple[str, ...]) -> torch.Tensor:
    """[texts, T, W] last hidden states, as the pipeline feeds them to the UNet."""
    return torch.cat([encoder(part)[0] for part in tokenize(tokenizer, texts).split(256)])


def train_unet(
    unet: UNet2DConditionModel,
    examples: Examples,
    floor: float,
    budget: Budget,
    checkpoint: Path,
) -> UNet2DConditionModel:
    """Train the UNet with weights min(SNR, 5) + floor on the errors of the predicted clean latent.

    Without a floor nearly all weight is on times at which the layout is already visible, which gives
    sharp pictures soon; with a floor, the times at which a sampler decides left or right count too.
    """
    kept = architecture.build_scheduler().alphas_cumprod
    snr = kept / (1 - kept)
    weights = (snr.clamp(max=SNR_CAP) + floor) / snr

    def loss(generator: torch.Generator) -> torch.Tensor:
        chosen = torch.randint(len(examples.latents), (BATCHES["unet"],), generator=generator)
        latents = examples.latents[chosen]
        times = torch.randint(len(kept), (len(chosen),), generator=generator)
        noise = torch.randn(latents.shape, generator=generator)
        signal = kept[times, None, None, None]
        noisy = signal.sqrt() * latents + (1 - signal).sqrt() * noise
        captions = drop_captions(examples.captions[chosen], generator)
        error = unet(noisy, times, examples.states[captions]).sample - noise
        return (weights[times] * error.square().mean((1, 2, 3))).mean()

    return fit(unet, loss, budget, checkpoint).eval()


def as_pixels(pictures: torch.Tensor) -> torch.Tensor:
    """Convert uint8 [B, 3, 32, 32] to float in [-1, 1]."""
    return pictures.float() / 127.5 - 1


def drop_captions(captions_B: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Replace a tenth of the captions by the empty one, for classifier-free guidance."""
    return captions_B * (torch.rand(len(captions_B), generator=generator) >= CAPTION_DROPOUT)


def tokenize(tokenizer: CLIPTokenizer, texts: tuple[str, ...]) -> torch.Tensor:
    length = tokenizer.model_max_length
    return tokenizer(list(texts), padding="max_length", max_length=length, return_tensors="pt").input_ids


def _layer_labels(scene: Scene | Portrait) -> list[int]:
    """The label of each of `renderer.layers(scene)`: things, then skin tones, then garments."""
    if isinstance(scene, Scene):
        return [1 + SHAPES.index(thing.shape) * len(COLOURS) + COLOURS.index(thing.colour) for thing in scene.things]
    garment, hat = OCCUPATIONS[scene.occupation]
    skin = 1 + len(prompts.KINDS) + scene.tone
    cloth = 1 + len(prompts.KINDS) + len(renderer.SKIN) + _GARMENTS.index(garment)
    return [cloth, skin, cloth] if hat else [cloth, skin]


if __name__ == "__main__":
    main()
