"""`drover sample`: draws pictures with a model and the sampler that training uses."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from drover.actors.sampler import Plain, draws_of
from drover.common.diffusion.kernels.renoise import Consistency, Ddim, Renoise
from drover.common.errors import ConfigError
from drover.common.files import write_whole
from drover.common.policies.consistency import ConsistencyHead
from drover.common.policies.stable_diffusion.model import StableDiffusionModel
from drover.common.protocols import Sampling


@dataclass(frozen=True, kw_only=True)
class SampleOptions:
    """Draw pictures with a diffusers Stable Diffusion model, one row a prompt."""

    model: str
    """Pipeline folder, hub id, or a run folder, whose fine-tuned pipeline or adapters draw as in training."""
    prompts: tuple[str, ...]
    """The prompts to draw."""
    out: Path = Path("samples.png")
    """PNG file to write."""
    count: int = 4
    """Pictures of each prompt."""
    steps: int | None = None
    """Denoising steps; default: the run's, or 20."""
    eta: float | None = None
    """0 is deterministic, 1 fully stochastic; default: the run's, or 0. A consistency model has none."""
    guidance: float | None = None
    """Guidance scale, 1 for none; default: the run's, or 3."""
    seed: int = 0
    """Seed of the noise; the same seed gives the same pictures."""


def draw(options: SampleOptions) -> Path:
    """Draw the pictures and write the PNG; return its path. Raises `ConfigError`."""
    import torch

    from drover.common.policies import conditioning
    from drover.deploy.run_folder.pictures import grid_png

    if not options.prompts or options.count < 1:
        raise ConfigError("give at least one prompt and a count of at least 1")
    sampling = _sampling(options, "cuda" if torch.cuda.is_available() else "cpu")
    policy = sampling.policy
    cond, rows = policy.encode(options.prompts), []
    for i, prompt in enumerate(options.prompts):
        mine = conditioning.rows(cond, [i] * options.count)
        chain = sampling(
            mine,
            draws_of(options.seed, "sample", i, prompts=1, samples=options.count),
            prompts=[prompt] * options.count,
            record=(),
            storage=torch.float32,
        )
        x0 = chain.take(slice(None), (), torch.float32).x0
        rows.append(policy.decode(x0, mine).pictures())
    write_whole(options.out, grid_png(np.stack(rows), options.prompts))
    return options.out


def _sampling(options: SampleOptions, device: str) -> Sampling:
    """Load the model and sampler of the run, or of the pipeline, with the given options in the place of its own."""
    run = Path(options.model)
    if not (run / "checkpoints").is_dir():
        model = StableDiffusionModel(
            checkpoint=options.model, guidance=3.0 if options.guidance is None else options.guidance
        )
        policy = model.build(device)
        rule = Consistency() if isinstance(policy, ConsistencyHead) else Ddim(0.0)
        return _with(Plain(Renoise(20, rule)), options).load(policy, device)

    from drover.deploy.run_folder.rebuilding import model_and_sampler

    model, sampler = model_and_sampler(run)
    if options.guidance is not None:
        model = replace(model, guidance=options.guidance)
    return _with(sampler, options).load(model.build(device), device)


def _with(sampler: Plain, options: SampleOptions) -> Plain:
    kernel = sampler.kernel
    if not isinstance(kernel, Renoise):
        raise ConfigError(f"pictures are drawn by Renoise alone, the run has {kernel}")
    if options.eta is not None:
        if not isinstance(kernel.rule, Ddim):
            raise ConfigError(f"{kernel.rule} has no eta; leave --eta out")
        kernel = replace(kernel, rule=Ddim(options.eta))
    if options.steps is not None:
        kernel = replace(kernel, num_steps=options.steps)
    return replace(sampler, kernel=kernel)
