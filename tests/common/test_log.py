import logging
import re
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest

from drover.common.log import LineFormatter, configure, mask_passwords

LOG = logging.getLogger("drover.actors.worker")


@pytest.fixture
def stream() -> Iterator[StringIO]:
    root = logging.getLogger()
    level, stream = root.level, StringIO()
    configure("actor", "shapes-7", stream=stream)
    yield stream
    root.handlers = [handler for handler in root.handlers if not isinstance(handler.formatter, LineFormatter)]
    root.setLevel(level)


def test_a_record_is_one_line_of_fields_with_a_utc_timestamp(stream: StringIO) -> None:
    LOG.info("claimed %s", "order", extra={"group": 17, "note": 'two "words"', "_added_by_a_library": 1})
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z level=INFO role=actor run=shapes-7 logger=drover\.actors\.worker "
        r'msg="claimed order" group=17 note="two \\"words\\""\n',
        stream.getvalue(),
    )


def test_a_traceback_stays_on_its_line(stream: StringIO) -> None:
    try:
        raise ValueError("latents\nnot finite")
    except ValueError:
        LOG.exception("sampling failed")
    line = stream.getvalue()
    assert line.count("\n") == 1
    assert 'exception="Traceback' in line and "latents\\nnot finite" in line


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("redis://:hunter2@host:6379/0", "redis://:***@host:6379/0"),
        ("at rediss://user:p%40ss@host now", "at rediss://user:***@host now"),
        ("redis://user:p@ss/word@host:1", "redis://user:***@host:1"),
        ("redis://host:6379/0?db=1&password=hunter2&x=1", "redis://host:6379/0?db=1&password=***&x=1"),
        ("redis://host:6379/0", "redis://host:6379/0"),
        ("mail a@b and http://u:p@host", "mail a@b and http://u:p@host"),
    ],
)
def test_passwords_of_redis_urls_are_masked_and_nothing_else(text: str, masked: str) -> None:
    assert mask_passwords(text) == masked


def test_a_password_is_masked_in_messages_fields_and_tracebacks(stream: StringIO) -> None:
    url = "redis://:hunter2@host:6379/0"
    try:
        raise ConnectionError(url)
    except ConnectionError:
        LOG.exception("cannot reach %s", url, extra={"url": url})
    assert "hunter2" not in stream.getvalue()
    assert stream.getvalue().count("redis://:***@host") == 3


def test_configuring_again_replaces_and_writes_to_a_file(stream: StringIO, tmp_path: Path) -> None:
    configure("learner", "shapes-8", file=tmp_path / "learner.log", level="WARNING")
    LOG.info("unheard")
    LOG.warning("heard")
    assert stream.getvalue() == ""
    assert "role=learner run=shapes-8" in (tmp_path / "learner.log").read_text()
    assert "unheard" not in (tmp_path / "learner.log").read_text()
