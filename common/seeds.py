"""Make a random generator for each sample from (run seed, purpose, draw, sample).

The noise of a sample depends on these four alone, not on the actor or on the other samples of its batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def derive(*words: int | str) -> int:
    """Hash words to a 63-bit seed, which depends on every word and on their order and is equal on every machine.

    Each word is hashed with its length, so that ("ab", "c") and ("a", "bc") differ.
    """
    digest = blake2b(digest_size=8)
    for word in words:
        text = str(word).encode()
        digest.update(len(text).to_bytes(4, "little") + text)
    return int.from_bytes(digest.digest(), "little") >> 1


def generators(
    seed: int, purpose: str, group: int, samples: Sequence[int], device: str | torch.device = "cpu"
) -> list[torch.Generator]:
    """One generator per sample index; each depends on its own index alone, not on the others in the list.

    CPU and GPU generators draw different numbers from the same seed.
    """
    import torch

    return [torch.Generator(device).manual_seed(derive(seed, str(purpose), group, sample)) for sample in samples]


def normal(shape: Sequence[int], generators: Sequence[torch.Generator]) -> Tensor:
    """[B, *shape] float32 standard normal; row i is drawn from ``generators[i]`` alone, on its device."""
    import torch

    return torch.stack([torch.randn(*shape, generator=one, device=one.device) for one in generators])
