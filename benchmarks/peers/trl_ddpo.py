"""Measures TRL's `DDPOTrainer` on a Stable Diffusion folder, on CPU; prints one JSON line. Runs under ``.venv-trl``.

The trainer is TRL's own, unmodified and driven through its public interface: full fine-tune, one update per epoch. The
reward is minus the size of the JPEG in kB, so compressible images have high rewards. ``--reward-sleep-s`` makes the
reward sleep so long for each image, as if the scorer were on another machine.

The figures leave out the first epoch, except ``first_update_s`` (since the process started) and ``peak_rss_mb``.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.peers import legacy_pipeline

GUIDANCE = 3.0
NUM_STEPS = 10
TRAINED_FRACTION = 0.5
JPEG_QUALITY = 95


@dataclass(frozen=True, kw_only=True)
class Figures:
    """The figures of one run. Rewards are means over an epoch, in kB, the first epoch included."""

    peer: str
    threads: int
    reward_sleep_s: float
    samples: int
    wall_s: float
    cpu_s: float
    samples_per_s: float
    samples_per_s_per_core: float
    samples_per_cpu_s: float  # the steadier figure where other processes share the cores
    first_update_s: float
    peak_rss_mb: float
    rewards: list[float]


class JpegReward:
    """A reward that is minus the kB of each image's JPEG. Keeps the mean of every scored batch."""

    def __init__(self, sleep_s: float) -> None:
        self.sleep_s = sleep_s
        self.means: list[float] = []

    def __call__(self, images: Any, prompts: Any, metadata: Any) -> tuple[Any, dict[str, Any]]:
        """Score ``images`` [B, 3, H, W] in 0..1. Returns (rewards [B], {}), the form that TRL requires."""
        import torch

        pixels = (images.detach().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        rewards = []
        for image in pixels:
            time.sleep(self.sleep_s)
            rewards.append(-jpeg_kb(image))
        self.means.append(sum(rewards) / len(rewards))
        return torch.tensor(rewards), {}


def jpeg_kb(image: Any) -> float:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.tell() / 1000


def build_trainer(options: argparse.Namespace, reward: JpegReward) -> Any:
    from accelerate import PartialState

    PartialState(cpu=True)  # before the pipeline: TRL logs through accelerate while it is built
    from trl import DDPOConfig, DDPOTrainer, DefaultDDPOStableDiffusionPipeline

    prompts = [line for line in options.prompts.read_text().splitlines() if line]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "pipeline"
        legacy_pipeline.convert(options.pipeline, folder)
        pipeline = DefaultDDPOStableDiffusionPipeline(str(folder), use_lora=False)
    legacy_pipeline.check_same(pipeline.sd_pipeline, options.pipeline, prompts)

    config = DDPOConfig(
        seed=options.seed,
        log_with=None,
        mixed_precision="no",
        accelerator_kwargs={"cpu": True},
        num_epochs=options.epochs,
        save_freq=options.epochs + 1,  # never: only training is measured
        sample_num_steps=NUM_STEPS,
        sample_guidance_scale=GUIDANCE,
        sample_batch_size=options.batch,
        sample_num_batches_per_epoch=1,
        train_batch_size=options.batch,
        train_gradient_accumulation_steps=1,
        train_learning_rate=options.learning_rate,
        train_timestep_fraction=TRAINED_FRACTION,
        per_prompt_stat_tracking=False,
        async_reward_computation=False,  # in this release it raises AttributeError
    )
    next_prompt = itertools.cycle(prompts)
    trainer = DDPOTrainer(config, reward, lambda: (next(next_prompt), {}), pipeline)
    pipeline.set_progress_bar_config(disable=True)
    return trainer


def measure(options: argparse.Namespace) -> Figures:
    import torch

    torch.set_num_threads(options.threads)
    reward = JpegReward(options.reward_sleep_s)
    trainer = build_trainer(options, reward)

    step = trainer.step(0, 0)
    first_update_s = time.time() - process_started()
    wall_s, cpu_s = timed(lambda: steady_epochs(trainer, step, options.epochs))

    samples = options.batch * (options.epochs - 1)
    return Figures(
        peer="trl 0.23.1 DDPOTrainer",
        threads=options.threads,
        reward_sleep_s=options.reward_sleep_s,
        samples=samples,
        wall_s=round(wall_s, 3),
        cpu_s=round(cpu_s, 3),
        samples_per_s=round(samples / wall_s, 3),
        samples_per_s_per_core=round(samples / wall_s / options.threads, 3),
        samples_per_cpu_s=round(samples / cpu_s, 3),
        first_update_s=round(first_update_s, 2),
        peak_rss_mb=round(peak_rss_mb(), 1),
        rewards=[round(mean, 4) for mean in reward.means],
    )


def steady_epochs(trainer: Any, step: int, epochs: int) -> None:
    for epoch in range(1, epochs):
        step = trainer.step(epoch, step)


def timed(work: Callable[[], None]) -> tuple[float, float]:
    """Return (wall seconds, CPU seconds of this process) of the work."""
    wall, cpu = time.monotonic(), time.process_time()
    work()
    return time.monotonic() - wall, time.process_time() - cpu


def process_started() -> float:
    """Return the start time of this process, in seconds since 1970."""
    import psutil

    return psutil.Process().create_time()


def peak_rss_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pipeline", type=Path, required=True, help="a diffusers Stable Diffusion folder")
    parser.add_argument("--prompts", type=Path, required=True, help="a text file, one prompt a line, used in turn")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=11, help="the first one is not timed")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--reward-sleep-s", type=float, default=0.0, help="for each image")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.epochs < 2:
        parser.error(f"--epochs must be at least 2, since the first is not timed; got {options.epochs}")
    return options


def main() -> None:
    options = parse()
    # torch and tokenizers read these variables once, when they are imported.
    os.environ |= {"OMP_NUM_THREADS": str(options.threads), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    print(json.dumps(asdict(measure(options))))


if __name__ == "__main__":
    main()
