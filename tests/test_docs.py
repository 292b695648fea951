"""The documents are true: their links, paths, recipes and Python blocks exist and work. No sentence hides its subject."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from drover.deploy import catalogue

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("actors", "benchmarks", "common", "deploy", "docs", "learner", "reward_servers", "src", "tests", "worlds")
MAX_README_LINES = 140
HEADINGS = ["Purpose", "Paper and formula", "Recipe", "Measured here", "Differs from the paper", "Sources"]

LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"```.*?```|`[^`\n]+`", re.DOTALL)
OURS = re.compile(rf"(?:{'|'.join(FOLDERS)})/[\w./*-]*")
TRAINED = re.compile(r"drover train ([a-z][a-z0-9_]*)(?![\w./:])")
PYTHON = re.compile(r"```python\n(.*?)```", re.DOTALL)
QUESTION_WORD = re.compile(r"(?:^|[.:;?!] )[\s#>|*-]*(?:\d+\. )?(?:What|Whoever|Whatever)\b", re.MULTILINE)


def documents() -> list[Path]:
    return sorted([*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))])


def broken_links(page: Path) -> Iterator[str]:
    for target in LINK.findall(CODE.sub("", page.read_text())):
        path, _, heading = target.partition("#")
        found = page if not path else (page.parent / path).resolve()
        if "://" in target:
            continue
        if not found.exists():
            yield f"{page.relative_to(ROOT)} links to {target}, which is no file"
        elif heading and heading not in headings(found):
            yield f"{page.relative_to(ROOT)} links to {target}, which is no heading"


def headings(page: Path) -> list[str]:
    """The anchors of a page, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL), re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]


def missing_paths(page: Path) -> Iterator[str]:
    words = {word.rstrip(",;:.") for code in CODE.findall(page.read_text()) for word in code.strip("`").split()}
    for word in sorted(words):
        if OURS.fullmatch(word) and not any(ROOT.glob(word.rstrip("/"))):
            yield f"{page.relative_to(ROOT)} names {word}, which does not exist"


def hidden_subjects(file: Path) -> Iterator[str]:
    """PATH:LINE of each sentence that begins with a question word, in the comments and triple-quoted texts of a Python file."""
    for token in tokenize.generate_tokens(io.StringIO(file.read_text()).readline):
        text = token.string.lstrip("rbfRBF")
        if token.type == tokenize.COMMENT or (token.type == tokenize.STRING and text.startswith('"""')):
            for word in QUESTION_WORD.finditer(text.strip('"')):
                line = token.start[0] + word.string.count("\n", 0, word.end())
                yield f"{file.relative_to(ROOT)}:{line}"


def test_every_relative_link_leads_to_a_file_and_to_a_heading_in_it() -> None:
    assert [broken for page in documents() for broken in broken_links(page)] == []


def test_every_path_of_the_repository_that_a_document_names_exists() -> None:
    assert [missing for page in documents() for missing in missing_paths(page)] == []


def test_every_recipe_that_a_document_trains_exists() -> None:
    pages = [*documents(), ROOT / "Makefile"]
    named = {(page.name, name) for page in pages for name in TRAINED.findall(page.read_text())}
    assert len(named) > 5
    assert sorted((page, name) for page, name in named if name not in catalogue.recipes()) == []


def test_a_newcomer_can_finish_the_readme() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= MAX_README_LINES


def test_no_sentence_of_a_document_hides_its_subject() -> None:
    found = []
    for page in documents():
        text = CODE.sub("", page.read_text())
        begins = [match.group().strip() for match in QUESTION_WORD.finditer(text)]
        found += [(str(page.relative_to(ROOT)), word) for word in begins]
        found += [(str(page.relative_to(ROOT)), word) for word in re.findall(r"(?i)\b(?:whoever|whatever)\b", text)]
    assert found == []


def test_no_sentence_of_a_docstring_or_comment_hides_its_subject() -> None:
    files = sorted([*ROOT.glob("*.py"), *(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py"))])
    assert [place for file in files for place in hidden_subjects(file)] == []


def test_every_method_has_a_page_with_the_same_six_headings() -> None:
    pages = sorted((ROOT / "docs" / "methods").glob("*.md"))
    shown = {page.stem: re.findall(r"^## (.+)$", page.read_text(), re.MULTILINE) for page in pages}
    assert shown == dict.fromkeys(shown, HEADINGS)
    text = "".join(page.read_text() for page in pages)
    files = sorted(path.relative_to(ROOT) for path in (ROOT / "learner" / "objectives").glob("[!_]*.py"))
    assert [str(path) for path in files if f"`{path}`" not in text] == []


def test_the_readme_lists_every_method() -> None:
    readme = (ROOT / "README.md").read_text()
    pages = sorted((ROOT / "docs" / "methods").glob("*.md"))
    assert [page.name for page in pages if f"(docs/methods/{page.name})" not in readme] == []


def test_the_reward_of_the_rewards_page_calls_a_red_picture_red() -> None:
    from drover.common.media.pictures import Pictures

    (block,) = PYTHON.findall((ROOT / "docs" / "rewards.md").read_text())
    page: dict[str, object] = {"__name__": "page"}
    exec(compile(block, "docs/rewards.md", "exec", dont_inherit=True), page)
    pixels = np.zeros((2, 4, 4, 3), np.uint8)
    pixels[0, ..., 0] = pixels[1, ..., 2] = 255
    score = page["Redness"]().load("cpu")  # type: ignore[operator]
    assert list(score(["red", "blue"], Pictures(pixels)).values) == [1.0, -0.5]


@pytest.mark.slow
def test_the_recipe_of_the_readme_trains_in_one_process(tmp_path: Path) -> None:
    (block,) = PYTHON.findall((ROOT / "README.md").read_text())
    (tmp_path / "mine.py").write_text(block)
    done = subprocess.run([sys.executable, "mine.py"], cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "mine" / "summary.json").is_file()


# ------------------------------------------------------------------------------- the rules themselves can fail


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (broken_links, "see [there](nowhere.md)"),
        (broken_links, "# Title\nsee [there](#another)"),
        (missing_paths, "`learner/nothing.py` has it"),
        (missing_paths, "```\npython tests/nothing/*.py\n```"),
    ],
)
def test_a_document_that_is_untrue_is_found(rule, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text(text)
    assert len(list(rule(page))) == 1


@pytest.mark.parametrize(
    "text", ["What travels is copied.", "## What listens", "| What stays |", "It ends. Whoever reads it"]
)
def test_a_sentence_without_a_subject_is_found(text: str) -> None:
    assert QUESTION_WORD.search(text)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ('"""Holds the orders.\n\nIt waits. Whoever asks\ngets one.\n"""\n', ["made_up.py:3"]),
        ("one = 1\ntwo = 2  # What stays.\n", ["made_up.py:2"]),
        ("text = 'What is held'  # an error says so: the order is held\n", []),
    ],
)
def test_a_sentence_of_code_without_a_subject_is_found(
    source: str, found: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    file = tmp_path / "made_up.py"
    file.write_text(source)
    assert list(hidden_subjects(file)) == found
