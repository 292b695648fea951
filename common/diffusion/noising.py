"""Noising paths x_t = a(t) x0 + s(t) noise, and putting latents on them.

Coefficients are float64: step variances are differences of nearly equal numbers, and float32 leaves four digits of
them at the last steps. They are [B], so this costs nothing; `over` brings them to the latents' own dtype.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from drover.common.errors import ConfigError
from drover.common.protocols import Schedule

if TYPE_CHECKING:
    from torch import Tensor

Final = Literal["first", "clean"]


@dataclass(frozen=True, slots=True, eq=False)
class DiscreteSchedule:
    """A variance-preserving path over integer times 0..T-1: a^2 = alphas_cumprod[t], s^2 = 1 - a^2.

    ``final`` says where a negative time lies: "first" at alphas_cumprod[0], so that every step keeps some noise (Stable
    Diffusion's set_alpha_to_one=False), or "clean" at a = 1, s = 0, where the last step has no density.
    """

    alphas_cumprod: Tensor  # [T] float64, falling
    final: Final = "first"

    @classmethod
    def scaled_linear(
        cls, start: float = 0.00085, end: float = 0.012, num_times: int = 1000, final: Final = "first"
    ) -> DiscreteSchedule:
        """Stable Diffusion's betas: linear in their square roots."""
        return cls.from_betas(_scaled_linear(start, end, num_times), final)

    @classmethod
    def from_betas(cls, betas: Tensor, final: Final = "first") -> DiscreteSchedule:
        """From the variances added at each time, [T] in (0, 1)."""
        return cls((1 - betas.double()).cumprod(0), final)

    @classmethod
    def from_diffusers(cls, config: Mapping[str, Any]) -> DiscreteSchedule:
        """From the config of a diffusers scheduler. Raises `ConfigError` for settings no Gaussian step can follow."""
        _refuse_unsupported(config)
        final: Final = "clean" if config.get("set_alpha_to_one", False) else "first"
        return cls.from_betas(_betas(config), final)

    @property
    def num_times(self) -> int:
        return len(self.alphas_cumprod)

    def coefficients(self, time: Tensor) -> tuple[Tensor, Tensor]:
        """(a [B], s [B]) float64 at integer times [B] on the time's device; a negative time is `final`."""
        import torch

        end = self.alphas_cumprod[:1] if self.final == "first" else torch.ones(1, dtype=torch.float64)
        # The end of the path sits behind the last time, where index -1 finds it.
        table = torch.cat([self.alphas_cumprod, end]).to(time.device)
        alpha = table[time.long().clamp(min=-1)]
        return alpha.sqrt(), (1 - alpha).sqrt()


@dataclass(frozen=True, slots=True)
class FlowSchedule:
    """The straight path a = 1 - t, s = t of rectified flow, with times 0..num_times for t in 0..1.

    Models such as SD3 are conditioned on 1000 t, hence the default. A negative time is clean, like 0.
    """

    num_times: int = 1000

    def coefficients(self, time: Tensor) -> tuple[Tensor, Tensor]:
        """(a [B], s [B]) float64 at times [B], integers or floats."""
        level = (time.double() / self.num_times).clamp(min=0)
        return 1 - level, level


def over(coefficient: Tensor, x: Tensor) -> Tensor:
    """A coefficient [B] as [B, 1, ...] to multiply x [B, ...] with, in x's dtype but at least float32."""
    import torch

    dtype = torch.promote_types(x.dtype, torch.float32)
    return coefficient.to(x.device, dtype).reshape(-1, *[1] * (x.ndim - 1))


def corrupt(schedule: Schedule, x0: Tensor, noise: Tensor, time: Tensor) -> Tensor:
    """x_t [B, ...] = a x0 + s noise at time [B], at least float32."""
    a, s = schedule.coefficients(time)
    return over(a, x0) * x0 + over(s, x0) * noise


def _scaled_linear(start: float, end: float, num_times: int) -> Tensor:
    import torch

    return torch.linspace(start**0.5, end**0.5, num_times, dtype=torch.float64).square()


def _betas(config: Mapping[str, Any]) -> Tensor:
    import torch

    if config.get("trained_betas") is not None:
        return torch.tensor(config["trained_betas"], dtype=torch.float64)
    start, end, count = config["beta_start"], config["beta_end"], config["num_train_timesteps"]
    match config["beta_schedule"]:
        case "scaled_linear":
            return _scaled_linear(start, end, count)
        case "linear":
            return torch.linspace(start, end, count, dtype=torch.float64)
        case other:
            raise ConfigError(f"beta_schedule {other!r} is neither 'scaled_linear' nor 'linear'; give trained_betas")


def _refuse_unsupported(config: Mapping[str, Any]) -> None:
    for setting in ("clip_sample", "thresholding", "rescale_betas_zero_snr"):
        if config.get(setting, False):
            raise ConfigError(
                f"the scheduler config sets {setting}=True, which a denoising step as a Gaussian cannot follow; "
                f'set "{setting}": false in scheduler/scheduler_config.json if the model was not trained to need it'
            )
