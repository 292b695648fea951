"""Score a picture's technical quality: the distance of its statistics from those of undistorted photographs.

Source: BRISQUE (Mittal, Moorthy and Bovik, IEEE TIP 2012): 36 statistics of locally normalised brightness at two scales,
and a support vector regression fitted to the LIVE database. Weights and features from the package ``brisque``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from drover.common.errors import ConfigError
from drover.common.media.media import Media
from drover.common.media.pictures import Pictures
from drover.common.protocols import Scores


@dataclass(frozen=True, slots=True)
class ImageQuality:
    """Value = -BRISQUE. Unit: points of difference mean opinion score, mostly within -100 (worst) to 0 (best).

    Knows blur, noise, compression and blocking, and nothing of content. Photographs of good quality lie at about -30
    to 0. Pictures unlike any photograph tend to -155.8, the value of the regression far from its data. Statistics of
    pictures below some 64 pixels are poor. A picture without local contrast (one colour, regular stripes) has no
    statistics and is masked (``flat``). Always runs on the CPU.

    The package needs libsvm, which is built from source when installed: the node needs a C++ compiler.
    """

    packages: ClassVar[tuple[str, ...]] = ("brisque[opencv-python-headless]==0.2.0", "scipy<2")

    takes: ClassVar[type[Media]] = Pictures
    name: str = "image_quality"

    def load(self, device: str) -> QualityScorer:
        try:
            from brisque import BRISQUE
        except ImportError as error:
            raise ConfigError(
                f"ImageQuality needs the packages it declares ({error}); run it as a service, which gives its reward "
                "server an environment of its own, not with --one-process"
            ) from error
        model = BRISQUE(url=False)
        model.scale_features = _flattened(model.scale_features)
        return QualityScorer(model.score)


@dataclass(frozen=True, slots=True)
class QualityScorer:
    brisque: Callable[[np.ndarray], float]  # of a [H, W, 3] uint8 picture; lower is better

    def __call__(self, prompts: Sequence[str], media: Pictures) -> Scores:
        with np.errstate(divide="ignore", invalid="ignore"):  # for pictures without contrast, which are masked below
            values = [-float(self.brisque(image)) for image in media.pixels]
        return Scores(values, ["" if math.isfinite(value) else "flat" for value in values])


def _flattened(scale: Callable[[np.ndarray], Any]) -> Callable[[Sequence[Any]], Any]:
    """Make ``scale`` accept features that are arrays of one number, which numpy 2.4 no longer converts to numbers."""
    return lambda features: scale(np.concatenate([np.ravel(feature) for feature in features]))
