"""Running a command line as its reader would: in this process where that is as good, else in one of its own."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from engines.signals import Signals
from pvc_export.terminal import interrupt

from .commands import ROOT, words_of
from .ways import NAMES, Words

PROGRAMS = {"pvc-export": "pvc_export.cli", "pvc-live": "apps.watch", "pvc-serve": "apps.serving.serve"}


@dataclass(frozen=True, slots=True)
class Ended:
    """The outcome of a command."""

    code: int
    text: str

    def says(self, *parts: str) -> None:
        """These, in this order, without a traceback."""
        position = 0
        for part in parts:
            position = self.text.find(part, position)
            assert position >= 0, f"{part!r} is missing or out of order in:\n{self.text}"
        assert "Traceback" not in self.text, self.text


def filled(command: str, names: Words, adds: str = "") -> list[str]:
    """Its words, with what a page leaves to its reader."""
    known = {**NAMES, **names}
    return [*(known.get(word, word) for word in words_of(command)), *words_of(adds)]


def outcome_of(run: Callable[[], Any]) -> int:
    """The exit code of a program's main function."""
    try:
        code = run()
    except SystemExit as error:
        code = error.code
    return code if isinstance(code, int) else 0 if code is None else 1


class Here:
    """Programs in this process, whose output pytest captures."""

    def __init__(self, patch: pytest.MonkeyPatch, captured: pytest.CaptureFixture[str]) -> None:
        self._patch, self._captured = patch, captured
        patch.setattr(interrupt.signals, "install", lambda **_: None)  # this process's signals belong to pytest
        patch.setattr(Signals, "install", lambda self, **_: None)

    def run(self, words: list[str]) -> Ended:
        """Raises whatever is no SystemExit."""
        program, arguments = program_of(words)
        self._patch.setattr(sys, "argv", arguments)
        self._captured.readouterr()
        code = outcome_of(program)
        out, err = self._captured.readouterr()
        return Ended(code, out + err)


def program_of(words: list[str]) -> tuple[Callable[[], Any], list[str]]:
    """The main function of a command, and sys.argv for it."""
    if words[0] in PROGRAMS:
        return importlib.import_module(PROGRAMS[words[0]]).main, words
    assert words[:2] == ["python", "-m"], words
    name = words[2]
    spec = importlib.util.find_spec(name)
    if spec is not None and spec.submodule_search_locations is not None:
        name = f"{name}.__main__"
    return importlib.import_module(name).main, words[2:]


def command_of(words: list[str]) -> list[str]:
    """The same for a process."""
    if words[0] in PROGRAMS:
        return [sys.executable, "-m", PROGRAMS[words[0]], *words[1:]]
    return [sys.executable, *words[1:]] if words[0] == "python" else words


def environment() -> Mapping[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200", "PYTHONUNBUFFERED": "1"}


def in_a_process(words: list[str], folder: Path) -> Ended:
    ended = subprocess.run(
        command_of(words), cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    return Ended(ended.returncode, ended.stdout)


@contextmanager
def served(words: list[str], folder: Path) -> Iterator[tuple[str, str]]:
    """A server that listens: its address and what it said. It must end with 0 at Ctrl-C."""
    pipe = subprocess.PIPE
    with subprocess.Popen(command_of(words), cwd=folder, env=environment(), stdout=pipe, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        match = re.search(r"http://[\d.]+:\d+", line)
        try:
            assert match is not None, f"it did not start: {line}"
            assert httpx.get(f"{match[0]}/healthz", timeout=60).status_code == 200
            time.sleep(0.3)  # it says where it is served just before it can be ended in order
            yield match[0], line
        finally:
            process.send_signal(signal.SIGINT)
            code = process.wait(timeout=60)
    assert code == 0


def asked(words: list[str], folder: Path) -> Ended:
    """A line of curl, with httpx where there is no curl."""
    if shutil.which("curl"):
        return in_a_process(["curl", "--silent", "--show-error", "--fail", *words[1:]], folder)
    return without_curl(words[1:], folder)


def without_curl(words: list[str], folder: Path) -> Ended:
    """The options that the pages use."""
    method, url, headers, body = "GET", "", dict[str, str](), b""
    rest = iter(words)
    for word in rest:
        if word == "-X":
            method = next(rest)
        elif word == "-H":
            name, _, value = next(rest).partition(": ")
            headers[name] = value
        elif word == "-d":
            body = next(rest).encode()
        elif word == "--data-binary":
            body = (folder / next(rest).removeprefix("@")).read_bytes()
        else:
            assert not word.startswith("-"), f"curl's {word} is not known here"
            url = word
    reply = httpx.request(method, url, headers=headers, content=body, timeout=60)
    return Ended(0 if reply.is_success else 22, reply.text)
