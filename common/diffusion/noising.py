"""Noising paths x_t = a(t) x0 + s(t) noise, and the noising of latents along them.

Coefficients are float64: step variances are differences of nearly equal numbers, and float32 leaves four digits of
them at the last steps. They are [B], so this costs nothing; `over` casts them to the latents' own dtype.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from drover.common.diffusion.spacing import END, DistilledEvenly, Leading, Linear, Linspace, Spacing, Trailing, spaced
from drover.common.errors import ConfigError
from drover.common.protocols import Schedule

if TYPE_CHECKING:
    from torch import Tensor

Final = Literal["first", "clean"]
EVEN_STEPS = (
    "DDIMScheduler",
    "PNDMScheduler",
)  # their steps go from t to t - T // n, even if they visit another time next
DISTILLED = ("LCMScheduler", "TCDScheduler")  # of models that know only some of the times


@dataclass(frozen=True, slots=True, eq=False)
class DiscreteSchedule:
    """A variance-preserving path over integer times 0..T-1: a^2 = alphas_cumprod[t], s^2 = 1 - a^2.

    ``final`` is the position of negative times: "first" at alphas_cumprod[0], so that every step keeps some noise (Stable
    Diffusion's set_alpha_to_one=False), or "clean" at a = 1, s = 0, where the last step has no density. ``spacing`` is that
    of the checkpoint.
    """

    alphas_cumprod: Tensor  # [T] float64, falling
    final: Final = "first"
    spacing: Spacing = field(default_factory=Leading)

    @classmethod
    def scaled_linear(
        cls, start: float = 0.00085, end: float = 0.012, num_times: int = 1000, final: Final = "first"
    ) -> DiscreteSchedule:
        """The schedule of Stable Diffusion, whose betas are linear in their square roots."""
        return cls.from_betas(_scaled_linear(start, end, num_times), final)

    @classmethod
    def from_betas(cls, betas: Tensor, final: Final = "first") -> DiscreteSchedule:
        """The schedule with these variances added at each time, [T] in (0, 1)."""
        return cls((1 - betas.double()).cumprod(0), final)

    @classmethod
    def from_diffusers(cls, config: Mapping[str, Any]) -> DiscreteSchedule:
        """The schedule of a diffusers scheduler's config. Raises `ConfigError` for settings that no Gaussian step can follow."""
        _refuse_unsupported(config)
        alphas_cumprod = cls.from_betas(_betas(config)).alphas_cumprod
        return cls(alphas_cumprod, _final(config), _spacing(config))

    @property
    def num_times(self) -> int:
        return len(self.alphas_cumprod)

    def times(self, num_steps: int, spacing: Spacing | None = None) -> tuple[int, ...]:
        return spaced(self, spacing or self.spacing, num_steps, first=self.num_times - 1, end=END)

    def coefficients(self, time: Tensor) -> tuple[Tensor, Tensor]:
        """(a [B], s [B]) float64 at integer times [B] on the time's device; a negative time is `final`."""
        import torch

        end = self.alphas_cumprod[:1] if self.final == "first" else torch.ones(1, dtype=torch.float64)
        # The end of the path is stored behind the last time, where index -1 finds it.
        table = torch.cat([self.alphas_cumprod, end]).to(time.device)
        alpha = table[time.long().clamp(min=-1)]
        return alpha.sqrt(), (1 - alpha).sqrt()


@dataclass(frozen=True, slots=True)
class FlowSchedule:
    """The straight path a = 1 - t, s = t of rectified flow, with times 0..num_times for t in 0..1.

    Models such as SD3 are conditioned on 1000 t, hence the default. A negative time is clean, like 0.
    """

    num_times: int = 1000
    spacing: Spacing = field(default_factory=Linear)

    def times(self, num_steps: int, spacing: Spacing | None = None) -> tuple[int, ...]:
        return spaced(self, spacing or self.spacing, num_steps, first=self.num_times, end=0)

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


def _final(config: Mapping[str, Any]) -> Final:
    """The end of the scheduler's path: as its config says for DDIM, and clean for schedulers that read no such setting.

    Leading times, the last of which is 1, may end at alphas_cumprod[0] under any scheduler: the remaining noise is
    invisible, and it gives the last step a density.
    """
    told = _named_spacing(config) == "leading" or _kind(config) in EVEN_STEPS
    return "clean" if not told or config.get("set_alpha_to_one", False) else "first"


def _kind(config: Mapping[str, Any]) -> str:
    # Configs keep settings of other schedulers from which they were made; the class decides the ones that are used.
    return str(config.get("_class_name", "DDIMScheduler"))


def _named_spacing(config: Mapping[str, Any]) -> str:
    return str(config.get("timestep_spacing", "leading"))


def _spacing(config: Mapping[str, Any]) -> Spacing:
    """The spacing of the scheduler's own times.

    Raises `ConfigError` for an unknown spacing, and for one that the scheduler itself does not follow.
    """
    if _kind(config) in DISTILLED:
        return DistilledEvenly(config["original_inference_steps"])
    match _named_spacing(config):
        case "leading":
            return Leading(config.get("steps_offset", 1))
        case "trailing":
            return Trailing()
        case "linspace" if _kind(config) not in EVEN_STEPS:
            return Linspace()
        case "linspace":
            raise ConfigError(
                f"the scheduler is a {_kind(config)} with timestep_spacing 'linspace', whose steps of T // n leave "
                'the times it names: the model would be told wrong noise levels; set "timestep_spacing": "trailing" or '
                '"leading" in scheduler/scheduler_config.json'
            )
        case other:
            raise ConfigError(f"timestep_spacing {other!r} is none of 'leading', 'trailing' and 'linspace'")


def _refuse_unsupported(config: Mapping[str, Any]) -> None:
    for setting in ("clip_sample", "thresholding", "rescale_betas_zero_snr"):
        if config.get(setting, False):
            raise ConfigError(
                f"the scheduler config sets {setting}=True, which a denoising step as a Gaussian cannot follow; "
                f'set "{setting}": false in scheduler/scheduler_config.json if the model was not trained to need it'
            )
