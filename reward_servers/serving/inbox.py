"""Where a reward server's jobs come from and where its answers go: the seam between scoring and everything around it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol

from drover.common.protocols import Scores
from drover.reward_servers.serving.batching import Job, T


@dataclass(frozen=True, slots=True)
class Answer(Generic[T]):
    """The scores of one job, and how long they took."""

    job: Job[T]
    scores: Scores
    scoring_s: float  # its share of the call
    waited_s: float  # from its arrival to the call


class Inbox(Protocol[T]):
    """Jobs of one sender. One thread takes and opens while another answers."""

    def take(self, limit: int, wait_s: float) -> Sequence[T]:
        """Up to ``limit`` tickets; waits at most ``wait_s`` for the first."""

    def open(self, tickets: Sequence[T]) -> Sequence[Job[T]]:
        """The jobs behind the tickets, with their media; a ticket that nobody waits for any longer has none."""

    def answer(self, answers: Sequence[Answer[T]]) -> None:
        """Tell whoever waits."""

    def close(self) -> None:
        """Hand back what was taken and not answered."""
