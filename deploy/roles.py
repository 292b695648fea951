"""Builds each role from a run's configuration, for one process and for many.

| role          | reads (consumer group)                       | writes                     |
|---------------|----------------------------------------------|----------------------------|
| actor         | work (actors)                                | rollouts, measurements*    |
| evaluator     | evaluation (evaluators)                      | rollouts, measurements*    |
| reward server | rollouts (reward:NAME)                       | measurements               |
| learner       | rollouts, measurements, control (learner)    | work, evaluation, reports  |
| watcher       | reports (watcher)                            | control                    |

\\* only `GroupFailed`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from drover.actors.worker import Actor, ActorWiring, Role, never
from drover.common.diffusion.kernels.density import require_density
from drover.common.errors import DroverError
from drover.common.metrics import Account
from drover.common.protocols import (
    Delivery,
    Meter,
    Policy,
    Reward,
    Scorer,
    SetScorer,
    Stream,
    WeightPublisher,
    WeightSubscriber,
)
from drover.common.tensors import dtype_named
from drover.common.transport import keys
from drover.common.transport.broker import Broker
from drover.common.types import Purpose, Report
from drover.common.user_code import in_a_sentence
from drover.deploy.config import RunConfig
from drover.deploy.run_folder.results import RunFolder
from drover.deploy.run_folder.resuming import check, describe
from drover.learner import fsdp
from drover.learner.head import Follower, Head, Lead
from drover.learner.intake.assembler import Assembler
from drover.learner.intake.evaluation import Evaluation
from drover.learner.intake.feeder import Feeder
from drover.learner.intake.intake import Intake, LearnerStreams
from drover.learner.intake.slots import Ledger, Slots
from drover.learner.loop import Learner, LearnerWiring
from drover.learner.objective import Models
from drover.learner.reporting.reporter import Reporter
from drover.learner.saving.checkpoint import Checkpoints
from drover.reward_servers.serving.groups import Groups
from drover.reward_servers.serving.server import RewardServer


class Streams:
    """The run's streams by name, each with all the groups that read it."""

    def __init__(self, broker: Broker, config: RunConfig) -> None:
        self._broker, self._lease_s = broker, config.lease_s
        self._readers = {
            broker.keys.work: (keys.ACTORS,),
            broker.keys.evaluation: (keys.EVALUATORS,),
            broker.keys.rollouts: (keys.LEARNER, *(keys.reward_group(reward.name) for reward in config.rewards)),
            broker.keys.measurements: (keys.LEARNER,),
            broker.keys.reports: (keys.WATCHER,),
            broker.keys.control: (keys.LEARNER,),
        }

    def readers(self) -> list[tuple[str, str]]:
        """Return (key, group) for every stream and every group that reads it."""
        return [(key, group) for key, groups in self._readers.items() for group in groups]

    def open(self, key: str, group: str | None = None, consumer: str | None = None) -> Stream:
        """Open a stream, for taking as ``consumer`` of ``group``, or without these for putting only."""
        return self._broker.stream(key, group, consumer, groups=self._readers[key], lease_s=self._lease_s)


def build_actor(
    config: RunConfig,
    broker: Broker,
    weights: WeightSubscriber,
    meter: Meter,
    *,
    name: str,
    device: str,
    role: Role = "actor",
) -> Actor:
    """Build one rollout worker with its policy loaded. With ``role="evaluator"`` it takes orders of evaluations only."""
    streams = Streams(broker, config)
    if role == "actor":
        work, give_way = streams.open(broker.keys.work, keys.ACTORS, name), never
    else:
        work, give_way = streams.open(broker.keys.evaluation, keys.EVALUATORS, name), _while_behind(config, broker)
    wiring = ActorWiring(
        work=work,
        rollouts=streams.open(broker.keys.rollouts),
        failures=streams.open(broker.keys.measurements),
        blobs=broker.blobs(),
        weights=weights,
        meter=meter,
        give_way=give_way,
    )
    return Actor(
        name,
        _built(config, device),
        config.sampler,
        wiring,
        samplers=config.samplers,
        first_condition=config.first_condition,
        fingerprint=config.fingerprint,
        storage=dtype_named(config.storage),
        device=device,
        role=role,
        batch_groups=config.pools.actor_groups,
        batch_samples=config.pools.actor_samples,
    )


def _while_behind(config: RunConfig, broker: Broker) -> Callable[[], bool]:
    """Return a test of whether more groups wait for a reward of both training and evaluation than it has scoring loops.

    An evaluator pauses while this is so: queues have no priority, so its groups would delay the next ones of training.
    """
    trained = {name for task in config.tasks for name in task.rewards}
    held_out = {name for held in config.heldout for name in held.rewards}
    streams, servers = Streams(broker, config), config.pools.reward_servers * config.pools.reward_loops
    queues = [streams.open(broker.keys.rollouts, keys.reward_group(name)) for name in sorted(trained & held_out)]
    return lambda: any(queue.backlog()[0] > servers for queue in queues)


def build_reward_server(
    config: RunConfig, reward: str, broker: Broker, meter: Meter, *, name: str, device: str
) -> RewardServer[Delivery]:
    """Build one worker of the reward's pool with its scorer loaded."""
    streams = Streams(broker, config)
    (description,) = (one for one in config.rewards if one.name == reward)
    inbox = Groups(
        name=name,
        reward=reward,
        rollouts=streams.open(broker.keys.rollouts, keys.reward_group(reward), name),
        measurements=streams.open(broker.keys.measurements),
        blobs=broker.blobs(),
        meter=meter,
    )
    return RewardServer(
        reward,
        _loaded(description, device),
        inbox,
        meter,
        max_batch=config.pools.reward_batch,
        deadline_s=config.pools.reward_deadline_s or None,
    )


def _loaded(reward: Reward, device: str) -> Scorer | SetScorer:
    with in_a_sentence(f"the reward {reward.name} cannot be loaded"):
        scorer = reward.load(device)
    if not (callable(scorer) or isinstance(scorer, SetScorer)):
        came = "None" if scorer is None else f"a {type(scorer).__name__}"
        raise DroverError(
            f"the reward {reward.name} cannot be used: its load returned {came}; return the function that scores"
        )
    return scorer


def _built(config: RunConfig, device: str) -> Policy:
    with in_a_sentence("the model cannot be loaded"):
        return config.model.build(device)


def build_learner(
    config: RunConfig,
    broker: Broker,
    publisher: WeightPublisher | None,
    meter: Meter,
    *,
    folder: Path,
    device: str,
    wait: Callable[[], None] | None = None,
) -> Learner:
    """Build this rank's learner, resumed from the newest checkpoint of the folder if there is one.

    The process group must be up, and rank 0 has the publisher. ``wait``: see `drover.learner.intake.intake.Intake`.
    """
    account = Account("learner", meter)
    checkpoints = Checkpoints(folder / "checkpoints")
    chosen = checkpoints.choose()
    told = [*chosen.told, *_changes(config, folder, chosen.folder)]
    lead: Lead = Follower()
    if dist.get_rank() == 0:
        assert publisher is not None
        lead = _build_head(config, broker, publisher, meter, account, folder, wait)
    wiring = LearnerWiring(
        lead=lead,
        blobs=broker.blobs(),
        checkpoints=checkpoints,
        recipe=describe(config),
        meter=meter,
        account=account,
    )
    policy, kernel = _built(config, device), config.sampler.kernel
    if config.record is not None:
        require_density(kernel, policy.schedule, range(config.record.first))
    fsdp.shard(policy.trainable, device)
    reference = None if config.reference is None else config.reference.hold(config.model, policy, device)
    models = Models(policy, kernel, None if reference is None else reference.policy)
    learner = Learner(config.learner_spec(), models, config.method, wiring, device=device, reference=reference)
    if chosen.folder is not None:
        learner.resume(chosen.folder)
    for text in told:
        learner.tell(text)
    return learner


def _build_head(
    config: RunConfig,
    broker: Broker,
    publisher: WeightPublisher,
    meter: Meter,
    account: Account,
    folder: Path,
    wait: Callable[[], None] | None,
) -> Head:
    """Build rank 0's connections to the other roles."""
    spec, streams = config.learner_spec(), learner_streams(config, broker)
    intake = build_intake(config, streams, publisher, account, wait)
    reporter = Reporter(
        intake, streams, meter, account, updates_total=spec.iterations, max_lag=spec.max_lag, watch=spec.watch
    )

    def finish(weights: Mapping[str, Tensor]) -> None:
        config.model.save(weights, folder)

    return Head(
        spec.head,
        config.method,
        intake,
        publisher,
        reporter,
        finish=finish,
        stopping=lambda: bool(streams.control.take(1, 0.0)),
    )


def _changes(config: RunConfig, folder: Path, checkpoint: Path | None) -> list[str]:
    """Return messages about changed settings or a missing checkpoint. Raises `ConfigError` where the run cannot go on."""
    if checkpoint is not None:
        return check(config, checkpoint)
    if any(report.kind == "update" for report in RunFolder(folder).reports()):
        return ["there is no checkpoint to go on from: begins again at update 0"]
    return []


def learner_streams(config: RunConfig, broker: Broker) -> LearnerStreams:
    """Open the learner's streams, and delete the messages and blobs that an earlier start of the learner left in them."""
    streams = Streams(broker, config)
    opened = LearnerStreams(
        work=streams.open(broker.keys.work),
        evaluation=streams.open(broker.keys.evaluation if config.pools.evaluators else broker.keys.work),
        rollouts=streams.open(broker.keys.rollouts, keys.LEARNER),
        measurements=streams.open(broker.keys.measurements, keys.LEARNER),
        reports=streams.open(broker.keys.reports),
        control=streams.open(broker.keys.control, keys.LEARNER),
        blobs=broker.blobs(),
    )
    for stream in (opened.work, opened.evaluation, opened.rollouts, opened.measurements):
        stream.clear()
    to_show = [report for report in opened.reports.unacknowledged() if isinstance(report, Report)]
    opened.blobs.sweep(f".{Purpose.TRAIN}.")
    opened.blobs.sweep(f".{Purpose.EVAL}.", {blob for report in to_show for ref in report.media for blob in ref.blobs})
    return opened


def build_intake(
    config: RunConfig,
    streams: LearnerStreams,
    weights: WeightPublisher,
    account: Account,
    wait: Callable[[], None] | None,
) -> Intake:
    spec, epoch = config.learner_spec(), time.time_ns()
    slots, ledger = Slots(spec.max_lag, spec.groups), Ledger()
    assembler = Assembler(streams.rollouts, streams.measurements, streams.blobs, epoch=epoch)
    return Intake(
        Feeder(spec.order, streams.work, slots, ledger, epoch=epoch),
        assembler,
        Evaluation(
            spec.evaluation,
            streams.evaluation,
            assembler,
            weights,
            epoch=epoch,
            seed=config.seed,
            fingerprint=config.fingerprint,
        ),
        slots,
        ledger,
        streams,
        max_lag=spec.max_lag,
        account=account,
        wait=wait,
        stall_s=spec.stall_s,
    )


def use_threads(count: int) -> None:
    """Compute with ``count`` CPU threads. The same count gives the same bits; another may round differently."""
    torch.set_num_threads(count)
