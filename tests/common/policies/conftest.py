"""Tiny pipelines, written once for all tests of policies. Tests do not change the folders; each loads its own policy."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from drover.common.policies.stable_diffusion.policy import StableDiffusion
from tests.common.policies.tiny_pipeline import write_tiny_pipeline, write_tiny_xl_pipeline


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_pipeline(tmp_path_factory.mktemp("tiny") / "epsilon")


@pytest.fixture(scope="session")
def tiny_v_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_pipeline(tmp_path_factory.mktemp("tiny") / "v", prediction_type="v_prediction")


@pytest.fixture(scope="session")
def tiny_xl_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_xl_pipeline(tmp_path_factory.mktemp("tiny") / "xl")


@pytest.fixture(params=["epsilon", "v"])
def either_folder(request: pytest.FixtureRequest, tiny_folder: Path, tiny_v_folder: Path) -> Path:
    return tiny_folder if request.param == "epsilon" else tiny_v_folder


@pytest.fixture
def tiny(tiny_folder: Path) -> StableDiffusion:
    return StableDiffusion.load(tiny_folder)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Bit-equal results do not depend on how many cores the machine has."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
