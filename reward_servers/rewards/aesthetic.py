"""Score how much people like the look of an image, without its prompt: LAION's aesthetic predictor on CLIP ViT-L/14.

Source: improved-aesthetic-predictor (Schuhmann 2022), head ``sac+logos+ava1-l14-linearMSE``; a reward in DDPO
(arXiv 2305.13301), section 5.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from drover.common.errors import ConfigError
from drover.common.hub import first_line
from drover.common.media.media import Media
from drover.common.media.pictures import Pictures
from drover.common.protocols import Scores
from drover.reward_servers.models.clip import Clip, Precision, check_options, masked

if TYPE_CHECKING:
    from torch import Tensor

LAYERS = (0, 2, 4, 6, 7)  # linear layers of the published file; 1, 3 and 5 are dropout, and there is no activation
_HUB_FILE = re.compile(r"([\w.-]+/[\w.-]+)/([\w.+-]+(?:/[\w.+-]+)*)")
_FIX = "give the path of sac+logos+ava1-l14-linearMSE.pth, or a hub file as OWNER/REPOSITORY/FILE"


@dataclass(frozen=True, slots=True)
class Aesthetic:
    """Unit: points on the raters' scale, about 1 to 10; photographs and good generations get 5 to 7. Ignores the prompt.

    ``head`` is a local .pth or .safetensors file of the published layout, or ``OWNER/REPOSITORY/FILE`` on the hub. It
    always computes in float32. A sample whose embedding is not finite is masked as ``nan``.
    """

    checkpoint: str = "openai/clip-vit-large-patch14"
    head: str = "trl-lib/ddpo-aesthetic-predictor/aesthetic-model.pth"  # the LAION file under another name
    batch_size: int = 64  # images at a time; bounds the memory of the device
    precision: Precision = "float32"
    name: str = "aesthetic"
    packages: ClassVar[tuple[str, ...]] = ()
    takes: ClassVar[type[Media]] = Pictures

    def __post_init__(self) -> None:
        check_options(self.checkpoint, self.batch_size, self.precision)
        if not self.head:
            raise ConfigError(f"head is empty; {_FIX}")

    def load(self, device: str) -> AestheticScorer:
        head = read_head(self.head)  # before the large model, so that a bad head is found at once
        clip = Clip.load(self.checkpoint, device, batch_size=self.batch_size, precision=self.precision)
        width = head[0][0].shape[1]
        if width != clip.dim:
            raise ConfigError(
                f"the head {self.head!r} reads {width} features, {self.checkpoint!r} has {clip.dim}; "
                "the published head belongs to openai/clip-vit-large-patch14"
            )
        return AestheticScorer(clip, tuple((weight.to(device), bias.to(device)) for weight, bias in head))


@dataclass(frozen=True, slots=True)
class AestheticScorer:
    clip: Clip
    head: tuple[tuple[Tensor, Tensor], ...]  # (weight, bias) of each layer

    def __call__(self, prompts: Sequence[str], media: Pictures) -> Scores:
        import torch.nn.functional as F

        x = self.clip.embed_images(media.pixels)
        for weight, bias in self.head:
            x = F.linear(x, weight, bias)
        return masked(x.squeeze(-1))


def read_head(source: str) -> list[tuple[Tensor, Tensor]]:
    """(weight [out, in], bias [out]) float32 of each layer, the last with one output. Raises `ConfigError`."""
    path = _find(source)
    try:
        state = _read(path)
    # The readers' errors depend on the damage; each of them means that this head is unusable.
    except Exception as error:
        raise ConfigError(f"cannot read the head {source!r}: {first_line(error)}; {_FIX}") from error
    wanted = {f"layers.{layer}.{part}" for layer in LAYERS for part in ("weight", "bias")}
    if not isinstance(state, Mapping) or state.keys() != wanted:
        found = ", ".join(map(str, list(state)[:4])) if isinstance(state, Mapping) else type(state).__name__
        raise ConfigError(
            f"the head {source!r} holds {found}, wanted layers 0, 2, 4, 6 and 7 without activations; {_FIX}"
        )
    layers = [(state[f"layers.{layer}.weight"].float(), state[f"layers.{layer}.bias"].float()) for layer in LAYERS]
    outs = [weight.shape[0] for weight, _ in layers]
    if (
        [weight.shape[1] for weight, _ in layers[1:]] != outs[:-1]
        or outs[-1] != 1
        or [len(b) for _, b in layers] != outs
    ):
        shapes = ", ".join(str(list(weight.shape)) for weight, _ in layers)
        raise ConfigError(f"the layers of the head {source!r} do not follow each other to one value: {shapes}; {_FIX}")
    return layers


def _find(source: str) -> Path:
    """The path of the head's file, which is fetched from the hub if it is not local."""
    from huggingface_hub import hf_hub_download

    if Path(source).is_file():
        return Path(source)
    named = _HUB_FILE.fullmatch(source)
    if named is None:
        raise ConfigError(f"there is no head file {source!r}; {_FIX}")
    try:
        return Path(hf_hub_download(named[1], named[2]))
    except (OSError, ValueError) as error:  # unreachable, no such repository or file, or no valid name
        raise ConfigError(f"{source!r} is no local file and the hub gives none: {first_line(error)}; {_FIX}") from error


def _read(path: Path) -> Any:
    import torch

    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)
