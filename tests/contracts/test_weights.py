"""Every carrier of weights keeps these promises, in memory and in Ray's object store alike."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from drover.common.errors import WeightsLost
from drover.common.protocols import Canary, WeightPublisher, WeightSubscriber
from drover.common.weights.memory import MemoryWeights
from drover.common.weights.object_store import ObjectStorePublisher, ObjectStoreSubscriber, start_directory

CANARY = Canary(value=0.5, tolerance=1e-4)


@dataclass
class Carrier:
    publisher: WeightPublisher
    subscriber: WeightSubscriber

    def publish(self, *versions: int) -> None:
        """Publish weights that are all equal to their version."""
        for version in versions:
            self.publisher.publish(version, {"w": torch.full((3, 5), float(version))}, CANARY)

    def loaded(self, version: int) -> float:
        """The value that all weights of that version have."""
        target = Module()
        assert self.subscriber.load(version, target) == CANARY
        assert (target.w == target.w[0, 0]).all()
        return target.w[0, 0].item()

    def here(self, versions: range) -> list[int]:
        """The versions that can be loaded, of those given."""
        found = []
        for version in versions:
            try:
                assert self.loaded(version) == version
            except WeightsLost:
                continue
            found.append(version)
        return found


class Module(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.full((3, 5), -1.0))


@pytest.fixture(scope="module")
def directory() -> Iterator[Any]:
    """One directory for all tests: each begins as a new learner, which removes the weights that the last one published."""
    import ray

    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield start_directory("weights")
    ray.shutdown()


@pytest.fixture(params=["memory", pytest.param("object_store", marks=pytest.mark.service)])
def carrier(request: pytest.FixtureRequest) -> Carrier:
    if request.param == "memory":
        both = MemoryWeights(torch.float32)
        return Carrier(both, both)
    directory = request.getfixturevalue("directory")
    return Carrier(ObjectStorePublisher(directory, torch.float32), ObjectStoreSubscriber(directory))


def test_the_newest_version_is_there_and_older_ones_go(carrier):
    assert carrier.subscriber.latest() == -1
    with pytest.raises(WeightsLost, match="version 0 is not"):
        carrier.loaded(0)
    carrier.publish(0, 1, 2, 3)
    assert carrier.subscriber.latest() == 3
    assert carrier.loaded(3) == 3.0
    assert 0 not in carrier.here(range(4)) and 1 not in carrier.here(range(4))


def test_a_pinned_version_stays_however_many_follow_and_goes_when_it_is_unpinned(carrier):
    carrier.publish(0, 1)
    carrier.publisher.pin(1)
    carrier.publish(2, 3, 4, 5)
    assert carrier.here(range(4)) == [1] and carrier.subscriber.latest() == 5
    carrier.publisher.unpin(1)
    assert carrier.here(range(4)) == []
    assert carrier.loaded(5) == 5.0


def test_a_version_pinned_twice_is_released_by_the_second_unpin(carrier):
    carrier.publish(0)
    carrier.publisher.pin(0)
    carrier.publisher.pin(0)
    carrier.publish(1, 2, 3)
    carrier.publisher.unpin(0)
    assert carrier.loaded(0) == 0.0
    carrier.publisher.unpin(0)
    assert carrier.here(range(1)) == []


def test_unpinning_the_newest_does_not_take_it_away(carrier):
    carrier.publish(0, 1)
    carrier.publisher.pin(1)
    carrier.publisher.unpin(1)
    carrier.publisher.unpin(1)
    assert carrier.loaded(1) == 1.0
    carrier.publish(2, 3)
    assert carrier.here(range(2)) == []


def test_a_version_that_is_gone_cannot_be_pinned(carrier):
    carrier.publish(0, 1, 2)
    for version in (0, 7):
        with pytest.raises(WeightsLost, match=f"version {version} cannot be pinned"):
            carrier.publisher.pin(version)
    carrier.publish(3, 4, 5)
    assert carrier.here(range(3)) == []


@pytest.mark.service
def test_a_learner_that_starts_anew_forgets_pins_and_never_uses_a_number_twice(directory):
    subscriber = ObjectStoreSubscriber(directory)
    former = Carrier(ObjectStorePublisher(directory, torch.float32), subscriber)
    first = former.publisher.floor + 1
    former.publish(first, first + 1, first + 2)
    former.publisher.pin(first + 1)
    ObjectStorePublisher(directory, torch.float32)  # dies before it publishes anything
    successor = Carrier(ObjectStorePublisher(directory, torch.float32), subscriber)
    newest = successor.publisher.floor
    assert newest == first + 2 and subscriber.latest() == -1
    successor.publish(newest + 1)
    assert successor.here(range(newest + 2)) == [newest + 1]
    successor.publisher.unpin(first + 1)
    successor.publisher.pin(newest + 1)
    successor.publish(newest + 2, newest + 3, newest + 4)
    assert successor.loaded(newest + 1) == newest + 1
