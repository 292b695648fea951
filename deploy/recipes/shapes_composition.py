"""The bundled shapes pipeline under one reward of `shapes_joint` alone: what a specialist gains, and what it costs."""

from __future__ import annotations

from drover.deploy.recipes.shapes_joint import alone

shapes_composition = alone(
    "composition", "Put things where the prompt says on the bundled model, and care for nothing else."
)
