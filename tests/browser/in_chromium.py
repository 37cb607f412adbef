"""The page in a real browser, with a session that needs no model and a camera that shows a pattern.

python -m pytest tests/browser/in_chromium.py (needs Debian's chromium and chromium-driver)
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from .driver import BROWSER, DRIVER, Browser, browser

pytestmark = pytest.mark.skipif(
    not (BROWSER.exists() and DRIVER.exists()),
    reason=f"{BROWSER} or {DRIVER} is missing: apt-get install chromium chromium-driver",
)
COLOURS = """
const picture = document.querySelector("#picture");
const canvas = Object.assign(document.createElement("canvas"), { width: picture.width, height: picture.height });
const context = canvas.getContext("2d", { willReadFrequently: true });
context.drawImage(picture, 0, 0);
const pixels = context.getImageData(0, 0, canvas.width, canvas.height).data;
const found = new Set();
for (let i = 0; i < pixels.length; i += 400) found.add([0, 1, 2].map((channel) => pixels[i + channel] >> 5).join());
return found.size;
"""
ELSEWHERE = """
const names = performance.getEntriesByType("resource").map((entry) => entry.name);
return names.filter((name) => !name.startsWith(location.origin));
"""
TOO_WIDE = "return document.documentElement.scrollWidth - innerWidth"


@contextmanager
def session(*arguments: object) -> Iterator[str]:
    """Start a session; yields the URL of its page."""
    command = [sys.executable, "-m", "tests.browser.fake_session", *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with session() as address:
        yield address


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as room, browser(Path(room)) as opened:
        yield opened


@pytest.fixture
def page(chromium: Browser, url: str) -> Iterator[Browser]:
    """The page, opened and connected. Checks afterwards that its console is empty."""
    chromium.size(1280, 800)
    chromium.open(url)
    chromium.until(lambda: chromium.text("#state") not in ("Connecting", "No frames"), "live")
    chromium.log()
    yield chromium
    assert chromium.log() == []


def test_the_picture_is_live_and_the_answer_is_written_under_it(page: Browser) -> None:
    page.until(lambda: page.run(COLOURS) > 8, "a picture of many colours")
    page.until(lambda: page.is_shown("#answer[data-state=writing]"), "a partial answer")
    part = page.text("#answer")
    page.until(lambda: page.text("#answer").startswith(part) and len(page.text("#answer")) > len(part), "more of it")
    page.until(lambda: page.is_shown("#answer[data-state=done]"), "the whole answer")
    whole = page.text("#answer")
    assert whole in page.text("#conversation li .said-answer") and whole in page.text("#spoken")
    assert page.text("#answer-question") == "What happens?" and page.text("#viewers") == "1 viewer"
    page.until(lambda: "fps" in page.text(".chart-value") and "context" in page.text(".chart-value"), "figures")


def test_a_question_is_asked_once(page: Browser) -> None:
    page.key("a")
    page.type("#ask", "Is anybody there?\ue007")
    page.until(lambda: page.text("#answer-question") == "Is anybody there?", "the question's own answer")
    assert page.run("return document.querySelector('#ask').value") == ""
    page.until(
        lambda: page.text("#conversation li .said-question span") == "Is anybody there?",
        "the question in the conversation",
    )


def test_the_standing_question_is_changed_while_it_runs(page: Browser) -> None:
    assert not page.run("return document.querySelector('#question-set').disabled === false")
    page.run("document.querySelector('#question').value = ''")
    page.type("#question", "What moves?\ue007")
    page.until(lambda: "asked from now on: What moves?" in page.text("#events"), "the event")
    page.until(lambda: page.text("#answer-question") == "What moves?", "an answer to the new question")
    page.run("document.querySelector('#question').value = ''")
    page.type("#question", "What happens?\ue007")
    page.until(lambda: "asked from now on: What happens?" in page.text("#events li"), "the old value again")


def test_pause_and_snapshot_by_their_keys(page: Browser) -> None:
    page.run("document.activeElement.blur()")
    page.key("p")
    page.until(lambda: page.text("#state") == "Paused", "paused")
    assert page.run("return document.querySelector('#pause').ariaPressed") == "true"
    page.key("p")
    page.until(lambda: page.text("#state") != "Paused", "running again")
    page.key("s")
    page.until(lambda: "kept as" in page.text("#toast") and page.is_shown("#toast"), "a snapshot")


def test_keys_are_letters_while_somebody_types(page: Browser) -> None:
    page.type("#ask", "pqrst")
    assert page.run("return document.querySelector('#ask').value") == "pqrst"
    assert page.text("#state") != "Paused" and not page.is_shown("dialog[open]")


def test_help_and_reset_are_dialogs_that_escape_leaves(page: Browser) -> None:
    page.run("document.activeElement.blur()")
    for key, dialog in (("?", "#help-dialog"), ("r", "#reset-dialog"), ("c", "#source-dialog")):
        page.key(key)
        page.until(lambda dialog=dialog: page.is_shown(f"{dialog}[open]"), dialog)  # type: ignore[misc]
        page.key("\ue00c")
        page.until(lambda: not page.is_shown("dialog[open]"), "the dialog closed")
    page.key("r")
    page.click("#reset-yes")
    page.until(lambda: "started again by a person" in page.text("#events li"), "reset")
    assert "Answers will appear here" in page.text("#conversation")


def test_dark_follows_the_system_and_a_choice_is_kept(page: Browser, url: str) -> None:
    background = "return getComputedStyle(document.body).backgroundColor"
    light = page.run(background)
    page.size(1280, 800, dark=True)
    dark = page.run(background)
    assert light != dark
    page.click("#theme")  # light theme
    page.until(lambda: page.run(background) == light, "light")
    page.open(url)
    page.until(lambda: page.run(background) == light, "still light")
    page.click("#theme")
    page.click("#theme")  # the system's theme
    page.until(lambda: page.run(background) == dark, "dark again")


def test_a_source_that_may_not_be_chosen_is_reported(page: Browser) -> None:
    page.click("#source-open")
    page.type("#source-text", "/etc/passwd\ue007")
    page.until(lambda: "files may be given only on the command line" in page.text("#toast"), "refused")


def test_the_browsers_own_camera_becomes_the_source(page: Browser) -> None:
    page.click("#source-open")
    page.click("#camera")
    page.until(lambda: page.text("#source") == "a browser's camera", "the source")
    page.until(lambda: page.run("return document.querySelector('#picture').width") == 640, "its own size")
    drawn = "return document.querySelector('#picture').toDataURL().length"
    before = page.run(drawn)
    page.until(lambda: page.run(drawn) != before, "its picture moves")
    page.click("#source-open")
    page.until(lambda: page.text("#camera") == "Stop this camera", "the button")
    page.click("#camera")
    page.key("\ue00c")
    page.until(lambda: "no page is sending its camera" in page.text("#notice"), "that it is gone is said")
    page.click("#source-open")
    page.type("#source-text", "rtsp://cam-2.example/hall\ue007")
    page.until(lambda: page.text("#source") == "rtsp://cam-2.example/hall", "the old value again")


@pytest.mark.parametrize("width", [320, 390, 768, 1280, 1920])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_nothing_is_wider_than_the_window(page: Browser, width: int, *, dark: bool) -> None:
    page.size(width, 844, dark=dark)
    page.until(lambda: page.is_shown("#answer:not([data-state=none])"), "an answer")
    assert page.run(TOO_WIDE) <= 0


def test_nothing_is_fetched_from_elsewhere(page: Browser) -> None:
    assert page.run(ELSEWHERE) == []
    page.run("fetch('http://127.0.0.2:9/').catch(() => {})")  # what the policy forbids is logged
    page.until(lambda: any("Content Security Policy" in line for line in page.log()), "the policy's error in the log")


def test_a_session_that_ends_is_reported_and_found_again(chromium: Browser) -> None:
    with session() as url:
        port = url.split(":")[2].strip("/")
        chromium.open(url)
        chromium.until(lambda: chromium.text("#state") == "Live", "live")
    chromium.until(lambda: chromium.text("#state") == "Disconnected", "disconnected")
    assert chromium.is_shown("#banner") and "Reconnecting automatically" in chromium.text("#banner")
    assert chromium.run("return document.querySelector('#pause').disabled")
    with session("--port", port):
        chromium.until(lambda: chromium.text("#state") == "Live", "live again")
        assert not chromium.is_shown("#banner")


def test_the_token_leaves_the_address_and_stays_in_the_browser(chromium: Browser) -> None:
    with session("--host", "0.0.0.0") as url:
        port, _, token = url.split(":")[2].partition("/?token=")
        bare = f"http://127.0.0.1:{port}/"
        chromium.open(bare)
        assert "This page needs a token" in chromium.text("h1")
        chromium.type("#token", f"{token}\ue007")
        chromium.until(lambda: chromium.text("#state") == "Live", "live")
        assert chromium.run("return location.href") == bare and chromium.run("return document.cookie") == ""
        chromium.open(bare)
        chromium.until(lambda: chromium.text("#state") == "Live", "live by the cookie")
    with session("--host", "0.0.0.0", "--port", port):  # with another token
        chromium.until(lambda: "no longer valid" in chromium.text("#banner"), "the banner that the token is old")
