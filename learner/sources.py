"""Where prompts come from. A source is a pure function of the group's number, so resuming needs no cursor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

from common import seeds
from common.errors import ConfigError


@dataclass(frozen=True, slots=True)
class ShuffledPrompts:
    """Every prompt once per pass, each pass in its own order."""

    prompts: Sequence[str]

    def __post_init__(self) -> None:
        if not len(self.prompts):
            raise ConfigError("there is no prompt to train on; give at least one")

    def at(self, seed: int, group: int) -> str:
        """The prompt of the group-th order."""
        pass_number, position = divmod(group, len(self.prompts))
        return self.prompts[_order(seed, pass_number, len(self.prompts))[position]]


@lru_cache(maxsize=4)
def _order(seed: int, pass_number: int, size: int) -> list[int]:
    generator = torch.Generator().manual_seed(seeds.derive(seed, "prompts", pass_number))
    return torch.randperm(size, generator=generator).tolist()


def read_prompts(path: Path) -> tuple[str, ...]:
    """The non-blank lines of a UTF-8 text file, without repetitions. Raises `ConfigError`."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise ConfigError(f"there is no prompt file {path}; give a text file with one prompt per line") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 at byte {error.start}; save it as UTF-8 text") from error
    except OSError as error:
        raise ConfigError(f"the prompt file {path} cannot be read: {error.strerror}") from error
    prompts = tuple(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not prompts:
        raise ConfigError(f"the prompt file {path} holds no prompt; write one per line")
    return prompts
