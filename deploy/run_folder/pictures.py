"""Draws a run's pictures as PNG bytes: curves over updates, samples before and after. Reads a history; writes no file."""

from __future__ import annotations

import math
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np

from drover.deploy.run_folder.history import History, by_name, update_index

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 100
CURVES_PX = (1600, 1000)

# Okabe and Ito's palette (2008), whose colours are distinct with every common colour blindness.
BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, GREY = "#CC79A7", "#56B4E9", "#BBBBBB"
PART_COLOURS = {
    "compute": BLUE,
    "weights": GREEN,
    "wait_data": ORANGE,
    "wait_reward": PURPLE,
    "back_pressure": SKY,
    "other": GREY,
}
ROLES = ("actor", "evaluator", "reward", "learner")  # the evaluator only if the run has one

Shares = tuple[list[int], np.ndarray]
"""(update indices [T], share of each part of a role's time between an update and the one before it [parts, T])."""

# ------------------------------------------------------------------------------------------------ curves


def curves_png(history: History, *, title: str) -> bytes:
    """Draw 1600 x 1000 pixels: rewards on top, the health of the updates below, then the parts of each role's time."""
    figure = _figure(*CURVES_PX)
    figure.set_layout_engine("constrained", h_pad=0.08, w_pad=0.08)
    figure.suptitle(title, fontsize=16, fontweight="bold", parse_math=False)
    names, watched = history.rewards or [""], bool(history.watched("gap")[1])
    rewards_rows = 1 if len(names) + watched <= 4 else 2
    grid = figure.add_gridspec(3, 1, height_ratios=(1.2 * rewards_rows, 1, 1))
    rewards, health, times = (figure.add_subfigure(grid[row]) for row in range(3))
    columns = math.ceil((len(names) + watched) / rewards_rows)
    axes = list(np.ravel(rewards.subplots(rewards_rows, columns)))
    for ax, name in zip(axes, names, strict=False):
        _reward_panel(ax, history, name)
    for ax in axes[len(names) :]:
        ax.set_axis_off()
    if watched:
        _watch_panel(axes[len(names)], history)
    _health_panels(list(health.subplots(1, 5 if history.has_ratio else 4)), history)
    shares = {role: _shares(history, role) for role in ROLES}
    if not shares["evaluator"][0]:
        del shares["evaluator"]
    _time_panels(list(times.subplots(1, len(shares))), history, shares)
    return _png(figure)


def _reward_panel(ax: Axes, history: History, name: str) -> None:
    _dress(ax, f"reward: {name}" if name else "rewards")
    x, mean = history.series(f"reward/{name}/mean")
    spread_x, spread = history.series(f"reward/{name}/std")
    if len(spread) > 1 and spread_x == x:
        low, high = np.subtract(mean, spread), np.add(mean, spread)
        ax.fill_between(x, low, high, color=BLUE, alpha=0.15, linewidth=0, label="± standard deviation")
    _line(ax, x, mean, BLUE, "training mean")
    held_x, held = history.held_out(name)
    if held:
        ax.plot(held_x, held, ":", color=RED, marker="D", markersize=7, linewidth=1.5, label="held-out mean")
    _finish(ax, history, bool(mean or held))


def _watch_panel(ax: Axes, history: History) -> None:
    """Draw the rise of truth and proxy since the first evaluation, in their own standard deviations, and their gap."""
    ax.set_axis_on()
    _dress(ax, "over-optimisation, std. dev.")
    for what, colour, marker in (("proxy", ORANGE, "s"), ("truth", GREEN, "o"), ("gap", RED, "D")):
        x, y = history.watched(what)
        label = "proxy less truth" if what == "gap" else f"held-out {what}"
        ax.plot(
            x, y, ":" if what == "gap" else "-", color=colour, marker=marker, markersize=5, linewidth=1.5, label=label
        )
    ax.axhline(0.0, color="black", linewidth=0.8, linestyle=(0, (1, 2)), zorder=0)
    _finish(ax, history, True)


def _health_panels(axes: Sequence[Axes], history: History) -> None:
    if history.has_ratio:
        ratio, clip, kl, lag, speed = axes
        _lines(ratio, history, "probability ratio", {"ratio_first": "first step", "ratio": "all steps"}, reference=1.0)
        shares = {"clip_fraction_first": "first step", "clip_fraction": "all steps"}
        _lines(clip, history, "clipped share", shares, floor=True)
        _lines(kl, history, "approximate KL, nats", {"approx_kl": "all steps"})
        clip.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.3g} %")
        kl.yaxis.set_major_formatter(lambda nats, _: f"{nats:.3g}")
    else:
        loss, norm, lag, speed = axes
        _lines(loss, history, "loss", {"loss": "all steps"})
        _lines(norm, history, "gradient norm", {"grad_norm": "all steps"}, floor=True)
    bound = {"lag_max": "largest", "lag_mean": "mean", "max_lag": "bound"}
    _lines(lag, history, "lag, weight versions", bound, floor=True)
    _lines(speed, history, "samples per second", {"samples_per_s": "trained"}, floor=True)


def _lines(
    ax: Axes,
    history: History,
    title: str,
    scalars: dict[str, str],
    *,
    reference: float | None = None,
    floor: bool = False,
) -> None:
    """Draw one panel with a line per scalar; ``reference`` is a level to compare with, ``floor`` starts the axis at 0."""
    _dress(ax, title)
    top = 0.0
    drawn = 0
    for (scalar, label), colour in zip(scalars.items(), (BLUE, ORANGE, RED), strict=False):
        x, y = history.series(scalar)
        if y:
            _line(ax, x, y, colour, label, dashed=label == "bound")
            top, drawn = max(top, *y), drawn + 1
    if reference is not None and drawn:
        ax.axhline(reference, color="black", linewidth=0.8, linestyle=(0, (1, 2)), zorder=0)
    if floor and drawn:
        ax.set_ylim(-0.03 * (top or 1), 1.12 * (top or 1))  # a line at 0 stays visible
    ax.ticklabel_format(useOffset=False)
    _finish(ax, history, drawn > 0, legend=drawn > 1)


def _time_panels(axes: Sequence[Axes], history: History, shares: Mapping[str, Shares]) -> None:
    from matplotlib.patches import Patch

    for ax, (role, (x, parts)) in zip(axes, shares.items(), strict=True):
        _dress(ax, f"time of the {role}, % of each update")
        if x:
            # Update i is the span from i - 1 to i.
            ax.stackplot([x[0] - 1, *x], 100 * parts[:, [0, *range(len(x))]], colors=list(PART_COLOURS.values()), lw=0)
            ax.set_ylim(0, 100)
        _finish(ax, history, bool(x), legend=False)
    patches = [Patch(color=colour, label=part.replace("_", " ")) for part, colour in PART_COLOURS.items()]
    figure = axes[0].get_figure()
    assert figure is not None
    figure.legend(handles=patches, loc="outside lower center", ncols=len(patches), frameon=False, fontsize=11)


def _shares(history: History, role: str) -> Shares:
    accounts = [(update_index(report), by_name(report, f"account/{role}/")) for report in history.updates]
    accounts = [(update, account) for update, account in accounts if account]
    seconds = np.array([[account.get(part, 0.0) for part in PART_COLOURS] for _, account in accounts])
    if not accounts:
        return [], seconds
    # Accounts start again from 0 when a process restarts: then the account itself is the time spent since.
    spent = np.diff(np.nan_to_num(seconds), axis=0, prepend=0.0)
    spent = np.where(spent < 0, seconds, spent)
    # Workers are asked every few seconds: updates in between have no new times, and get no area.
    told = spent.sum(axis=1) > 0
    shares = spent[told] / spent[told].sum(axis=1, keepdims=True)
    return [update for (update, _), news in zip(accounts, told, strict=True) if news], shares.T


def _line(ax: Axes, x: list[int], y: list[float], colour: str, label: str, *, dashed: bool = False) -> None:
    if y:
        marker = "o" if len(y) == 1 else None
        ax.plot(x, y, "--" if dashed else "-", color=colour, linewidth=1.8, marker=marker, label=label)


def _dress(ax: Axes, title: str) -> None:
    from matplotlib.ticker import MaxNLocator

    ax.set_title(title, loc="left", fontsize=12, parse_math=False)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", color="#E5E5E5", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.tick_params(labelsize=10)
    ax.set_xlabel("update", fontsize=10)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, steps=[1, 2, 5, 10]))


def _finish(ax: Axes, history: History, has_data: bool, *, legend: bool = True) -> None:
    """Set the x axis to the updates of the whole run, and add a legend; without data, write "not reported"."""
    updates = max([1, *map(update_index, history.updates), *(held.update for held in history.evals)])
    ax.set_xlim(-0.02 * updates, 1.02 * updates)
    if not has_data:
        ax.text(0.5, 0.5, "not reported", transform=ax.transAxes, ha="center", va="center", color="#888888")
        ax.set_xticks([])
        ax.set_yticks([])
    elif legend:
        ax.legend(frameon=False, fontsize=10, loc="best")


# ----------------------------------------------------------------------------------------------- samples

IMAGE_PX = 96  # the shorter side of a drawn image is at least this
LARGEST_PX = 256  # and its longer side at most this, unless that would break the first limit
LABEL_PX = 270
GAP_PX = 6
BLOCK_GAP_PX = 40
TITLE_PX = 48


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplePair:
    """The same P prompts and S seeds under the weights before and after training."""

    before: np.ndarray  # [P, S, H, W, 3] uint8
    after: np.ndarray  # [P, S, H, W, 3] uint8
    prompts: Sequence[str]  # [P]

    def __post_init__(self) -> None:
        shape = self.before.shape
        if self.after.shape != shape or len(self.prompts) != shape[0] or 0 in shape:
            raise ValueError(
                f"before {shape}, after {self.after.shape} and {len(self.prompts)} prompts do not match or are empty."
            )


def paired(before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray]) -> SamplePair | None:
    """Return the prompts that have pictures both before and after training; None if there are none.

    A lost order may leave out a prompt. Both mappings are files of the watcher: ``media`` [P, S, H, W, 3] uint8 and
    ``prompts`` [P].
    """
    moments = [(_numbered(moment["prompts"].tolist()), moment["media"]) for moment in (before, after)]
    common = [one for one in moments[0][0] if one in moments[1][0]]
    if not common:
        return None
    pictures = framed([media[prompts.index(one)] for prompts, media in moments for one in common])
    prompts = [prompt for prompt, _ in common]
    return SamplePair(before=pictures[: len(common)], after=pictures[len(common) :], prompts=prompts)


def framed(groups: Sequence[np.ndarray]) -> np.ndarray:
    """Stack P groups of pictures [S', H', W', 3] to [P, S, H, W, 3] uint8; smaller pictures are padded with white."""
    samples, height, width = (pick(group.shape[axis] for group in groups) for axis, pick in enumerate((min, max, max)))
    frames = np.full((len(groups), samples, height, width, 3), 255, np.uint8)
    for frame, group in zip(frames, groups, strict=True):
        frame[:, : group.shape[1], : group.shape[2]] = group[:samples]
    return frames


def _numbered(prompts: Sequence[str]) -> list[tuple[str, int]]:
    """Return each prompt with its count of earlier occurrences: two held-out sets may share prompts."""
    return [(prompt, list(prompts[:row]).count(prompt)) for row, prompt in enumerate(prompts)]


def samples_png(pair: SamplePair) -> bytes:
    """Draw a row per prompt: its text, the samples before, the same seeds after. Pixels are only repeated or skipped."""
    return _blocks_png([("before", pair.before), ("after", pair.after)], pair.prompts)


def grid_png(images: np.ndarray, prompts: Sequence[str]) -> bytes:
    """Draw images [P, S, H, W, 3] uint8, a row per prompt with its text at the left."""
    return _blocks_png([("", images)], prompts)


def _blocks_png(blocks: Sequence[tuple[str, np.ndarray]], prompts: Sequence[str]) -> bytes:
    """Draw blocks (title, images [P, S, H, W, 3]) side by side, all with the same prompts."""
    num_prompts, num_seeds = blocks[0][1].shape[:2]
    resized = [_resized(images) for _, images in blocks]
    height, width = resized[0].shape[2:4]
    pitch_y = height + GAP_PX
    block = num_seeds * (width + GAP_PX) - GAP_PX
    total_h = TITLE_PX + num_prompts * pitch_y + GAP_PX
    figure = _figure(LABEL_PX + len(blocks) * (block + BLOCK_GAP_PX) - BLOCK_GAP_PX + GAP_PX, total_h)
    for number, (title, _) in enumerate(blocks):
        left = LABEL_PX + number * (block + BLOCK_GAP_PX)
        _text(figure, left + block / 2, TITLE_PX / 2, title, size=15, weight="bold")
        for row, column in np.ndindex(num_prompts, num_seeds):
            x, y = left + column * (width + GAP_PX), TITLE_PX + row * pitch_y
            # figimage does not resample, and counts from the bottom.
            figure.figimage(resized[number][row, column], xo=x, yo=total_h - y - height, origin="upper")
    for row, prompt in enumerate(prompts):
        wrapped = textwrap.wrap(prompt, 29, max_lines=max(1, height // 20), placeholder=" …")
        _text(figure, 12, TITLE_PX + row * pitch_y + height / 2, "\n".join(wrapped), size=11, align="left")
    return _png(figure)


def _resized(images: np.ndarray) -> np.ndarray:
    """Resize images to [P, S, H', W', 3] within the pixel limits above, by repeating pixels or keeping each k-th."""
    height, width = images.shape[2:4]
    factor = math.ceil(IMAGE_PX / min(height, width))
    stride = max(1, min(math.ceil(max(height, width) / LARGEST_PX), min(height, width) // IMAGE_PX))
    return images[:, :, ::stride, ::stride].repeat(factor, axis=2).repeat(factor, axis=3)


def _text(
    figure: Figure, x: float, y: float, text: str, *, size: float, align: str = "center", weight: str = "normal"
) -> None:
    """Write text at pixels from the top left, its middle at ``y``."""
    width, height = figure.get_size_inches() * DPI
    at = (x / width, 1 - y / height)
    figure.text(*at, text, fontsize=size, ha=align, va="center", fontweight=weight, linespacing=1.25, parse_math=False)


def _figure(width_px: int, height_px: int) -> Figure:
    """Make a white figure of exactly that size, without pyplot and its global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_px / DPI, height_px / DPI), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _png(figure: Figure) -> bytes:
    buffer = BytesIO()
    with warnings.catch_warnings():
        # Prompts may hold characters that the font lacks; the picture shows a box for them.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()
