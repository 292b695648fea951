"""Score whether the text in the prompt's quotes is written in the picture, by text recognition.

Source: the measure is 1-N.E.D. of scene text reading (ICDAR 2019 RRC-LSVT, arXiv 1909.07741), as a reward after
Flow-GRPO (arXiv 2505.05470). The reader is PP-OCRv4 (PaddleOCR), whose weights come inside ``rapidocr-onnxruntime``.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from drover.common.errors import ConfigError
from drover.common.media.media import Media
from drover.common.media.pictures import Pictures
from drover.common.protocols import Scores

# Double quotes, straight or curly, or single ones that are not the apostrophe of a word ("a dog's bowl").
_QUOTED = re.compile(
    r"""["\u201c\u201d]([^"\u201c\u201d]+)["\u201c\u201d]"""
    r"""|(?<!\w)['\u2018]((?:[^'\u2018\u2019]|(?<=\w)['\u2019](?=\w))+)['\u2019](?!\w)"""
)


@dataclass(frozen=True, slots=True)
class RenderedText:
    """Value in [0, 1]: 1 - d(w, r) / max(|w|, |r|), with d the Levenshtein distance in characters.

    w is the quoted text of the prompt, ``a sign that says "hello"``, several quotes joined in their order; r is all text
    read in the picture, lines joined from top to bottom. Both are compared after NFKC and case folding, without white
    space. So 1 means that the words and no others are there, and 0 that no character agrees or none can be read.

    Reads Latin and Chinese script; a line read with confidence below one half does not count, nor does one upside down.
    A prompt without quoted text is masked (``prompt``), and its picture is not read. Always runs on the CPU.
    """

    # opencv-python, which the reader requires, wants the machine's libGL. pip installs the headless build of the same
    # module after it (in reverse order of name, so not "opencv-python-headless") and thereby replaces it.
    packages: ClassVar[tuple[str, ...]] = ("rapidocr-onnxruntime==1.4.4", "opencv-contrib-python-headless>=4.10")

    takes: ClassVar[type[Media]] = Pictures
    name: str = "rendered_text"

    def load(self, device: str) -> TextScorer:
        import torch

        try:
            from rapidocr_onnxruntime import RapidOCR
        except ImportError as error:
            raise ConfigError(
                f"RenderedText needs the packages it declares ({error}); run it as a service, which gives its reward "
                "server an environment of its own, not with --one-process"
            ) from error
        engine = RapidOCR(intra_op_num_threads=torch.get_num_threads(), inter_op_num_threads=1)

        def read(image: np.ndarray) -> str:
            lines, _ = engine(np.ascontiguousarray(image[..., ::-1]), use_cls=False)  # BGR; lines are not turned
            return "".join(text for _, text, _ in lines or ())

        return TextScorer(read)


@dataclass(frozen=True, slots=True)
class TextScorer:
    read: Callable[[np.ndarray], str]  # [H, W, 3] uint8 picture -> its text

    def __call__(self, prompts: Sequence[str], media: Pictures) -> Scores:
        values, reasons = [], []
        for prompt, image in zip(prompts, media.pixels, strict=True):
            wanted = normalised(quoted(prompt))
            values.append(similarity(wanted, normalised(self.read(image))) if wanted else math.nan)
            reasons.append("" if wanted else "prompt")
        return Scores(values, reasons)


def quoted(prompt: str) -> str:
    """The text in the prompt's quotes, several joined in their order; "" without any."""
    return "".join(match[1] or match[2] for match in _QUOTED.finditer(prompt))


def normalised(text: str) -> str:
    """The characters of a text that count, in the form in which they are compared."""
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())


def similarity(wanted: str, read: str) -> float:
    """1 - Levenshtein distance / length of the longer; not both empty."""
    return 1.0 - edit_distance(wanted, read) / max(len(wanted), len(read))


def edit_distance(a: str, b: str) -> int:
    """The smallest number of insertions, deletions and replacements of one character that turn a into b."""
    costs = list(range(len(b) + 1))  # of turning the characters of a so far into each beginning of b
    for i, char in enumerate(a, 1):
        diagonal, costs[0] = costs[0], i
        for j, other in enumerate(b, 1):
            diagonal, costs[j] = costs[j], min(costs[j] + 1, costs[j - 1] + 1, diagonal + (char != other))
    return costs[-1]
