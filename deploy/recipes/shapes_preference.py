"""The bundled shapes pipeline under one reward of `shapes_joint` alone: what a specialist gains, and what it costs."""

from __future__ import annotations

from drover.deploy.recipes.shapes_joint import alone

shapes_preference = alone(
    "preference", "Raise what people like on the bundled model, and nothing else: the tones of its portraits narrow."
)
