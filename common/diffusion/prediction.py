"""Convert a network's output to a `Prediction` and back, in float32 (float64 for float64 latents).

With x = a x0 + s noise, a network trained to put out
    epsilon   noise
    x0        x0
    v         a noise - s x0       (Salimans and Ho 2022, arXiv 2202.00512)
    flow      noise - x0           (rectified flow: the velocity along the straight path)
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

from drover.common.diffusion.noising import over
from drover.common.protocols import Prediction, Schedule

if TYPE_CHECKING:
    from torch import Tensor


class Parameterisation(StrEnum):
    """The quantity that a network was trained to put out."""

    EPSILON = "epsilon"
    X0 = "x0"
    V = "v"
    FLOW = "flow"


def to_prediction(kind: Parameterisation, schedule: Schedule, x: Tensor, time: Tensor, output: Tensor) -> Prediction:
    """Convert the network's ``output`` at x [B, ...], time [B] to x0 and noise, so that x = a x0 + s noise holds."""
    x, output = _widen(x), _widen(output)
    a, s = (over(coefficient, x) for coefficient in schedule.coefficients(time))
    match kind:
        case Parameterisation.EPSILON:
            return Prediction(x0=(x - s * output) / a, noise=output)
        case Parameterisation.X0:
            return Prediction(x0=output, noise=(x - a * output) / s)
        case Parameterisation.V:
            # v is defined only for paths on which a^2 + s^2 = 1.
            return Prediction(x0=a * x - s * output, noise=a * output + s * x)
        case Parameterisation.FLOW:
            # a + s = 1 on the straight path.
            return Prediction(x0=x - s * output, noise=x + a * output)


def to_output(kind: Parameterisation, schedule: Schedule, time: Tensor, prediction: Prediction) -> Tensor:
    """Convert a prediction to the output of a network of that kind: the inverse of `to_prediction`.

    With the true x0 and noise it is the target of the denoising loss.
    """
    x0, noise = _widen(prediction.x0), _widen(prediction.noise)
    match kind:
        case Parameterisation.EPSILON:
            return noise
        case Parameterisation.X0:
            return x0
        case Parameterisation.V:
            a, s = (over(coefficient, x0) for coefficient in schedule.coefficients(time))
            return a * noise - s * x0
        case Parameterisation.FLOW:
            return noise - x0


def consistency_x0(
    x: Tensor, x0: Tensor, time: Tensor, *, time_scaling: float = 10.0, sigma_data: float = 0.5
) -> Tensor:
    """[B, ...] c_out x0 + c_skip x: the head of latent consistency models, which is the identity at time 0.

    c_skip = d^2 / (u^2 + d^2), c_out = u / sqrt(u^2 + d^2), u = time_scaling x time, d = sigma_data (arXiv 2310.04378).
    """
    scaled = time.double() * time_scaling
    norm = scaled.square() + sigma_data**2
    return over(scaled / norm.sqrt(), x) * x0 + over(sigma_data**2 / norm, x) * x


def _widen(tensor: Tensor) -> Tensor:
    import torch

    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
