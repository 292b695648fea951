"""The panels of the dashboards, with their queries of declared metrics. Knows PromQL, and nothing of Grafana."""

from __future__ import annotations

from dataclasses import dataclass

from drover.common import metrics
from drover.common.metrics import Metric

RUN = 'run="$run"'
WINDOW = "$window"  # the time over which rates are taken


@dataclass(frozen=True, slots=True)
class Query:
    """A PromQL expression and the legend of its series."""

    expression: str
    legend: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One graph. ``of``: the metrics whose help texts describe it; ``stacked``: its series are drawn as a sum."""

    title: str
    of: tuple[Metric, ...]
    queries: tuple[Query, ...]
    unit: str | None = None  # default: that of the first metric
    note: str = ""
    stacked: bool = False
    span: int = 8  # columns of 24
    most: float | None = None


@dataclass(frozen=True, slots=True)
class Row:
    title: str
    panels: tuple[Panel, ...]


# -------------------------------------------------------------------------------------------- expressions


def selector(metric: Metric, suffix: str = "", **labels: str) -> str:
    """Return the selector of one run's series, for example ``drover_role_seconds_total{run="$run",role="actor"}``."""
    assert set(labels) <= {*metric.labels, "role"}, (metric.name, labels)
    wanted = ",".join([RUN, *(f'{name}="{value}"' for name, value in labels.items())])
    return f"{metric.name}{suffix}{{{wanted}}}"


def newest(metric: Metric, *by: str) -> str:
    """Return the largest value of a gauge, over all series or for each value of the labels ``by``."""
    return f"max by ({', '.join(by)}) ({selector(metric)})" if by else f"max({selector(metric)})"


def rate(metric: Metric, *by: str, suffix: str = "", **labels: str) -> str:
    """Return the rate per second over the window, summed over all series or for each value of the labels ``by``."""
    inner = f"rate({selector(metric, suffix, **labels)}[{WINDOW}])"
    return f"sum by ({', '.join(by)}) ({inner})" if by else f"sum({inner})"


def increase(metric: Metric, *by: str) -> str:
    """Return the increase over the window, summed for each value of the labels ``by``."""
    return f"sum by ({', '.join(by)}) (increase({selector(metric)}[{WINDOW}]))"


def quantile(metric: Metric, q: float, *by: str) -> str:
    """Return the ``q`` quantile of a histogram over the window."""
    return f"histogram_quantile({q:g}, {rate(metric, 'le', *by, suffix='_bucket')})"


def mean(metric: Metric, *by: str) -> str:
    """Return the mean of a histogram over the window."""
    return f"{rate(metric, *by, suffix='_sum')} / {rate(metric, *by, suffix='_count')}"


def times(title: str, metric: Metric, by: str, note: str = "") -> Panel:
    """Make a panel with mean and 95th percentile of a histogram of seconds."""
    queries = (Query(mean(metric, by), f"{{{{{by}}}}} mean"), Query(quantile(metric, 0.95, by), f"{{{{{by}}}}} 95 %"))
    return Panel(title=title, of=(metric,), queries=queries, note=note)


def account(role: str, title: str) -> Panel:
    """Make a panel with the parts of a role's time, which sum to 100 %."""
    parts, whole = rate(metrics.ROLE_S, "part", role=role), rate(metrics.ROLE_S, role=role)
    return Panel(
        title=title,
        of=(metrics.ROLE_S,),
        queries=(Query(f"{parts} / scalar({whole})", "{{part}}"),),
        unit="percentunit",
        note="A part that lasts longer than the window shows only once it ends: choose a longer one.",
        stacked=True,
        most=1.0,
    )


# -------------------------------------------------------------------------------------------------- panels


def learning() -> tuple[Row, ...]:
    """Return the rows about learning: rewards, signs of on-policy training, and groups."""
    m = metrics
    ended = selector(m.GROUPS_ENDED)
    return (
        Row(
            "Rewards",
            (
                Panel(
                    title="Reward by name, training",
                    of=(m.REWARD_MEAN,),
                    queries=(Query(newest(m.REWARD_MEAN, "reward"), "{{reward}}"),),
                    span=12,
                ),
                Panel(
                    title="Reward by name, held out",
                    of=(m.HELDOUT_MEAN,),
                    queries=(Query(newest(m.HELDOUT_MEAN, "set", "reward"), "{{set}}/{{reward}}"),),
                    span=12,
                ),
                Panel(
                    title="Reward hacking: gain of the learned reward minus gain of the true one",
                    of=(m.OVEROPTIMISATION_GAP,),
                    queries=(Query(newest(m.OVEROPTIMISATION_GAP), "gap"),),
                    note="Only where the recipe watches for it.",
                    span=24,
                ),
            ),
        ),
        Row(
            "Is it on policy?",
            (
                Panel(
                    title="Lag",
                    of=(m.LAG, m.LAG_BOUND),
                    queries=(Query(newest(m.LAG), "lag"), Query(newest(m.LAG_BOUND), "bound")),
                    unit="short",
                ),
                Panel(
                    title="Probability ratio of the first step",
                    of=(m.RATIO_FIRST,),
                    queries=(Query(newest(m.RATIO_FIRST), "ratio"),),
                    unit="none",
                    note="With lag 0 anything but 1 is a fault.",
                ),
                Panel(
                    title="Clip fraction",
                    of=(m.CLIP_FRACTION,),
                    queries=(Query(newest(m.CLIP_FRACTION), "clipped"),),
                ),
                Panel(title="Loss", of=(m.LOSS,), queries=(Query(newest(m.LOSS), "loss"),)),
                Panel(title="Gradient norm", of=(m.GRAD_NORM,), queries=(Query(newest(m.GRAD_NORM), "norm"),)),
                Panel(
                    title="Canary, share of its tolerance",
                    of=(m.CANARY,),
                    queries=(Query(newest(m.CANARY, "role"), "{{role}}"),),
                ),
            ),
        ),
        Row(
            "Groups",
            (
                Panel(
                    title="Ledger: groups by ending",
                    of=(m.GROUPS_ENDED, m.GROUPS_ISSUED, m.GROUPS_IN_FLIGHT),
                    queries=(
                        Query(f"sum by (ending) ({ended})", "{{ending}}"),
                        Query(f"sum({selector(m.GROUPS_IN_FLIGHT)})", "in flight"),
                    ),
                    stacked=True,
                ),
                Panel(
                    title="Issued less ended less in flight",
                    of=(m.GROUPS_ISSUED,),
                    queries=(
                        Query(
                            f"sum({selector(m.GROUPS_ISSUED)}) - sum({ended}) - sum({selector(m.GROUPS_IN_FLIGHT)})",
                            "unaccounted",
                        ),
                    ),
                    note="Always 0: every group that is issued ends exactly once. After a learner's restart it begins anew.",
                ),
                Panel(
                    title="Updates per minute",
                    of=(m.UPDATES,),
                    queries=(Query(f"60 * {rate(m.UPDATES)}", "updates"),),
                ),
            ),
        ),
    )


def service() -> tuple[Row, ...]:
    """Return the rows about the service: throughput and cost, times, queues, memory and failures."""
    m = metrics
    trained = rate(m.TRAINED_SAMPLES)
    return (
        Row(
            "Throughput",
            (
                Panel(
                    title="Samples per second by role",
                    of=(m.SAMPLES, m.SCORED_SAMPLES, m.TRAINED_SAMPLES),
                    queries=(
                        Query(rate(m.SAMPLES, "role"), "{{role}} samples"),
                        Query(rate(m.SCORED_SAMPLES, "reward"), "{{reward}} scores"),
                        Query(trained, "learner trains"),
                    ),
                    unit="short",
                    span=12,
                ),
                Panel(
                    title="Cost per sample: CPU and GPU seconds set aside",
                    of=(m.RESERVED_CPUS, m.RESERVED_GPUS, m.TRAINED_SAMPLES),
                    queries=(
                        Query(f"sum({selector(m.RESERVED_CPUS)}) / {trained}", "CPU seconds"),
                        Query(f"sum({selector(m.RESERVED_GPUS)}) / {trained}", "GPU seconds"),
                    ),
                    unit="s",
                    span=6,
                ),
                Panel(
                    title="Cost of 1000 trained samples, at your prices",
                    of=(m.RESERVED_CPUS, m.RESERVED_GPUS, m.TRAINED_SAMPLES),
                    queries=(
                        Query(
                            f"1000 * (sum({selector(m.RESERVED_CPUS)}) * $cpu_hour"
                            f" + sum({selector(m.RESERVED_GPUS)}) * $gpu_hour) / 3600 / {trained}",
                            "money",
                        ),
                    ),
                    unit="none",
                    note="Set the prices of a CPU hour and a GPU hour in the boxes above.",
                    span=6,
                ),
            ),
        ),
        Row(
            "Where each role's time goes (adds up to 100 %)",
            (
                account("actor", "Actors"),
                account("reward", "Reward servers"),
                account("learner", "Learner"),
                account("evaluator", "Evaluators"),
            ),
        ),
        Row(
            "Delays",
            (
                times("Reward delay", m.REWARD_DELAY_S, "reward"),
                times("Weight sync", m.WEIGHT_SYNC_S, "role"),
                Panel(
                    title="Newest weights by role",
                    of=(m.WEIGHT_VERSION,),
                    queries=(Query(f"min by (role) ({selector(m.WEIGHT_VERSION)})", "{{role}}"),),
                    note="Of the process that is furthest behind.",
                ),
                times("Sampling a group", m.SAMPLING_S, "role"),
                times("Scoring a batch", m.SCORING_S, "reward"),
                times("Optimizer step", m.OPTIMIZER_STEP_S, "role"),
            ),
        ),
        Row(
            "Queues and Redis",
            (
                Panel(
                    title="Age of the oldest message",
                    of=(m.QUEUE_AGE_S,),
                    queries=(Query(newest(m.QUEUE_AGE_S, "stream", "reader"), "{{stream}} for {{reader}}"),),
                ),
                Panel(
                    title="Messages waiting or being worked on",
                    of=(m.QUEUE_BACKLOG,),
                    queries=(Query(newest(m.QUEUE_BACKLOG, "stream", "reader"), "{{stream}} for {{reader}}"),),
                    unit="short",
                ),
                Panel(
                    title="Redis memory",
                    of=(m.REDIS_MEMORY_BYTES, m.REDIS_LIMIT_BYTES),
                    queries=(
                        Query(newest(m.REDIS_MEMORY_BYTES, "server"), "used, server {{server}}"),
                        Query(newest(m.REDIS_LIMIT_BYTES, "server"), "limit, server {{server}}"),
                    ),
                ),
                Panel(
                    title="Tensor bytes per second",
                    of=(m.BLOB_READ_BYTES, m.BLOB_WRITTEN_BYTES),
                    queries=(
                        Query(rate(m.BLOB_WRITTEN_BYTES, "role"), "{{role}} writes"),
                        Query(rate(m.BLOB_READ_BYTES, "role"), "{{role}} reads"),
                    ),
                    unit="Bps",
                ),
            ),
        ),
        Row(
            "Failures",
            (
                Panel(
                    title="Masked samples, share",
                    of=(m.MASKED_SAMPLES, m.SCORED_SAMPLES),
                    queries=(
                        Query(f"{rate(m.MASKED_SAMPLES, 'reward')} / {rate(m.SCORED_SAMPLES, 'reward')}", "{{reward}}"),
                    ),
                    unit="percentunit",
                ),
                Panel(
                    title="Masked samples by reason",
                    of=(m.MASKED_SAMPLES,),
                    queries=(Query(increase(m.MASKED_SAMPLES, "reward", "reason"), "{{reward}}: {{reason}}"),),
                ),
                Panel(
                    title="Redeliveries and dead letters",
                    of=(m.REDELIVERIES, m.DEAD_LETTERS),
                    queries=(
                        Query(increase(m.REDELIVERIES, "stream"), "{{stream}} again"),
                        Query(increase(m.DEAD_LETTERS, "stream"), "{{stream}} dead"),
                    ),
                ),
                Panel(
                    title="Workers",
                    of=(m.WORKERS,),
                    queries=(Query(newest(m.WORKERS, "role"), "{{role}}"),),
                ),
                Panel(
                    title="Workers that died and were replaced",
                    of=(m.WORKER_DEATHS,),
                    queries=(Query(increase(m.WORKER_DEATHS, "role"), "{{role}}"),),
                ),
                Panel(
                    title="How runs ended",
                    of=(m.RUN_ENDED,),
                    queries=(Query(newest(m.RUN_ENDED, "how"), "{{how}}"),),
                ),
                Panel(
                    title="Versions of drover",
                    of=(m.BUILD_INFO,),
                    queries=(Query(f"count by (version) ({selector(m.BUILD_INFO)})", "{{version}}"),),
                ),
            ),
        ),
    )
