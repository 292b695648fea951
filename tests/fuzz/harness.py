"""Feeds a function with inputs that are nearly right, and checks that it neither crashes, hangs nor takes more memory.

Input ``number`` of a seed is always the same, so that a failure can be repeated: its message names both.
"""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import psutil

HANG_S = 60.0  # by the clock; no measured input has taken a hundredth of it on a quiet machine
MAX_GROWTH_BYTES = 256 << 20
WARM_INPUTS = 200  # inputs before growth is counted, while libraries load and cache
LOOK_EVERY = 50


class Broke(Exception):
    """An input raised an unexpected error, took too long, or made memory grow too far."""


@dataclass
class Outcome:
    """The result of a series of inputs: the count of each kind of answer, and the time and memory they took."""

    inputs: int = 0
    seconds: float = 0.0
    slowest_s: float = 0.0  # of one input, on the CPU: a busy machine does not count
    grown_bytes: int = 0
    kinds: Counter[str] = field(default_factory=Counter)

    def line(self, name: str) -> str:
        kinds = ", ".join(f"{kind} {count}" for kind, count in self.kinds.most_common(20))
        return (
            f"{name}: {self.inputs} inputs, {self.inputs / self.seconds:.0f}/s, slowest {1000 * self.slowest_s:.0f} ms of CPU, "
            f"memory +{self.grown_bytes / (1 << 20):.1f} MiB; {kinds}"
        )


def drive(one: Callable[[random.Random], str], inputs: int, *, seed: int = 0, first: int = 0) -> Outcome:
    """Call ``one`` with ``inputs`` generators, from number ``first``; it makes an input, tries it and names the kind of answer.

    Raises `Broke` for an input that raises, takes more than `HANG_S`, or after which memory has grown too far.
    """
    process, outcome = psutil.Process(), Outcome()
    began_s, before_bytes = time.monotonic(), 0
    for number in range(first, first + inputs):
        if number == first + min(WARM_INPUTS, inputs - 1):
            before_bytes = process.memory_info().rss
        started_s = time.process_time()
        try:
            with _deadline():
                kind = one(random.Random(f"{seed}/{number}"))
        except Exception as error:
            raise Broke(f"input {number} of seed {seed}: {type(error).__name__}: {error}") from error
        outcome.kinds[kind] += 1
        outcome.slowest_s = max(outcome.slowest_s, time.process_time() - started_s)
        if before_bytes and (number % LOOK_EVERY == 0 or number == first + inputs - 1):
            outcome.grown_bytes = max(outcome.grown_bytes, process.memory_info().rss - before_bytes)
            if outcome.grown_bytes > MAX_GROWTH_BYTES:
                raise Broke(f"after input {number} of seed {seed} memory has grown by {outcome.grown_bytes >> 20} MiB")
    outcome.inputs, outcome.seconds = inputs, time.monotonic() - began_s
    return outcome


@contextmanager
def _deadline() -> Iterator[None]:
    """Raises TimeoutError in the main thread after HANG_S."""

    def hang(*_: object) -> None:
        raise TimeoutError(f"still at it after {HANG_S:g} s")

    before = signal.signal(signal.SIGALRM, hang)
    signal.setitimer(signal.ITIMER_REAL, HANG_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def damaged(draw: random.Random, data: bytes) -> bytes:
    """The bytes cut, flipped, overwritten, repeated or with others in between."""
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 4, 16))):
        at = draw.randrange(len(changed) + 1)
        match draw.randrange(6):
            case 0:
                del changed[at:]
            case 1 if changed:
                changed[at % len(changed)] ^= 1 << draw.randrange(8)
            case 2 if changed:
                changed[at % len(changed)] = draw.randrange(256)
            case 3:
                changed[at:at] = draw.randbytes(draw.choice((1, 2, 8, 200)))
            case 4:
                del changed[at : at + draw.choice((1, 2, 8, 100))]
            case 5:
                end = min(len(changed), at + draw.choice((1, 16, 300)))
                changed[at:at] = changed[at:end] * draw.choice((1, 2, 50))
    return bytes(changed[: 1 << 20])


def hostile_value(draw: random.Random, *, depth: int = 0) -> object:
    """A plain Python value that a field does not expect."""
    numbers: list[object] = [
        0,
        -1,
        1,
        2**31,
        2**63 - 1,
        -(2**63),
        2**64 - 1,
        0.0,
        -0.0,
        1e308,
        float("inf"),
        float("nan"),
    ]
    texts: list[object] = [
        "",
        "a",
        "\x00",
        "\u202e",
        "\U0001f9ff" * 5,
        "x" * draw.choice((10, 1000, 1000 if depth else 70_000)),
        "None",
        "../../x",
    ]
    match draw.randrange(6):
        case 0 | 1:
            return draw.choice(numbers)
        case 2:
            return draw.choice(texts)
        case 3:
            return draw.choice([None, True, False])
        case 4:
            count = draw.choice((0, 1, 3, 3, 2000 if depth == 0 else 2))
            return [hostile_value(draw, depth=depth + 1) for _ in range(count)] if depth < 3 else []
    nested: object = draw.choice(numbers)
    for _ in range(draw.choice((1, 5, 60, 400))):
        nested = [nested] if draw.random() < 0.5 else {"k": nested}
    return nested


def disfigured(draw: random.Random, tree: object) -> object:
    """A tree of lists, dicts and scalars with one place replaced, removed, doubled, or moved."""
    if isinstance(tree, list) and tree and draw.random() < 0.8:
        copy = list(tree)
        at = draw.randrange(len(copy))
        match draw.randrange(8):
            case 0:
                del copy[at]
            case 1:
                copy.insert(at, hostile_value(draw))
            case 2:
                copy.insert(at, copy[at])
            case 3:
                copy[at] = copy[draw.randrange(len(copy))]
            case _:
                copy[at] = disfigured(draw, copy[at])
        return copy
    if isinstance(tree, dict) and tree and draw.random() < 0.8:
        mapping = dict(tree)
        key = draw.choice(sorted(mapping, key=repr))
        match draw.randrange(5):
            case 0:
                del mapping[key]
            case 1:
                mapping["extra"] = hostile_value(draw)
            case _:
                mapping[key] = disfigured(draw, mapping[key])
        return mapping
    return hostile_value(draw)
