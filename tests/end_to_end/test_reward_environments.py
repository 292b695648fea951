"""Rewards whose packages drover does not have: a real Ray builds their environments, their pools score in them.

Building one clones drover's own environment first, about 2 GB. One that works and one that cannot be built are always
tried; with DROVER_TEST_ENVIRONMENTS=1 also ImageReward's, which takes 6 GB and minutes, and runs that wait for theirs.
"""

from __future__ import annotations

import json
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from drover.common.errors import ConfigError
from drover.common.media.media import Media
from drover.common.media.pictures import Pictures
from drover.common.protocols import Reward, Scorer, Scores
from drover.common.transport import keys
from drover.common.types import Measurement, Purpose, RolloutGroup
from drover.deploy.cluster.connection import Connection
from drover.deploy.cluster.environments import last_words, runtime_env, sweep
from drover.deploy.cluster.pools import WorkerPools
from drover.deploy.cluster.worker import pools_of
from drover.deploy.config import RunConfig
from drover.deploy.recipes.toy_ddpo import toy_ddpo
from drover.deploy.roles import Streams
from drover.reward_servers.rewards.image_reward import ImageReward
from tests.common.media.made_up import stored
from tests.end_to_end.environment_recipes import NO_PACKAGE, STALL_S, CowSays
from tests.end_to_end.service import Train, survivors

PATIENCE_S = 1500.0  # a busy machine takes many times the minute that a small environment needs
FOR_THE_PATIENT = pytest.mark.skipif(
    os.environ.get("DROVER_TEST_ENVIRONMENTS") != "1",
    reason="builds environments for minutes: set DROVER_TEST_ENVIRONMENTS=1",
)
RECIPES = Path(__file__).with_name("environment_recipes.py")


# --------------------------------------------------------------------------------------- requests to Ray and its answers


def test_a_reward_without_packages_shares_drovers_environment() -> None:
    assert runtime_env(()) == {}


def test_packages_become_an_environment_which_pip_is_not_asked_to_judge() -> None:
    asked = runtime_env(("cowsay==6.1",))["runtime_env"]
    assert asked["pip"] == {"packages": ["cowsay==6.1"], "pip_check": False}
    assert "env_vars" not in asked, "Ray logs an environment; what is secret must not be in it"


def test_the_last_words_of_a_build_are_the_last_error_that_pip_marked() -> None:
    report = """Failed to set up runtime environment.
    Last 50 lines of stdout:
        ERROR: Could not find a version that satisfies the requirement nothing==9 (from versions: none)
        ERROR: No matching distribution found for nothing==9
        [notice] A new release of pip is available
    """
    assert last_words(report) == "No matching distribution found for nothing==9"
    assert (
        last_words("Failed.\nOSError: [Errno 28] No space left on device\n")
        == "OSError: [Errno 28] No space left on device"
    )
    assert last_words("") == "Ray gives no reason"


def test_a_build_that_never_ends_is_said_to_have_taken_too_long() -> None:
    report = "Failed to install runtime_env within the timeout\n  raise exc\nasyncio.exceptions.TimeoutError\n"
    assert last_words(report) == "it took longer than 30 minutes"


# --------------------------------------------------------------------------------------------------------- real builds


def environments(ray_folder: Path) -> list[Path]:
    """The environments that Rays with this folder have built, or begun to build."""
    return list(ray_folder.glob("**/runtime_resources/pip/*"))


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """A folder for a Ray's sessions, with a short path, because the length of its sockets' paths is limited."""
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    """A Ray of this process. It tries once to build an environment, not three times, and keeps the environments built here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RUNTIME_ENV_RETRY_TIMES", "1")
        patch.setenv("RAY_worker_niceness", "0")
        import ray

        on_term = signal.getsignal(signal.SIGTERM)
        context = ray.init(
            address="local",
            namespace="drover",
            num_cpus=4,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="error",
        )
        signal.signal(signal.SIGTERM, on_term)
        yield
        ray.shutdown()
        sweep(context.address_info["session_dir"])


@contextmanager
def reward_pool(reward: Reward, redis_url: str) -> Iterator[tuple[RunConfig, Connection, WorkerPools]]:
    """The pool of that reward alone, in a run of its own; this process is its driver."""
    config = replace(toy_ddpo(), rewards=(reward,))
    connection = Connection(f"environments-{time.time_ns()}", redis_url)
    wanted = [pool for pool in pools_of(config, gpus=0.0) if pool.role == "reward"]
    pools = WorkerPools(config, connection, wanted, claim_cpus=False, on_event=lambda text: None)
    try:
        pools.start()
        yield config, connection, pools
    finally:
        pools.stop()


def until(found: Callable[[], Any], pools: WorkerPools) -> Any:
    """The first true result of ``found``. Looks at the pool meanwhile, as a run does: that raises if a worker failed for good."""
    gives_up_s = time.monotonic() + PATIENCE_S
    while not (result := found()):
        assert time.monotonic() < gives_up_s, f"nothing after {PATIENCE_S:.0f} s"
        pools.look()
        time.sleep(0.2)
    return result


def measured(
    pixels: np.ndarray, prompts: Sequence[str], pool: tuple[RunConfig, Connection, WorkerPools]
) -> Measurement:
    """The pool's measurement of a group of these pictures, one of each prompt."""
    config, connection, pools = pool
    broker = connection.open()
    streams = Streams(broker, config)
    media = stored(Pictures(pixels), "g0", broker.blobs())
    taken = streams.open(broker.keys.measurements, keys.LEARNER, "test")
    group = RolloutGroup(
        epoch=1,
        group=0,
        attempt=1,
        purpose=Purpose.TRAIN,
        task="point",
        rewards=("point",),
        version=0,
        prompts=tuple(prompts),
        samples_per_prompt=1,
        fingerprint=config.fingerprint,
        media=media,
        latents=None,
        transitions=None,
        worker="test",
        sampling_s=0.0,
    )
    streams.open(broker.keys.rollouts).put(group)
    (delivery,) = until(lambda: taken.take(1, 0.0), pools)
    broker.close()
    assert isinstance(delivery.message, Measurement), delivery.message
    return delivery.message


@pytest.mark.service
@pytest.mark.slow
def test_a_reward_scores_with_packages_that_drover_does_not_have(redis_url: str, ray_here: None) -> None:
    assert find_spec("cowsay") is None, "this test wants a package that drover's environment lacks"
    with reward_pool(CowSays(), redis_url) as pool:
        assert pool[2].preparing() == ["point"]
        measurement = measured(np.zeros((2, 1, 2, 3), np.uint8), ("a red circle", "anywhere"), pool)
        assert measurement.values == (213.0, 173.0)
        until(lambda: not pool[2].preparing(), pool[2])


@pytest.mark.service
@pytest.mark.slow
@FOR_THE_PATIENT
def test_a_run_waits_for_an_environment_longer_than_for_a_reward(tmp_path: Path, ray_folder: Path) -> None:
    """Building takes longer than ``stall_s``; the learner's wait for measurements begins when the reward is there."""
    with Train(f"{RECIPES}:cow_toy", runs_dir=tmp_path, env={"RAY_TMPDIR": str(ray_folder)}) as run:
        run.until(lambda: "building the environments of point" in run.out, "word of the environment")
        began_s = time.monotonic()
        run.await_update(1)
        assert time.monotonic() - began_s > STALL_S, "the environment was built too fast for this test to say anything"
        run.finish()
        means = [report.scalars["reward/point/mean"] for report in run.updates()]
        assert len(means) == 2 and all(150 < mean < 173 for mean in means), means
    assert environments(ray_folder) == [], "they go with the Ray that was started for the run"


@pytest.mark.service
@pytest.mark.slow
def test_an_environment_that_cannot_be_built_ends_the_run_with_pips_last_words(
    tmp_path: Path, ray_folder: Path
) -> None:
    ray = {"RAY_TMPDIR": str(ray_folder), "RUNTIME_ENV_RETRY_TIMES": "1"}
    with Train(f"{RECIPES}:unbuildable_toy", runs_dir=tmp_path, env=ray) as run:
        assert run.end() == 1
        assert "Traceback" not in run.err
        (complaint,) = [line for line in run.err.splitlines() if line.startswith("drover: ")]
        assert complaint == (
            "drover: the environment of reward 'point' cannot be built: "
            f"No matching distribution found for {NO_PACKAGE}; correct its packages"
        )
    assert environments(ray_folder) == []


@pytest.mark.service
@pytest.mark.slow
@FOR_THE_PATIENT
def test_a_run_that_is_interrupted_while_it_builds_leaves_neither_pip_nor_files(
    tmp_path: Path, ray_folder: Path
) -> None:
    with Train(f"{RECIPES}:cow_toy", runs_dir=tmp_path, env={"RAY_TMPDIR": str(ray_folder)}) as run:
        run.until(lambda: bool(environments(ray_folder)), "environment begun")
        run.look()
        run.process.send_signal(signal.SIGINT)
        run.end(timeout_s=120.0)
        assert survivors(run.family) == {}
    assert environments(ray_folder) == []


# --------------------------------------------------------------------------------------------------------- ImageReward


PROMPTS = ("a red circle", "a blue square below the triangle", "the photo", "a red circle", "the photo")
WORDS = (
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "a",
    "red",
    "blue",
    "circle",
    "square",
    "triangle",
    "below",
    "the",
    "photo",
)
TEXT_ENCODER = {  # as in BLIP's med_config.json
    "architectures": ["BertModel"],
    "model_type": "bert",
    "vocab_size": 30524,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "pad_token_id": 0,
    "add_cross_attention": True,
    "encoder_width": 768,
}


def pictures() -> np.ndarray:
    """[5, 48, 64, 3] uint8: noise, a grey, a ramp, halves and stripes; not square, so that the crop matters."""
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    ramp = np.broadcast_to(np.linspace(0, 255, 64).astype(np.uint8)[None, :, None], (48, 64, 3))
    halves, stripes = np.zeros((48, 64, 3), np.uint8), np.zeros((48, 64, 3), np.uint8)
    halves[:24, :, 0], stripes[:, ::2, 2] = 255, 255
    return np.stack([noise, np.full_like(noise, 128), ramp, halves, stripes])


@dataclass(frozen=True)
class CheckedImageReward:
    """ImageReward with made-up weights in the published layout; it also notes the scores of the package itself.

    ``folder`` has the name of the tokenizer on the hub: from the folder above, the package reads that one instead.
    """

    folder: str
    packages: ClassVar[tuple[str, ...]] = ImageReward.packages
    takes: ClassVar[type[Media]] = Pictures
    name: str = "point"

    def load(self, device: str) -> Scorer:
        import ImageReward as package
        import torch
        import transformers

        folder = Path(self.folder)
        os.chdir(folder.parent)
        make_checkpoint(folder)
        started = time.monotonic()
        scorer = ImageReward(str(folder), batch_size=3).load(device)
        noted: dict[str, Any] = {"load_s": time.monotonic() - started}
        noted["versions"] = {"transformers": transformers.__version__, "torch": torch.__version__}
        noted["refused"] = [refusal(folder, "few", {"mlp.layers.0.bias": torch.zeros(1024)})]
        noted["refused"] += [refusal(folder, "other", {"mlp.layers.0.bias": torch.zeros(7)})]
        theirs = package.load(str(folder / "ImageReward.pt"), device, med_config=str(folder / "med_config.json"))

        def score(prompts: Sequence[str], media: Pictures) -> Scores:
            from PIL import Image

            started = time.monotonic()
            scores = scorer(prompts, media)
            noted["batched_s"] = time.monotonic() - started
            started = time.monotonic()
            noted["single"] = [theirs.score(p, Image.fromarray(m)) for p, m in zip(prompts, media.pixels, strict=True)]
            noted["single_s"] = time.monotonic() - started
            noted["swapped"] = theirs.score(prompts[1], Image.fromarray(media.pixels[0]))
            (folder / "noted.json").write_text(json.dumps(noted))
            return scores

        return score


def make_checkpoint(folder: Path) -> None:
    """Weights whose scores differ between pictures and between prompts, as the published ones' do."""
    import torch
    from ImageReward.ImageReward import ImageReward as Package

    folder.mkdir()
    (folder / "med_config.json").write_text(json.dumps(TEXT_ENCODER))
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    torch.manual_seed(0)
    model = Package(med_config=str(folder / "med_config.json"))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                weight.normal_(std=1.0 if "pos_embed" in name else weight[0].numel() ** -0.5)
    torch.save(model.state_dict(), folder / "ImageReward.pt")


def refusal(folder: Path, name: str, state: dict[str, Any]) -> str:
    """The error text for a checkpoint with only these tensors."""
    import torch

    torch.save(state, folder / f"{name}.pt")
    try:
        ImageReward(str(folder / f"{name}.pt")).load("cpu")
    except ConfigError as error:
        return str(error)
    return "nothing"


@pytest.mark.service
@pytest.mark.slow
@FOR_THE_PATIENT
@pytest.mark.timeout(3600)
def test_image_reward_in_batches_says_what_its_package_says_of_one_picture_at_a_time(
    redis_url: str, ray_here: None, tmp_path: Path
) -> None:
    folder = tmp_path / "bert-base-uncased"
    started = time.monotonic()
    with reward_pool(CheckedImageReward(str(folder)), redis_url) as pool:
        until(lambda: not pool[2].preparing(), pool[2])
        ready_s = time.monotonic() - started
        measurement = measured(pictures(), PROMPTS, pool)
    noted = json.loads((folder / "noted.json").read_text())
    assert noted["versions"]["transformers"] == "4.51.3"
    assert measurement.valid == (True,) * 5
    assert measurement.values == pytest.approx(noted["single"], abs=1e-4)
    assert np.std(measurement.values) > 0.1, "the pictures must differ in score for the comparison to say anything"
    assert abs(noted["swapped"] - noted["single"][0]) > 0.01, "so must the prompts"
    few, other = noted["refused"]
    assert "few.pt lacks" in few and "of ImageReward's tensors, first 'blip.visual_encoder." in few
    assert "other.pt is not of ImageReward's shape: size mismatch for mlp.layers.0.bias" in other
    off = np.abs(np.array(measurement.values) - noted["single"]).max()
    print(f"ready in {ready_s:.0f} s; largest difference {off:.1e}; {noted}")
