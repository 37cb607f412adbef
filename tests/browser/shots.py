"""Screenshots of the page for a person to look at: python -m tests.browser.shots FOLDER"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from .driver import Browser, browser

SIZES = {"desktop": (1280, 800), "phone": (390, 844)}


def take(page: Browser, url: str, folder: Path) -> None:
    for name, (width, height) in SIZES.items():
        for dark in (False, True):
            page.size(width, height, dark=dark)
            page.open(url)
            page.until(lambda: page.is_shown("#answer[data-state=writing]"), "an answer is written")
            time.sleep(1.5)
            page.screenshot(folder / f"{name}-{'dark' if dark else 'light'}.png")
            if name == "phone":
                page.screenshot(folder / f"{name}-{'dark' if dark else 'light'}-whole.png", whole=True)
    page.size(1920, 1080)
    page.open(url)
    page.until(lambda: page.is_shown("#answer[data-state=writing]"), "an answer is written")
    page.screenshot(folder / "large-light.png")
    page.size(*SIZES["desktop"])
    for selector, name in (("#help-open", "help"), ("#source-open", "source")):
        page.open(url)
        page.until(lambda: page.is_shown("#answer:not([data-state=none])"), "connected")
        page.click(selector)
        time.sleep(0.3)
        page.screenshot(folder / f"desktop-{name}.png")


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "tests.browser.fake_session", "--history", "--seconds", "120"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process, tempfile.TemporaryDirectory() as room:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        try:
            with browser(Path(room)) as page:
                take(page, url, folder)
                print(*page.log(), sep="\n")
        finally:
            process.terminate()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
