"""Shapes: 32x32 RGB pictures of coloured shapes and of people, read back without a neural network.

`PIPELINE` is the folder of a diffusers `StableDiffusionPipeline` pretrained on this world; see
README.md beside this file for its strengths and faults. `PREFERENCE` is the folder of a small model of the preferences of
this world's raters, fitted to their choices.
"""

from pathlib import Path

PIPELINE = Path(__file__).parent / "models" / "text_to_image"
PREFERENCE = Path(__file__).parent / "models" / "preference"
