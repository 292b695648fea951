"""The limits of a request over HTTP, and the refusal of a request that exceeds them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The limits of one request, and of all open requests together. A hundred 512 x 512 pictures fit."""

    body_bytes: int = 128 << 20
    samples: int = 1024
    prompt_characters: int = 4000
    pixels: int = 128 << 20  # of all pictures of a request
    side: int = 16_384  # of a picture
    held_bytes: int = 2 << 30  # bodies and media of all open requests
    connections: int = 64
    request_s: float = 30.0  # for a whole request to arrive; then the connection is closed, even if bytes still come
    idle_s: float = 60.0  # between two requests of a connection
    answer_s: float = 300.0  # for the scores of a request


class Refused(Exception):
    """A request is refused, with an HTTP status and the reason in one line."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status, self.text = status, text
