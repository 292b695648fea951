"""A flow-matching transformer as policy: a tiny random `SD3Transformer2DModel`, trained by Flow-GRPO (arXiv 2505.05470)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from drover.actors.sampler import Plain
from drover.common.diffusion.kernels.euler_maruyama import EulerMaruyama, FlowGrpo
from drover.common.diffusion.noising import FlowSchedule
from drover.common.diffusion.prediction import Parameterisation, to_output, to_prediction
from drover.common.diffusion.spacing import Linear
from drover.common.media.media import Media
from drover.common.media.pictures import Pictures
from drover.common.protocols import Conditioning, Prediction, Scores
from drover.deploy.config import Pools, RunConfig
from drover.learner.intake.evaluation import EvaluationSpec
from drover.learner.intake.tasks import RecordSteps, Task
from drover.learner.objectives.ddpo import Ddpo
from drover.learner.step import OptimizerSpec

WIDTH, TOKENS = 16, 4


class FlowTransformer:
    """Latents [4, 8, 8] are the pixels of a grey picture, four to a place; text is a random embedding of each prompt."""

    latent_shape, parts, empty = (4, 8, 8), 1, ""

    def __init__(self) -> None:
        from diffusers import SD3Transformer2DModel

        self.schedule = FlowSchedule()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.transformer: Any = SD3Transformer2DModel(
                sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8,
                num_attention_heads=2, joint_attention_dim=WIDTH, caption_projection_dim=16,
                pooled_projection_dim=WIDTH, pos_embed_max_size=8,
            ).eval()  # fmt: skip
            for parameter in self.transformer.proj_out.parameters():
                nn.init.normal_(parameter, std=0.05)

    @property
    def trainable(self) -> nn.Module:
        module: nn.Module = self.transformer
        return module

    def encode(self, names: Sequence[str]) -> Conditioning:
        text = torch.stack([_embedding(name) for name in names])
        return {"text": text, "pooled": text.mean(dim=1)}

    def predict(self, x: Tensor, time: Tensor, cond: Conditioning) -> Prediction:
        return to_prediction(Parameterisation.FLOW, self.schedule, x, time, self.output(x, time, cond))

    def output(self, x: Tensor, time: Tensor, cond: Conditioning) -> Tensor:
        given = {"encoder_hidden_states": cond["text"], "pooled_projections": cond["pooled"], "timestep": time.float()}
        output: Tensor = self.transformer(x.float(), **given).sample
        return output

    def target(self, x0: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        return to_output(Parameterisation.FLOW, self.schedule, time, Prediction(x0=x0, noise=noise))

    def decode(self, x0: Tensor, cond: Conditioning) -> Pictures:
        grey = nn.functional.pixel_shuffle(x0.detach().float(), 2)  # [B, 1, 16, 16]
        levels = ((grey.clamp(-2, 2) + 2) / 4 * 255).round().byte().permute(0, 2, 3, 1).numpy()
        return Pictures(np.repeat(levels, 3, axis=3))

    def to_latents(self, media: Media) -> Tensor:
        assert isinstance(media, Pictures)
        grey = torch.from_numpy(media.pixels[..., :1].copy()).permute(0, 3, 1, 2) / 255 * 4 - 2
        return nn.functional.pixel_unshuffle(grey, 2)


def _embedding(name: str) -> Tensor:
    seed = int.from_bytes(blake2b(name.encode(), digest_size=4).digest(), "little")
    return torch.randn(TOKENS, WIDTH, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True, slots=True)
class FlowModel:
    media: ClassVar[type[Media]] = Pictures
    adapters: ClassVar[bool] = False
    compute: ClassVar[str] = "float32"

    def check(self) -> None: ...

    def build(self, device: str) -> FlowTransformer:
        return FlowTransformer()

    def save(self, weights: Mapping[str, Tensor], folder: Path) -> Path:
        policy = FlowTransformer()
        policy.transformer.load_state_dict(dict(weights), strict=False)
        policy.transformer.save_pretrained(folder / "transformer", safe_serialization=True)
        return folder / "transformer"


@dataclass(frozen=True, slots=True)
class Brightness:
    """Mean grey level, 0 to 1."""

    name: str = "brightness"
    takes: ClassVar[type[Media]] = Pictures

    def load(self, device: str):
        def score(prompts: Sequence[str], media: Pictures) -> Scores:
            return Scores([float(picture.mean()) / 255 for picture in media.pixels])

        return score


def recipe(*, iterations: int = 12) -> RunConfig:
    """Pictures get brighter."""
    prompts = ("a lamp", "the sun")
    return RunConfig(
        recipe="flow_transformer",
        model=FlowModel(),
        sampler=Plain(EulerMaruyama(6, FlowGrpo(eta=0.7), Linear(shift=3.0))),
        rewards=(Brightness(),),
        objective=Ddpo(weights={"brightness": 1.0}, clip=1e-2, normalise="group"),
        tasks=(Task(name="bright", prompts=prompts, rewards=("brightness",)),),
        heldout=(EvaluationSpec(name="bright", prompts=prompts, samples_per_prompt=16, rewards=("brightness",)),),
        record=RecordSteps(count=3, first=5),
        optimizer=OptimizerSpec(lr=3e-3, weight_decay=0.0),
        iterations=iterations, groups=2, samples=16, batch_size=48, max_lag=0, pools=Pools(), seed=0,
    )  # fmt: skip
