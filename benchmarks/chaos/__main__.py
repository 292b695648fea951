"""Checks that a run loses nothing when its parts die: `python -m benchmarks.chaos [--quick] [--only VICTIM ...]`.

Each victim, a part of the service, has a run of its own, in which it is killed or cut off at random moments (strikes). The
recovery time is the time from a strike to the end of the second update after it, less the usual time of two updates; the
first update may already have had all its samples.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from benchmarks import measure
from benchmarks.chaos import torment, victims
from benchmarks.chaos.torment import CHECKPOINT_EVERY, DRAWN, SAMPLES, Outcome
from benchmarks.chaos.victims import PREEMPTION_S, Victim, learner_rank, worker
from benchmarks.measure import table

KILLS, QUICK_KILLS = 20, 2
TWO_RANKS = ("--learner-ranks", "2")
SINCE_CHECKPOINT = (CHECKPOINT_EVERY + 1) * DRAWN  # most samples since the newest checkpoint, open groups included

VICTIMS = (
    Victim("actor", worker("actor", signal.SIGKILL), most=SAMPLES),
    Victim("reward server", worker("reward", signal.SIGKILL), most=0),
    Victim("learner rank", learner_rank(signal.SIGKILL), most=SINCE_CHECKPOINT, arguments=TWO_RANKS),
    Victim("driver", victims.driver, most=SINCE_CHECKPOINT),
    Victim("Redis, append-only file", victims.own_redis, most=0, own_redis=True),
    Victim("Redis, back empty", victims.embedded_redis, most=DRAWN),
    Victim("actor, SIGTERM", worker("actor", signal.SIGTERM), most=SAMPLES),
    Victim("reward server, SIGTERM", worker("reward", signal.SIGTERM), most=0),
    Victim("actor, wedged", worker("actor", signal.SIGSTOP), most=SAMPLES),
    Victim("reward server, wedged", worker("reward", signal.SIGSTOP), most=0),
    Victim("learner rank, wedged", learner_rank(signal.SIGSTOP), most=SINCE_CHECKPOINT, arguments=TWO_RANKS),
    Victim("node of three", victims.node, most=SAMPLES, three_nodes=True),
    Victim("network of a node", victims.cable, most=SAMPLES, three_nodes=True),
)
SLOW = {"actor, wedged": 5, "reward server, wedged": 5, "learner rank, wedged": 2}  # fewer strikes: they take long


def main() -> None:
    chosen = _options(sys.argv[1:])
    facts = measure.machine()
    folder = Path(tempfile.mkdtemp(prefix="drover-chaos-"))
    outcomes = [run(victim, folder, chosen) for victim in VICTIMS if not chosen.only or victim.name in chosen.only]
    measure.show(chosen, facts, {"victims": [outcome.as_dict() for outcome in outcomes]}, [as_table(outcomes)])
    if all(outcome.passed for outcome in outcomes):
        shutil.rmtree(folder)
        return
    for outcome in outcomes:
        if outcome.trouble:
            print(f"{outcome.victim}: {outcome.trouble}", file=sys.stderr)
    sys.exit(f"something was lost; the runs are in {folder}")


def run(victim: Victim, folder: Path, chosen: argparse.Namespace) -> Outcome:
    """Make the undisturbed run with the victim's options, then the run with strikes; return the outcome of the second."""
    kills = chosen.kills or (QUICK_KILLS if chosen.quick else SLOW.get(victim.name, KILLS))
    place = folder / victim.name.translate(str.maketrans(" ,", "--", "()"))
    reference = torment.undisturbed(place / "undisturbed", kills, victim.arguments)
    return torment.torment(victim, place / "struck", kills, reference, seed=chosen.seed, say=_say)


def as_table(outcomes: Sequence[Outcome]) -> Table:
    columns = ("victim", "kills", "recovered", "ledger", "lost", "trained twice", "same bits", "sampled again", "p50 s")
    rows = [
        (
            outcome.victim,
            str(outcome.kills),
            str(outcome.recovered),
            "equal" if outcome.balanced else "NOT EQUAL",
            str(outcome.lost),
            str(outcome.twice),
            "yes" if outcome.same_bits else "NO",
            f"{outcome.again} of {outcome.most_again}",
            f"{outcome.quantile(0.5):.1f}",
            f"{outcome.quantile(0.95):.1f}",
            _gone(outcome),
        )
        for outcome in outcomes
    ]
    return table("what a strike costs", (*columns, "p95 s", "gone after, s"), rows)


def _gone(outcome: Outcome) -> str:
    """Return median and largest of the seconds until the process had ended, or until Redis was back."""
    found = sorted(outcome.measured.get("gone_s", []))
    if not found:
        return ""
    late = " LATE" if "SIGTERM" in outcome.victim and found[-1] > PREEMPTION_S else ""
    return f"{found[len(found) // 2]:.1f} ({found[-1]:.1f}){late}"


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the options of every benchmark, the victims, and the number of strikes."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--only", nargs="+", choices=[victim.name for victim in VICTIMS], default=[])
    parser.add_argument("--kills", type=int, default=0, help="of each victim; default 20, fewer of the wedged")
    parser.add_argument("--seed", type=int, default=0)
    own, rest = parser.parse_known_args(arguments)
    if {"-h", "--help"} & set(rest):
        print(parser.format_help())
    return argparse.Namespace(**vars(own), **vars(measure.options((__doc__ or "").splitlines()[0], rest)))


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
