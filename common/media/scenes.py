"""Scenes: agents that move in the plane, as in a traffic simulator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from drover.common.media.media import check

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw

SIDE_PX = 192
MARGIN = 0.08  # as a share of the picture's side
NARROWEST_M = 20.0  # the smallest width and height of the view
EGO, OTHERS = (0, 114, 178), (130, 130, 130)  # blue, and grey
NOSE_M, DOT_PX = 3.0, 3


@dataclass(frozen=True, slots=True)
class Scenes:
    """N scenes: ``states`` [N, A, T, 4] float32 of A agents at T times, ``step_s`` seconds apart.

    A state is x and y in metres, heading in radians from the x axis, speed in m/s; NaN where the agent is absent.
    Agent 0 is the ego agent.
    """

    states: np.ndarray
    step_s: float
    kind: ClassVar[str] = "scene"

    def __post_init__(self) -> None:
        check(self, states="float32 N A T 4")

    def __len__(self) -> int:
        return len(self.states)

    def pictures(self) -> np.ndarray:
        """[N, 192, 192, 3]: the scene from above, y up, scaled to fill the picture.

        Lines are the paths of the agents, blue for the ego agent. A dot marks an agent's end, and a stroke its heading.
        """
        drawn = [_from_above(states) for states in self.states.astype(np.float64)]
        return np.stack(drawn) if drawn else np.empty((0, SIDE_PX, SIDE_PX, 3), np.uint8)


def _from_above(states_AT4: np.ndarray) -> np.ndarray:
    from PIL import Image
    from PIL.ImageDraw import Draw

    image = Image.new("RGB", (SIDE_PX, SIDE_PX), "white")
    draw = Draw(image)
    ways = [states[np.isfinite(states).all(axis=-1)] for states in states_AT4]
    seen = np.concatenate([way[:, :2] for way in ways])
    if len(seen):
        middle, extent = (seen.min(axis=0) + seen.max(axis=0)) / 2, np.ptp(seen, axis=0).max()
        scale = SIDE_PX * (1 - 2 * MARGIN) / max(extent, NARROWEST_M)
        for number in reversed(range(len(ways))):  # the ego agent last, on top
            if len(ways[number]):
                _draw_way(draw, ways[number], middle, scale, EGO if number == 0 else OTHERS)
    return np.asarray(image)


def _draw_way(draw: ImageDraw, way_T4: np.ndarray, middle: np.ndarray, scale: float, colour: tuple[int, ...]) -> None:
    nose = way_T4[-1, :2] + NOSE_M * np.array([np.cos(way_T4[-1, 2]), np.sin(way_T4[-1, 2])])
    points = SIDE_PX / 2 + scale * (np.vstack([way_T4[:, :2], nose]) - middle) * (1, -1)
    *way, nose_px = map(tuple, points.tolist())
    x, y = way[-1]
    draw.line(way, fill=colour, width=2)
    draw.line([way[-1], nose_px], fill="black")
    draw.ellipse([x - DOT_PX, y - DOT_PX, x + DOT_PX, y + DOT_PX], fill=colour)
