"""The work that rank 0 does for all ranks: gather measured groups, end them, evaluate, publish and report.

The other ranks have a `Follower`, whose methods do nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from drover.common.errors import DroverError
from drover.common.protocols import Canary, WeightPublisher
from drover.common.types import Ending
from drover.learner.answers import credit_of
from drover.learner.examples import MeasuredGroup
from drover.learner.intake.evaluation import Due
from drover.learner.intake.intake import Intake
from drover.learner.objective import Objective
from drover.learner.overoptimisation import Watch
from drover.learner.ranks import Iteration, Stop
from drover.learner.reporting.reporter import Reporter, Updated
from drover.learner.saving.progress import Progress

BLIND_ITERATIONS = 3  # this many in a row without one valid reward end the run with an error


class Lead(Protocol):
    """The interface of the work that only rank 0 does; `Head` does it, and `Follower` does nothing."""

    @property
    def floor(self) -> int:
        """The newest version that was published before this learner process began; -1 without one."""

    def begin(self, progress: Progress, cut_off: Sequence[Due]) -> None:
        """Begin the evaluation before the run, or repeat one that was ``cut_off`` when the run stopped."""

    def gather(self, progress: Progress) -> Iteration | Stop | None:
        """The next groups with their credit; None on the other ranks, which receive them from rank 0."""

    def settle(self, iteration: Iteration, progress: Progress, told: Updated) -> None:
        """End the iteration's groups, report, and begin an evaluation where it is due.

        The new weights must be visible to the actors.
        """

    def publish(self, version: int, weights: Mapping[str, Tensor], canary: Canary | None) -> None: ...

    def evaluate_now(self, progress: Progress) -> None:
        """Evaluate the newest version as the run's start, and wait for the result."""

    def saved(self) -> dict[str, Any]:
        """The entries of a checkpoint's JSON that only this rank knows."""

    def restore(self, state: Mapping[str, Any]) -> None: ...

    def tell(self, text: str, progress: Progress) -> None:
        """Report something that a person should know."""

    def conclude(self, progress: Progress, finished: bool, weights: Mapping[str, Tensor]) -> None:
        """Evaluate the result where the run is finished, hand over its weights, and end the run."""


class Follower:
    """The `Lead` of every rank but 0: its methods do nothing."""

    floor = -1

    def begin(self, progress: Progress, cut_off: Sequence[Due]) -> None: ...

    def gather(self, progress: Progress) -> Iteration | Stop | None:
        return None

    def settle(self, iteration: Iteration, progress: Progress, told: Updated) -> None: ...

    def publish(self, version: int, weights: Mapping[str, Tensor], canary: Canary | None) -> None: ...

    def evaluate_now(self, progress: Progress) -> None: ...

    def saved(self) -> dict[str, Any]:
        return {}

    def restore(self, state: Mapping[str, Any]) -> None: ...

    def tell(self, text: str, progress: Progress) -> None: ...

    def conclude(self, progress: Progress, finished: bool, weights: Mapping[str, Tensor]) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadSpec:
    """The learner's settings that only rank 0 reads."""

    iterations: int
    groups: int
    evaluate_every: int
    watch: Watch | None


class Head:
    """The `Lead` of rank 0: it owns the intake, publishes weights and reports."""

    def __init__(
        self,
        spec: HeadSpec,
        objective: Objective,
        intake: Intake,
        publisher: WeightPublisher,
        reporter: Reporter,
        *,
        finish: Callable[[Mapping[str, Tensor]], None],
        stopping: Callable[[], bool],
    ) -> None:
        """``finish`` is called with the final weights."""
        self._spec, self._objective, self._intake, self._publisher = spec, objective, intake, publisher
        self._reporter, self._finish, self._stopping = reporter, finish, stopping
        self._gathered: list[MeasuredGroup] = []

    @property
    def floor(self) -> int:
        return self._publisher.floor

    # ------------------------------------------------------------------------------------ one iteration

    def gather(self, progress: Progress) -> Iteration | Stop:
        if self._overoptimised(progress):
            self._reporter.event(_why_overoptimised(self._spec.watch, progress), progress)
            return Stop("overoptimised")
        if not self._spec.groups:
            return Stop("asked") if self._stopping() else Iteration()
        groups = self._intake.collect(
            self._spec.groups,
            total=self._spec.iterations * self._spec.groups,
            version=progress.version,
            stopping=self._stopping,
        )
        if groups is None:
            return Stop("asked")
        self._gathered = groups
        credit = credit_of(self._objective, groups)
        task = groups[0].rollout.task  # that of all groups of an iteration
        if progress.count(task, blind=not credit.terms) >= BLIND_ITERATIONS:
            raise DroverError(self._blind(task, f"for {BLIND_ITERATIONS} iterations"))
        return Iteration(tuple(group.rollout for group in groups), credit)

    def settle(self, iteration: Iteration, progress: Progress, told: Updated) -> None:
        if iteration.credit is not None:
            taught = iteration.credit.teaches(len(iteration.groups))
            for group, teaches in zip(iteration.groups, taught, strict=True):
                self._intake.end(group.group, Ending.TRAINED if teaches else Ending.EMPTY)
            self._intake.release(len(iteration.groups))
        self._reporter.update(progress, self._gathered, told)
        self._collect(progress)
        every = self._spec.evaluate_every
        if every and progress.update % every == 0 and progress.update < self._spec.iterations:
            self._evaluate("during", progress)

    def publish(self, version: int, weights: Mapping[str, Tensor], canary: Canary | None) -> None:
        self._publisher.publish(version, weights, canary)

    # -------------------------------------------------------------------------------------- evaluations

    def begin(self, progress: Progress, cut_off: Sequence[Due]) -> None:
        if progress.update == 0:
            self._evaluate("before", progress)
        elif during := [due for due in cut_off if due.moment == "during"]:
            self._evaluate("during", progress)
            if during[-1].update != progress.update:
                self._reporter.event(
                    f"the evaluation of update {during[-1].update} was cut off, and its weights are gone: "
                    f"those of update {progress.update} are evaluated instead",
                    progress,
                )

    def evaluate_now(self, progress: Progress) -> None:
        self._evaluate("before", progress)
        self._finish_evaluating(progress)

    def _evaluate(self, moment: str, progress: Progress) -> None:
        """Evaluate the newest version, at once or after the evaluation that is running."""
        if self._intake.evaluation.sets:
            self._intake.evaluation.want(Due(moment, progress.version, progress.update))

    def _collect(self, progress: Progress) -> None:
        """Report the running evaluation if it is complete."""
        if self._intake.evaluation.running and self._intake.evaluation.done:
            self._reporter.evaluated(self._intake.evaluation.collect(), progress)

    def _finish_evaluating(self, progress: Progress) -> None:
        while self._intake.evaluation.running:
            self._intake.await_evaluation()
            self._collect(progress)

    def _overoptimised(self, progress: Progress) -> bool:
        watch = self._spec.watch
        return watch is not None and watch.stop and progress.verdict.strikes >= watch.patience

    # ------------------------------------------------------------------------------------ state and end

    def saved(self) -> dict[str, Any]:
        intake = self._intake
        return {
            "feeder": intake.feeder.saved(),
            "ledger": intake.ledger.as_dict(),
            "evaluations": [
                {"moment": d.moment, "version": d.version, "update": d.update} for d in intake.evaluation.under_way
            ],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self._intake.feeder.restore(state["feeder"])
        self._intake.ledger.restore(state["ledger"])

    def tell(self, text: str, progress: Progress) -> None:
        self._reporter.event(text, progress)

    def conclude(self, progress: Progress, finished: bool, weights: Mapping[str, Tensor]) -> None:
        if finished:
            for task in progress.never_valid:
                raise DroverError(self._blind(task, "in the whole run"))
            self._evaluate("after", progress)
            self._finish_evaluating(progress)
            self._finish(weights)
        self._reporter.end(progress, "finished" if finished else "stopped")

    def _blind(self, task: str, when: str) -> str:
        masked = self._intake.assembler.masked
        counts = ", ".join(f"{name}: {count} x {reason}" for (name, reason), count in masked.items())
        return f"no sample of the task {task!r} had a valid reward {when}; masked so far: {counts or 'none'}"


def _why_overoptimised(watch: Watch | None, progress: Progress) -> str:
    assert watch is not None
    often = f"{progress.verdict.strikes} evaluations in a row"
    return f"ends here: held-out {watch.truth} fell while {watch.proxy} rose, at {often}"
