"""Ten methods that are no part of drover, each in a file of its own, run through the whole service in one process.

None of them edits or patches anything of drover's.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.deploy.in_place import Done, train
from tests.strangers import (
    clips,
    iteration_features,
    kinds,
    kl_to_reference,
    latent_pairs,
    offline_pairs,
    signed_errors,
)


def gain(done: Done, name: str = "anywhere/point") -> float:
    return done.summary["reward_after"][name] - done.summary["reward_before"][name]


def watched(done: Done, name: str) -> list[float]:
    return [scalars[name] for scalars in done.view.updates if name in scalars]


def test_pairs_of_clean_latents_with_a_reference(tmp_path: Path) -> None:
    done = train(latent_pairs.recipe(), tmp_path)
    assert gain(done) > 2
    assert watched(done, "accuracy")[0] == 0  # the policy is its own reference at the first step
    assert max(watched(done, "accuracy")) > 0.6
    assert "ratio_first" not in done.view.updates[-1]


def test_a_signed_weight_on_a_denoising_error(tmp_path: Path) -> None:
    done = train(signed_errors.recipe(), tmp_path)
    assert gain(done) > 2


def test_kl_to_a_frozen_reference(tmp_path: Path) -> None:
    free, held = (train(kl_to_reference.recipe(beta=beta), tmp_path, name=f"b{beta}") for beta in (0.0, 100.0))
    assert watched(held, "kl")[0] == 0
    assert watched(free, "kl")[-1] > 10 * watched(held, "kl")[-1] > 0
    assert gain(free) > gain(held) > 0


def test_offline_pairs_with_no_actor(tmp_path: Path) -> None:
    done = train(offline_pairs.recipe(), tmp_path)
    assert done.summary["samples"] == 0 and done.summary["ledger"]["issued"] == 0
    assert done.summary["updates"] == 30 and done.ended == "finished"
    mean = done.weights.mean(dim=0)
    assert mean[0] < -0.05 and mean[1] - mean[0] > 0.1  # towards (-1, 1), from drifts that were alike
    done.conclude()


def test_a_reward_over_features_of_the_whole_iteration(tmp_path: Path) -> None:
    done = train(iteration_features.recipe(), tmp_path)
    before, after = (done.summary[f"reward_{moment}"]["anywhere/mean_distance"] for moment in ("before", "after"))
    assert before > 1.5 and after < 0.5 * before


def test_clips_with_one_judgement_per_frame(tmp_path: Path) -> None:
    done = train(clips.recipe(), tmp_path)
    assert gain(done, "anywhere/frames") > 2
    assert watched(done, "ratio_first") == pytest.approx([1.0] * 40, abs=1e-6)
    ways = done.weights.mean(dim=0)  # [frame, 2]: each frame moves towards its own goal, from (1, 1) or so
    assert ways[0, 0] < -0.1 and ways[1, 0] > 0.1 and ways[2, 1] < -0.1
    done.conclude()
    assert done.folder.samples.exists()


@pytest.mark.parametrize("kind", ["sound", "scene", "structure"])
def test_sounds_scenes_and_structures_as_media(kind: str, tmp_path: Path) -> None:
    done = train(kinds.recipe(kind=kind), tmp_path)
    before, after = (done.summary[f"reward_{moment}"]["anywhere/judge"] for moment in ("before", "after"))
    assert after > 0.6 * before and before < 0
    done.conclude()
    assert done.folder.samples.exists()


@pytest.mark.parametrize("stranger", [latent_pairs, offline_pairs])
def test_a_stranger_resumes_to_the_same_weights(stranger, tmp_path: Path) -> None:
    from dataclasses import replace

    config = replace(stranger.recipe(iterations=6), checkpoint_every=3)
    whole = train(config, tmp_path, name="whole")
    train(config, tmp_path, name="cut", stop_after=3)
    resumed = train(config, tmp_path, name="cut", resume=True)
    assert (resumed.weights == whole.weights).all()
