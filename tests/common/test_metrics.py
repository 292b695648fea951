import math
import random
import re
from pathlib import Path

import pytest

from drover.common import metrics
from drover.common.metrics import ALL, LABEL_VALUES, PARTS, Account, Kind, Metric, NullMeter


class FakeClock:
    """A clock that moves only by `pass_`."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s

    def pass_(self, seconds: float) -> None:
        self.now_s += seconds


class TallyMeter(NullMeter):
    """A meter that sums the added seconds by the label ``part``."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def add(self, metric: object, value: float = 1.0, **labels: str) -> None:
        super().add(metric, value, **labels)
        self.seconds[labels["part"]] = self.seconds.get(labels["part"], 0.0) + value


def test_every_metric_has_a_name_of_its_own_and_a_help_text() -> None:
    assert len(ALL) >= 25
    assert len({metric.name for metric in ALL}) == len(ALL)
    assert all(metric.help.endswith(".") for metric in ALL)


def test_names_end_in_their_unit_and_counters_in_total() -> None:
    for metric in ALL:
        assert metric.unit in {"", "seconds", "bytes", "messages", "versions", "ratio"}
        assert metric.name.removesuffix("_total").endswith(metric.unit)
        assert metric.name.endswith("_total") == (metric.kind is Kind.COUNTER)


def test_labels_are_declared_sets_and_never_ids() -> None:
    used = {label for metric in ALL for label in metric.labels}
    assert used == set(LABEL_VALUES)
    assert not used & {"group", "worker", "prompt", "sample", "id"}
    assert LABEL_VALUES["ending"] == {"trained", "empty", "failed", "stale"}


def test_buckets_rise() -> None:
    for metric in ALL:
        assert list(metric.buckets) == sorted(set(metric.buckets))


def test_an_account_adds_up_to_the_wall_through_nesting() -> None:
    clock = FakeClock()
    account = Account("actor", NullMeter(), clock=clock)
    clock.pass_(0.5)
    with account.part("compute"):
        clock.pass_(2.0)
        with account.part("weights"):
            clock.pass_(0.25)
        clock.pass_(1.0)
    clock.pass_(0.125)
    seconds = account.seconds()
    assert seconds["compute"] == 3.0 and seconds["weights"] == 0.25 and seconds["other"] == 0.625
    assert sum(seconds.values()) == clock() - 1000.0


def test_a_part_that_raises_is_charged_until_it_raised() -> None:
    clock = FakeClock()
    account = Account("learner", NullMeter(), clock=clock)
    with pytest.raises(RuntimeError), account.part("wait_data"), account.part("compute"):
        clock.pass_(3.0)
        raise RuntimeError
    clock.pass_(1.0)
    assert account.seconds() == dict.fromkeys(PARTS, 0.0) | {"compute": 3.0, "other": 1.0}


def test_ten_thousand_odd_spans_add_up_within_a_nanosecond_and_reach_the_meter() -> None:
    clock, meter, rng = FakeClock(), TallyMeter(), random.Random(3)
    account = Account("reward", meter, clock=clock)
    for _ in range(10_000):
        with account.part(rng.choice(PARTS)):
            clock.pass_(rng.random() * 0.01)
        clock.pass_(rng.random() * 1e-4)
    seconds = account.seconds()
    assert math.isclose(sum(seconds.values()), clock() - 1000.0, abs_tol=1e-9)
    assert all(math.isclose(meter.seconds[part], seconds[part], abs_tol=1e-9) for part in (*PARTS, "other"))


def test_an_unknown_part_is_refused_by_name() -> None:
    account = Account("actor", NullMeter())
    with pytest.raises(ValueError, match="'lunch' is no part"), account.part("lunch"):
        pass


@pytest.mark.parametrize(
    ("verb", "metric", "labels", "words"),
    [
        ("add", "drover_updates_total", {}, "no declared metric"),
        ("add", metrics.LAG, {}, "use meter.set"),
        ("set", metrics.UPDATES, {}, "use meter.add"),
        ("add", metrics.GROUPS_ENDED, {}, r"has the labels \['ending'\], got \[\]"),
        ("add", metrics.UPDATES, {"role": "actor"}, r"has the labels \[\], got \['role'\]"),
        ("add", metrics.GROUPS_ENDED, {"ending": "bored"}, "'bored' is none of"),
    ],
)
def test_a_call_that_does_not_fit_says_what_would(
    verb: str, metric: object, labels: dict[str, str], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        getattr(NullMeter(), verb)(metric, 1.0, **labels)


def test_a_declaration_without_its_unit_suffix_is_refused() -> None:
    with pytest.raises(AssertionError):
        Metric(name="drover_wait", kind=Kind.GAUGE, unit="seconds", help="Waiting.")


def test_every_declared_metric_is_reported_by_some_role() -> None:
    """The panel of a metric that no role sets would stay empty."""
    root = Path(metrics.__file__).parents[1]
    sources = [
        path
        for name in ("actors", "common", "deploy", "learner", "reward_servers")
        for path in root.glob(f"{name}/**/*.py")
    ]
    told = " ".join(path.read_text() for path in sources if path.name not in ("metrics.py", "panels.py", "standing.py"))
    names = {name for name, value in vars(metrics).items() if isinstance(value, Metric)}
    assert {name for name in names if not re.search(rf"metrics\.{name}\b", told)} == {"ROLE_S"}, "which accounts report"
