"""The source of a reward server's jobs and the receiver of its answers: the seam between scoring and transport."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol

from drover.common.protocols import Scores
from drover.reward_servers.serving.batching import Job, T


@dataclass(frozen=True, slots=True)
class Answer(Generic[T]):
    """The scores of one job, and the seconds that they took."""

    job: Job[T]
    scores: Scores
    scoring_s: float  # the job's share of the call
    waited_s: float  # from the job's arrival to the call


class Inbox(Protocol[T]):
    """Takes jobs and sends their answers. One thread takes and opens while another answers."""

    def take(self, limit: int, wait_s: float) -> Sequence[T]:
        """Up to ``limit`` tickets; waits at most ``wait_s`` for the first."""

    def open(self, tickets: Sequence[T]) -> Sequence[Job[T]]:
        """The jobs of the tickets, with their media, except those of tickets that need no answer any more."""

    def answer(self, answers: Sequence[Answer[T]]) -> None:
        """Send the answers back."""

    def close(self) -> None:
        """Hand back the tickets that were taken and not answered."""
