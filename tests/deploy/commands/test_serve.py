"""The arguments of `drover serve`: a reward by name with its options, and files for https. test_endpoint has its answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from drover.common.errors import ConfigError
from drover.deploy.commands.serve import ServeOptions, description, run
from drover.reward_servers.rewards.http_reward import HttpReward
from drover.reward_servers.rewards.jpeg_size import JpegSize
from drover.reward_servers.rewards.toy_point import ToyPoint


def test_a_reward_is_named_by_its_file_and_its_options_are_words() -> None:
    assert description("jpeg_size", ("prefer=large",)) == JpegSize("large")
    assert description("toy_point", ("goal=0.5 -2",)) == ToyPoint((0.5, -2.0))
    wanted = HttpReward("a b", "http://h/s", retries=1)
    assert description("http_reward", ("name=a b", "url=http://h/s", "retries=1")) == wanted


def test_a_reward_of_ones_own_is_a_class_or_function_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from drover.reward_servers.rewards.jpeg_size import JpegSize\n"
        "def small(*, large: bool = False): return JpegSize('large' if large else 'small')\n"
        "def nothing(): return 3\n"
    )
    assert description(f"{file}:small") == JpegSize("small")
    with pytest.raises(ConfigError, match="is no reward; a reward has a name and load"):
        description(f"{file}:nothing")


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("jpeg", (), "no reward 'jpeg'; there are aesthetic, .*jpeg_size"),
        ("jpeg_size", ("prefr=large",), "no option prefr; it has prefer"),
        ("jpeg_size", ("large",), "write OPTION=VALUE"),
    ],
)
def test_an_unknown_reward_or_option_is_refused_with_the_existing_ones(
    name: str, options: tuple[str, ...], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        description(name, options)


def test_a_value_that_the_reward_refuses_ends_as_any_option_of_the_command_would(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit, match="2"):
        description("http_reward", ("name=a", "url=ftp://x"))
    assert "wants a url like" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"key": Path("/k")}, "--key without --certificate"),
        ({"certificate": Path("/not/there")}, "cannot be used for https .*No such file"),
        ({"certificate": Path(__file__)}, "cannot be used for https"),
    ],
)
def test_https_without_its_files_does_not_become_http(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Path], said: str
) -> None:
    monkeypatch.setenv("DROVER_REWARD_TOKEN", "x")
    with pytest.raises(ConfigError, match=said):
        run(ServeOptions("jpeg_size", **options))


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", 70000), ("127.0.0.1", -1), ("a..b", 0)])
def test_a_port_or_host_that_is_none_is_a_sentence(monkeypatch: pytest.MonkeyPatch, host: str, port: int) -> None:
    monkeypatch.setenv("DROVER_REWARD_TOKEN", "x")
    with pytest.raises(ConfigError, match=rf"cannot listen on {host}:{port} .*; choose an address of this machine"):
        run(ServeOptions("toy_point", host=host, port=port))
