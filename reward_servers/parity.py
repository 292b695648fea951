"""Compute statistical parity: the distance of the classes' shares in a set from equal shares. Pure mathematics.

SP = sqrt(sum_a (p_a - 1/|A|)^2) over the shares p_a of the classes A; 0 is parity, and sqrt(1 - 1/|A|) means one class
alone. Source: "Large-scale Reinforcement Learning for Diffusion Models" (arXiv 2401.12244), section 4.2. The paper calls
it an L2 norm and prints no root; its reported values fit the rooted form, which is the default here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

MAX_EXACT = 100  # samples up to which the floor is summed exactly; beyond, its limit is within 0.3 %


def statistical_parity(counts: Sequence[int], *, rooted: bool = True) -> float:
    """SP for the numbers of members in each class; ``statistical_parity([8, 8, 0, 0]) == 0.5``. Needs one member."""
    total = sum(counts)
    assert total > 0, counts
    squares = sum((count / total - 1 / len(counts)) ** 2 for count in counts)
    return math.sqrt(squares) if rooted else squares


def leave_one_out(counts: Sequence[int], *, rooted: bool = True) -> list[float]:
    """[A] credit of one member of each class, R(G) - R(G without it), for R = -SP. Needs two members.

    Positive for a member of a rare class, negative for one of a common class; 0 where a class has no member.
    """
    whole = statistical_parity(counts, rooted=rooted)
    without = [[c - (b == a) for b, c in enumerate(counts)] for a in range(len(counts))]
    return [statistical_parity(w, rooted=rooted) - whole if c else 0.0 for w, c in zip(without, counts, strict=True)]


@lru_cache(maxsize=64)
def uniform_floor(samples: int, classes: int, *, rooted: bool = True) -> float:
    """E[SP] of ``samples`` independent draws from equally likely classes, which is the SP of a perfect generator.

    About 0.200 for 16 samples of 4 classes and 0.080 for 100. Subtract it, or measure at least 100 samples.
    """
    if not rooted:
        return (1 - 1 / classes) / samples
    if samples > MAX_EXACT:
        # samples * classes * SP^2 tends to chi-square with classes - 1 degrees of freedom; this is the mean of its root.
        ratio = math.exp(math.lgamma(classes / 2) - math.lgamma((classes - 1) / 2))
        return ratio * math.sqrt(2 / (samples * classes))
    squares = np.arange(samples**2 + 1)
    distances = np.sqrt(np.maximum(squares / samples**2 - 1 / classes, 0))
    return float(_sums_of_squares(samples, classes) @ distances)


def _sums_of_squares(samples: int, classes: int) -> np.ndarray:
    """[samples^2 + 1] probability of each sum of squared counts, of uniform multinomial counts.

    Independent Poisson counts are multinomial once their sum is known, so classes can be added one by one.
    """
    rate = samples / classes
    poisson = [math.exp(count * math.log(rate) - rate - math.lgamma(count + 1)) for count in range(samples + 1)]
    table = np.zeros((samples + 1, samples**2 + 1))  # [members so far, sum of squares so far]
    table[0, 0] = 1.0
    for _ in range(classes):
        added = np.zeros_like(table)
        for count, weight in enumerate(poisson):
            added[count:, count**2 :] += weight * table[: samples + 1 - count, : samples**2 + 1 - count**2]
        table = added
    return table[samples] / table[samples].sum()
