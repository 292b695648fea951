"""ImageReward's description, and its errors where it cannot be loaded. `tests/end_to_end` tests its scores, in Ray."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from drover.common.errors import ConfigError
from drover.common.protocols import NeedsPackages, Reward
from drover.reward_servers.rewards.image_reward import ImageReward

FILES = ("ImageReward.pt", "med_config.json", "vocab.txt")


def laid_out(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).write_bytes(b"")
    return folder


def test_it_is_a_reward_with_an_environment_of_its_own() -> None:
    reward = ImageReward()
    assert isinstance(reward, Reward) and isinstance(reward, NeedsPackages)
    assert reward.name == "image_reward"
    assert {"image-reward==1.5", "transformers==4.51.3"} <= set(reward.packages)


def test_two_of_them_can_be_told_apart() -> None:
    ours, theirs = ImageReward("ours", name="ours"), ImageReward("theirs", name="theirs")
    assert (ours.name, theirs.name) == ("ours", "theirs")
    assert ours.packages == theirs.packages, "they share one environment"


def test_a_batch_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="batch_size must be at least 1, got 0"):
        ImageReward(batch_size=0)


@pytest.mark.parametrize("missing", FILES)
def test_a_folder_that_lacks_a_file_is_named_with_it(tmp_path: Path, missing: str) -> None:
    laid_out(tmp_path, *(name for name in FILES if name != missing))
    with pytest.raises(ConfigError) as error:
        ImageReward(str(tmp_path)).load("cpu")
    assert str(error.value).startswith(f"{tmp_path} lacks {missing}; ")


def test_a_file_of_weights_wants_the_other_two_beside_it(tmp_path: Path) -> None:
    weights = laid_out(tmp_path, "mine.pt") / "mine.pt"
    with pytest.raises(ConfigError, match="lacks med_config.json and vocab.txt; "):
        ImageReward(str(weights)).load("cpu")


def test_a_checkpoint_that_is_nowhere_is_not_looked_for_on_a_hub() -> None:
    with pytest.raises(ConfigError, match="no-such/model lacks ImageReward.pt and med_config.json and vocab.txt"):
        ImageReward("no-such/model").load("cpu")


@pytest.mark.skipif(find_spec("ImageReward") is not None, reason="this environment has ImageReward's packages")
def test_outside_its_environment_it_says_what_gives_it_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        ImageReward(str(laid_out(tmp_path, *FILES))).load("cpu")
    assert "No module named 'ImageReward'" in str(error.value)
    assert "run it as a service" in str(error.value)


def test_published_weights_that_cannot_be_fetched_name_the_local_way(tmp_path: Path) -> None:
    code = "from drover.reward_servers.rewards.image_reward import ImageReward; ImageReward().load('cpu')"
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=120)
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("drover.common.errors.ConfigError: ")]
    assert "ImageReward-v1.0 cannot be fetched (" in line
    assert "a folder with ImageReward.pt, med_config.json and vocab.txt" in line
