from urllib.error import URLError
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families

from common import metrics
from common.errors import ConfigError
from common.exporter import MAX_OPEN_VALUES, PrometheusMeter
from common.metrics import ALL, Kind, Metric


def scrape(port: int) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample the endpoint serves, by name and labels."""
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain")
        families = text_string_to_metric_families(answer.read().decode())
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in families
            for sample in family.samples
        }


def test_what_roles_report_is_what_a_scrape_reads() -> None:
    meter = PrometheusMeter()
    meter.add(metrics.GROUPS_ENDED, 3, ending="trained")
    meter.add(metrics.GROUPS_ENDED, ending="trained")
    meter.set(metrics.LAG, 2)
    meter.add(metrics.SCORING_S, 0.05, reward="colour")
    meter.add(metrics.SCORING_S, 0.5, reward="colour")
    server, port = meter.serve()
    with server:
        served = scrape(port)
    assert served["drover_groups_ended_total", (("ending", "trained"),)] == 4
    assert served["drover_lag_versions", ()] == 2
    assert served["drover_scoring_seconds_bucket", (("le", "0.1"), ("reward", "colour"))] == 1
    assert served["drover_scoring_seconds_bucket", (("le", "+Inf"), ("reward", "colour"))] == 2
    assert served["drover_scoring_seconds_sum", (("reward", "colour"),)] == pytest.approx(0.55)


def test_every_declared_metric_can_be_reported_and_is_served_under_its_name() -> None:
    meter = PrometheusMeter()
    for metric in ALL:
        labels = {label: min(metrics.LABEL_VALUES[label] or {"some"}) for label in metric.labels}
        report = meter.set if metric.kind is Kind.GAUGE else meter.add
        report(metric, 1.0, **labels)
    server, port = meter.serve()
    with server:
        names = {name for name, _ in scrape(port)}
    for metric in ALL:
        assert (f"{metric.name}_count" if metric.kind is Kind.HISTOGRAM else metric.name) in names
    assert not any(name.endswith("_created") for name in names)


def test_a_metric_declared_elsewhere_and_a_wrong_label_are_refused_in_the_call() -> None:
    meter = PrometheusMeter()
    stray = Metric(name="drover_stray_total", kind=Kind.COUNTER, help="Not in ALL.")
    with pytest.raises(ValueError, match=r"drover_stray_total is not in common\.metrics\.ALL"):
        meter.add(stray)
    with pytest.raises(ValueError, match="has the labels"):
        meter.add(metrics.DEAD_LETTERS, colour="red")


def test_endless_reasons_do_not_make_endless_series() -> None:
    meter = PrometheusMeter()
    for number in range(3 * MAX_OPEN_VALUES):
        meter.add(metrics.DEAD_LETTERS, reason=f"error at byte {number}")
    family = next(family for family in meter.registry.collect() if family.name == "drover_dead_letters")
    values = {sample.labels["reason"]: sample.value for sample in family.samples}
    assert len(values) == MAX_OPEN_VALUES + 1
    assert values["other"] == 2 * MAX_OPEN_VALUES


def test_two_meters_do_not_share_their_numbers() -> None:
    one, other = PrometheusMeter(), PrometheusMeter()
    one.add(metrics.UPDATES)
    assert other.registry.get_sample_value("drover_updates_total") == 0


def test_a_taken_port_is_named_with_the_way_out() -> None:
    server, port = PrometheusMeter().serve()
    with server, pytest.raises(ConfigError, match=rf"127\.0\.0\.1:{port}.*another port"):
        PrometheusMeter().serve(port=port)


def test_closing_frees_the_port() -> None:
    server, port = PrometheusMeter().serve()
    server.close()
    with pytest.raises(URLError):
        scrape(port)
    again, _ = PrometheusMeter().serve(port=port)
    again.close()
