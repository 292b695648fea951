"""The shared seams. Everything that has two implementations, or is used by two roles, is one of these.

Axes: B batch of latents, ... latent axes, L tokens, D features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from drover.common.prompts import Prompt
from drover.common.types import Message

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor, nn

    from drover.common.diffusion.chain import Chain
    from drover.common.diffusion.gaussian import Gaussian
    from drover.common.diffusion.spacing import Spacing
    from drover.common.media.media import Media

# ---------------------------------------------------------------------------------------------- models


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a denoiser believes at (x, time), free of its parameterisation: x = a x0 + s noise."""

    x0: Tensor  # [B, ...]
    noise: Tensor  # [B, ...]


class Schedule(Protocol):
    """The noising path x_t = a(t) x0 + s(t) noise. Times are integers or floats in the model's own unit."""

    @property
    def num_times(self) -> int:
        """The model was trained on times 0 .. num_times - 1."""

    def times(self, num_steps: int, spacing: Spacing | None = None) -> tuple[int, ...]:
        """[num_steps + 1] strictly falling times of a chain; the last is the end of the path.

        Without a ``spacing`` they are those that the checkpoint's own sampler visits. Raises `ConfigError` for steps or a
        spacing that do not fit the path.
        """

    def coefficients(self, time: Tensor) -> tuple[Tensor, Tensor]:
        """(a [B], s [B]) in float64 at ``time`` [B]. A negative time is the end of the path, as the model defines it.

        Float64, as step variances cancel in float32; `drover.common.diffusion.noising.over` brings them to the latents' dtype.
        """


Conditioning = Mapping[str, "Tensor"]
"""What a policy conditions on: named tensors whose first axis is the batch, so rows can be picked and repeated."""


class Policy(Protocol):
    """A denoiser with its conditioning and its decoder. No loop, no loss."""

    @property
    def schedule(self) -> Schedule: ...

    @property
    def latent_shape(self) -> tuple[int, ...]: ...

    @property
    def parts(self) -> int:
        """How many parts of a sample can be judged apart: 1, or the size of the first latent axis (frames, agents)."""

    @property
    def trainable(self) -> nn.Module:
        """The module that learns. Its parameters with ``requires_grad`` are what is published and saved."""

    @property
    def empty(self) -> str | None:
        """The name of the empty condition: "" for text. None for a model that guidance cannot be put on."""

    def encode(self, names: Sequence[str]) -> Conditioning:
        """Conditioning rows in the order of the names, without gradient.

        A name is a prompt, or an item of the model's own collection of conditions.
        """

    def predict(self, x: Tensor, time: Tensor, cond: Conditioning) -> Prediction:
        """Prediction at x [B, ...], time [B], under guidance where there is some: samples and densities follow it.

        Float32 whatever the autocast regime.
        """

    def output(self, x: Tensor, time: Tensor, cond: Conditioning) -> Tensor:
        """[B, ...] the network's own output in float32, in the form it was trained to. Without guidance, with gradient."""

    def target(self, x0: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """[B, ...] the output that pretraining regressed on, in float32, for x = a x0 + s noise.

        Raises `ConfigError` for a model that was not trained to denoise.
        """

    def decode(self, x0: Tensor, cond: Conditioning) -> Media:
        """B samples of clean latents [B, ...] under their conditions, of the kind that the model declares. Without gradient."""

    def to_latents(self, media: Media) -> Tensor:
        """Clean latents [B, ...] float32 on the policy's device, of B samples of that kind. Without gradient.

        The inverse of `decode`, up to what the autoencoder loses; for learning from real samples.
        """


class Kernel(Protocol):
    """One denoising step as a distribution; sampling and scoring are the two verbs of what it returns."""

    @property
    def num_steps(self) -> int: ...

    @property
    def stochastic(self) -> bool:
        """Whether its steps have a density. A deterministic kernel samples, but cannot be trained step by step."""

    def times(self, schedule: Schedule) -> tuple[int, ...]:
        """[num_steps + 1] times from noise to clean; step i goes from times[i] to times[i + 1]."""

    def step(self, schedule: Schedule, x: Tensor, time: Tensor, next_time: Tensor, prediction: Prediction) -> Gaussian:
        """Distribution of the next state given x [B, ...] at time [B], in float32."""


# -------------------------------------------------------------------------------------------- sampling


@dataclass(frozen=True, slots=True)
class Draws:
    """The random generators of a batch of samples, one row each."""

    own: Sequence[torch.Generator]  # [B] of the sample alone
    siblings: Sequence[torch.Generator]  # [B] in the same state for all samples of one prompt of one order

    def rows(self, rows: slice) -> Draws:
        return Draws(self.own[rows], self.siblings[rows])


class Start(Protocol):
    """Where chains begin."""

    def begin(
        self, policy: Policy, times: Sequence[int], cond: Conditioning, draws: Draws
    ) -> tuple[Tensor, Sequence[int]]:
        """(x [B, *latent], first step [B]): row i is at ``times[first[i]]`` of a chain of ``times`` [num_steps + 1]."""


class Sampler(Protocol):
    """A description of how samples are drawn, which recipes name. Frozen and cheap."""

    @property
    def kernel(self) -> Kernel: ...

    @property
    def guidance(self) -> float | None:
        """The scale of classifier-free guidance, 1 for none. None is the model's own."""

    def load(self, policy: Policy, device: str) -> Sampling:
        """The procedure with a policy, which it puts its guidance on. Raises `ConfigError` where that is impossible."""


class Sampling(Protocol):
    """A sampler with its policy."""

    @property
    def policy(self) -> Policy:
        """The policy under the sampler's guidance: it encodes and decodes for these samples."""

    def __call__(
        self, cond: Conditioning, draws: Draws, *, prompts: Sequence[str], record: Sequence[int], storage: torch.dtype
    ) -> Chain:
        """One sample per row of ``cond``, which encodes ``prompts`` [B]; without gradient.

        The steps of ``record`` are kept. States are rounded to the dtype ``storage`` before they are scored.
        """


# --------------------------------------------------------------------------------------------- rewards


@dataclass(frozen=True, slots=True)
class Scores:
    """Raw values of a batch. ``reasons[i]`` is "" where the value is valid, else a bounded word for the mask's cause.

    ``parts`` judge a sample in pieces, as the frames of a clip; ``features`` describe it, for statistics over many
    samples. Both come beside the values. The server masks what is not finite, whatever ``reasons`` say.
    """

    values: Sequence[float]  # [N], the reward's own unit
    reasons: Sequence[str] | None = None  # [N]; None: all valid
    uncertainty: Sequence[float] | None = None  # [N], in the unit of the values
    parts: np.ndarray | None = None  # [N, S] float32, in the unit of the values
    features: np.ndarray | None = None  # [N, D] float32


class Scorer(Protocol):
    def __call__(self, prompts: Sequence[Prompt], media: Any) -> Scores:
        """Score N samples, media of the kind that the reward takes, against their N prompts.

        Raises `ScoringFailed` when the whole batch is lost.
        """


@runtime_checkable
class SetScorer(Protocol):
    """A scorer whose value is a property of all samples of a prompt together."""

    def score_sets(self, prompts: Sequence[Prompt], media: Any, sets: Sequence[slice]) -> Scores:
        """As `Scorer`, for N samples in whole sets: each slice of rows holds all samples of one prompt in one group."""


@runtime_checkable
class Reward(Protocol):
    """A cheap, frozen description; the weights arrive with ``load``."""

    @property
    def name(self) -> str: ...

    @property
    def takes(self) -> type[Media]:
        """The kind of media that it scores."""

    def load(self, device: str) -> Scorer | SetScorer: ...


@runtime_checkable
class NeedsPackages(Protocol):
    """A reward that runs in an environment of its own, because drover is not installed with what it needs."""

    @property
    def packages(self) -> tuple[str, ...]:
        """pip requirements, beside what drover itself is installed with."""


# ----------------------------------------------------------------------------------------------- files


@dataclass(frozen=True, slots=True)
class FileBatch:
    """Examples from files: media with their conditions. Of pairs, all preferred media come first, then the others in order."""

    media: Media  # [A B] rows of the kind that the model draws
    names: Sequence[str]  # [A B] prompts, or names of the model's conditions
    weight: np.ndarray | None = None  # [B, S]; None: 1 for each sample


class FileSource(Protocol):
    """Opened files. Resuming needs no cursor: the step is the position."""

    @property
    def skipped(self) -> Mapping[str, int]:
        """Bad records met so far, by reason; each is counted once."""

    def batch(self, step: int, size: int) -> FileBatch:
        """Batch number ``step`` of ``size`` examples, a pure function of both.

        Rank r of R takes its part of the batch of all ranks with ``batch(step * R + r, size // R)``.
        """


class Files(Protocol):
    """A cheap, frozen description of examples; files are opened with ``open``, by the rank that learns from them."""

    def open(self, seed: int) -> FileSource:
        """Raises `ConfigError` when there is nothing to read."""


# ------------------------------------------------------------------------------------------- transport


@dataclass(frozen=True, slots=True)
class Delivery:
    """One message handed to one consumer. ``attempt`` is 1 the first time and rises with each reclaim."""

    id: str
    message: Message
    attempt: int


class Stream(Protocol):
    """At-least-once delivery to consumer groups. What is taken and never acknowledged is delivered again.

    A stream object belongs to one consumer of one group; ``put`` alone needs no group.
    """

    def put(self, message: Message) -> None: ...

    def take(self, limit: int, wait_s: float) -> list[Delivery]:
        """Up to ``limit`` deliveries; waits at most ``wait_s`` for the first. Undecodable entries go to the dead."""

    def ack(self, delivery: Delivery) -> None:
        """The product of this message is durable. Acknowledging twice is harmless."""

    def hand_back(self, delivery: Delivery) -> None:
        """Give it back unfinished, for immediate redelivery to another consumer."""

    def bury(self, delivery: Delivery, reason: str) -> None:
        """Move it to the dead-letter stream with the reason, and acknowledge it."""

    def backlog(self) -> tuple[int, float]:
        """(entries this group has not acknowledged or not yet been given, age in seconds of the oldest; 0 when none)."""

    def outstanding(self) -> int:
        """Entries that some group has not acknowledged, or that no group reads yet. 0: nobody works on anything put here."""

    def clear(self) -> None:
        """Forget all entries and pending deliveries; consumers go on with what comes next."""

    def close(self) -> None:
        """Hand back everything taken and not acknowledged; stop the lease heartbeat."""


class BlobStore(Protocol):
    """Bytes by id, with a lifetime. Ids are scoped to the run."""

    def put(self, blob: str, parts: Sequence[bytes | memoryview]) -> None:
        """Store the concatenation of parts."""

    def get(self, blob: str, offset: int = 0, nbytes: int | None = None) -> bytes:
        """Those bytes. Raises `BlobMissing`."""

    def drop(self, blobs: Sequence[str]) -> None: ...

    def sweep(self, part: str) -> None:
        """Drop every blob with ``part`` in its id (letters, digits and dots)."""


# --------------------------------------------------------------------------------------------- weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Canary:
    """Proof of a sync: `drover.common.diffusion.canary` of the published weights, and how far it may be off."""

    value: float
    tolerance: float


class WeightPublisher(Protocol):
    @property
    def floor(self) -> int:
        """The newest version a former life of the learner published, -1 without one. Numbers are never used twice."""

    def publish(self, version: int, tensors: Mapping[str, torch.Tensor], canary: Canary | None) -> None:
        """Make ``version`` available. Everything is in place before the version pointer moves."""

    def pin(self, version: int) -> None:
        """Keep ``version`` to be loaded until `unpin`, however many follow it. Raises `WeightsLost` when it is gone.

        Pins add up; they end with the publisher's process.
        """

    def unpin(self, version: int) -> None:
        """Undo one `pin`: the version goes as soon as it is none of the newest."""


class WeightSubscriber(Protocol):
    def latest(self) -> int:
        """The newest published version; -1 before the first."""

    def load(self, version: int, into: nn.Module) -> Canary | None:
        """Copy that version into the module's parameters in place, every checksum checked.

        Raises `WeightsLost` when that version is no longer to be had, and `WeightSyncFailed` when a tensor is missing,
        unknown, of another shape, or damaged; nothing is bound then.
        """


# --------------------------------------------------------------------------------------------- metrics


class Meter(Protocol):
    """Where roles report. Metrics are declared in `common/metrics.py`; labels are bounded sets, never ids."""

    def add(self, metric: object, value: float = 1.0, **labels: str) -> None:
        """Counter: increase. Histogram: observe."""

    def set(self, metric: object, value: float, **labels: str) -> None:
        """Gauge: set."""
