"""Rebuilds the model and the sampler of a run from the description in its checkpoints (`resuming.describe`)."""

from __future__ import annotations

from ast import literal_eval
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from drover.actors.sampler import Plain
from drover.actors.starts import PartlyNoised, PureNoise, SharedNoise
from drover.common.diffusion.kernels.renoise import CoefficientPreserving, Consistency, Ddim, Renoise
from drover.common.diffusion.spacing import Distilled, DistilledEvenly, Leading, Linspace, Trailing
from drover.common.errors import ConfigError
from drover.common.policies.model import Lora
from drover.common.policies.stable_diffusion.model import StableDiffusionModel
from drover.deploy.run_folder.resuming import CONTENT
from drover.learner.saving.checkpoint_files import read_state, whole

KNOWN: dict[str, type[Any]] = {
    kind.__name__: kind
    for kind in (
        *(StableDiffusionModel, Lora, Plain, PureNoise, SharedNoise, PartlyNoised),
        *(Renoise, Ddim, CoefficientPreserving, Consistency),
        *(Leading, Trailing, Linspace, Distilled, DistilledEvenly),
    )
}


def model_and_sampler(run: Path) -> tuple[StableDiffusionModel, Plain]:
    """Return the trained model of a run folder, and the sampler that it was trained with.

    Raises `ConfigError` for a run that has not finished, and for one of another kind of model or sampler.
    """
    saved = whole(run / "checkpoints")
    if not saved:
        raise ConfigError(f"{run} has no checkpoint that says how its pictures are drawn; give its pipeline/ folder")
    recipe: Mapping[str, str] = read_state(saved[-1])["recipe"]
    model, sampler = (_rebuilt(recipe, name) for name in ("model", "sampler"))
    if not isinstance(model, StableDiffusionModel) or not isinstance(sampler, Plain):
        raise ConfigError(
            f"{run} trained a {recipe.get('model')} with the sampler {recipe.get('sampler')}; pictures are drawn of a "
            "StableDiffusionModel and Plain alone"
        )
    return model.of_run(run), sampler


def _rebuilt(recipe: Mapping[str, str], name: str) -> Any:
    """Return the value of one field of the description; its text if the class is unknown."""
    text = recipe.get(name, "")
    if kind := KNOWN.get(text):
        return kind(**{f.name: _rebuilt(recipe, f"{name}.{f.name}") for f in fields(kind) if f.init})
    try:
        return literal_eval(text)
    except (ValueError, SyntaxError):
        return text.partition(CONTENT)[0]  # a path stands without quotes
