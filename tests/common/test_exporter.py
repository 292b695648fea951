import socket
from contextlib import suppress
from threading import Thread
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families

from drover.common import metrics
from drover.common.errors import ConfigError
from drover.common.exporter import (
    MAX_OPEN_VALUES,
    MOST_PAGE_BYTES,
    PROCESS_METRICS,
    TEXT,
    PrometheusMeter,
    fetch,
    merged,
    read,
)
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


def test_a_scrape_reads_the_values_that_roles_report() -> None:
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
    actor.add(metrics.MASKED_SAMPLES, 3, reward='a "quoted" one,role="x"', reason="line\nend \\ {}\u2028\r\x0c")
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
    said = (("reason", "line\nend \\ {}\u2028\r\x0c"), ("reward", 'a "quoted" one,role="x"'), *actor_0)
    assert found["drover_masked_samples_total", said] == 3
    assert page.count("# TYPE drover_samples_total counter\n") == 1
    assert page.count("# HELP process_resident_memory_bytes ") == 1


GOOD = '# HELP x y\n# TYPE x gauge\nx{a="1"} 2\nx{a="\u00e9"} 2.5e+07 1700000000000\nnan_is_a_value NaN\ninf_too +Inf\n'


@pytest.mark.parametrize(
    "foreign",
    [
        "<html>\nnot here\n</html>\n",
        '{"status": "ok"}',
        "Hello world",
        "HTTP request sent to HTTPS port",
        "x 1\ny\n",
        "x{a=1\n",
        "\x00\x01",
    ],
)
def test_a_page_that_is_no_metrics_is_left_out_whole(foreign: str) -> None:
    page = merged([({"worker": "actor-0"}, GOOD), ({"worker": "actor-1"}, foreign), ({"worker": "actor-2"}, GOOD)])
    assert page == merged([({"worker": "actor-0"}, GOOD), ({"worker": "actor-2"}, GOOD)])
    assert len(read(page)) == 8


@pytest.mark.parametrize(
    ("host", "port"), [("127.0.0.1", 70000), ("127.0.0.1", -1), ("no.such.host.invalid", 0), ("a..b", 0)]
)
def test_a_port_or_host_that_is_none_is_a_sentence(host: str, port: int) -> None:
    with pytest.raises(
        ConfigError, match=rf"cannot serve metrics on {host}:{port} .*; choose an address of this machine"
    ):
        PrometheusMeter().serve(port, host)


def test_a_page_of_our_own_is_asked_directly_whatever_proxy_is_set(monkeypatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    meter = PrometheusMeter()
    meter.add(metrics.UPDATES)
    server, port = meter.serve()
    with server:
        assert "drover_updates_total 1.0" in fetch(f"127.0.0.1:{port}", "/metrics", timeout_s=5.0)


ANSWERS = {
    "another protocol": b"SSH-2.0-OpenSSH_9.6\r\n",
    "nothing": b"",
    "a proxy's refusal": b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 4\r\n\r\nx 1\n",
    "a redirection": b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:9/\r\nContent-Length: 0\r\n\r\n",
    "no text": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n\xff\xfe",
    "half a page": b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nx 1\n",
    "a page without end": b"HTTP/1.1 200 OK\r\n\r\n" + b"x 1\n" * (MOST_PAGE_BYTES // 4 + 1),
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_a_port_that_belongs_to_another_program_by_now_has_no_page(answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        Thread(target=answer_once, args=(listener, answer), daemon=True).start()
        assert fetch(f"127.0.0.1:{listener.getsockname()[1]}", "/metrics", timeout_s=5.0) == ""


def answer_once(listener: socket.socket, answer: bytes) -> None:
    with suppress(ConnectionError), listener.accept()[0] as caller:
        caller.recv(4096)
        caller.sendall(answer)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nonsense", "127.0.0.1:port", "", "[::1"])
def test_an_address_where_nothing_listens_has_no_page(address: str) -> None:
    assert fetch(address, "/metrics", timeout_s=5.0) == ""
