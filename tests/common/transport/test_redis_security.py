"""A Redis that many runs share: it is reached over TLS alone, and each user has drover's commands on one run's keys."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import redis

from drover.common.errors import ConfigError, TransportError
from drover.common.transport.connection import complete, connect, mask
from drover.common.transport.embedded import EmbeddedRedis
from drover.common.transport.redis_broker import RedisBroker
from drover.common.types import GroupFailed, Purpose, Stage
from drover.deploy.cluster.connection import Connection, own_redis_url
from drover.deploy.commands.redis_user import key_pattern, password_of, setuser_line
from tests.common.transport.tls import Certificates, TlsFront, make_certificates

pytestmark = pytest.mark.service
needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="makes certificates with openssl")
SECRET = "hunter2-0123456789"
RUN = "blue.0a1b2c3d"


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis(max_memory_bytes=32 << 20) as server:
        yield server


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("ca"))


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("URL", "PASSWORD", "PASSWORD_FILE", "CA"):
        monkeypatch.delenv(f"DROVER_REDIS_{name}", raising=False)
    return monkeypatch


@pytest.fixture(scope="module")
def user(server: EmbeddedRedis) -> str:
    """URL of a user with rights on the run "blue" alone, made by the line that operators are given."""
    connect(server.url).execute_command(*setuser_line("blue", SECRET).split())
    return f"redis://drover-blue:{SECRET}@127.0.0.1:{urlsplit(server.url).port}/0"


def note(group: int) -> GroupFailed:
    return GroupFailed(epoch=0, group=group, attempt=1, purpose=Purpose.TRAIN, stage=Stage.SAMPLE, reason="nan")


# ------------------------------------------------------------------------------------------------- the user


def test_a_runs_user_may_do_all_that_the_transport_does(user: str) -> None:
    broker = RedisBroker(user, RUN, patience_s=2.0)
    one, other = (broker.stream(broker.keys.work, "actors", name, lease_s=0.3) for name in ("a", "b"))
    for group in range(4):
        one.put(note(group))
    first, second = one.take(2, 1.0)
    one.ack(first)
    one.hand_back(second)
    (again,) = other.take(1, 2.0)
    assert again.attempt == 2
    other.renew()
    other.bury(again, "on purpose")
    assert other.backlog()[0] == 2 and one.outstanding() == 2
    assert [letter.reason for letter in broker.dead_letters()] == ["on purpose"]
    assert broker.buried_after("0")[1] == ["work"]
    assert broker.memory()[0][0] > 0
    blobs = broker.blobs()
    blobs.put("b", [b"0123", b"4567"])
    assert blobs.get("b", 2, 3) == b"234" and blobs.get("b") == b"01234567"
    blobs.drop(["b"])
    one.clear()
    for stream in (one, other):
        stream.close()
    broker.forget()
    assert list(broker.link.client.scan_iter(f"{broker.keys.prefix}*")) == []
    broker.close()


@pytest.mark.parametrize(
    "command",
    [
        ("GET", "drover:red.0a1b2c3d:blob:b"),
        ("SET", "drover:red.0a1b2c3d:blob:b", "x"),
        ("GET", "drover:blue.green.0a1b2c3d:blob:b"),  # a run whose name begins alike
        ("GET", "drover:bluegreen.0a1b2c3d:blob:b"),
        ("GET", "other"),
        ("XADD", "drover:red.0a1b2c3d:work", "*", "m", "x"),
        ("XREADGROUP", "GROUP", "g", "c", "STREAMS", "drover:red.0a1b2c3d:work", ">"),
        ("UNLINK", "drover:red.0a1b2c3d:work"),
        ("EVAL", "return 1", "0"),
        ("DEL", f"drover:{RUN}:work"),
        ("KEYS", "*"),
        ("FLUSHALL",),
        ("FLUSHDB",),
        ("CONFIG", "GET", "*"),
        ("CONFIG", "SET", "dir", "/tmp"),
        ("ACL", "LIST"),
        ("ACL", "SETUSER", "drover-blue", "+@all"),
        ("CLIENT", "LIST"),
        ("CLIENT", "KILL", "TYPE", "normal"),
        ("MONITOR",),
        ("MODULE", "LIST"),
        ("SCRIPT", "FLUSH"),
        ("SHUTDOWN", "NOSAVE"),
        ("REPLICAOF", "127.0.0.1", "1"),
        ("SAVE",),
        ("PUBLISH", "c", "x"),
        ("SUBSCRIBE", "c"),
        ("RENAME", f"drover:{RUN}:work", "other"),
        ("MIGRATE", "127.0.0.1", "1", "k", "0", "1"),
        ("SWAPDB", "0", "1"),
        ("SELECT", "1"),
    ],
    ids=" ".join,
)
def test_nothing_else(server: EmbeddedRedis, user: str, command: tuple[str, ...]) -> None:
    with redis.Redis.from_url(user) as client, pytest.raises(redis.exceptions.NoPermissionError):
        client.execute_command(*command)
    assert connect(server.url).ping()


def test_a_script_may_not_touch_what_its_user_may_not(server: EmbeddedRedis, user: str) -> None:
    root, client = connect(server.url), connect(user)
    root.set("drover:red.0a1b2c3d:blob:b", "theirs")
    foreign = client.script_load("return redis.call('GET', 'drover:red.0a1b2c3d:blob:b')")
    with pytest.raises(redis.exceptions.ResponseError, match="can't access"):
        client.evalsha(foreign, 0)
    with pytest.raises(redis.exceptions.NoPermissionError):
        client.evalsha(foreign, 1, "drover:red.0a1b2c3d:blob:b")
    flush = client.script_load("return redis.call('FLUSHALL')")
    with pytest.raises(redis.exceptions.ResponseError, match="can't run this command"):
        client.evalsha(flush, 0)
    assert root.get("drover:red.0a1b2c3d:blob:b") == b"theirs"


def test_another_run_fails_at_once_with_the_remedy(user: str) -> None:
    broker = RedisBroker(user, "red.0a1b2c3d", patience_s=2.0)
    with pytest.raises(TransportError, match="refuses a command; check the user's rights") as caught:
        broker.stream(broker.keys.work, "actors").put(note(1))
    assert SECRET not in str(caught.value)
    broker.close()


def test_a_star_gives_all_runs_whose_names_begin_so() -> None:
    assert key_pattern("vision-*") == "drover:vision-*"
    assert setuser_line("vision-*", SECRET).startswith("ACL SETUSER drover-vision reset on #")


@pytest.mark.parametrize("run", ["", "*x", "a b", "a~b", "a\nb", "x" * 101, "a**", "[a]"])
def test_an_invalid_run_name_gets_no_rights(run: str) -> None:
    with pytest.raises(ConfigError, match="names no run"):
        setuser_line(run, SECRET)


def test_the_line_does_not_show_the_password_and_its_file_is_for_one_reader(tmp_path: Path) -> None:
    file = tmp_path / "password"
    made = password_of(file)
    assert len(made) >= 43 and file.stat().st_mode & 0o777 == 0o600
    assert password_of(file) == made and made not in setuser_line("blue", made)


# ------------------------------------------------------------------------------------------------ the secret


def test_the_password_may_come_from_a_file_or_a_variable_and_is_never_shown(
    server: EmbeddedRedis, clean: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    password, port = str(urlsplit(server.url).password), urlsplit(server.url).port
    file = tmp_path / "password"
    file.write_text(password + "\n")
    clean.setenv("DROVER_REDIS_URL", f"redis://127.0.0.1:{port}/0")
    for name, value in (("DROVER_REDIS_PASSWORD_FILE", str(file)), ("DROVER_REDIS_PASSWORD", password)):
        clean.setenv(name, value)
        url = own_redis_url()
        assert connect(url).ping()
        assert password not in mask(url) + repr(Connection("blue", url)) + str(Connection("blue", url))
        clean.delenv(name)


def test_one_password_is_for_all_servers(clean: pytest.MonkeyPatch) -> None:
    clean.setenv("DROVER_REDIS_URL", "redis://a:1/0  rediss://blue@b:2/0")
    clean.setenv("DROVER_REDIS_PASSWORD", SECRET)
    assert own_redis_url() == f"redis://:{SECRET}@a:1/0 rediss://blue:{SECRET}@b:2/0"
    assert SECRET not in mask(own_redis_url())


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"PASSWORD": SECRET, "PASSWORD_FILE": "/x"}, "both set; unset one"),
        ({"PASSWORD_FILE": "/not/there"}, "cannot be read"),
        ({"PASSWORD_FILE": "/dev/null"}, "is empty"),
        ({"PASSWORD_FILE": "/dev/zero"}, "larger than 4096"),
        ({"PASSWORD": f"{SECRET} x"}, "holds spaces"),
        ({"CA": "/not/there"}, "give the path of the CA"),
    ],
)
def test_a_secret_that_cannot_be_used_is_refused_unseen(
    clean: pytest.MonkeyPatch, variables: dict[str, str], said: str
) -> None:
    clean.setenv("DROVER_REDIS_URL", "redis://h:1")
    for name, value in variables.items():
        clean.setenv(f"DROVER_REDIS_{name}", value)
    with pytest.raises(ConfigError, match=said) as caught:
        own_redis_url()
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "options", "wanted"),
    [
        ("redis://h:1", {"password": "a/b@c:d?e#"}, "redis://:a%2Fb%40c%3Ad%3Fe%23@h:1"),
        ("rediss://me@h:1/2", {"password": "p"}, "rediss://me:p@h:1/2"),
        ("rediss://me:@h:1", {"password": "p"}, "rediss://me:p@h:1"),
        ("rediss://h:1?db=2", {"ca": "/a b/ca.pem"}, "rediss://h:1?db=2&ssl_ca_certs=/a%20b/ca.pem"),
        ("redis://:p@h:1", {}, "redis://:p@h:1"),
    ],
)
def test_password_and_ca_are_put_where_the_client_reads_them(url: str, options: dict[str, str], wanted: str) -> None:
    assert complete(url, **options) == wanted


@pytest.mark.parametrize(
    ("url", "options"),
    [
        (f"redis://:{SECRET}@h:1", {"password": "p"}),
        (f"redis://h:1?password={SECRET}", {"password": "p"}),
        (f"redis://:{SECRET}@h:1", {"ca": "/ca"}),
        (f"rediss://:{SECRET}@h:1?ssl_ca_certs=/other", {"ca": "/ca"}),
    ],
)
def test_two_answers_to_one_question_are_refused(url: str, options: dict[str, str]) -> None:
    with pytest.raises(TransportError, match=r"keep one of them|write rediss") as caught:
        complete(url, **options)
    assert SECRET not in str(caught.value)


# --------------------------------------------------------------------------------------------------- TLS


@needs_openssl
def test_a_private_ca_is_trusted_where_it_is_named_and_nowhere_else(
    server: EmbeddedRedis, user: str, certificates: Certificates, clean: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    port = urlsplit(server.url).port
    assert port is not None
    file = tmp_path / "password"
    file.write_text(SECRET)
    with TlsFront(port, certificates) as front:
        clean.setenv("DROVER_REDIS_URL", f"rediss://drover-blue@127.0.0.1:{front.port}/0")
        clean.setenv("DROVER_REDIS_PASSWORD_FILE", str(file))
        with pytest.raises(TransportError, match="does not agree on TLS; .* name the CA .* in DROVER_REDIS_CA"):
            connect(own_redis_url())
        clean.setenv("DROVER_REDIS_CA", str(certificates.ca))
        assert connect(own_redis_url()).ping()
        broker = RedisBroker(own_redis_url(), RUN)
        broker.stream(broker.keys.work, "actors").put(note(7))
        assert [d.message.group for d in broker.stream(broker.keys.work, "actors").take(1, 2.0)] == [7]
        broker.forget()
        broker.close()


@needs_openssl
def test_a_certificate_for_another_host_is_refused(
    server: EmbeddedRedis, user: str, certificates: Certificates
) -> None:
    port = urlsplit(server.url).port
    assert port is not None
    with TlsFront(port, certificates, host="127.0.0.2") as front:
        url = f"rediss://drover-blue:{SECRET}@127.0.0.2:{front.port}/0?ssl_ca_certs={certificates.ca}"
        with pytest.raises(TransportError, match="does not agree on TLS") as caught:
            connect(url)
        assert SECRET not in str(caught.value)
