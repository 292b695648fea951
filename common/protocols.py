"""The seams that roles share: the protocols of everything that has two implementations or is used by two roles.

Axes: B batch of latents, ... latent axes, L tokens, D features.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
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
    """A denoiser's estimate at (x, time), independent of its parameterisation: x = a x0 + s noise."""

    x0: Tensor  # [B, ...]
    noise: Tensor  # [B, ...]


class Schedule(Protocol):
    """The noising path x_t = a(t) x0 + s(t) noise. Times are integers or floats in the model's own unit."""

    @property
    def num_times(self) -> int:
        """The number of the model's times, 0 .. num_times - 1, on which it was trained."""

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
"""The conditions of a batch: named tensors whose first axis is the batch, so rows can be picked and repeated."""


class Policy(Protocol):
    """A denoiser with its conditioning and its decoder. No loop, no loss."""

    @property
    def schedule(self) -> Schedule: ...

    @property
    def latent_shape(self) -> tuple[int, ...]: ...

    @property
    def parts(self) -> int:
        """The number of parts of a sample: 1, or the size of the first latent axis (frames, agents)."""

    @property
    def trainable(self) -> nn.Module:
        """The module that learns. Its parameters with ``requires_grad`` are published and saved."""

    @property
    def empty(self) -> str | None:
        """The name of the empty condition: "" for text. None for a model that cannot be guided."""

    def encode(self, names: Sequence[str]) -> Conditioning:
        """Conditioning rows in the order of the names, without gradient.

        A name is a prompt, or an item of the model's own collection of conditions.
        """

    def predict(self, x: Tensor, time: Tensor, cond: Conditioning) -> Prediction:
        """Prediction at x [B, ...], time [B], with the policy's guidance if it has any: samples and densities use it.

        Float32 under any autocast regime.
        """

    def output(self, x: Tensor, time: Tensor, cond: Conditioning) -> Tensor:
        """[B, ...] the network's own output in float32, as it was pretrained to put out. Without guidance, with gradient."""

    def target(self, x0: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """[B, ...] the regression target of pretraining, in float32, for x = a x0 + s noise.

        Raises `ConfigError` for a model that was not trained to denoise.
        """

    def decode(self, x0: Tensor, cond: Conditioning) -> Media:
        """The media, B samples of the model's kind, of clean latents [B, ...] with their conditions. Without gradient."""

    def to_latents(self, media: Media) -> Tensor:
        """Clean latents [B, ...] float32 on the policy's device, of B samples of the model's kind. Without gradient.

        The inverse of `decode`, up to the loss of the autoencoder; for learning from real samples.
        """


class Kernel(Protocol):
    """Gives one denoising step as a `Gaussian`, from which actors sample and by which the learner scores."""

    @property
    def num_steps(self) -> int: ...

    @property
    def stochastic(self) -> bool:
        """Whether the steps have a density. A deterministic kernel samples, but cannot be trained step by step."""

    def times(self, schedule: Schedule) -> tuple[int, ...]:
        """[num_steps + 1] times from noise to clean; step i goes from times[i] to times[i + 1]."""

    def step(self, schedule: Schedule, x: Tensor, time: Tensor, next_time: Tensor, prediction: Prediction) -> Gaussian:
        """Distribution of the next state given x [B, ...] at time [B], in float32."""


# -------------------------------------------------------------------------------------------- sampling


@dataclass(frozen=True, slots=True)
class Draws:
    """The random generators of a batch of samples, two for each row."""

    own: Sequence[torch.Generator]  # [B] for the sample alone
    siblings: Sequence[torch.Generator]  # [B] in the same state for all samples of one prompt of one order

    def rows(self, rows: slice) -> Draws:
        return Draws(self.own[rows], self.siblings[rows])


class Start(Protocol):
    """Gives the first state of each chain, and the step at which the chain begins."""

    def begin(
        self, policy: Policy, times: Sequence[int], cond: Conditioning, draws: Draws
    ) -> tuple[Tensor, Sequence[int]]:
        """(x [B, *latent], first step [B]): row i is at ``times[first[i]]`` of a chain of ``times`` [num_steps + 1]."""


class Sampler(Protocol):
    """The description of a procedure that draws samples, as recipes name it. Frozen; holds no policy."""

    @property
    def kernel(self) -> Kernel: ...

    @property
    def guidance(self) -> float | None:
        """The scale of classifier-free guidance, 1 for none; None for the model's own scale."""

    def load(self, policy: Policy, device: str) -> Sampling:
        """The procedure for a policy under this guidance. Raises `ConfigError` for a policy that cannot be guided."""


class Sampling(Protocol):
    """A sampler with its policy: it turns noise into clean latents."""

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
    """The raw values of a batch. ``reasons[i]`` is "" where the value is valid, else one of few words for the mask's cause.

    ``parts`` has a value for each part of a sample, such as a frame of a clip; ``features`` describe it, for statistics over
    many samples. Both come beside the values. The server masks values that are not finite, even without a reason.
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
    """A scorer that judges all samples of a prompt together."""

    def score_sets(self, prompts: Sequence[Prompt], media: Any, sets: Sequence[slice]) -> Scores:
        """Score N samples as `Scorer` does. Each slice in ``sets`` holds the rows of all samples of one prompt in a group."""


@runtime_checkable
class Reward(Protocol):
    """The description of a reward, as recipes name it. Frozen; ``load`` loads the weights."""

    @property
    def name(self) -> str: ...

    @property
    def takes(self) -> type[Media]:
        """The kind of media that it scores."""

    def load(self, device: str) -> Scorer | SetScorer: ...


@runtime_checkable
class NeedsPackages(Protocol):
    """A reward that runs in an environment of its own, because drover is installed without the packages it needs."""

    @property
    def packages(self) -> tuple[str, ...]:
        """pip requirements, in addition to drover's own."""


# ----------------------------------------------------------------------------------------------- files


@dataclass(frozen=True, slots=True)
class FileBatch:
    """Examples from files: media with their conditions. Of pairs, all preferred media come first, then the others in order."""

    media: Media  # [A B] rows of the kind that the model draws
    names: Sequence[str]  # [A B] prompts, or names of the model's conditions
    weight: np.ndarray | None = None  # [B, S]; None: 1 for each sample


class FileSource(Protocol):
    """Opened files, read batch by batch. Resuming needs no cursor: the step is the position."""

    @property
    def skipped(self) -> Mapping[str, int]:
        """The number of bad records read so far, by reason; each is counted once."""

    def batch(self, step: int, size: int) -> FileBatch:
        """Batch number ``step`` of ``size`` examples, a pure function of both.

        Rank r of R takes its part of the batch of all ranks with ``batch(step * R + r, size // R)``.
        """


class Files(Protocol):
    """The description of examples in files, as recipes name it. Frozen; each rank opens the files with ``open``."""

    def open(self, seed: int) -> FileSource:
        """Open the files. Raises `ConfigError` when there is no example to read."""


# ------------------------------------------------------------------------------------------- transport


@dataclass(frozen=True, slots=True)
class Delivery:
    """One message handed to one consumer. ``attempt`` is 1 the first time and rises with each reclaim."""

    id: str
    message: Message
    attempt: int


class Stream(Protocol):
    """Delivers messages to consumer groups at least once. A message that is taken and never acknowledged comes again.

    A stream object belongs to one consumer of one group; ``put`` alone needs no group.
    """

    def put(self, message: Message) -> None: ...

    def take(self, limit: int, wait_s: float) -> list[Delivery]:
        """Up to ``limit`` deliveries; waits at most ``wait_s`` for the first.

        Entries that cannot be decoded go to the dead-letter stream.
        """

    def ack(self, delivery: Delivery) -> None:
        """Acknowledge a message whose product is stored. Acknowledging twice is harmless."""

    def hand_back(self, delivery: Delivery) -> None:
        """Give a message back unfinished, for immediate redelivery to another consumer."""

    def bury(self, delivery: Delivery, reason: str) -> None:
        """Move a message to the dead-letter stream with the reason, and acknowledge it."""

    def backlog(self) -> tuple[int, float]:
        """(number of entries that this group has not acknowledged, given or not; age in seconds of the oldest, 0 if none)."""

    def outstanding(self) -> int:
        """The number of entries that some group has not acknowledged, or that no group reads yet. 0: no work is left here."""

    def unacknowledged(self) -> list[Message]:
        """The messages of the entries in `outstanding`, oldest first, without those that cannot be decoded. Takes none."""

    def clear(self) -> None:
        """Delete all entries and pending deliveries; consumers go on with later entries."""

    def close(self) -> None:
        """Hand back all messages that were taken and not acknowledged; stop the lease heartbeat."""


class BlobStore(Protocol):
    """Stores bytes by id for a limited time. Ids are scoped to the run."""

    def put(self, blob: str, parts: Sequence[bytes | memoryview]) -> None:
        """Store the concatenation of the parts."""

    def get(self, blob: str, offset: int = 0, nbytes: int | None = None) -> bytes:
        """The ``nbytes`` bytes from ``offset`` on, by default to the end. Raises `BlobMissing`."""

    def drop(self, blobs: Sequence[str]) -> None: ...

    def sweep(self, part: str, keep: Collection[str] = ()) -> None:
        """Drop every blob with ``part`` in its id (letters, digits and dots), except those to ``keep``."""


# --------------------------------------------------------------------------------------------- weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Canary:
    """The canary of published weights (`drover.common.diffusion.canary`), and the tolerance for an actor's own value."""

    value: float
    tolerance: float


class WeightPublisher(Protocol):
    @property
    def floor(self) -> int:
        """The newest version published before this learner process began; -1 without one. Numbers are never used twice."""

    def publish(self, version: int, tensors: Mapping[str, torch.Tensor], canary: Canary | None) -> None:
        """Make ``version`` available. The version pointer moves last, when the weights are in place."""

    def pin(self, version: int) -> None:
        """Keep ``version`` until `unpin`, even when many newer ones follow. Raises `WeightsLost` when it is gone.

        Pins add up; they end with the publisher's process.
        """

    def unpin(self, version: int) -> None:
        """Undo one `pin`. A version without pins is dropped once it is none of the newest."""


class WeightSubscriber(Protocol):
    def latest(self) -> int:
        """The newest published version; -1 before the first."""

    def load(self, version: int, into: nn.Module) -> Canary | None:
        """Copy a version into the module's parameters in place, after checking every checksum.

        Raises `WeightsLost` when the version has been dropped, and `WeightSyncFailed` when a tensor is missing, unknown, of
        another shape, or damaged; then no parameter is changed.
        """


# --------------------------------------------------------------------------------------------- metrics


class Meter(Protocol):
    """Takes the metrics that roles report. They are declared in `common/metrics.py`; labels are bounded sets, never ids."""

    def add(self, metric: object, value: float = 1.0, **labels: str) -> None:
        """Counter: increase. Histogram: observe."""

    def set(self, metric: object, value: float, **labels: str) -> None:
        """Gauge: set."""
