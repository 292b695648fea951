"""Pictures from a model, with the kernel that training uses."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from drover.actors.sampler import sample
from drover.common import seeds
from drover.common.diffusion.kernels.renoise import Ddim, Renoise
from drover.common.errors import ConfigError
from drover.common.policies import conditioning
from drover.common.policies.lora import base_of, load_lora
from drover.common.policies.stable_diffusion.model import StableDiffusionModel
from drover.common.protocols import Policy
from drover.common.tensors import DTYPES


@dataclass(frozen=True, kw_only=True)
class SampleOptions:
    """Draw pictures with a diffusers Stable Diffusion model, one row a prompt."""

    model: str
    """Pipeline folder, hub id, or a run folder, which means what it fine-tuned: a pipeline, or adapters and their base."""
    prompts: tuple[str, ...]
    """What to draw."""
    out: Path = Path("samples.png")
    """The PNG to write."""
    count: int = 4
    """Pictures of each prompt."""
    steps: int = 20
    """Denoising steps."""
    eta: float = 0.0
    """0 is deterministic, 1 as in training."""
    guidance: float = 3.0
    """Classifier-free guidance scale; 1 for none."""
    seed: int = 0
    """Same seed, same pictures."""


def draw(options: SampleOptions) -> Path:
    """Write the PNG; returns its path. Raises `ConfigError`."""
    import torch

    from drover.deploy.run_folder.pictures import grid_png
    from drover.deploy.run_folder.results import write_whole

    if not options.prompts or options.count < 1:
        raise ConfigError("give at least one prompt and a count of at least 1")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    policy = _policy(Path(options.model), options, device)
    kernel, cond = Renoise(options.steps, Ddim(options.eta)), policy.encode(options.prompts)
    rows = []
    for i in range(len(options.prompts)):
        mine = conditioning.rows(cond, [i] * options.count)
        trajectory = sample(
            policy,
            kernel,
            mine,
            generators=seeds.generators(options.seed, "sample", i, range(options.count)),
            record=(),
            storage=DTYPES["float32"],
            device=device,
        )
        rows.append(policy.decode(trajectory.x0, mine).pictures())
    write_whole(options.out, grid_png(np.stack(rows), options.prompts))
    return options.out


def _policy(run: Path, options: SampleOptions, device: str) -> Policy:
    whole, adapters = run / "pipeline", run / "lora"
    if adapters.is_dir():
        policy = StableDiffusionModel(checkpoint=base_of(adapters), guidance=options.guidance).build(device)
        load_lora(policy, adapters)
        return policy
    checkpoint = str(whole) if whole.is_dir() else options.model
    return StableDiffusionModel(checkpoint=checkpoint, guidance=options.guidance).build(device)
