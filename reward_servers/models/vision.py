"""Classify pictures and detect objects by transformers models, with detectors of closed or open vocabulary.

Opens models by folder or hub id, from safetensors alone, checks names against their vocabulary, and turns their outputs
into classes and detections. Knows no prompt and no reward. Pictures are [N, H, W, 3] uint8.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from drover.common.errors import ConfigError
from drover.common.hub import first_line, is_folder, quiet_transformers

if TYPE_CHECKING:
    import torch

BATCH = 32  # pictures of one forward pass
OWL = ("owlvit", "owlv2")
DINO = ("grounding-dino", "mm-grounding-dino")


# ---------------------------------------------------------------------------------------------- classifiers


@dataclass(frozen=True, slots=True)
class ImageClassifier:
    """The description of a transformers image classifier, which answers with one of ``classes``, labels of the model.

    Any other answer is None, and so is an answer below ``least_probability``.
    Example: ``ImageClassifier("skin-tones", ("dark", "medium", "light"), 0.5)``.
    """

    checkpoint: str
    classes: tuple[str, ...]
    least_probability: float = 0.0

    def __post_init__(self) -> None:
        _check_share("least_probability", self.least_probability)
        check_checkpoint(self.checkpoint)

    def load(self, device: str) -> LoadedClassifier:
        """Load the model. Raises `ConfigError` when it cannot be opened or does not know a class."""
        model = open_model("AutoModelForImageClassification", self.checkpoint).to(device)
        labels = [str(model.config.id2label[i]) for i in range(model.config.num_labels)]
        check_names(self.classes, labels, repr(self.checkpoint))
        index_of = [self.classes.index(label) if label in self.classes else None for label in labels]
        return LoadedClassifier(model, open_processor(self.checkpoint), index_of, self)


@dataclass(frozen=True, slots=True)
class LoadedClassifier:
    model: Any
    processor: Any
    index_of: list[int | None]  # for each label of the model, its index in the asked classes; None for other labels
    source: ImageClassifier

    def __call__(self, pixels: np.ndarray) -> list[int | None]:
        """[N] index of the likeliest class; None where it is not asked for, not likely enough, or not finite."""
        answers: list[int | None] = []
        for rows in _batches(len(pixels)):
            logits = self.model(**_pixels(self.processor, pixels[rows], self.model.device)).logits.float()
            probabilities, labels = logits.softmax(-1).max(-1)  # NaN where a logit is not finite
            answers += [
                self.index_of[label] if probability >= self.source.least_probability else None
                for probability, label in zip(probabilities.tolist(), labels.tolist(), strict=True)
            ]
        return answers


# ------------------------------------------------------------------------------------------------ detectors


@dataclass(frozen=True, slots=True)
class Found:
    """The most confident detection of a name: its confidence in [0, 1] and its box's centre in pixels of the picture."""

    confidence: float
    x: float
    y: float


Detections = dict[str, Found]
"""Asked name -> its detection; names that were not found are missing."""


@dataclass(frozen=True, slots=True)
class ObjectDetector:
    """The description of a transformers object detector, of closed or open vocabulary.

    Closed: DETR, YOLOS, RT-DETR and others of ``AutoModelForObjectDetection``. Open: OWL-ViT, OWLv2, Grounding DINO. A query
    of the detector counts for its likeliest name alone, and only above ``threshold``.
    Example: ``ObjectDetector("google/owlvit-base-patch32")``.
    """

    checkpoint: str
    threshold: float = 0.1

    def __post_init__(self) -> None:
        _check_share("threshold", self.threshold)
        check_checkpoint(self.checkpoint)

    def load(self, device: str) -> ClosedDetector | OpenDetector:
        """Load the model. Raises `ConfigError` when it cannot be opened or is no detector of a known kind."""
        is_open = _open("AutoConfig", self.checkpoint).model_type in OWL + DINO
        return self._open_vocabulary(device) if is_open else self._closed_vocabulary(device)

    def _closed_vocabulary(self, device: str) -> ClosedDetector:
        model = open_model("AutoModelForObjectDetection", self.checkpoint).to(device)
        return ClosedDetector(model, open_processor(self.checkpoint), self)

    def _open_vocabulary(self, device: str) -> OpenDetector:
        model = open_model("AutoModelForZeroShotObjectDetection", self.checkpoint).to(device)
        tokenizer = _open("AutoTokenizer", self.checkpoint)
        if len(tokenizer) < 50:  # without its files transformers builds one that knows no word
            raise ConfigError(f"{self.checkpoint!r} holds no vocabulary; copy its tokenizer files too.")
        return OpenDetector(model, open_processor(self.checkpoint), tokenizer, self)


@dataclass(frozen=True, slots=True)
class ClosedDetector:
    """A detector whose names are the labels of its model, in any case."""

    model: Any
    processor: Any
    source: ObjectDetector

    @property
    def names(self) -> frozenset[str] | None:
        """The names that it can detect, in lower case."""
        return frozenset(str(label).lower() for label in self.model.config.id2label.values())

    def find(self, pixels: np.ndarray, names: Sequence[tuple[str, ...]]) -> list[Detections | None]:
        """[N] detections of names[i] in pixels[i]; None where the model's output is not finite."""
        found: list[Detections | None] = []
        for rows in _batches(len(pixels)):
            outputs = self.model(**_pixels(self.processor, pixels[rows], self.model.device))
            sizes = [pixels.shape[1:3]] * len(outputs.logits)
            results = self.processor.post_process_object_detection(outputs, self.source.threshold, sizes)
            finite = outputs.logits.isfinite().flatten(1).all(1).tolist()
            for asked, result, usable in zip(names[rows], results, finite, strict=True):
                labels = [str(self.model.config.id2label[int(label)]).lower() for label in result["labels"]]
                centres = (result["boxes"][:, :2] + result["boxes"][:, 2:]) / 2  # of (left, top, right, bottom)
                found.append(_best(asked, labels, result["scores"], centres) if usable else None)
        return found


@dataclass(frozen=True, slots=True)
class OpenDetector:
    """A detector of freely named objects. Each picture has its own names, so its answer depends on no other picture."""

    model: Any
    processor: Any
    tokenizer: Any
    source: ObjectDetector

    @property
    def names(self) -> frozenset[str] | None:
        """None: it can detect any name."""
        return None

    def find(self, pixels: np.ndarray, names: Sequence[tuple[str, ...]]) -> list[Detections | None]:
        """[N] detections of names[i], equally many each, in pixels[i]; None where the output is not finite."""
        ask = self._ask_owl if self.model.config.model_type in OWL else self._ask_dino
        found: list[Detections | None] = []
        for rows in _batches(len(pixels)):
            asked = names[rows]
            logits_NQT, outputs = ask(_pixels(self.processor, pixels[rows], self.model.device), asked)
            scores_NQ, names_NQ = logits_NQT.sigmoid().max(-1)
            centres_NQ2 = outputs.pred_boxes[..., :2].float() * self._extent(pixels)
            for i, row in enumerate(asked):
                keep = scores_NQ[i] > self.source.threshold
                labels = [row[name] for name in names_NQ[i][keep].tolist()]
                best = _best(row, labels, scores_NQ[i][keep], centres_NQ2[i][keep])
                found.append(best if bool(logits_NQT[i].isfinite().all()) else None)
        return found

    def _ask_owl(self, pixels: dict[str, Any], names: Sequence[tuple[str, ...]]) -> tuple[torch.Tensor, Any]:
        """(logits [N, Q, names], outputs)"""
        texts = [name for row in names for name in row]
        tokens = self.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").to(self.model.device)
        outputs = self.model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"], **pixels)
        return outputs.logits.float(), outputs

    def _ask_dino(self, pixels: dict[str, Any], names: Sequence[tuple[str, ...]]) -> tuple[torch.Tensor, Any]:
        """(logits [N, Q, names], outputs); a name's logit is the highest of its words, which the model scores one by one."""
        import torch

        texts = ["".join(f"{name.replace('.', ' ').lower()}. " for name in row).strip() for row in names]
        tokens = self.tokenizer(texts, padding=True, return_token_type_ids=True, return_tensors="pt")
        outputs = self.model(**tokens.to(self.model.device), **pixels)
        stop = self.tokenizer.convert_tokens_to_ids(".")
        rows = []
        for logits_QL, ids in zip(outputs.logits.float(), tokens["input_ids"].tolist(), strict=True):
            starts = [0] + [i for i, token in enumerate(ids) if token == stop]  # [CLS], then each full stop
            spans = [slice(first + 1, last) for first, last in itertools.pairwise(starts)]
            rows.append(torch.stack([logits_QL[:, span].amax(-1) for span in spans], -1))
        return torch.stack(rows), outputs

    def _extent(self, pixels: np.ndarray) -> torch.Tensor:
        """[2] pixels of a relative (x, y) of 1. OWLv2 pads to a square, at the right and the bottom."""
        import torch

        height, width = pixels.shape[1:3]
        square = self.model.config.model_type == "owlv2"
        extent = (max(height, width),) * 2 if square else (width, height)
        return torch.tensor(extent, device=self.model.device)


def _best(asked: Sequence[str], labels: Sequence[str], scores: torch.Tensor, centres: torch.Tensor) -> Detections:
    """The most confident of the detections [D], with centres [D, 2] in pixels, of each asked name."""
    best: Detections = {}
    for label, score, (x, y) in zip(labels, scores.tolist(), centres.tolist(), strict=True):
        if label in asked and (label not in best or score > best[label].confidence):
            best[label] = Found(score, x, y)
    return best


def _batches(count: int) -> Iterator[slice]:
    return (slice(first, first + BATCH) for first in range(0, count, BATCH))


def _pixels(processor: Any, pixels: np.ndarray, device: torch.device | str) -> dict[str, Any]:
    assert pixels.dtype == np.uint8, pixels.dtype  # the processor would divide a picture in 0..1 by 255 once more
    return dict(processor(images=list(pixels), input_data_format="channels_last", return_tensors="pt").to(device))


# -------------------------------------------------------------------------------------------------- opening


def check_checkpoint(checkpoint: str) -> None:
    """Raise `ConfigError` for a name that is neither a folder with a transformers model nor has the form of a hub id."""
    fix = "give a folder written by transformers' save_pretrained, or a hub id such as google/owlvit-base-patch32"
    if is_folder(checkpoint, fix) and not Path(checkpoint, "config.json").is_file():
        raise ConfigError(f"{checkpoint!r} holds no config.json, so it is no transformers model; {fix}")


def check_names(wanted: Collection[str], known: Collection[str], source: str) -> None:
    """Raise `ConfigError` when a name is unknown, naming the nearest known ones, or all where they are few."""
    for name in wanted:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=5, cutoff=0.0) if len(known) > 20 else sorted(known)
            how = f"of its {len(known)} names the nearest are" if len(known) > 20 else "it knows"
            raise ConfigError(f"{source} does not know {name!r}; {how} {', '.join(nearest)}.")


def open_model(auto: str, checkpoint: str) -> Any:
    """The model, frozen, in float32 on the CPU, by one of transformers' ``AutoModelFor...``; every weight is loaded."""
    import torch

    model, info = _open(auto, checkpoint, use_safetensors=True, dtype=torch.float32, output_loading_info=True)
    if missing := sorted(info["missing_keys"]):
        # The library fills missing weights with random numbers, which would judge at random.
        raise ConfigError(
            f"{checkpoint!r} lacks {len(missing)} weights of {type(model).__name__}, the first {missing[0]}; "
            "give a checkpoint that was trained for this task."
        )
    return model.eval().requires_grad_(False)


def open_processor(checkpoint: str) -> Any:
    """The image processor, without torchvision, tried on one picture, because only then some miss a library."""
    processor = _open("AutoImageProcessor", checkpoint, backend="pil")
    try:
        _pixels(processor, np.zeros((1, 64, 64, 3), np.uint8), "cpu")
    except Exception as error:
        fix = "add what is missing to the reward's packages, or check its files"
        raise ConfigError(f"{checkpoint!r} cannot prepare a picture: {first_line(error)}; {fix}.") from error
    return processor


def _open(auto: str, checkpoint: str, **options: Any) -> Any:
    import transformers

    is_folder = Path(checkpoint).is_dir()
    try:
        with quiet_transformers():
            opener = getattr(transformers, auto)
            return opener.from_pretrained(checkpoint, local_files_only=is_folder, trust_remote_code=False, **options)
    # The library's errors for damaged files depend on the file; each of them means that this checkpoint is unusable.
    except Exception as error:
        fix = "check its files" if is_folder else "check the id and the network, or give a local folder"
        raise ConfigError(f"{auto} cannot open {checkpoint!r}: {first_line(error)}; {fix}.") from error


def _check_share(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ConfigError(f"{name} is {value}; it is a probability, so choose from 0 up to less than 1.")
