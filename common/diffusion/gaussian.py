"""The distribution of one denoising step. The only place that computes a log-prob, as a mean over dimensions.

Axes: B batch, S parts of a sample (`drover.common.diffusion.error`), ... latent axes.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log, pi
from typing import TYPE_CHECKING

from drover.common.diffusion.error import per_part

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Gaussian:
    """The distribution N(mean, std^2 I) of the next state: mean [B, ...], std [B, 1, ...], float32 (float64 for such latents).

    Densities are MEANS over the latent dimensions of a part, as in every method here: the sum over 16384 dimensions overflows the
    ratio. A ratio clip of 1e-4 on the mean is therefore a clip of exp(1e-4 x dimensions) on the true density
    ratio, and must be rescaled when the latent size changes.
    """

    mean: Tensor
    std: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """mean + std x noise, noise [B, ...] standard normal."""
        return self.mean + self.std * noise

    def log_prob(self, x: Tensor, parts: int = 1) -> Tensor:
        """[B, S] log-density of x, mean nats per latent dimension. Undefined where std is 0: raises ValueError.

        ``parts`` is 1, which gives the mean over the whole sample, or the size of the first latent axis.
        """
        self._require_density()
        error = (x.to(self.mean.dtype) - self.mean) / self.std
        return per_part(-0.5 * error.square() - self.std.log() - 0.5 * log(2 * pi), parts)

    def kl(self, other: Gaussian, parts: int = 1) -> Tensor:
        """[B, S] KL(self || other), mean nats per latent dimension. Raises ValueError where either std is 0."""
        self._require_density()
        other._require_density()
        ratio = self.std / other.std
        shift = (self.mean - other.mean) / other.std
        return per_part(0.5 * (shift.square() + ratio.square() - 1) - ratio.log(), parts)

    def _require_density(self) -> None:
        if bool((self.std <= 0).any()):
            raise ValueError(
                "a step with std 0 has no density; train with eta > 0 and record no step that ends at clean latents"
            )
