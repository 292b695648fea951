"""Messages survive the wire unchanged; anything else on it is a `CodecError` and costs little."""

import dataclasses
import json
import random
import time
import tracemalloc

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drover.common.errors import CodecError
from drover.common.transport import codec
from drover.common.transport.codec import decode, encode
from drover.common.types import (
    DTYPE_BYTES,
    GroupFailed,
    Measurement,
    MediaRef,
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

INTS = st.integers(-(2**63), 2**64 - 1)
COUNTS = st.integers(0, 2**40)
FLOATS = st.floats(allow_nan=False)
WORDS = st.text(st.characters(codec="utf-8"), max_size=20)


def refs(*leading: int) -> st.SearchStrategy[TensorRef]:
    shapes = st.lists(st.integers(0, 8), max_size=3).map(lambda rest: (*leading, *rest))
    return st.builds(
        TensorRef, blob=WORDS, dtype=st.sampled_from(sorted(DTYPE_BYTES)), shape=shapes, offset=st.integers(0, 2**30)
    )


@st.composite
def transitions(draw: st.DrawFn, num_samples: int) -> Transitions:
    num_steps, num_states = draw(st.integers(0, 5)), draw(st.integers(1, 6))
    column = st.lists(INTS, min_size=num_steps, max_size=num_steps).map(tuple)
    index = st.lists(st.integers(0, num_states - 1), min_size=num_steps, max_size=num_steps).map(tuple)
    log_probs = TensorRef(blob="p", dtype="float32", shape=(num_samples, num_steps, draw(st.integers(1, 3))))
    return Transitions(
        steps=draw(column),
        times=draw(column),
        next_times=draw(column),
        before=draw(index),
        after=draw(index),
        states=draw(refs(num_samples, num_states)),
        log_probs=log_probs,
    )


@st.composite
def media(draw: st.DrawFn, num_samples: int) -> MediaRef:
    """References to two arrays, the rows of each in one or two chunks."""
    first = draw(st.integers(0, num_samples))
    chunks = [size for size in (first, num_samples - first) if size] or [0]
    forms = [(draw(st.sampled_from(sorted(DTYPE_BYTES))), draw(st.lists(st.integers(0, 8), max_size=3))) for _ in "ab"]
    arrays = tuple(
        tuple(TensorRef(blob=draw(WORDS), dtype=dtype, shape=(rows, *shape)) for rows in chunks)
        for dtype, shape in forms
    )
    return MediaRef(kind=draw(WORDS), arrays=arrays, facts=draw(st.lists(FLOATS, max_size=2).map(tuple)))


def fields(prompts: tuple[str, ...]) -> st.SearchStrategy[tuple[str, ...]]:
    one = st.dictionaries(WORDS, st.none() | INTS | WORDS | st.lists(WORDS, max_size=2), max_size=2)
    each = st.lists(one, min_size=len(prompts), max_size=len(prompts))
    return st.just(()) | each.map(lambda found: tuple(json.dumps(fields) for fields in found))


PROMPTS = st.lists(WORDS, min_size=1, max_size=4).map(tuple)
ORDERS = st.builds(
    WorkItem,
    epoch=COUNTS,
    group=COUNTS,
    purpose=st.sampled_from(Purpose),
    task=WORDS,
    rewards=st.lists(WORDS, max_size=3).map(tuple),
    prompts=PROMPTS,
    samples_per_prompt=st.integers(1, 64),
    seed=INTS,
    draw=COUNTS,
    record=st.lists(COUNTS, max_size=6).map(tuple),
    fingerprint=WORDS,
    version=st.none() | INTS,
)
FAILURES = st.builds(GroupFailed, epoch=COUNTS, group=COUNTS, attempt=COUNTS, reason=WORDS)
REPORTS = st.builds(Report, kind=WORDS, at_s=FLOATS, version=INTS, scalars=st.dictionaries(WORDS, FLOATS), text=WORDS)


@st.composite
def rollouts(draw: st.DrawFn) -> RolloutGroup:
    prompts, each = draw(PROMPTS), draw(st.integers(1, 4))
    num_samples = len(prompts) * each
    return RolloutGroup(
        epoch=draw(COUNTS),
        group=draw(COUNTS),
        attempt=draw(COUNTS),
        purpose=draw(st.sampled_from(Purpose)),
        task=draw(WORDS),
        rewards=draw(st.lists(WORDS, max_size=3).map(tuple)),
        version=draw(INTS),
        prompts=prompts,
        samples_per_prompt=each,
        fingerprint=draw(WORDS),
        media=draw(st.none() | media(num_samples)),
        latents=draw(st.none() | refs(num_samples)),
        transitions=draw(st.none() | transitions(num_samples)),
        worker=draw(WORDS),
        sampling_s=draw(FLOATS),
        fields=draw(fields(prompts)),
    )


@st.composite
def measurements(draw: st.DrawFn) -> Measurement:
    size = draw(st.integers(0, 6))
    floats = st.lists(FLOATS, min_size=size, max_size=size).map(tuple)
    return Measurement(
        epoch=draw(COUNTS),
        group=draw(COUNTS),
        attempt=draw(COUNTS),
        purpose=draw(st.sampled_from(Purpose)),
        reward=draw(WORDS),
        values=draw(floats),
        valid=draw(st.lists(st.booleans(), min_size=size, max_size=size).map(tuple)),
        reasons=draw(st.lists(WORDS, min_size=size, max_size=size).map(tuple)),
        uncertainty=draw(st.none() | floats),
        parts=draw(st.none() | st.just(TensorRef(blob="p", dtype="float32", shape=(size, 3)))),
        features=draw(st.none() | st.just(TensorRef(blob="p", dtype="float32", shape=(size, 5), offset=8))),
        worker=draw(WORDS),
        scoring_s=draw(FLOATS),
        waited_s=draw(FLOATS),
    )


MESSAGES: st.SearchStrategy[Message] = st.one_of(ORDERS, FAILURES, REPORTS, rollouts(), measurements())

ORDER = WorkItem(
    epoch=0,
    group=17,
    purpose=Purpose.EVAL,
    task="composition",
    rewards=("composition",),
    prompts=("a red circle",),
    samples_per_prompt=8,
    seed=4,
    draw=17,
    record=(),
    fingerprint="9f3c",
    version=3,
)
ROLLOUT = RolloutGroup(
    epoch=0,
    group=17,
    attempt=1,
    purpose=Purpose.TRAIN,
    task="composition",
    rewards=("composition",),
    version=3,
    prompts=("a red circle",),
    samples_per_prompt=8,
    fingerprint="9f3c",
    media=pictures_in("g17.1/media", 8, 64, 64, 3),
    latents=None,
    transitions=Transitions(
        steps=(0, 2, 3),
        times=(901, 701, 601),
        next_times=(801, 601, 501),
        before=(0, 2, 3),
        after=(1, 3, 4),
        states=TensorRef(blob="g17.1/latents", dtype="float32", shape=(8, 5, 4, 8, 8)),
        log_probs=TensorRef(blob="g17.1/latents", dtype="float32", shape=(8, 3, 1), offset=40_960),
    ),
    worker="actor-0",
    sampling_s=1.25,
)
FAILED = GroupFailed(epoch=1, group=2, attempt=3, purpose=Purpose.EVAL, stage=Stage.MEASURE, reason="scorer died")
MEASUREMENT = Measurement(
    epoch=0,
    group=17,
    attempt=1,
    purpose=Purpose.TRAIN,
    reward="jpeg_size",
    values=(0.5, float("nan")),
    valid=(True, False),
    reasons=("", "nan"),
    uncertainty=None,
    features=None,
    worker="reward-0",
    scoring_s=0.1,
    waited_s=0.2,
)


def altered(message: Message, **fields: object) -> bytes:
    """The message's bytes with some top-level fields replaced by other plain values."""
    tag, schema, *values = msgpack.unpackb(encode(message))
    names = [field.name for field in dataclasses.fields(message)]
    for name, value in fields.items():
        values[names.index(name)] = value
    return msgpack.packb([tag, schema, *values])


def pictures(dtype: str, *shape: int) -> list:
    """A reference to media as it stands in a message."""
    return ["picture", [[["b", dtype, list(shape), 0]]], []]


@settings(max_examples=300)
@given(MESSAGES)
def test_every_message_comes_back_equal_and_of_the_same_types(message):
    back = decode(encode(message))
    assert back == message
    assert repr(back) == repr(message)


def test_a_view_decodes_like_its_bytes_and_the_message_is_compact():
    data = encode(ROLLOUT)
    assert decode(memoryview(data)) == ROLLOUT
    assert len(data) < 260
    assert b"sampling_s" not in data


def test_an_order_for_the_newest_weights_is_not_one_for_version_0():
    newest, first = (decode(encode(dataclasses.replace(ORDER, version=version))) for version in (None, 0))
    assert (newest.version, first.version) == (None, 0)
    with pytest.raises(CodecError, match=r"WorkItem\.version: wants int, got str 'newest'"):
        decode(altered(ORDER, version="newest"))


def test_whole_numbers_are_welcome_where_floats_are_declared():
    back = decode(encode(dataclasses.replace(ROLLOUT, sampling_s=2)))
    assert back.sampling_s == 2.0 and type(back.sampling_s) is float


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"group": "17"}, r"GroupFailed\.group: wants int, got str '17'"),
        ({"group": True}, r"GroupFailed\.group: wants int, got bool"),
        ({"group": None}, r"GroupFailed\.group: wants int, got NoneType"),
        ({"group": 1.0}, r"GroupFailed\.group: wants int, got float"),
        ({"reason": b"x"}, r"bin"),
        ({"stage": "elsewhere"}, r"GroupFailed\.stage: 'elsewhere' is not a valid Stage"),
    ],
)
def test_a_value_of_another_type_is_refused_by_name(fields, complaint):
    with pytest.raises(CodecError, match=complaint):
        decode(altered(FAILED, **fields))


@pytest.mark.parametrize(
    ("message", "fields", "complaint"),
    [
        (MEASUREMENT, {"values": [0.5]}, r"equally long, got \[1, 2, 2\]"),
        (MEASUREMENT, {"values": [0.5, "x"]}, r"Measurement\.values: wants float, got str"),
        (MEASUREMENT, {"uncertainty": [0.1]}, "equally long"),
        (MEASUREMENT, {"features": ["b", "float32", [3, 4], 0]}, "features must be a matrix of 2 rows"),
        (MEASUREMENT, {"parts": ["b", "float32", [2], 0]}, "parts must be a matrix of 2 rows"),
        (ROLLOUT, {"media": pictures("float32", 1 << 20, 1 << 20)}, r"RolloutGroup\.media: .*fewer samples"),
        (ROLLOUT, {"media": pictures("float32", 8, -1)}, "must not be negative"),
        (ROLLOUT, {"media": pictures("float32", *[1] * 17)}, "at most 16 axes"),
        (ROLLOUT, {"media": pictures("object", 8)}, "dtype 'object' is none of"),
        (ROLLOUT, {"media": pictures("uint8", 7, 2)}, "media must have 8 rows, one per sample, got 7"),
        (ROLLOUT, {"media": ["picture", [], []]}, "arrays of equally many rows"),
        (ROLLOUT, {"fields": ["{}", "{}"]}, "fields are one JSON object for each of 1 prompts"),
        (ORDER, {"fields": ['{"a": {"b": 1}}']}, "field 'a' of prompt 'a red circle' is a dict"),
        (ROLLOUT, {"samples_per_prompt": 1 << 60}, "1 to 16384 samples"),
        (
            ROLLOUT,
            {"transitions": [[0], [1], [0], [5], [1], ["b", "uint8", [8, 5], 0], ["b", "uint8", [8, 1, 1], 0]]},
            "ind",
        ),
        (
            ROLLOUT,
            {"transitions": [[0], [1], [0], [0], [], ["b", "uint8", [8, 5], 0], ["b", "uint8", [8, 1, 1], 0]]},
            "long",
        ),
        (
            ROLLOUT,
            {"transitions": [[0], [1], [0], [0], [1], ["b", "uint8", [8, 5], 0], ["b", "uint8", [8, 1], 0]]},
            r"log_probs \[N, 1, S\] disagree: got \(8, 5\) and \(8, 1\)",
        ),
    ],
)
def test_fields_that_contradict_each_other_are_refused(message, fields, complaint):
    with pytest.raises(CodecError, match=complaint):
        decode(altered(message, **fields))


def test_the_sender_learns_of_a_bad_value_before_it_is_sent():
    with pytest.raises(CodecError, match=r"GroupFailed\.group: wants int, got str"):
        encode(dataclasses.replace(FAILED, group="17"))
    with pytest.raises(CodecError, match="cannot encode GroupFailed"):
        encode(dataclasses.replace(FAILED, group=2**70))
    with pytest.raises(CodecError, match="cannot encode str"):
        encode("hello")
    with pytest.raises(CodecError, match="at most"):
        encode(dataclasses.replace(FAILED, reason="x" * (9 << 20)))


def test_an_unknown_type_or_schema_says_what_came_and_what_is_known():
    tag, schema, *values = msgpack.unpackb(encode(FAILED))
    with pytest.raises(CodecError, match=r"unknown message type 'Gossip'; known are WorkItem, .*Report"):
        decode(msgpack.packb(["Gossip", schema, *values]))
    with pytest.raises(CodecError, match=f"GroupFailed came with schema 7, this build knows {schema}; .*same drover"):
        decode(msgpack.packb([tag, 7, *values]))
    with pytest.raises(CodecError, match="wants the 6 fields of GroupFailed"):
        decode(msgpack.packb([tag, schema, *values, 0]))


def test_types_of_equal_shape_but_different_meaning_have_different_schemas():
    schemas = [msgpack.unpackb(encode(message))[1] for message in (ORDER, ROLLOUT, FAILED, MEASUREMENT)]
    assert len(set(schemas)) == 4


HOSTILE = {
    "nothing": b"",
    "nil": b"\xc0",
    "an array said to hold four billion": b"\xdd\xff\xff\xff\xff",
    "arrays of four billion, nested": b"\xdd\xff\xff\xff\xff" * 1000,
    "arrays as long as allowed, nested": b"\xdc\x3f\xff" * 400 + b"\xc0" * 20_000,
    "a map said to hold four billion": b"\xdf\xff\xff\xff\xff",
    "a string said to have four gigabytes": b"\x93\xdb\xff\xff\xff\xffx",
    "bytes said to have four gigabytes": b"\xc6\xff\xff\xff\xff",
    "an extension": b"\xc7\x04\x01abcd",
    "deep nesting": b"\x91" * 1_000_000 + b"\xc0",
    "deep maps": b"\x81\xa1a" * 300_000 + b"\xc0",
    "text that is not utf-8": b"\x92\xa2\xff\xfe\x01",
    "a map with unhashable keys": b"\x81\x90\xc0",
    "two messages": encode(FAILED) * 2,
    "too many bytes": bytes(codec.MAX_MESSAGE_BYTES + 1),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_bytes_are_refused_quickly_and_without_large_allocations(data):
    tracemalloc.start()
    began_s = time.monotonic()
    with pytest.raises(CodecError):
        decode(data)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert time.monotonic() - began_s < 1.0
    assert peak_bytes < 80 << 20


def test_twenty_thousand_damaged_messages_raise_codec_errors_or_decode_to_messages():
    draw = random.Random(20)
    valid = [encode(message) for message in (ORDER, ROLLOUT, FAILED, MEASUREMENT)]
    refused = 0
    for trial in range(20_000):
        data = bytearray(draw.choice(valid))
        if trial % 4 == 0:
            data = bytearray(draw.randbytes(draw.randrange(200)))
        elif trial % 4 == 1:
            del data[draw.randrange(len(data)) :]
        else:
            for _ in range(draw.randint(1, 4)):
                data[draw.randrange(len(data))] = draw.randrange(256)
        try:
            message = decode(bytes(data))
        except CodecError:
            refused += 1
        else:
            assert repr(decode(encode(message))) == repr(message)  # NaN does not equal itself, but reads the same
    assert refused > 12_000
