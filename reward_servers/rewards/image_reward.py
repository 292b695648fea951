"""Score how well a picture fits its prompt and how good it looks, by ImageReward, fitted to rankings by people.

Source: ImageReward (arXiv 2304.05977), through its package ``image-reward`` 1.5. It has a BLIP image encoder (ViT-L/16 at 224
pixels), BLIP's text encoder, which attends to the image, and a linear head on the text's first token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

from drover.common.errors import ConfigError
from drover.common.hub import first_line
from drover.common.media.media import Media
from drover.common.media.pictures import Pictures
from drover.common.protocols import Scores

if TYPE_CHECKING:
    import numpy as np

PUBLISHED = "ImageReward-v1.0"
REPOSITORY, BERT = "THUDM/ImageReward", "bert-base-uncased"  # where the published weights and their tokenizer are
WEIGHTS, CONFIG, VOCABULARY = "ImageReward.pt", "med_config.json", "vocab.txt"
MAX_TOKENS = 35  # of a prompt, as in the package; later tokens are not read
SCORED_WITH = (
    "blip.visual_encoder.",
    "blip.text_encoder.",
    "mlp.",
)  # the file also has BLIP's projections, unused here


@dataclass(frozen=True, slots=True)
class ImageReward:
    """Unit: standard deviations over the human rankings it was fitted to; unbounded, mostly within -2..2.

    The model reads the first 35 word pieces of a prompt, and the central square of a picture at 224 pixels. A picture whose
    score is not finite is masked.

    ``checkpoint`` is "ImageReward-v1.0", fetched from its hub, or local: a folder with ``ImageReward.pt``,
    ``med_config.json`` and the tokenizer's ``vocab.txt``, or a ``.pt`` file that has the other two beside it.
    """

    # Newer transformers lack names that the package imports, and its fairscale is built with the older setuptools.
    packages: ClassVar[tuple[str, ...]] = (
        "image-reward==1.5",
        "timm==0.6.13",
        "fairscale==0.4.13",
        "clip-anytorch",
        "transformers==4.51.3",
        "huggingface-hub<1",
        "tokenizers<0.22",
        "setuptools<81",
        "torchvision",
    )

    takes: ClassVar[type[Media]] = Pictures

    checkpoint: str = PUBLISHED
    batch_size: int = 16  # pictures in one pass
    name: str = "image_reward"

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, got {self.batch_size}")

    def load(self, device: str) -> ImageRewardScorer:
        files = _published() if self.checkpoint == PUBLISHED else _local(Path(self.checkpoint))
        return ImageRewardScorer(_model(files, device), self.batch_size)


class ImageRewardScorer:
    """Scores pictures in batches by the package's model; the package itself scores one picture at a time."""

    def __init__(self, model: Any, batch_size: int) -> None:
        self._model, self._batch_size = model, batch_size

    def __call__(self, prompts: Sequence[str], media: Pictures) -> Scores:
        values: list[float] = []
        for first in range(0, len(media), self._batch_size):
            rows = slice(first, first + self._batch_size)
            values += self._score(list(prompts[rows]), media.pixels[rows])
        return Scores(values)

    def _score(self, prompts: list[str], pixels: np.ndarray) -> list[float]:
        import torch
        from PIL import Image

        model = self._model
        text = model.blip.tokenizer(
            prompts, padding="max_length", truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
        ).to(model.device)
        images = torch.stack([model.preprocess(Image.fromarray(image)) for image in pixels]).to(model.device)
        with torch.inference_mode():
            return model.score_gard(text.input_ids, text.attention_mask, images).squeeze(1).tolist()


@dataclass(frozen=True, slots=True)
class _Files:
    weights: str
    config: str
    tokenizer: str  # folder of the vocabulary


def _published() -> _Files:
    from huggingface_hub import hf_hub_download

    try:
        weights, config = (hf_hub_download(REPOSITORY, name) for name in (WEIGHTS, CONFIG))
        vocabulary = hf_hub_download(BERT, VOCABULARY)
    except OSError as error:  # the base of the hub client's errors
        raise ConfigError(
            f"{PUBLISHED} cannot be fetched ({first_line(error)}); give ImageReward(checkpoint=...) a folder with "
            f"{WEIGHTS}, {CONFIG} and {VOCABULARY}"
        ) from error
    return _Files(weights, config, str(Path(vocabulary).parent))


def _local(checkpoint: Path) -> _Files:
    weights = checkpoint if checkpoint.suffix == ".pt" else checkpoint / WEIGHTS
    folder = weights.parent
    missing = [path.name for path in (weights, folder / CONFIG, folder / VOCABULARY) if not path.is_file()]
    if missing:
        raise ConfigError(
            f"{folder} lacks {' and '.join(missing)}; ImageReward(checkpoint=...) wants {PUBLISHED!r}, or a folder with "
            f"{WEIGHTS}, {CONFIG} and {VOCABULARY}"
        )
    return _Files(str(weights), str(folder / CONFIG), str(folder))


def _model(files: _Files, device: str) -> Any:
    """The package's model with these weights, ready to score."""
    try:
        from ImageReward.ImageReward import ImageReward as Package
    except ImportError as error:
        raise ConfigError(
            f"ImageReward needs the packages it declares ({first_line(error)}); run it as a service, which gives its "
            "reward server an environment of its own, not with --one-process"
        ) from error
    import torch

    state = torch.load(files.weights, map_location="cpu", weights_only=True)
    with _tokenizer_of(files.tokenizer):
        model = Package(med_config=files.config, device=device)
    try:
        lacking = model.load_state_dict(state, strict=False).missing_keys
    except RuntimeError as error:
        mismatch = str(error).strip().splitlines()[-1].strip()
        raise ConfigError(f"{files.weights} is not of ImageReward's shape: {mismatch}") from error
    needed = [key for key in lacking if key.startswith(SCORED_WITH) and not key.endswith("position_ids")]
    if needed:
        raise ConfigError(f"{files.weights} lacks {len(needed)} of ImageReward's tensors, first {needed[0]!r}")
    return model.eval().to(device)


@contextmanager
def _tokenizer_of(folder: str) -> Iterator[None]:
    """Make the package's model, if built inside this block, read its tokenizer from ``folder`` and not from the hub."""
    from ImageReward.models.BLIP import blip

    theirs = blip.BertTokenizer
    blip.BertTokenizer = SimpleNamespace(from_pretrained=lambda _: theirs.from_pretrained(folder))
    try:
        yield
    finally:
        blip.BertTokenizer = theirs
