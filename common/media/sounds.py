"""Sounds: waves, all of one length and sample rate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from drover.common.media.media import check

COLUMNS, ROWS = 192, 96  # of a spectrogram, in pixels
SHORTEST = 256  # samples of a window
RANGE_DB = 80.0  # below the loudest: black
# The colours are black, violet, orange and white at these shares of the range.
SHARES = (0.0, 0.4, 0.75, 1.0)
COLOURS = ((0, 90, 240, 255), (0, 20, 140, 255), (0, 110, 30, 230))  # red, green, blue


@dataclass(frozen=True, slots=True)
class Sounds:
    """N sounds: ``waves`` [N, C, T] float32 in -1..1, C channels of T samples, ``rate`` samples a second."""

    waves: np.ndarray
    rate: int
    kind: ClassVar[str] = "sound"

    def __post_init__(self) -> None:
        check(self, waves="float32 N C T")

    def __len__(self) -> int:
        return len(self.waves)

    def pictures(self) -> np.ndarray:
        """[N, 96, 192, 3]: a spectrogram of all channels together.

        Time runs to the right, frequency upwards to half the rate; brightness is loudness, in decibels below the maximum.
        """
        power = np.zeros((len(self), ROWS, COLUMNS))
        for number, wave in enumerate(np.nan_to_num(self.waves).mean(axis=1)):
            power[number] = _spectrogram(wave)
        loudest = power.max(axis=(1, 2), keepdims=True, initial=1e-12)
        level = 1 + 10 * np.log10(power / loudest + 1e-12) / RANGE_DB
        shades = np.stack([np.interp(level, SHARES, colour) for colour in COLOURS], axis=-1)
        return shades.round().astype(np.uint8)


def _spectrogram(wave: np.ndarray) -> np.ndarray:
    """[ROWS, COLUMNS] power of a wave [T], the highest frequency first. Windows overlap by half and cover the whole wave."""
    length = max(SHORTEST, 2 * math.ceil(len(wave) / COLUMNS))
    padded = np.pad(wave, (0, max(0, length - len(wave))))
    starts = np.linspace(0, len(padded) - length, COLUMNS).round().astype(int)
    windows = padded[starts[:, None] + np.arange(length)] * np.hanning(length)
    power = np.square(np.abs(np.fft.rfft(windows)))[:, 1:]  # without the mean
    edges = np.linspace(0, power.shape[1], ROWS, endpoint=False).astype(int)
    widths = np.diff(edges, append=power.shape[1])
    bands: np.ndarray = np.add.reduceat(power, edges, axis=1) / widths
    return bands.T[::-1]
