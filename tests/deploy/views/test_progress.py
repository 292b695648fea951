import math
from io import StringIO

import pytest
from rich.console import Console

from drover.common.types import Report
from drover.deploy.run_folder.history import History, duration, sparkline
from drover.deploy.views.live_view import LiveProgress
from drover.deploy.views.progress import PlainProgress, progress_view, show
from tests.deploy.made_up_run import report, run


def plain_lines(reports: list[Report]) -> list[str]:
    out = StringIO()
    show(reports, PlainProgress(Console(file=out)))
    return out.getvalue().splitlines()


def live_text(reports: list[Report], width: int) -> str:
    console = Console(file=StringIO(), width=width, record=True, force_terminal=True)
    view = LiveProgress("shapes-7", "joint_shapes", console, clock=lambda: 0.0)
    for each in reports:
        view.update(each)
    console.print(view.render())
    return console.export_text()


def quick_update(index: int, at_s: float, total: int = 100) -> Report:
    return report("update", at_s, update=index, updates_total=total, reward__colour__mean=index / 10)


def test_plain_output_is_these_lines() -> None:
    reports = [
        report("phase", 0.2, "loading the pipeline"),
        report("eval", 61.0, "before", heldout__colour__mean=0.3, heldout__colour__count=64),
        report(
            "update",
            65.0,
            update=1,
            updates_total=2,
            reward__colour__mean=0.25,
            reward__colour__std=0.125,
            ratio_first=1.0,
            clip_fraction=0.05,
            lag_max=0,
            max_lag=1,
            samples_per_s=63.96,
            nobody_knows_this=3,
        ),
        report("event", 66.0, "rollout worker 2 died; replaced"),
        report("update", 69.0, update=2, updates_total=2, reward__colour__mean=0.5),
        report("eval", 3700.0, "after", update=2, heldout__colour__mean=0.75, heldout__colour__count=64),
        report("end", 3701.0),
    ]
    assert plain_lines(reports) == [
        "[   0:00] loading the pipeline",
        "[   1:01] held out before training: colour 0.3000 (64 samples)",
        "[   1:05] update 1/2  colour 0.2500 +-0.12  first ratio 1.0000  clip 5%  lag 0/1  samples/s 64",
        "[   1:06] event: rollout worker 2 died; replaced",
        "[   1:09] update 2/2  colour 0.5000",
        "[1:01:40] held out after training: colour 0.7500 (from 0.3000) (64 samples)",
        "[1:01:41] end",
    ]


def test_a_reward_without_a_value_for_every_sample_says_for_how_many_it_has_one() -> None:
    reports = [
        report("eval", 1.0, "before", heldout__judge__count=0, heldout__colour__mean=0.3, heldout__colour__count=8),
        report("update", 2.0, update=1, updates_total=2, reward__judge__valid_share=0.0, reward__colour__mean=0.25),
        report("update", 4.0, update=2, updates_total=2, reward__judge__valid_share=0.996, reward__judge__mean=3.0),
    ]
    assert plain_lines(reports) == [
        "[   0:01] held out before training: judge no valid value  colour 0.3000 (8 samples)",
        "[   0:02] update 1/2  judge - (valid 0%)  colour 0.2500",
        "[   0:04] update 2/2  judge 3.000 (valid 99%)",
    ]
    for width in (60, 120):
        assert "0%" in next(line for line in live_text(reports[:2], width).splitlines() if "judge" in line)
        assert "99%" in next(line for line in live_text(reports, width).splitlines() if "judge" in line)


def test_fast_updates_share_one_line_a_second_and_the_last_is_always_shown() -> None:
    lines = plain_lines([quick_update(i, i * 0.1) for i in range(1, 36)])
    assert [line.split()[3] for line in lines] == ["1/100", "11/100", "21/100", "31/100", "35/100"]


def test_the_time_to_go_follows_the_last_ten_updates() -> None:
    slow_then_fast = [quick_update(i, i * 60.0) for i in range(1, 11)]
    slow_then_fast += [quick_update(10 + i, 600.0 + 2 * i) for i in range(1, 11)]
    assert History.of(slow_then_fast).to_go_s() == pytest.approx(80 * 2.0)
    assert History.of(slow_then_fast[:1]).to_go_s() is None


def test_a_restarted_learner_goes_on_with_the_clock_and_replaces_what_it_does_again() -> None:
    history = History.of([quick_update(1, 10), quick_update(2, 20), quick_update(3, 30), quick_update(2, 5)])
    assert [each.scalars["update"] for each in history.updates] == [1, 2]
    assert history.elapsed_s == 35


def test_ctrl_c_shows_what_was_held_back_and_is_raised() -> None:
    def interrupted():
        yield quick_update(1, 0.0)
        yield quick_update(2, 0.1)
        raise KeyboardInterrupt

    out = StringIO()
    with pytest.raises(KeyboardInterrupt):
        show(interrupted(), PlainProgress(Console(file=out)))
    assert "update 2/100" in out.getvalue()


def test_ctrl_c_in_the_live_view_gives_the_cursor_back() -> None:
    def interrupted():
        yield quick_update(1, 0.0)
        raise KeyboardInterrupt

    out = StringIO()
    console = Console(file=out, width=80, force_terminal=True)
    with pytest.raises(KeyboardInterrupt):
        show(interrupted(), LiveProgress("shapes-7", "joint_shapes", console))
    assert out.getvalue().rfind("\x1b[?25h") > out.getvalue().rfind("\x1b[?25l") >= 0


@pytest.mark.parametrize("width", [100, 60])
@pytest.mark.parametrize("updates", [0, 1, 37, 50])
def test_the_live_view_fits_its_terminal(width: int, updates: int) -> None:
    lines = live_text(run(updates, total=50), width).splitlines()
    assert {len(line) for line in lines} == {width}
    assert lines[0].startswith("╭") and lines[-1].startswith("╰")


def test_the_live_view_says_what_matters() -> None:
    text = live_text(run(37, total=50), width=100)
    assert "training" in text and "update 37/50" in text
    assert "elapsed 2:48   to go 0:52" in text
    assert "0.3000 → 0.6600" in text
    assert "lag 1/1" in text
    assert "actor: compute 70%" in text
    assert "issued 1208   in flight 24   trained 1182" in text
    assert "2:01  rollout worker 2 died" in text


def test_names_that_look_like_markup_are_shown_as_they_are() -> None:
    update = Report(kind="update", at_s=1.0, version=0, scalars={"update": 1, "reward/[red]a/b/mean": 1.0}, text="")
    assert "[red]a/b" in live_text([update, report("event", 2.0, "[bold]died")], width=100)


def test_numbers_that_are_not_finite_do_not_stop_the_view() -> None:
    update = report(
        "update", 1.0, update=1, reward__colour__mean=math.nan, clip_fraction=math.inf, ratio_first=math.nan
    )
    assert "colour" in live_text([quick_update(1, 0.5), update], width=60)
    assert len(plain_lines([update])) == 1


def test_without_a_terminal_the_view_is_plain() -> None:
    assert isinstance(progress_view("r", "x", console=Console(file=StringIO())), PlainProgress)
    terminal = Console(file=StringIO(), force_terminal=True, _environ={"TERM": "xterm"})
    assert isinstance(progress_view("r", "x", console=terminal), LiveProgress)
    assert isinstance(progress_view("r", "x", console=terminal, plain=True), PlainProgress)


def test_a_sparkline_spans_low_to_high() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 8) == "▁▂▃▄▅▆▇█"
    assert sparkline([0.0] * 4 + [1.0] * 4, 2) == "▁█"
    assert sparkline([2.0, 2.0, 2.0], 8) == "▄▄▄"
    assert sparkline([], 8) == ""


def test_durations_read_like_a_clock() -> None:
    assert [duration(s) for s in (0, 59.9, 61, 3600, None, math.nan)] == ["0:00", "0:59", "1:01", "1:00:00", "-", "-"]
