"""Write and read requests with samples and replies with scores, as HTTP bodies. Trusts no received body.

One request holds N samples::

    POST <url>   Content-Type: application/json   [Authorization: Bearer <token>]
    {"prompts": ["a red circle", ...],                  one for each sample
     "images": ["<base64 of an RGB PNG file>", ...],    for pictures; media of other kinds are sent as
     "media": {"kind": "sound", "facts": {"rate": 16000}, "arrays": {"waves": ARRAY}},
     "sets": [4, 4, ...],                               numbers of consecutive samples that are judged together
     "fields": [{"objects": ["cat"]}, ...]}             of each sample's prompt

    200          Content-Type: application/json
    {"values": [0.25, null, ...], "reasons": ["", "blurred", ...],
     "uncertainty": [0.1, null, ...], "parts": ARRAY, "features": ARRAY}

An ARRAY is ``{"dtype": "float32", "shape": [8, 1, 400], "data": "<base64 of its bytes>"}``, in C order, little-endian.
Without ``sets`` every sample is judged alone; without ``fields`` no prompt has any.

``values`` has one number per sample, in order, in the reward's own unit. ``reasons`` has "" where a value is valid, else a
word for the cause: at most 32 of a-z, 0-9 and "_", beginning with a letter. ``parts`` [N, S] and ``features`` [N, D] are
float32. All keys but ``values`` may be left out. Other keys are ignored.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import numpy as np

from drover.common.errors import ConfigError, MediaError
from drover.common.media.kinds import kind_named
from drover.common.media.media import Media, arrays, facts, made
from drover.common.media.pictures import Pictures
from drover.common.prompts import Prompt
from drover.common.protocols import Scores
from drover.reward_servers.http.limits import Limits, Refused
from drover.reward_servers.http.png import from_base64, from_png, to_png

# Limit of the brackets and commas in a body: parsing takes up to some 60 bytes for each. Prompts may hold some.
MAX_STRUCTURE = 200_000
DTYPES = ("uint8", "float32")  # of arrays in a body
MATRICES = ("parts", "features")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Samples to score, set after set: ``prompts[i]`` has ``samples[i]`` of the media, which are judged together."""

    prompts: Sequence[Prompt]
    samples: Sequence[int]
    media: Media


# ------------------------------------------------------------------------------------------------- requests


def request_body(request: Request) -> bytes:
    """The samples of a request as JSON."""
    media, each = request.media, list(zip(request.prompts, request.samples, strict=True))
    form: dict[str, Any] = {"prompts": [str(prompt) for prompt, samples in each for _ in range(samples)]}
    if isinstance(media, Pictures):
        form["images"] = [to_png(picture) for picture in media.pixels]
    else:
        plain = {name: _plain(array) for name, array in arrays(media).items()}
        form["media"] = {"kind": media.kind, "facts": facts(media), "arrays": plain}
    form["sets"] = list(request.samples)
    if any(prompt.fields for prompt in request.prompts):
        form["fields"] = [dict(prompt.fields) for prompt, samples in each for _ in range(samples)]
    return json.dumps(form).encode()


def parse_request(body: bytes, takes: type[Media], limits: Limits, hold: Callable[[int], None]) -> Request:
    """Read the samples, of the kind that the reward takes. Raises `Refused`.

    A fault is refused before much memory is allocated. ``hold`` gets the size of the media in bytes first.
    """
    form = _object(body)
    prompts = _prompts(form, limits)
    media = _media(form, limits, hold)
    if not isinstance(media, takes):
        raise Refused(400, f"this reward takes media of the kind {takes.kind!r}, got {media.kind!r}")
    if len(prompts) != len(media):
        raise Refused(400, f"there must be a prompt for each sample, got {len(prompts)} and {len(media)}")
    samples = _sets(form, len(prompts))
    starts = [0, *accumulate(samples)]
    asked = [(prompt, prompt.fields) for prompt in prompts]
    if any(asked[row] != asked[first] for first, last in pairwise(starts) for row in range(first, last)):
        raise Refused(400, "all samples of a set have one prompt with the same fields; give smaller sets")
    return Request(prompts=[prompts[first] for first in starts[:-1]], samples=samples, media=media)


def _object(body: bytes) -> dict[str, Any]:
    if sum(body.count(sign) for sign in (b"[", b"{", b",")) > MAX_STRUCTURE:
        raise Refused(413, f"the body has more than {MAX_STRUCTURE} brackets and commas")
    try:
        form: Any = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused(400, "the body is not JSON") from error
    if not isinstance(form, dict):
        raise Refused(400, 'the body must be an object {"prompts": [...], "images": [...]}')
    return form


def _prompts(form: Mapping[str, Any], limits: Limits) -> list[Prompt]:
    prompts = _words(form, "prompts")
    if not prompts:
        raise Refused(400, "a request brings at least one sample, got no prompts")
    if len(prompts) > limits.samples:
        raise Refused(413, f"a request may bring {limits.samples} samples, got {len(prompts)}")
    if any(len(prompt) > limits.prompt_characters for prompt in prompts):
        raise Refused(413, f"a prompt may have {limits.prompt_characters} characters")
    if any("\ud800" <= sign <= "\udfff" for prompt in prompts if not prompt.isascii() for sign in prompt):
        raise Refused(400, "a prompt holds half a character")
    fields = form.get("fields", [{}] * len(prompts))
    if not isinstance(fields, list) or len(fields) != len(prompts) or not all(isinstance(one, dict) for one in fields):
        raise Refused(400, f"fields must be a list of {len(prompts)} objects, one for each sample")
    try:
        return [Prompt(prompt, one) for prompt, one in zip(prompts, fields, strict=True)]
    except ConfigError as error:
        raise Refused(400, str(error)) from error


def _words(form: Mapping[str, Any], name: str) -> list[str]:
    column = form.get(name)
    if not isinstance(column, list) or not all(isinstance(value, str) for value in column):
        raise Refused(400, f"{name} must be a list of strings")
    return column


def _sets(form: Mapping[str, Any], count: int) -> list[int]:
    sets = form.get("sets", [1] * count)
    if not isinstance(sets, list) or not all(type(size) is int and size > 0 for size in sets) or sum(sets) != count:
        raise Refused(400, f"sets must be sizes above 0 that add up to the {count} samples")
    return sets


def _media(form: Mapping[str, Any], limits: Limits, hold: Callable[[int], None]) -> Media:
    if "media" not in form:
        images = _words(form, "images")
        if not images:
            raise Refused(400, "there must be a picture for each prompt, got none")
        return from_png(images, limits, hold)
    kind, plain, given = _values(form["media"], "media", kind=str, arrays=dict, facts=dict)
    try:
        found = {name: _array(array, f"media.arrays.{name}", hold) for name, array in plain.items()}
        return made(kind_named(kind), found, {name: _fact(fact) for name, fact in given.items()})
    except MediaError as error:
        raise Refused(400, str(error)) from error


def _values(form: Any, name: str, **wanted: type) -> list[Any]:
    """The values of a JSON object's keys, each checked to be of its wanted type."""
    values = [form.get(key) for key in wanted] if isinstance(form, dict) else []
    if [type(value) for value in values] != list(wanted.values()):
        keys = ", ".join(f'"{key}": {kind.__name__}' for key, kind in wanted.items())
        raise Refused(400, f"{name} must be an object {{{keys}}}")
    return values


def _fact(value: Any) -> float:
    if type(value) not in (int, float) or not -1e15 < value < 1e15:
        raise Refused(400, "facts of media must be numbers")
    return float(value)


# -------------------------------------------------------------------------------------------------- replies


def reply_body(scores: Scores) -> bytes:
    """The scores as JSON, with null for numbers that are not valid."""
    reasons = list(scores.reasons or [""] * len(scores.values))
    values = [None if reason else value for value, reason in zip(_numbers(scores.values), reasons, strict=True)]
    form: dict[str, Any] = {"values": values, "reasons": reasons}
    if scores.uncertainty is not None:
        form["uncertainty"] = _numbers(scores.uncertainty)
    for name in MATRICES:
        if (matrix := getattr(scores, name)) is not None:
            form[name] = _plain(matrix)
    return json.dumps(form).encode()


def parse_reply(reply: bytes, samples: int) -> Scores:
    """Read the scores of N samples, with NaN for numbers that are not valid. Raises ValueError, which names the fault."""
    try:
        answer = json.loads(reply.decode())
    except (ValueError, RecursionError) as error:
        raise ValueError("the reply is not JSON") from error
    if not isinstance(answer, dict):
        raise ValueError("the reply is not a JSON object")
    reasons = answer.get("reasons", [""] * samples)
    if not isinstance(reasons, list) or len(reasons) != samples or not all(isinstance(word, str) for word in reasons):
        raise ValueError(f"the reply's reasons are not a list of {samples} words")
    values = _column(answer, "values", samples)
    reasons = [reason or ("" if math.isfinite(x) else "nan") for x, reason in zip(values, reasons, strict=True)]
    return Scores(
        [math.nan if reason else x for x, reason in zip(values, reasons, strict=True)],
        reasons,
        uncertainty=_column(answer, "uncertainty", samples) if "uncertainty" in answer else None,
        **{name: _matrix(answer[name], name, samples) for name in MATRICES if name in answer},
    )


def _numbers(column: Sequence[float]) -> list[float | None]:
    return [float(value) if math.isfinite(value) else None for value in column]


def _column(answer: Mapping[str, Any], name: str, samples: int) -> list[float]:
    column = answer.get(name)
    if not isinstance(column, list) or len(column) != samples:
        raise ValueError(f"the reply's {name} are not a list of {samples}")
    return [_number(value, name) for value in column]


def _number(value: Any, name: str) -> float:
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"the reply's {name} are not all numbers")
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _matrix(plain: Any, name: str, samples: int) -> np.ndarray:
    try:
        matrix = _array(plain, f"the reply's {name}", lambda nbytes: None)
    except Refused as refusal:
        raise ValueError(refusal.text) from refusal
    if matrix.dtype != np.float32 or matrix.ndim != 2 or len(matrix) != samples or not matrix.shape[1]:
        raise ValueError(f"the reply's {name} are not float32 [{samples}, ...], but {matrix.dtype} {matrix.shape}")
    return matrix


# --------------------------------------------------------------------------------------------------- arrays


def _plain(array: np.ndarray) -> dict[str, Any]:
    data = array.astype(array.dtype.newbyteorder("<")).tobytes()
    return {"dtype": array.dtype.name, "shape": list(array.shape), "data": base64.b64encode(data).decode()}


def _array(plain: Any, name: str, hold: Callable[[int], None]) -> np.ndarray:
    dtype, shape, text = _values(plain, name, dtype=str, shape=list, data=str)
    sizes = all(type(size) is int and 0 < size < 1 << 32 for size in shape)
    if dtype not in DTYPES or not 1 <= len(shape) <= 8 or not sizes:
        raise Refused(400, f"{name} must have a dtype of {', '.join(DTYPES)} and 1 to 8 sizes above 0")
    hold(len(text))
    data, wanted = from_base64(text, name), math.prod(shape) * np.dtype(dtype).itemsize
    if len(data) != wanted:
        raise Refused(400, f"{name} of shape {shape} takes {wanted} bytes, got {len(data)}")
    return np.frombuffer(data, np.dtype(dtype).newbyteorder("<")).reshape(shape).astype(dtype)
