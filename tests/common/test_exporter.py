from urllib.error import URLError
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families

from drover.common import metrics
from drover.common.errors import ConfigError
from drover.common.exporter import MAX_OPEN_VALUES, PROCESS_METRICS, TEXT, PrometheusMeter, merged, read
from drover.common.metrics import ALL, Kind, Metric


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
    with pytest.raises(ValueError, match=r"drover_stray_total is not in drover\.common\.metrics\.ALL"):
        meter.add(stray)
    with pytest.raises(ValueError, match="has the labels"):
        meter.add(metrics.DEAD_LETTERS, colour="red")


def test_endless_reasons_do_not_make_endless_series() -> None:
    meter = PrometheusMeter()
    for number in range(3 * MAX_OPEN_VALUES):
        meter.add(metrics.MASKED_SAMPLES, reward="colour", reason=f"error at byte {number}")
    family = next(family for family in meter.registry.collect() if family.name == "drover_masked_samples")
    values = {sample.labels["reason"]: sample.value for sample in family.samples}
    assert len(values) == MAX_OPEN_VALUES + 1
    assert values["other"] == 2 * MAX_OPEN_VALUES


def test_two_meters_do_not_share_their_numbers() -> None:
    one, other = PrometheusMeter(), PrometheusMeter()
    one.add(metrics.UPDATES)
    assert one.registry.get_sample_value("drover_updates_total") == 1
    assert other.registry.get_sample_value("drover_updates_total") is None, "it shows what it does, and nothing else"


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


def test_a_process_tells_its_memory_and_processor_time_beside_what_is_declared() -> None:
    found = {name for name, _, _ in read(PrometheusMeter().page())}
    assert set(PROCESS_METRICS) <= found
    assert not any(name.startswith("drover_") for name in found), "nothing was reported yet"


def test_a_page_of_ones_own_is_answered_beside_the_metrics() -> None:
    meter = PrometheusMeter()
    meter.add(metrics.UPDATES)
    server, port = meter.serve(pages={"/all": lambda: (TEXT, b"all 1\n")})
    with server:
        with urlopen(f"http://127.0.0.1:{port}/all", timeout=5) as answer:
            assert (answer.headers["Content-Type"], answer.read()) == (TEXT, b"all 1\n")
        assert scrape(port)["drover_updates_total", ()] == 1


def test_merged_pages_tell_processes_apart_and_keep_what_a_series_says_itself() -> None:
    """Each family has one heading and stays together; a role that a metric has is not overwritten by its page's."""
    actor, driver = PrometheusMeter(), PrometheusMeter()
    actor.add(metrics.SAMPLES, 8)
    actor.add(metrics.ROLE_S, 2.0, role="actor", part="compute")
    actor.add(metrics.MASKED_SAMPLES, 3, reward='a "quoted" one,role="x"', reason="line\nend \\ {}")
    driver.set(metrics.WORKERS, 2, role="actor")
    driver.add(metrics.SAMPLES, 1)
    page = merged(
        [
            ({"run": "r", "role": "actor", "worker": "actor-0"}, actor.page()),
            ({"run": "r", "role": "driver", "worker": 'the "driver"'}, driver.page()),
        ]
    )
    found = {(name, tuple(sorted(labels.items()))): value for name, labels, value in read(page)}
    actor_0 = (("role", "actor"), ("run", "r"), ("worker", "actor-0"))
    assert found["drover_samples_total", actor_0] == 8
    assert found["drover_samples_total", (("role", "driver"), ("run", "r"), ("worker", 'the "driver"'))] == 1
    assert found["drover_role_seconds_total", tuple(sorted((*actor_0, ("part", "compute"))))] == 2
    assert found["drover_workers", (("role", "actor"), ("run", "r"), ("worker", 'the "driver"'))] == 2
    said = (("reason", "line\nend \\ {}"), ("reward", 'a "quoted" one,role="x"'), *actor_0)
    assert found["drover_masked_samples_total", said] == 3
    assert page.count("# TYPE drover_samples_total counter\n") == 1
    assert page.count("# HELP process_resident_memory_bytes ") == 1
