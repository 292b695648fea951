"""The codec: messages damaged as bytes, and as the values inside them. Only `CodecError` may come out."""

from __future__ import annotations

import random

import msgpack

from drover.common.errors import CodecError
from drover.common.transport.codec import decode, encode
from drover.common.types import (
    GroupFailed,
    Measurement,
    Message,
    Purpose,
    Report,
    RolloutGroup,
    Stage,
    TensorRef,
    Transitions,
    WorkItem,
)
from tests.common.media.made_up import pictures_in
from tests.fuzz.harness import damaged, disfigured

# First bytes of msgpack that promise more than comes: arrays, maps, strings, bytes, extensions.
PROMISES = [
    head + count
    for head in (b"\xdd", b"\xdf", b"\xdb", b"\xc6", b"\xc9")
    for count in (b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x00\x10\x00\x00", b"\x00\x00\x40\x01")
] + [b"\xdc\xff\xff", b"\xde\xff\xff", b"\x91" * 1000, b"\x81\xa1a" * 500]


def one(draw: random.Random) -> str:
    data = hostile_bytes(draw)
    try:
        message = decode(data)
    except CodecError:
        return "refused"
    assert repr(decode(encode(message))) == repr(message)  # NaN does not equal itself, but reads the same
    return "a message"


def hostile_bytes(draw: random.Random) -> bytes:
    valid = encode(message(draw))
    match draw.randrange(5):
        case 0:
            return damaged(draw, valid)
        case 1:
            at = draw.randrange(len(valid))
            return valid[:at] + draw.choice(PROMISES) + valid[at:]
        case 2:
            return draw.randbytes(draw.randrange(300))
        case _:
            tree = msgpack.unpackb(valid)
            for _ in range(draw.choice((1, 1, 2, 5))):
                tree = disfigured(draw, tree)
            try:
                return msgpack.packb(tree)
            except (ValueError, OverflowError):  # deeper than msgpack itself goes
                return damaged(draw, valid)


def message(draw: random.Random) -> Message:
    """A valid one of any kind."""
    prompts = tuple(draw.choice(("a red circle", "", "\u732b" * 5)) for _ in range(draw.randint(1, 4)))
    each = draw.randint(1, 4)
    count = len(prompts) * each
    common = {"epoch": draw.randrange(9), "group": draw.randrange(99), "purpose": draw.choice(list(Purpose))}
    match draw.randrange(5):
        case 0:
            return WorkItem(
                **common, task="t", rewards=("r",), prompts=prompts, samples_per_prompt=each, seed=3,
                draw=1, record=(0, 2), fingerprint="f",
            )  # fmt: skip
        case 1:
            return RolloutGroup(
                **common, attempt=1, task="t", rewards=("r",), version=2, prompts=prompts, samples_per_prompt=each,
                fingerprint="f", media=pictures_in("b", count, 8, 8, 3), latents=None, fields=('{"count": 2}',) * len(prompts),
                transitions=_transitions(count), worker="actor-0", sampling_s=0.25,
            )  # fmt: skip
        case 2:
            return Measurement(
                **common, attempt=1, reward="r", values=(0.5,) * count, valid=(True,) * count, reasons=("",) * count,
                uncertainty=None, features=None, worker="w", scoring_s=0.1, waited_s=0.0,
            )  # fmt: skip
        case 3:
            return GroupFailed(**common, attempt=1, stage=draw.choice(list(Stage)), reason="nan")
    return Report(kind="step", at_s=1.5, version=1, scalars={"a/b": 0.5, "c": float("nan")}, text="x")


def _transitions(count: int) -> Transitions:
    return Transitions(
        steps=(0, 2), times=(901, 701), next_times=(801, 601), before=(0, 2), after=(1, 3),
        states=TensorRef(blob="b", dtype="float16", shape=(count, 4, 4, 8, 8), offset=64),
        log_probs=TensorRef(blob="b", dtype="float32", shape=(count, 2, 1)),
    )  # fmt: skip
