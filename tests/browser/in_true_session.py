"""The page in a real browser, with pvc-live itself and the trained model `shapes`, which answers questions correctly.

python -m pytest tests/browser/in_true_session.py, or make browser, which exports the model first. The bundle is named
by the environment variable SHAPES_BUNDLE, else build/browser.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from .driver import BROWSER, DRIVER, Browser, browser

ROOT = Path(__file__).parent.parent.parent
BUNDLE = Path(os.environ.get("SHAPES_BUNDLE", ROOT / "build/browser"))
pytestmark = [
    pytest.mark.skipif(
        not (BROWSER.exists() and DRIVER.exists()),
        reason=f"{BROWSER} or {DRIVER} is missing: apt-get install chromium chromium-driver",
    ),
    pytest.mark.skipif(
        not (BUNDLE / "manifest.json").exists(), reason=f"{BUNDLE} is not a bundle; make one: make browser"
    ),
]
QUESTION, TOKEN = "How many shapes are there?", "sixteen-letters-or-more"
OTHER, RIGHT = "Which number is shown?", "\u2713 right"
MARKED = """
const items = [...document.querySelectorAll("#conversation li")];
return items.find((each) => each.textContent.startsWith(arguments[0])).querySelector(".truth") !== null;
"""
DRAWN = "return document.querySelector('#picture').toDataURL()"
NEWEST = """
const item = document.querySelector("#conversation li");
const text = (selector) => item?.querySelector(selector)?.textContent ?? "";
const number = document.querySelectorAll("#conversation li").length;
return [text(".said-question span"), text(".said-answer"), text(".truth"), number];
"""


@dataclass
class Session:
    """A running pvc-live. log: its events so far."""

    url: str
    process: subprocess.Popen[str]
    log_path: Path

    @property
    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log_path.read_text().splitlines()]


@contextmanager
def live(folder: Path, *arguments: object, **environment: str) -> Iterator[Session]:
    """Run pvc-live, and end it by Ctrl-C, which is a normal end."""
    log = folder / "log.jsonl"
    command = [sys.executable, "-m", "apps.watch", BUNDLE, "--source", "synthetic", "--headless", "--web", "--port", 0,
               "--log", log, *arguments]  # fmt: skip
    with subprocess.Popen(
        [*map(str, command)], cwd=ROOT, env=os.environ | environment, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            found = re.fullmatch(r"Web page: (\S+)\n", line)
            assert found, line
            yield Session(found[1], process, log)
        finally:
            process.send_signal(signal.SIGINT)
            rest, _ = process.communicate(timeout=30)
    assert process.returncode == 0 and "ended by Ctrl-C" in rest, rest
    assert json.loads(log.read_text().splitlines()[-1])["kind"] == "end"


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    folder = tmp_path_factory.mktemp("session")
    options = ("--ask", QUESTION, "--alert", "/^There (is|are)/", "--snapshots", folder / "pictures")
    with live(folder, *options) as started:
        yield started


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as room, browser(Path(room)) as opened:
        yield opened


@pytest.fixture
def page(chromium: Browser, session: Session) -> Iterator[Browser]:
    """The page, opened and live. Checks afterwards that its console is empty."""
    chromium.size(1280, 800)
    chromium.open(session.url)
    chromium.until(lambda: chromium.text("#state").startswith(("Live", "Alert")), "live")
    chromium.log()
    yield chromium
    assert chromium.log() == []


def until_answered(page: Browser, question: str, *, after: int = 0) -> tuple[str, str]:
    """Wait for the next answer to `question` that has a known truth. Returns both."""
    found: list[Any] = []

    def is_so() -> bool:
        found[:] = page.run(NEWEST)
        return bool(found[0] == question and found[2] and found[3] > after)

    page.until(is_so, f"an answer to {question}", patience_s=30)
    return found[1], found[2]


def test_the_picture_moves(page: Browser) -> None:
    before = page.run(DRAWN)
    page.until(lambda: page.run(DRAWN) != before, "another picture")
    assert page.text("#source") == "synthetic" and "0 fps" not in page.text(".chart-value")


def test_the_model_s_answers_are_right_and_so_is_their_mark(page: Browser, session: Session) -> None:
    """The trained model nearly always counts right: most of the first answers are right, by the page's own marks."""
    page.until(lambda: page.run("return document.querySelectorAll('.truth').length") >= 4, "marks", patience_s=60)
    marks = page.run("return [...document.querySelectorAll('.truth')].map((mark) => mark.dataset.right)")
    assert set(marks) <= {"true", "false"} and marks.count("true") > len(marks) / 2
    answers = [event["answer"] for event in session.log if event["kind"] == "answer"]
    assert all(re.fullmatch(r"There (is|are) (no|\d+) shapes?\.", answer) for answer in answers), answers


def test_a_question_that_a_person_asks_gets_the_true_answer(page: Browser) -> None:
    """A question during a scene's last frame is about the whole scene and has a known truth; any other gets no mark."""
    found = None
    for _ in range(8):
        until_answered(page, QUESTION, after=page.run(NEWEST)[3])
        num_before = page.run(NEWEST)[3]
        page.type("#ask", f"{QUESTION}\ue007")
        page.until(lambda before=num_before: page.run(NEWEST)[3] > before, "an answer")  # type: ignore[misc]
        page.until(lambda before=num_before: page.run(NEWEST)[2] or page.run(NEWEST)[3] > before + 1, "its truth")  # type: ignore[misc]
        question, answer, truth, _ = found = page.run(NEWEST)
        if question == QUESTION and truth in (f"truth: {answer}", RIGHT):
            break
    else:
        pytest.fail(f"none of these answers was true; the last was {found}")
    page.type("#ask", f"{OTHER}\ue007")
    page.until(lambda: OTHER in page.text("#conversation"), "an answer to another question")
    until_answered(page, QUESTION, after=page.run(NEWEST)[3])
    assert page.run(MARKED, OTHER) is False


def test_an_alert_is_told_with_a_picture(page: Browser, session: Session) -> None:
    page.until(lambda: "There (is|are)" in page.text("#events"), "the alert", patience_s=30)
    (alert, *_) = [event for event in session.log if event["kind"] == "alert"]
    assert alert["alert"] == "/^There (is|are)/" and Path(alert["snapshot"]).stat().st_size > 1000


def test_a_page_that_is_loaded_again_has_the_conversation(page: Browser, session: Session) -> None:
    until_answered(page, QUESTION)
    texts = "return [...document.querySelectorAll('#conversation .said-answer')].map((item) => item.textContent)"
    before = page.run(texts)
    page.open(session.url)
    page.until(lambda: len(page.run(texts)) >= len(before), "the conversation")
    assert page.run(texts)[-len(before) :] == before


def test_a_second_viewer_sees_the_same(page: Browser, session: Session) -> None:
    first = page.window()
    second = page.new_tab()
    page.switch_to(second)
    page.open(session.url)
    page.until(lambda: page.text("#viewers") == "2 viewers", "two")
    answer, _ = until_answered(page, QUESTION)
    page.switch_to(first)
    page.until(lambda: answer in page.text("#conversation"), "the same answer")
    assert page.text("#viewers") == "2 viewers"
    page.switch_to(second)
    page.close_tab()
    page.switch_to(first)
    page.until(lambda: page.text("#viewers") == "1 viewer", "one")


def test_the_browser_s_camera_is_watched_and_then_the_source_as_it_was(page: Browser, session: Session) -> None:
    page.click("#source-open")
    page.click("#camera")
    page.until(lambda: page.text("#source") == "a browser's camera", "the source")
    page.until(lambda: page.run("return document.querySelector('#picture').width") == 640, "its own size")
    before = page.run(DRAWN)
    page.until(lambda: page.run(DRAWN) != before, "its picture moves")
    page.until(lambda: page.is_shown("#answer[data-state=done]"), "the model answers about it", patience_s=30)
    page.run("document.querySelector('#source-dialog').close()")
    page.click("#source-open")
    page.type("#source-text", "synthetic\ue007")
    page.until(lambda: page.text("#source") == "synthetic", "the old value again")
    until_answered(page, QUESTION, after=page.run(NEWEST)[3])
    told = [event["text"] for event in session.log if event["kind"] == "source"]
    assert "now watching a browser's camera" in told and told[-1] == "now watching synthetic"


def test_the_token_of_the_environment_is_the_one_that_is_accepted(chromium: Browser, tmp_path: Path) -> None:
    with live(tmp_path, PVC_LIVE_TOKEN=TOKEN) as session:
        bare, _, token = session.url.partition("?token=")
        assert token == TOKEN
        chromium.open(f"{bare}?token={'x' * len(TOKEN)}")
        assert "This page needs a token" in chromium.text("h1")
        chromium.type("#token", f"{TOKEN}\ue007")
        chromium.until(lambda: chromium.is_shown("#state") and chromium.text("#state") == "Live", "live", patience_s=30)
        assert chromium.run("return location.href") == bare
