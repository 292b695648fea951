"""One Ray and one Redis that the tests share unless they test a run's own: starting them takes long."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from drover.common.transport.embedded import EmbeddedRedis
from tests.end_to_end.service import SLOW_TOY, Train, small_ray


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    with EmbeddedRedis() as server:
        yield server.url


@pytest.fixture(scope="session")
def ray_address() -> Iterator[str]:
    with small_ray(num_cpus=8) as address:
        yield address


@pytest.fixture(scope="session")
def shared(redis_url: str, ray_address: str) -> dict[str, str]:
    """Environment of a run that joins both. Ray demands a token of its clients unless told otherwise."""
    return {"DROVER_REDIS_URL": redis_url, "RAY_ADDRESS": ray_address, "RAY_AUTH_MODE": "token"}


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The weights that the on-policy toy learns in one process; every service must learn the same, with any failures."""
    runs_dir: Path = tmp_path_factory.mktemp("reference")
    with Train(SLOW_TOY, "--pause-s", "0", "--one-process", runs_dir=runs_dir) as run:
        run.finish()
        return run.weights
