"""Published numbers of the stochastic DDIM step and its vectors, in double precision."""

from __future__ import annotations

import torch
from torch import Tensor

from drover.common.diffusion.noising import DiscreteSchedule, over
from drover.common.protocols import Prediction

SCHEDULE = DiscreteSchedule.scaled_linear()

# steps, time, next time, abar, abar of the next time, sigma, c_x, c_e at eta 1
SCALARS = [
    (50, 981, 961, 0.00577550, 0.00728173, 0.45446327, 1.12285170, -0.23293578),
    (50, 481, 461, 0.30229566, 0.33084564, 0.28768527, 1.04615672, -0.10807902),
    (50, 41, 21, 0.96087279, 0.98038075, 0.09988731, 1.01010016, -0.10161132),
    (50, 21, 1, 0.98038075, 0.99829603, 0.03947955, 1.00909553, -0.12928714),
    (50, 1, -1, 0.99829603, 0.99915000, 0.02064832, 1.00042762, -0.02071417),
    (20, 951, 901, 0.00815500, 0.01400490, 0.64439101, 1.31047237, -0.54963448),
    (20, 51, 1, 0.95052432, 0.99829603, 0.04059673, 1.02482109, -0.22047715),
]

# steps, time, next time, mean[:3], sample[:3], log-prob, ratio after the noise prediction rose by 0.01
VECTORS = [
    (50, 981, 961, (-1.355787, -0.927893, -0.384287), (-0.973370, -0.514650, -0.320153), -0.413777232, 0.998998724),
    (50, 501, 481, (-1.159644, -0.808972, -0.403068), (-0.911592, -0.540926, -0.361468), 0.019095152, 0.999265620),
    (50, 1, -1, (-1.021142, -0.725783, -0.420135), (-1.003767, -0.707008, -0.417221), 2.677705901, 0.998016635),
    (20, 951, 901, (-1.860107, -1.233020, -0.332902), (-1.317871, -0.647077, -0.241966), -0.762965837, 0.998319809),
]


def vectors(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """x, noise prediction and fresh noise [1, 8]: -1 + 2i/7, cos i, sin(1 + i)."""
    index = torch.arange(8, dtype=torch.float64)
    x, e, z = -1 + 2 * index / 7, torch.cos(index), torch.sin(1 + index)
    return x[None].to(dtype), e[None].to(dtype), z[None].to(dtype)


def epsilon(x: Tensor, time: Tensor, noise: Tensor) -> Prediction:
    """The prediction of an epsilon network, worked out by hand."""
    a, s = (over(coefficient, x) for coefficient in SCHEDULE.coefficients(time))
    return Prediction(x0=(x - s * noise) / a, noise=noise)
