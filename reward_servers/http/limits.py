"""How much a request over HTTP may bring, and the refusal that it gets otherwise."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Of one request, and of what all of them together may hold. A hundred pictures of 512 x 512 pixels fit."""

    body_bytes: int = 128 << 20
    samples: int = 1024
    prompt_characters: int = 4000
    pixels: int = 128 << 20  # of all pictures of a request
    side: int = 16_384  # of a picture
    held_bytes: int = 2 << 30  # bodies and media of all requests under way
    connections: int = 64
    request_s: float = 30.0  # for a whole request to come; then the connection is cut, however it drips
    idle_s: float = 60.0  # between two requests of a connection
    answer_s: float = 300.0  # what a request waits for its scores


class Refused(Exception):
    """A request that gets no scores: the HTTP status, and one line that says why."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status, self.text = status, text
