"""Encode messages as bytes and decode them: a msgpack array [type tag, schema number, field values...], checked by field.

The codec follows the dataclasses' type hints, compiled once per type. The schema number is a checksum of a type's fields,
nested ones included, so two builds whose types differ refuse each other's messages instead of misreading them. Decoding
executes no code, and excessive sizes are refused before memory is allocated.
"""

from __future__ import annotations

import reprlib
import types
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from enum import Enum
from operator import attrgetter
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints
from zlib import crc32

import msgpack

from drover.common.errors import CodecError
from drover.common.types import Message

MAX_MESSAGE_BYTES = 8 << 20
MAX_STRING_BYTES = 1 << 20
# The unpacker allocates 8 bytes per declared element, at up to some hundred levels of nesting.
MAX_ELEMENTS = 16_384
DAMAGE = (ValueError, TypeError, OverflowError, RecursionError)

ToPlain = Callable[[Any], Any]
FromPlain = Callable[[Any], Any]


class _Form(NamedTuple):
    """The conversions of one type to plain values and back; ``plain`` is None where msgpack takes the value as it is."""

    text: str
    plain: ToPlain | None
    restore: FromPlain


def encode(message: Message) -> bytes:
    """Bytes of a message. Raises `CodecError` naming the field whose value is not of its declared type."""
    form = _BY_TYPE.get(type(message))
    if form is None:
        raise CodecError(f"cannot encode {type(message).__name__}; known are {', '.join(_BY_TAG)}")
    assert form.plain is not None
    try:
        plain = form.plain(message)
        form.restore(plain)  # a bad value must be an error at the sender, not at the receiver
        data: bytes = msgpack.packb([type(message).__name__, _SCHEMA[type(message)], *plain])
    except DAMAGE as error:
        raise CodecError(f"cannot encode {type(message).__name__}: {error}") from error
    if len(data) > MAX_MESSAGE_BYTES:
        raise CodecError(f"{type(message).__name__} takes {len(data)} bytes, at most {MAX_MESSAGE_BYTES}; send a blob")
    return data


def decode(data: bytes | memoryview) -> Message:
    """The message in the bytes. Raises `CodecError`, and no other error, for bytes that are no drover message."""
    if len(data) > MAX_MESSAGE_BYTES:
        raise CodecError(f"{len(data)} bytes came, at most {MAX_MESSAGE_BYTES} are a message")
    try:
        return _restore_tagged(_unpack(data))
    except CodecError:
        raise
    except DAMAGE as error:
        raise CodecError(f"not a message: {error or type(error).__name__}") from error


def _unpack(data: bytes | memoryview) -> object:
    longest = min(len(data), MAX_ELEMENTS)
    return msgpack.unpackb(
        data,
        strict_map_key=True,
        max_str_len=MAX_STRING_BYTES,
        max_bin_len=0,
        max_ext_len=0,
        max_array_len=longest,
        max_map_len=longest,
    )


def _restore_tagged(plain: object) -> Message:
    if type(plain) is not list or len(plain) < 2 or type(plain[0]) is not str:
        raise CodecError(f"a message is [type, schema, fields...], got {reprlib.repr(plain)}")
    tag, schema, *values = plain
    kind = _BY_TAG.get(tag)
    if kind is None:
        raise CodecError(f"unknown message type {reprlib.repr(tag)}; known are {', '.join(_BY_TAG)}")
    if type(schema) is not int or schema != _SCHEMA[kind]:
        raise CodecError(
            f"{tag} came with schema {reprlib.repr(schema)}, this build knows {_SCHEMA[kind]}; "
            "run the same drover version in every role"
        )
    message: Message = _BY_TYPE[kind].restore(values)
    return message


# ------------------------------------------------------------------------------------ compiling a type's form


def _form(hint: Any) -> _Form:
    if hint in (str, int, bool):
        return _Form(hint.__name__, None, _exactly(hint))
    if hint is float:
        return _Form("float", None, _float)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return _Form(f"{hint.__name__}({'|'.join(member.value for member in hint)})", attrgetter("value"), hint)
    if is_dataclass(hint) and isinstance(hint, type):
        return _record(hint)
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is tuple and len(arguments) == 2 and arguments[1] is ...:
        return _tuple(_form(arguments[0]))
    if origin is types.UnionType and len(arguments) == 2 and arguments[1] is types.NoneType:
        return _optional(_form(arguments[0]))
    if hint == dict[str, float]:
        return _Form("dict[str, float]", None, _scalars)
    raise TypeError(f"no wire form for {hint}; use str, int, float, bool, an enum, a dataclass, a tuple or `| None`")


def _wrong(wanted: str, value: object) -> ValueError:
    return ValueError(f"wants {wanted}, got {type(value).__name__} {reprlib.repr(value)}")


def _exactly(kind: type) -> FromPlain:
    def restore(value: Any) -> Any:
        if type(value) is not kind:  # not isinstance: True is no int here
            raise _wrong(kind.__name__, value)
        return value

    return restore


def _float(value: Any) -> float:
    if type(value) is float:
        return value
    if isinstance(value, (float, int)) and type(value) is not bool:  # numpy's float64, and whole numbers
        return float(value)
    raise _wrong("float", value)


def _scalars(value: Any) -> dict[str, float]:
    if type(value) is not dict or any(type(name) is not str for name in value):
        raise _wrong("dict[str, float]", value)
    return {name: _float(scalar) for name, scalar in value.items()}


def _optional(inner: _Form) -> _Form:
    plain = inner.plain
    return _Form(
        f"{inner.text} | None",
        plain and (lambda value: None if value is None else plain(value)),
        lambda value: None if value is None else inner.restore(value),
    )


def _tuple(inner: _Form) -> _Form:
    text, plain, one = f"tuple[{inner.text}, ...]", inner.plain, inner.restore

    def restore(value: Any) -> tuple[Any, ...]:
        if type(value) is not list and type(value) is not tuple:
            raise _wrong(text, value)
        if len(value) > MAX_ELEMENTS:
            raise ValueError(f"wants at most {MAX_ELEMENTS} elements, got {len(value)}")
        return tuple(map(one, value))

    return _Form(text, plain and (lambda value: tuple(map(plain, value))), restore)


def _record(kind: type) -> _Form:
    """The conversions of a dataclass, whose plain form is the array of its fields in order."""
    hints = get_type_hints(kind)
    names = tuple(field.name for field in fields(kind))
    forms = tuple(_form(hints[name]) for name in names)
    text = f"{kind.__name__}({', '.join(f'{name}: {form.text}' for name, form in zip(names, forms, strict=True))})"
    values_of = attrgetter(*names)
    converted = [(index, form.plain) for index, form in enumerate(forms) if form.plain is not None]
    checks = tuple(form.restore for form in forms)

    def plain(value: Any) -> list[Any]:
        if type(value) is not kind:
            raise _wrong(kind.__name__, value)
        row = list(values_of(value))
        for index, convert in converted:
            row[index] = convert(row[index])
        return row

    def restore(row: Any) -> Any:
        if type(row) is not list or len(row) != len(names):
            raise _wrong(f"the {len(names)} fields of {kind.__name__}", row)
        values = {}
        name = ""
        try:
            for name, check, value in zip(names, checks, row, strict=True):
                values[name] = check(value)
        except DAMAGE as error:
            raise ValueError(f"{kind.__name__}.{name}: {error}") from error
        return kind(**values)

    return _Form(text, plain, restore)


_BY_TYPE: dict[type, _Form] = {kind: _record(kind) for kind in get_args(Message)}
_BY_TAG: dict[str, type] = {kind.__name__: kind for kind in _BY_TYPE}
_SCHEMA: dict[type, int] = {kind: crc32(form.text.encode()) for kind, form in _BY_TYPE.items()}
