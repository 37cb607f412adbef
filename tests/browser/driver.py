"""A browser driven by the WebDriver protocol (JSON over HTTP): Debian's Chromium, with a camera that shows a pattern.

Source: W3C WebDriver. Commands that only Chromium has use the DevTools protocol through chromedriver.
"""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

BROWSER, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
ARGUMENTS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
    "--hide-scrollbars", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream",
)  # fmt: skip
PATIENCE_S = 15.0
OPENER = build_opener(ProxyHandler({}))  # the driver is local: never use a proxy


class Browser:
    """One browser session. Selectors are CSS."""

    def __init__(self, address: str, profile: Path) -> None:
        self._address = address
        options = {"binary": str(BROWSER), "args": [*ARGUMENTS, f"--user-data-dir={profile}"]}
        wanted = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        made = self._call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self._session = f"/session/{made['sessionId']}"

    def open(self, url: str) -> None:
        self._call("POST", f"{self._session}/url", {"url": url})

    def run(self, script: str, *arguments: Any) -> Any:
        """Run a script and return its result. The script reads `arguments` as arguments[0], arguments[1], ..."""
        return self._call("POST", f"{self._session}/execute/sync", {"script": script, "args": list(arguments)})

    def text(self, selector: str) -> str:
        return str(self.run("return document.querySelector(arguments[0]).textContent.trim()", selector))

    def is_shown(self, selector: str) -> bool:
        return bool(self.run("return document.querySelector(arguments[0])?.checkVisibility() ?? false", selector))

    def click(self, selector: str) -> None:
        self._call("POST", f"{self._element(selector)}/click", {})

    def type(self, selector: str, text: str) -> None:
        self._call("POST", f"{self._element(selector)}/value", {"text": text})

    def key(self, key: str) -> None:
        """Press and release a key, wherever the focus is."""
        pressed = [{"type": kind, "value": key} for kind in ("keyDown", "keyUp")]
        body = {"actions": [{"type": "key", "id": "keyboard", "actions": pressed}]}
        self._call("POST", f"{self._session}/actions", body)

    def until(self, condition: Callable[[], bool], what: str, *, patience_s: float = PATIENCE_S) -> None:
        """Wait until the condition is true. Raises AssertionError if it does not become true in time."""
        end = time.monotonic() + patience_s
        while not condition():
            assert time.monotonic() < end, f"waited {patience_s:.0f} s in vain for: {what}. Browser log: {self.log()}"
            time.sleep(0.05)

    def size(self, width: int, height: int, *, dark: bool = False) -> None:
        """Set the size of the page and the colour scheme of the system."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self._tools("Emulation.setDeviceMetricsOverride", metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._tools("Emulation.setEmulatedMedia", {"features": [scheme]})

    def window(self) -> str:
        """Return the handle of the current tab."""
        return str(self._call("GET", f"{self._session}/window"))

    def new_tab(self) -> str:
        """Open an empty tab and return its handle; it does not become the current tab."""
        return str(self._call("POST", f"{self._session}/window/new", {"type": "tab"})["handle"])

    def switch_to(self, window: str) -> None:
        self._call("POST", f"{self._session}/window", {"handle": window})

    def close_tab(self) -> None:
        """Close the current tab. Call switch_to() afterwards."""
        self._call("DELETE", f"{self._session}/window")

    def offline(self, *, offline: bool) -> None:
        network = {"offline": offline, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
        self._tools("Network.emulateNetworkConditions", network)

    def screenshot(self, path: Path, *, whole: bool = False) -> None:
        """Save the visible part of the page, or with `whole` the page down to its end."""
        asked = {"format": "png", "captureBeyondViewport": whole}
        if whole:
            width, height = self.run("return [innerWidth, document.documentElement.scrollHeight]")
            asked["clip"] = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        path.write_bytes(base64.b64decode(self._tools("Page.captureScreenshot", asked)["data"]))

    def log(self) -> list[str]:
        """Return the page's errors and warnings since the last call."""
        entries = self._call("POST", f"{self._session}/se/log", {"type": "browser"})
        return [entry["message"] for entry in entries]

    def close(self) -> None:
        self._call("DELETE", self._session)

    def _element(self, selector: str) -> str:
        found = self._call("POST", f"{self._session}/element", {"using": "css selector", "value": selector})
        return f"{self._session}/element/{next(iter(found.values()))}"

    def _tools(self, command: str, parameters: dict[str, Any]) -> Any:
        body = {"cmd": command, "params": parameters}
        return self._call("POST", f"{self._session}/goog/cdp/execute", body)

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = Request(self._address + path, data, {"content-type": "application/json"}, method=method)
        try:
            with OPENER.open(request, timeout=60) as answer:
                return json.load(answer)["value"]
        except HTTPError as error:
            told = json.load(error)["value"]
            raise AssertionError(f"{method} {path}: {told['message']}") from None


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """Start a Chromium with an empty profile."""
    environment = {"PATH": os.defpath, "HOME": str(profile), "TMPDIR": str(profile)}
    process = subprocess.Popen(
        [DRIVER, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    )
    try:
        assert process.stdout is not None
        found = None
        for line in process.stdout:
            if found := re.search(r"started successfully on port (\d+)", line):
                break
        assert found, "chromedriver did not start"
        opened = Browser(f"http://127.0.0.1:{found[1]}", profile / "profile")
        try:
            yield opened
        finally:
            opened.close()
    finally:
        process.terminate()
        process.wait(10)
        assert process.stdout is not None
        process.stdout.close()
