"""A learner that restarts drops the media of the evaluations before, except those in reports that are still to be shown."""

from __future__ import annotations

import pytest

from drover.common.errors import BlobMissing
from drover.common.protocols import BlobStore
from drover.common.transport import keys
from drover.common.transport.memory import MemoryBroker
from drover.common.types import Report
from drover.deploy.roles import Streams, learner_streams
from tests.common.media.made_up import pictures_in
from tests.deploy.in_place import small


def evaluated(moment: str, *blobs: str) -> Report:
    media = tuple(pictures_in(blob, 2, 4, 4, 3) for blob in blobs)
    return Report(kind="eval", at_s=1.0, version=3, scalars={}, text=moment, prompts=("a",) * len(blobs), media=media)


def left(blobs: BlobStore, names: list[str]) -> list[str]:
    found = []
    for name in names:
        try:
            blobs.get(name)
        except BlobMissing:
            continue
        found.append(name)
    return found


@pytest.mark.parametrize("taken", [False, True], ids=["unread", "being shown"])
def test_media_of_evaluations_that_were_cut_off_go_and_those_of_reports_that_nobody_has_shown_stay(taken: bool) -> None:
    config, broker = small(), MemoryBroker("run")
    names = [
        "1.train.4.1.actor-0/media",
        "1.train.4.1.actor-0/steps",
        "1.eval.0.1.actor-0/media",  # shown by now
        "1.eval.1.1.actor-0/media",  # of a report
        "1.eval.1.1.actor-0/media.1",
        "1.eval.2.1.actor-0/media",  # of the evaluation under way
        "1.eval.2.1.point-0/point",
    ]
    for name in names:
        broker.blobs().put(name, [b"x"])
    streams = Streams(broker, config)
    watcher = streams.open(broker.keys.reports, keys.WATCHER)
    streams.open(broker.keys.reports).put(evaluated("before", names[2]))
    watcher.ack(watcher.take(1, 0.0)[0])
    streams.open(broker.keys.reports).put(evaluated("during", *names[3:5]))
    if taken:
        watcher.take(1, 0.0)
    learner_streams(config, broker)
    assert left(broker.blobs(), names) == names[3:5]
