"""On-policy, the service learns the same weights as one process, bit for bit: distribution is no approximation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from drover.worlds.shapes import PIPELINE
from tests.end_to_end.service import RECIPES, Train, account, assert_same

pytestmark = pytest.mark.service
UNET = Path("unet", "diffusion_pytorch_model.safetensors")


def test_the_service_trains_a_real_pipeline_to_the_same_bits_as_one_process(
    tmp_path: Path, shared: dict[str, str]
) -> None:
    recipe = f"{RECIPES}:small_shapes"
    with Train(recipe, "--one-process", runs_dir=tmp_path, name="alone") as alone:
        account(alone.finish())
    with Train(recipe, runs_dir=tmp_path, name="service", env=shared) as service:
        account(service.finish())
    wanted, found = (load_file(run.folder.path / "pipeline" / UNET) for run in (alone, service))
    assert_same(found, wanted)
    before = load_file(PIPELINE / UNET)
    assert any(not torch.equal(found[name], before[name]) for name in before), "nothing was learned"
