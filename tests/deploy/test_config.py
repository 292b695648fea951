import math
from dataclasses import dataclass, fields, replace
from typing import ClassVar

import pytest

from drover.actors.sampler import Plain
from drover.common.diffusion.kernels.renoise import Ddim, Renoise
from drover.common.errors import ConfigError
from drover.common.media.media import Media
from drover.common.media.sounds import Sounds
from drover.common.policies.stable_diffusion.model import StableDiffusionModel
from drover.deploy.cluster.worker import Place, pools_of
from drover.deploy.config import Pools, RunConfig
from drover.deploy.options import Sampling, Training
from drover.deploy.recipes.shapes import relations, shapes_ddpo
from drover.deploy.recipes.toy_ddpo import toy_ddpo
from drover.learner.intake.evaluation import EvaluationSpec
from drover.learner.intake.tasks import RecordSteps, Task
from drover.learner.objectives.ddpo import Ddpo
from drover.learner.objectives.joint import Joint
from drover.learner.overoptimisation import Watch
from drover.learner.reference import FrozenCopy
from drover.learner.spec import OptimizerSpec
from drover.reward_servers.rewards.toy_point import ToyPoint
from drover.worlds.plane.model import toy_kernel
from drover.worlds.shapes import prompts

SHAPES, TOY = shapes_ddpo(), toy_ddpo()


@dataclass(frozen=True)
class Heard(ToyPoint):
    """A reward that scores sounds."""

    takes: ClassVar[type[Media]] = Sounds


@dataclass(frozen=True)
class Untaking:
    """A reward that lacks the attribute ``takes``."""

    name: str = "point"

    def load(self, device: str): ...


@dataclass(frozen=True)
class Counted(ToyPoint):
    """A reward that reads a field of its prompts."""

    fields: tuple[str, ...] = ("count",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rewards": (ToyPoint(), ToyPoint())}, r"two rewards share a name: \['point', 'point'\]"),
        ({"rewards": (ToyPoint(name="other"),)}, r"\['point'\] is to be measured, but the rewards are \['other'\]"),
        (
            {"rewards": (ToyPoint(name="org/point"),)},
            "reward 'org/point' has a slash in its name.* call it 'org_point'",
        ),
        (
            {"rewards": (ToyPoint(name="rollout"),)},
            "a reward cannot be called 'rollout', because a pool is; give it another name",
        ),
        ({"rewards": (ToyPoint(name=""),)}, r"rewards\[0\] is a ToyPoint without a name; give it one"),
        (
            {"rewards": (len,)},
            r"rewards\[0\] is the function len; wrap it in a description.*`load\(device\)` that returns it",
        ),
        (
            {"rewards": (ToyPoint(), 3)},
            r"rewards\[1\] is an? int; wanted a description with a `name` and `load\(device\)`",
        ),
        (
            {"rewards": (Heard(),)},
            "reward 'point' scores Sounds, but the model draws Pictures; take a reward or a model of the other kind",
        ),
        (
            {"rewards": (Untaking(),)},
            r"rewards\[0\] is a Untaking that does not say what media it scores; give it the attribute takes",
        ),
        ({"rewards": (ToyPoint,)}, r"rewards\[0\] is the class ToyPoint; make one: ToyPoint\(...\)"),
        ({"objective": Ddpo}, r"objective is the class Ddpo; make one: Ddpo\(...\)"),
        ({"tasks": (Task(name="a/b", prompts=("x",), rewards=("point",)),)}, "task 'a/b' has a slash in its name"),
        ({"heldout": (replace(TOY.heldout[0], name="a/b"),)}, "held-out set 'a/b' has a slash in its name"),
        ({"sampler": Plain(Renoise(5, Ddim(eta=0.0)))}, "use eta > 0"),
        ({"sampler": Plain(toy_kernel(), guidance=3.0)}, "sets guidance 3.0, .* set the guidance of the model"),
        ({"record": RecordSteps(count=1, first=6)}, "first 6 steps of a chain of 5"),
        ({"samples": 0}, "samples must be at least 1, got 0"),
        ({"iterations": 0}, "iterations must be at least 1, got 0"),
        ({"groups": -2}, "groups must be at least 1, got -2"),
        ({"updates": 0}, "updates must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"checkpoint_every": 0}, "checkpoint_every must be at least 1, got 0"),
        ({"max_lag": -1}, r"max_lag must be 0 \(strictly on-policy\) or more, got -1"),
        ({"stall_s": 0.0}, "stall_s must be a positive number of seconds, or inf for no limit; got 0.0"),
        ({"lease_s": math.inf}, "lease_s must be a positive number of seconds, got inf"),
        ({"blobs_s": 0.0}, "blobs_s must be a positive number of seconds, got 0.0"),
        ({"tasks": ()}, "a run that learns from files alone has no tasks; give tasks, or files"),
        ({"pools": Pools(actors=0)}, "need at least one actor to sample them"),
        ({"evaluate_every": 1, "watch": Watch(truth="a/b", proxy="c/d")}, r"compares \['a/b', 'c/d'\], as SET/REWARD"),
        ({"record": None}, "Ddpo learns from recorded denoising steps; set record=RecordSteps"),
        (
            {"reference": FrozenCopy()},
            r"Ddpo uses no reference, but reference=FrozenCopy\(refresh=0\) is set; leave it out",
        ),
        ({"rewards": (ToyPoint(), ToyPoint(name="a/b"))}, "reward 'a/b' has a slash in its name"),
        (
            {
                "rewards": (ToyPoint(), ToyPoint(name="b")),
                "objective": Ddpo(weights={"point": 1.0, "b": 1.0}, clip=0.2),
            },
            r"Ddpo reads \['b'\], which task 'point' does not measure; it measures \['point'\]: add \['b'\] to the rewards",
        ),
        (
            {"objective": Joint(tasks={"other": Ddpo(weights={"point": 1.0}, clip=0.2)})},
            r"Joint has the tasks \['other'\], the run has \['point'\]; name the same tasks in both",
        ),
        (
            {"rewards": (Counted(),)},
            r"reward 'point' reads the field 'count', which prompt 'anywhere' of 'point' does not have \(it has none\); add",
        ),
        ({"evaluate_every": -1}, "evaluate_every must be 0 or more"),
        ({"watch": Watch(truth="a", proxy="b")}, "at least 1 to watch; got 0"),
        ({"updates": 2, "updates_by": "steps"}, "5 recorded steps do not divide into 2 updates"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_configuration_that_must_fail_is_refused_before_anything_starts(changes, message):
    with pytest.raises(ConfigError, match=message):
        replace(toy_ddpo(), **changes)


@pytest.mark.parametrize(("prompts_", "rewards"), [((), ("r",)), (("a",), ())])
def test_a_task_needs_prompts_and_a_reward(prompts_, rewards):
    with pytest.raises(ConfigError, match="task 'empty' needs at least one prompt and one reward"):
        Task(name="empty", prompts=prompts_, rewards=rewards)


def test_advantages_within_a_group_need_two_samples():
    with pytest.raises(
        ConfigError, match="Ddpo compares at least 2 samples of each prompt, got samples=1; raise samples"
    ):
        replace(SHAPES, samples=1)
    assert replace(toy_ddpo(), samples=1).samples == 1  # normalised over the batch


@pytest.mark.parametrize("name", [field.name for field in fields(Pools) if field.type == "int"])
def test_every_pool_needs_someone_but_actors_and_evaluators_may_be_none(name):
    least = 0 if name in ("actors", "evaluators") else 1
    Pools(**{name: least})
    with pytest.raises(ConfigError, match="every pool needs at least one"):
        Pools(**{name: least - 1})


@pytest.mark.parametrize("wrong", [-1.0, math.inf, math.nan])
def test_a_deadline_is_seconds_or_none(wrong):
    with pytest.raises(ConfigError, match="reward_deadline_s is seconds, or 0 for none; got"):
        Pools(reward_deadline_s=wrong)


def test_rewards_share_processes_only_where_they_are_told_to_and_need_no_packages_of_their_own():
    class Packed(ToyPoint):
        packages = ("something",)

    apart = replace(toy_ddpo(), rewards=(ToyPoint(), ToyPoint(name="other"), Packed(name="packed")))
    shared = replace(apart, pools=Pools(share_rewards=True, reward_servers=2))
    assert [place.name for place in places(apart)] == ["point-0", "other-0", "packed-0", "actor-0"]
    assert [(place.name, place.pool.rewards, place.pool.packages) for place in places(shared)] == [
        ("rewards-0", ("point", "other"), ()),
        ("rewards-1", ("point", "other"), ()),
        ("packed-0", ("packed",), ("something",)),
        ("packed-1", ("packed",), ("something",)),
        ("actor-0", (), ()),
    ]


def places(config: RunConfig) -> list[Place]:
    return [pool.place(number) for pool in pools_of(config, gpus=0.0) for number in range(pool.size)]


@pytest.mark.parametrize(("prompts_", "samples"), [((), 4), (("a",), 0)])
def test_an_evaluation_needs_something_to_evaluate(prompts_, samples):
    with pytest.raises(ConfigError, match="held-out set 'h' needs at least one prompt, one sample of each"):
        EvaluationSpec(name="h", prompts=prompts_, samples_per_prompt=samples, rewards=("r",))


@pytest.mark.parametrize("trained_steps", [0, 11])
def test_a_shapes_chain_of_ten_steps_trains_one_to_ten_of_them(trained_steps):
    with pytest.raises(ConfigError, match=r"between 1 and steps = 10"):
        shapes_ddpo(sampling=Sampling(trained_steps=trained_steps))


def test_a_guidance_of_1_is_none_and_needs_no_wrapper(tiny_folder):
    plain, guided = (
        StableDiffusionModel(checkpoint=str(tiny_folder), guidance=scale).build("cpu") for scale in (1.0, 3.0)
    )
    assert (type(plain).__name__, type(guided).__name__) == ("StableDiffusion", "Guided")


DIFFERENT: list[RunConfig] = [
    SHAPES, shapes_ddpo(sampling=Sampling(guidance=2.0)), shapes_ddpo(sampling=Sampling(steps=12)),
    shapes_ddpo(reward="jpeg_small"), shapes_ddpo(lora_rank=4), shapes_ddpo(compute="bfloat16"),
    replace(SHAPES, storage="float16"), toy_ddpo(),
]  # fmt: skip


def test_roles_that_would_corrupt_each_others_work_have_different_fingerprints():
    assert len({config.fingerprint for config in DIFFERENT}) == len(DIFFERENT)


def test_a_held_out_set_with_a_sampler_of_its_own_is_another_recipe_for_the_actors():
    own = Plain(toy_kernel(), guidance=2.0)
    other = replace(TOY, heldout=(replace(TOY.heldout[0], sampler=own),))
    assert (TOY.samplers, other.samplers) == ({}, {"anywhere": own})
    assert TOY.fingerprint != other.fingerprint


def test_the_canary_is_allowed_what_rounding_products_or_published_weights_to_bfloat16_may_cost():
    exact, half = shapes_ddpo(), shapes_ddpo(compute="bfloat16")
    allowed = [each.learner_spec().canary_tolerance for each in (exact, half, replace(exact, weights="bfloat16"))]
    assert allowed == [1e-4, 2e-2, 2e-2]
    assert exact.first_condition == exact.tasks[0].prompts[0]


def test_fields_that_one_role_alone_reads_do_not_change_the_fingerprint():
    same = [
        shapes_ddpo(optimizer=OptimizerSpec(lr=1.0)),
        shapes_ddpo(pools=Pools(actors=3)),
        shapes_ddpo(training=Training(groups=2, samples=2, max_lag=0)),
    ]
    assert {config.fingerprint for config in same} == {SHAPES.fingerprint}


def test_held_out_prompts_are_never_trained_on_and_always_the_same():
    (heldout,), (task,) = SHAPES.heldout, SHAPES.tasks
    assert set(heldout.prompts).isdisjoint(task.prompts)
    assert heldout == relations(task.name) and len(set(heldout.prompts)) == 48
    assert set(task.prompts) <= set(prompts.relation_prompts("train"))
