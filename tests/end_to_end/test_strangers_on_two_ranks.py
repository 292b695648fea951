"""Methods that are no part of drover learn the same on the whole service with two learner ranks as with one rank."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.deploy.in_place import train
from tests.end_to_end.service import Train
from tests.strangers import kl_to_reference, latent_pairs, offline_pairs, signed_errors

pytestmark = [pytest.mark.service, pytest.mark.slow]


@pytest.mark.parametrize(
    "stranger", [latent_pairs, signed_errors, kl_to_reference, offline_pairs], ids=lambda it: it.__name__
)
def test_two_ranks_learn_what_one_learns(stranger, tmp_path: Path, shared: dict[str, str]) -> None:
    alone = train(stranger.recipe(iterations=6), tmp_path, name="alone")
    recipe, options = f"{stranger.__file__}:recipe", ("--iterations", "6", "--learner-ranks", "2")
    with Train(recipe, *options, runs_dir=tmp_path, env=shared) as run:
        summary = run.finish()
        assert summary["updates"] == 6 and summary["max_lag_seen"] == 0
        assert torch.allclose(run.weights["b"], alone.weights, rtol=1e-3, atol=1e-4)
    assert alone.weights.abs().max() > 0.01
