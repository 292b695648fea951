"""Measure the pictures of a shapes pipeline: `python -m drover.worlds.shapes.build.evaluate [--pipeline DIR]`.

Prints a Markdown table, one column per sampler, and can save a sheet of samples. Every property is
read by `truth`, so the only networks involved are the pipeline's own.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from drover.worlds.shapes import PIPELINE, prompts, truth
from drover.worlds.shapes.build import pretraining
from drover.worlds.shapes.scenes import OCCUPATIONS, TONES

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

BATCH = 64
SHEET_COLUMNS = 16


@dataclass(frozen=True)
class Sampler:
    """The settings of sampling: `Sampler(steps=10, eta=1.0, guidance=3.0)`; guidance 1 means none."""

    steps: int
    eta: float
    guidance: float

    def __str__(self) -> str:
        return f"{self.steps} steps, eta {self.eta:g}, guidance {self.guidance:g}"


SAMPLERS = tuple(Sampler(steps, eta, guidance) for guidance in (1.0, 3.0) for steps, eta in ((10, 1.0), (20, 0.0)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pipeline", type=Path, default=PIPELINE)
    parser.add_argument("--samples", type=int, default=256, help="per property and sampler")
    parser.add_argument("--sheet", type=Path, help="save a PNG of samples here")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    pipeline = load(options.pipeline)
    columns = {str(sampler): measure(pipeline, sampler, options.samples) for sampler in SAMPLERS}
    print(markdown(columns))
    if options.sheet:
        save_sheet(pipeline, options.sheet)


def load(folder: Path) -> StableDiffusionPipeline:
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(pipeline: StableDiffusionPipeline, texts: list[str], sampler: Sampler, seed: int) -> np.ndarray:
    """uint8 [N, 32, 32, 3], one picture per text; the same seed draws the same pictures."""
    generator = torch.Generator().manual_seed(seed)
    parts = [
        pipeline(
            texts[start : start + BATCH],
            num_inference_steps=sampler.steps,
            eta=sampler.eta,
            guidance_scale=sampler.guidance,
            generator=generator,
            output_type="np",
        ).images
        for start in range(0, len(texts), BATCH)
    ]
    return (np.concatenate(parts) * 255).round().astype(np.uint8)


def measure(pipeline: StableDiffusionPipeline, sampler: Sampler, samples: int) -> dict[str, float]:
    """Property -> the share of pictures that have it, in [0, 1], each over at least `samples` pictures."""
    began = time.monotonic()
    shares = things(pipeline, sampler, samples)
    for split in ("train", "heldout"):
        shares |= relations(pipeline, sampler, samples, split)
    shares |= people(pipeline, sampler, samples)
    print(f"{sampler}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return shares


def things(pipeline: StableDiffusionPipeline, sampler: Sampler, samples: int) -> dict[str, float]:
    texts = _cycled([prompts.kind_prompt(kind) for kind in prompts.KINDS], samples)
    pictures = draw(pipeline, texts, sampler, seed=1)
    found = [truth.read(picture).things for picture in pictures]
    asked = [prompts.parse(text).kinds[0] for text in texts]
    return {
        "one thing: exactly one thing found": _share(len(seen) == 1 for seen in found),
        "one thing: colour of the largest right": _share(
            bool(seen) and seen[0].colour == kind[1] for kind, seen in zip(asked, found, strict=True)
        ),
        "one thing: shape of the largest right": _share(
            bool(seen) and seen[0].shape == kind[0] for kind, seen in zip(asked, found, strict=True)
        ),
        "one thing: mean composition": _share(map(truth.composition, texts, pictures)),
    }


def relations(pipeline: StableDiffusionPipeline, sampler: Sampler, samples: int, split: str) -> dict[str, float]:
    chosen = np.random.default_rng(2).permutation(prompts.relation_prompts(split)).tolist()
    texts = _cycled(chosen, samples)[:samples]
    pictures = draw(pipeline, texts, sampler, seed=3)
    found = [truth.read(picture).things for picture in pictures]
    asked = [prompts.parse(text).kinds for text in texts]
    both = list(zip(asked, found, strict=True))
    colours = [{colour for _, colour in kinds} <= {s.colour for s in seen} for kinds, seen in both]
    exact = [sorted(kinds) == sorted((s.shape or "", s.colour) for s in seen) for kinds, seen in both]
    holds = [truth.relation_holds(text, picture) for text, picture in zip(texts, pictures, strict=True)]
    name = f"relation, {split} pairs"
    return {
        f"{name}: both colours there": _share(colours),
        f"{name}: exactly the two things": _share(exact),
        f"{name}: holds, where both colours are there": _share(h for h in holds if h is not None),
        f"{name}: mean composition": _share(map(truth.composition, texts, pictures)),
    }


def people(pipeline: StableDiffusionPipeline, sampler: Sampler, samples: int) -> dict[str, float]:
    occupations = _cycled(list(OCCUPATIONS), samples)
    texts = [prompts.portrait_prompt(occupation) for occupation in occupations]
    found = [truth.read(picture) for picture in draw(pipeline, texts, sampler, seed=4)]
    usual = [pretraining.usual_tone(occupation) for occupation in occupations]
    tones = [reading.tone for reading in found]
    dressed = [
        (reading.garment, reading.hat) == OCCUPATIONS[occupation]
        for reading, occupation in zip(found, occupations, strict=True)
    ]
    is_usual = [tone == wanted for tone, wanted in zip(tones, usual, strict=True)]
    by_occupation = [_share(is_usual[i :: len(OCCUPATIONS)]) for i in range(len(OCCUPATIONS))]
    shares = {
        "portrait: head found": _share(tone is not None for tone in tones),
        "portrait: garment and hat of the occupation": _share(dressed),
        "portrait: usual tone of the occupation (data: 0.85)": _share(is_usual),
    }
    shares["portrait: usual tone, least biased occupation"] = min(by_occupation)
    shares["portrait: usual tone, most biased occupation"] = max(by_occupation)
    for tone in range(TONES):
        shares[f"portrait: tone {tone} over all occupations (data: 0.25)"] = _share(t == tone for t in tones)
    return shares


def markdown(columns: dict[str, dict[str, float]]) -> str:
    rows = [f"| share of samples | {' | '.join(columns)} |", "|---|" + "---|" * len(columns)]
    for name in next(iter(columns.values())):
        rows.append(f"| {name} | " + " | ".join(f"{shares[name]:.2f}" for shares in columns.values()) + " |")
    return "\n".join(rows)


def save_sheet(pipeline: StableDiffusionPipeline, path: Path) -> None:
    """Save a sheet with two rows per sampler, of 8 things, 8 relations, 8 held-out relations and 8 people; print its prompts."""
    from PIL import Image

    rng = np.random.default_rng(5)
    families = (
        [prompts.kind_prompt(kind) for kind in prompts.KINDS],
        prompts.relation_prompts("train"),
        prompts.relation_prompts("heldout"),
        [prompts.portrait_prompt(occupation) for occupation in OCCUPATIONS],
    )
    texts = [str(text) for family in families for text in rng.choice(family, SHEET_COLUMNS // 2, replace=False)]
    for index, text in enumerate(texts):
        print(f"{index // SHEET_COLUMNS + 1}.{index % SHEET_COLUMNS + 1} {text}")
    drawn = np.concatenate([draw(pipeline, texts, sampler, seed=6) for sampler in SAMPLERS])
    side = drawn.shape[1]
    rows = drawn.reshape(-1, SHEET_COLUMNS, side, side, 3).swapaxes(1, 2)  # [rows, y, columns, x, RGB]
    sheet = Image.fromarray(np.ascontiguousarray(rows.reshape(-1, SHEET_COLUMNS * side, 3)))
    sheet.resize((2 * sheet.width, 2 * sheet.height), Image.Resampling.NEAREST).save(path)


def _cycled(items: list[str], least: int) -> list[str]:
    """`items` repeated whole until there are at least `least`."""
    return items * -(-least // len(items))


def _share(values: Iterable[bool | float]) -> float:
    values = list(values)
    return float(np.mean(values)) if values else float("nan")


if __name__ == "__main__":
    main()
