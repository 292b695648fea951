"""The messages between roles. Frozen, one type per stage, no field filled in later. No torch here.

A *group* is the unit of work: all samples of one or several prompts that are judged together. Its stages are
``WorkItem`` -> ``RolloutGroup`` -> one ``Measurement`` per reward -> one ending. Messages carry references;
tensors are stored as blobs (`common/tensors.py`).

Axes in the comments: N samples of a group, K recorded steps, U stored states, S parts of a sample.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from math import prod

from drover.common.prompts import Prompt, with_fields

DTYPE_BYTES = {"uint8": 1, "int64": 8, "float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
MAX_TENSOR_BYTES = 4 << 30  # a larger reference is damaged or malicious, and refused before memory is allocated
MAX_BLOB_BYTES = 256 << 20  # one value of Redis may hold no more than 512 MiB
MAX_RANK = 16
MAX_SAMPLES = 16_384  # of one group


class Purpose(StrEnum):
    """The purpose of a group: training or evaluation."""

    TRAIN = "train"
    EVAL = "eval"


class Stage(StrEnum):
    """The stage at which a group failed."""

    SAMPLE = "sample"
    MEASURE = "measure"


class Ending(StrEnum):
    """The ending of an issued group; each group ends exactly once.

    ``trained``: its examples reached a gradient. ``empty``: measured, but nothing to learn (all rewards equal
    or too few valid). ``failed``: it could not be sampled or scored. ``stale``: sampled with weights older than the bound.
    """

    TRAINED = "trained"
    EMPTY = "empty"
    FAILED = "failed"
    STALE = "stale"


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRef:
    """A reference to a dense, C-ordered tensor inside a blob.

    Example: ``TensorRef(blob="g17.1/latents", dtype="float32", shape=(8, 6, 4, 8, 8), offset=0)``.
    """

    blob: str
    dtype: str
    shape: tuple[int, ...]
    offset: int = 0

    def __post_init__(self) -> None:
        if self.dtype not in DTYPE_BYTES:
            raise ValueError(f"dtype {self.dtype!r} is none of {sorted(DTYPE_BYTES)}")
        if self.offset < 0 or any(size < 0 for size in self.shape):
            raise ValueError(f"offset and shape must not be negative, got offset={self.offset} shape={self.shape}")
        if len(self.shape) > MAX_RANK or any(size > MAX_TENSOR_BYTES for size in self.shape):
            raise ValueError(f"a shape has at most {MAX_RANK} axes of at most {MAX_TENSOR_BYTES} each")
        if self.offset + self.nbytes > MAX_TENSOR_BYTES:
            raise ValueError(f"{self.nbytes} bytes at {self.offset} pass {MAX_TENSOR_BYTES}; use fewer samples a group")

    @property
    def nbytes(self) -> int:
        """Bytes of the referenced tensor."""
        return prod(self.shape) * DTYPE_BYTES[self.dtype]


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaRef:
    """A reference to media inside blobs: for each of their arrays, in the order of their fields, its chunks of rows.

    Example, six pictures in one blob: ``MediaRef(kind="picture", arrays=((TensorRef(blob="g17.1/media", dtype="uint8",
    shape=(6, 64, 64, 3)),),))``. ``facts`` are the plain fields in their order, such as a clip's frames a second.
    """

    kind: str
    arrays: tuple[tuple[TensorRef, ...], ...]
    facts: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        counts = {sum(chunk.shape[0] if chunk.shape else -1 for chunk in chunks) for chunks in self.arrays if chunks}
        forms = [{(chunk.dtype, chunk.shape[1:]) for chunk in chunks} for chunks in self.arrays]
        if len(counts) != 1 or min(counts) < 0 or any(len(form) != 1 for form in forms):
            raise ValueError(
                f"media are arrays of equally many rows, each in chunks of one form; got {list(self.arrays)[:4]}"
            )

    @property
    def num_samples(self) -> int:
        """N."""
        return sum(chunk.shape[0] for chunk in self.arrays[0])

    @property
    def nbytes(self) -> int:
        return sum(chunk.nbytes for chunks in self.arrays for chunk in chunks)

    @property
    def blobs(self) -> tuple[str, ...]:
        """The ids of all referenced blobs, each once."""
        return tuple(dict.fromkeys(chunk.blob for chunks in self.arrays for chunk in chunks))


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkItem:
    """An order for one group, from the learner to the actor that claims it.

    Example: ``WorkItem(epoch=0, group=17, purpose=Purpose.TRAIN, task="composition", rewards=("composition",),
    prompts=("a red circle",), samples_per_prompt=8, seed=4, draw=17, record=(0, 2, 3, 5, 6), fingerprint="9f3c...")``.

    ``epoch`` rises when the learner restarts, so that answers to orders from before the restart are recognised.
    ``group`` rises by one with each order of its purpose and is also the training order. ``seed`` is the run's seed. The
    noise of a sample is derived from (seed, purpose, ``draw``, sample index), never from the actor that samples it. ``draw``
    equals ``group`` in training and counts from 0 in each evaluation, so that evaluations repeat their noise.
    ``record`` lists the indices of the denoising steps to record; ``keep_latents`` asks for the clean
    latents. ``task`` names the task or the held-out set; only ``rewards`` measure the group. ``version`` names the only
    weights that may sample it; None means the newest at the moment an actor begins. ``fields`` are the prompts' fields as
    JSON (`drover.common.prompts`); () where no prompt has any.
    """

    epoch: int
    group: int
    purpose: Purpose
    task: str
    rewards: tuple[str, ...]
    prompts: tuple[str, ...]
    samples_per_prompt: int
    seed: int
    draw: int
    record: tuple[int, ...]
    fingerprint: str
    version: int | None = None
    keep_latents: bool = False
    fields: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_size(self.prompts, self.samples_per_prompt)
        _check_fields(self.prompts, self.fields)

    @property
    def asked(self) -> tuple[Prompt, ...]:
        """The prompts with their fields."""
        return with_fields(self.prompts, self.fields)

    @property
    def num_samples(self) -> int:
        """N. Sample i belongs to prompt ``i // samples_per_prompt``."""
        return len(self.prompts) * self.samples_per_prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Transitions:
    """The recorded denoising steps of a group: only the steps that will be trained.

    Neighbouring steps share a state, so each distinct state is stored once: step k went from
    ``states[:, before[k]]`` to ``states[:, after[k]]``.

    Example (steps 2 and 3 share a state, U = 5): ``steps=(0, 2, 3), times=(901, 701, 601), next_times=(801, 601, 501),
    before=(0, 2, 3), after=(1, 3, 4)``.
    """

    steps: tuple[int, ...]  # [K] indices into the sampler's steps
    times: tuple[int, ...]  # [K] the schedule's own time of each step; the learner checks that it agrees
    next_times: tuple[int, ...]  # [K]
    before: tuple[int, ...]  # [K] indices into U
    after: tuple[int, ...]  # [K] indices into U
    states: TensorRef  # [N, U, *latent]
    log_probs: TensorRef  # [N, K, S] float32, mean nats per latent dimension, of the stored states

    def __post_init__(self) -> None:
        lengths = {len(column) for column in (self.steps, self.times, self.next_times, self.before, self.after)}
        if len(lengths) != 1:
            raise ValueError(f"steps, times, next_times, before and after must be equally long, got {sorted(lengths)}")
        wanted = (*self.states.shape[:1], len(self.steps), *self.log_probs.shape[2:3])
        if len(self.states.shape) < 2 or len(wanted) != 3 or self.log_probs.shape != wanted:
            raise ValueError(
                f"states [N, U, ...] and log_probs [N, {len(self.steps)}, S] disagree: "
                f"got {self.states.shape} and {self.log_probs.shape}"
            )
        if any(not 0 <= index < self.states.shape[1] for index in (*self.before, *self.after)):
            raise ValueError(f"before {self.before} and after {self.after} must index {self.states.shape[1]} states")


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutGroup:
    """A sampled group. ``attempt`` counts the deliveries of its order, from 1."""

    epoch: int
    group: int
    attempt: int
    purpose: Purpose
    task: str
    rewards: tuple[str, ...]  # names of the rewards that measure it
    version: int  # of the weights that sampled it
    prompts: tuple[str, ...]
    samples_per_prompt: int
    fingerprint: str
    media: MediaRef | None  # N rows; rewards read them, the learner never does
    latents: TensorRef | None  # [N, *latent] clean, where the order asked for them
    transitions: Transitions | None
    worker: str
    sampling_s: float
    fields: tuple[str, ...] = ()  # of the prompts, as in the order

    def __post_init__(self) -> None:
        _check_size(self.prompts, self.samples_per_prompt)
        _check_fields(self.prompts, self.fields)
        if self.media is not None and self.media.num_samples != self.num_samples:
            raise ValueError(f"media must have {self.num_samples} rows, one per sample, got {self.media.num_samples}")
        states = None if self.transitions is None else self.transitions.states
        for name, ref in (("latents", self.latents), ("transitions.states", states)):
            if ref is not None and ref.shape[:1] != (self.num_samples,):
                raise ValueError(f"{name} must have {self.num_samples} rows, one per sample, got shape {ref.shape}")

    @property
    def num_samples(self) -> int:
        return len(self.prompts) * self.samples_per_prompt

    @property
    def asked(self) -> tuple[Prompt, ...]:
        """The prompts with their fields."""
        return with_fields(self.prompts, self.fields)

    @property
    def blobs(self) -> tuple[str, ...]:
        """Ids of every blob this group refers to, each once."""
        media = () if self.media is None else self.media.blobs
        return (*media, *self.learned_blobs)

    @property
    def learned_blobs(self) -> tuple[str, ...]:
        """Ids of the blobs that the learner reads, each once."""
        refs = [self.latents]
        if self.transitions is not None:
            refs += [self.transitions.states, self.transitions.log_probs]
        return tuple(dict.fromkeys(ref.blob for ref in refs if ref is not None))


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One reward's answer for one group: raw values, before any objective judges them.

    ``values[i]`` is meaningful only where ``valid[i]``; ``reasons[i]`` is the cause of an invalid value
    ("" where valid): ``nan``, ``error``, ``missing`` or one of the reward's own few words.
    """

    epoch: int
    group: int
    attempt: int
    purpose: Purpose
    reward: str
    values: tuple[float, ...]  # [N]
    valid: tuple[bool, ...]  # [N]
    reasons: tuple[str, ...]  # [N]
    uncertainty: tuple[float, ...] | None  # [N], same unit as values
    worker: str
    scoring_s: float
    waited_s: float  # from the group's arrival at the reward server to its scoring
    parts: TensorRef | None = None  # [N, S] float32, a judgement of each part of a sample, in the unit of the values
    features: TensorRef | None = None  # [N, D] float32

    def __post_init__(self) -> None:
        columns = [self.values, self.valid, self.reasons]
        if self.uncertainty is not None:
            columns.append(self.uncertainty)
        lengths = [len(column) for column in columns]
        if len(set(lengths)) != 1:
            raise ValueError(f"values, valid, reasons and uncertainty must be equally long, got {lengths}")
        for name, ref in (("parts", self.parts), ("features", self.features)):
            if ref is not None and (len(ref.shape) != 2 or ref.shape[0] != lengths[0]):
                raise ValueError(f"{name} must be a matrix of {lengths[0]} rows, one per sample, got shape {ref.shape}")

    @property
    def blobs(self) -> tuple[str, ...]:
        """Ids of every blob this measurement refers to, each once."""
        return tuple(dict.fromkeys(ref.blob for ref in (self.parts, self.features) if ref is not None))


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupFailed:
    """The message that a group could not be sampled or scored; the learner frees its slot."""

    epoch: int
    group: int
    attempt: int
    purpose: Purpose
    stage: Stage
    reason: str


@dataclass(frozen=True, slots=True)
class Judged:
    """One reward's values for one held-out order. Example: ``Judged("pairs/taste", draw=3, each=2, values=(5.1, nan))``.

    Orders of the same ``draw`` have the same prompts and the same noise in every evaluation of a run.
    """

    name: str  # SET/REWARD
    draw: int
    each: int  # samples of each prompt
    values: tuple[float, ...]  # prompt by prompt; NaN where a sample has no valid value


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The learner's report to the driver, for people: numbers, pictures or a text.

    Example: ``Report(kind="step", at_s=12.5, version=3, scalars={"reward/jpeg_size/mean": 0.41}, text="")``.

    ``scalars`` have slash-separated names; ``at_s`` counts from the learner's start; ``version`` is the newest
    published, or for "eval" the one that was evaluated.
    """

    kind: str
    at_s: float
    version: int
    scalars: dict[str, float]
    text: str = ""
    prompts: tuple[str, ...] = ()  # of the media, one per reference
    media: tuple[MediaRef, ...] = ()  # of held-out prompts; the process that shows them drops their blobs
    values: tuple[Judged, ...] = ()  # of the evaluations before and after training


Message = WorkItem | RolloutGroup | Measurement | GroupFailed | Report


def _check_size(prompts: tuple[str, ...], samples_per_prompt: int) -> None:
    num_samples = len(prompts) * samples_per_prompt
    if not 1 <= num_samples <= MAX_SAMPLES:
        raise ValueError(f"a group has 1 to {MAX_SAMPLES} samples, got {len(prompts)} prompts x {samples_per_prompt}")


def _check_fields(prompts: tuple[str, ...], fields: tuple[str, ...]) -> None:
    if fields:
        with_fields(prompts, fields)
