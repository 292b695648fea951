"""Runs the driver's loop while the learner learns: read reports, check the workers, resize the pools, export metrics."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from drover.common.errors import DroverError
from drover.common.transport import keys
from drover.common.transport.broker import Broker
from drover.deploy.cluster.learner_group import LearnerGroup
from drover.deploy.cluster.monitor import Monitor
from drover.deploy.cluster.pools import LATE_S, WorkerPools
from drover.deploy.cluster.scaling import Readings, Scaling
from drover.deploy.cluster.worker import EVALUATION, ROLLOUT, Pool
from drover.deploy.config import RunConfig
from drover.deploy.roles import Streams
from drover.deploy.run_folder.watch import Watcher

HEAR_S = 0.3  # how long a turn waits for reports
LOOK_S = 2.0  # time between two checks of the workers


class Driver:
    """The loop of the command between start and end of a run. It never touches a training sample."""

    def __init__(
        self,
        config: RunConfig,
        pools: WorkerPools,
        learner: LearnerGroup,
        watcher: Watcher,
        monitor: Monitor,
        scaling: Scaling,
        backlogs: Callable[[], Mapping[str, tuple[int, float]]],
        *,
        on_event: Callable[[str], None],
    ) -> None:
        """``backlogs``: pool -> (messages it has not acknowledged, age of the oldest in seconds)."""
        self._pools, self._learner, self._watcher = pools, learner, watcher
        self._monitor, self._scaling, self._readings = monitor, scaling, Readings(backlogs)
        self._on_event, self._began_s, self._told_late = on_event, time.monotonic(), False
        # Settings that `drover plan` needs and that no other report has.
        self._facts = {
            "plan/actor_groups": float(config.pools.actor_groups),
            "plan/reward_loops": float(config.pools.reward_loops),
            "plan/reward_batch": float(config.pools.reward_batch),
        }

    def run(self, stopping: Callable[[], bool], stop: Callable[[], None]) -> None:
        """Loop until the learner is done. Calls ``stop`` once when ``stopping()`` is True. Raises `DroverError` on failure."""
        asked, looked = False, 0.0
        while self._learner.running:
            self._watcher.poll(HEAR_S)
            if self._watcher.failure is not None:
                raise DroverError("; ".join([self._watcher.failure, *self._pools.troubles()]))
            if stopping() and not asked:
                if not self._watcher.ranks:
                    raise KeyboardInterrupt  # there is no learner yet to stop in order
                asked = True
                stop()
            if time.monotonic() - looked > LOOK_S:
                looked = time.monotonic()
                self._look()
        self._watcher.poll(0.0)

    def _look(self) -> None:
        pools = self._pools
        pools.look()
        if not self._watcher.ranks and not self._told_late and time.monotonic() - self._began_s > LATE_S:
            self._told_late = True
            self._on_event(f"the learner is not up after {LATE_S:.0f} s; `ray status` shows the missing resources")
        signals = self._readings.signals(pools.sizes(), pools.spent(), self._watcher.last)
        pools.resize(self._scaling.wanted(signals, time.monotonic()))
        self._watcher.extra = pools.scalars() | self._monitor.scalars | self._facts
        self._monitor.look(pools.endpoints() | self._learner.endpoints(self._watcher.ranks))


def backlogs(streams: Streams, broker: Broker, pools: list[Pool]) -> Callable[[], dict[str, tuple[int, float]]]:
    """Return a function that reads each pool's (messages not acknowledged, age of the oldest in seconds).

    A pool whose processes serve several rewards has the longest of their queues.
    """
    orders = {
        ROLLOUT: [streams.open(broker.keys.work, keys.ACTORS)],
        EVALUATION: [streams.open(broker.keys.evaluation, keys.EVALUATORS)],
    }
    read = {
        pool.name: orders.get(pool.name)
        or [streams.open(broker.keys.rollouts, keys.reward_group(reward)) for reward in pool.rewards]
        for pool in pools
    }
    return lambda: {name: max(stream.backlog() for stream in queues) for name, queues in read.items()}
