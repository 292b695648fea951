"""Pairs of pictures with the choice of raters between them: as arrays, or read from a JSONL file with image files.

A record is ``{"prompt": "a red circle", "image_a": "a.png", "image_b": "b.png", "label": 1}``; paths are relative to the
file, and the label is the share of raters, in [0, 1], that prefer A.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from drover.common.errors import ConfigError
from drover.common.media.pictures import Pictures
from drover.common.picture_files import decode
from drover.common.records import BadRecord, a_text, count_text, file_bytes, json_object

FILE = "pairs.jsonl"  # the file that is read when a folder is given


@dataclass(frozen=True, slots=True)
class Pairs:
    """N comparisons, for example ``Pairs(("a red circle",), a, b, np.array([1.0]))`` with a and b a picture each."""

    prompts: tuple[str, ...]
    a: Pictures  # N
    b: Pictures  # N, of the same size
    labels: np.ndarray  # [N] in [0, 1], the share of raters that prefer A

    def __post_init__(self) -> None:
        if self.a.pixels.shape != self.b.pixels.shape:
            raise ConfigError(
                f"a and b are as many pictures of one size; got {self.a.pixels.shape} and {self.b.pixels.shape}."
            )
        if not len(self.prompts) == len(self.a) == len(self.labels):
            raise ConfigError(
                f"{len(self.prompts)} prompts, {len(self.a)} pairs and {len(self.labels)} labels; give as many."
            )
        if not np.all((self.labels >= 0) & (self.labels <= 1)):
            raise ConfigError("labels are shares of raters that prefer A: give numbers from 0 to 1.")

    def __len__(self) -> int:
        return len(self.prompts)


def read_pairs(path: Path | str, *, side: int = 32) -> tuple[Pairs, Mapping[str, int]]:
    """(pairs, number of skipped records by reason) of a JSONL file, or of ``pairs.jsonl`` in a folder.

    Pictures have ``side`` pixels and are read by `picture_files`. Reasons are phrases such as "not JSON" or "no picture".
    Raises `ConfigError` when there is no such file, or no usable record in it.
    """
    file = Path(path)
    file = file / FILE if file.is_dir() else file
    if not file.is_file():
        raise ConfigError(f"{file} is not a file; give a JSONL file of pairs or a folder with {FILE}.")
    rows, skipped = [], Counter[str]()
    with file.open("rb") as lines:
        for line in lines:
            if not line.strip():
                continue
            try:
                rows.append(_read_record(line, file.parent, side))
            except BadRecord as bad:
                skipped[bad.reason] += 1
    if not rows:
        raise ConfigError(
            f'{file} has no usable pair{count_text(skipped)}; a line is {{"prompt": "a red circle", '
            '"image_a": "a.png", "image_b": "b.png", "label": 1}.'
        )
    prompts, a, b, labels = zip(*rows, strict=True)
    return Pairs(prompts, Pictures(np.stack(a)), Pictures(np.stack(b)), np.array(labels, np.float32)), skipped


def resized(pixels: np.ndarray, side: int) -> np.ndarray:
    """[N, side, side, 3] uint8, antialiased, of pixels [N, H, W, 3]; pixels of that size are returned as they are."""
    if pixels.shape[1:3] == (side, side):
        return pixels
    images = torch.tensor(pixels).permute(0, 3, 1, 2).float()
    images = torch.nn.functional.interpolate(images, (side, side), mode="bilinear", antialias=True)
    return images.round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()


def _read_record(line: bytes, folder: Path, side: int) -> tuple[str, np.ndarray, np.ndarray, float]:
    record = json_object(line)
    prompt, name_a, name_b = (a_text(record.get(field)) for field in ("prompt", "image_a", "image_b"))
    label = record.get("label")
    if isinstance(label, bool) or not isinstance(label, int | float) or not 0 <= label <= 1:
        raise BadRecord("no label from 0 to 1")
    return prompt, _read_picture(folder / name_a, side), _read_picture(folder / name_b, side), float(label)


def _read_picture(file: Path, side: int) -> np.ndarray:
    """uint8 [side, side, 3] of a picture file."""
    return resized(np.asarray(decode(file_bytes(file, "no picture")))[None], side)[0]
