"""The real command line, run in this process: exit code and both outputs. And a reference's graphs, exported once."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from pvc_export import cli
from pvc_export.graphs import sessions
from pvc_export.parity import check, fresh
from pvc_export.parity.culprit import find as culprit
from pvc_export.parity.evidence import Evidence
from pvc_export.terminal import interrupt

from ..conftest import ExportGraph


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    exit_code: int | str | None
    out: str
    message: str

    def says(self, exit_code: int, *parts: str) -> None:
        """Expect one message with these parts in this order, and no traceback."""
        position = 0
        for part in parts:
            position = self.message.find(part, position)
            assert position >= 0, f"{part!r} is missing or out of order in: {self.message}"
        assert self.exit_code == exit_code and "Traceback" not in self.message

    def refuses(self, exit_code: int, error: str, /, **facts: str | tuple[str, ...]) -> None:
        """After --json: expect this class of error, with these facts in its fields what, expected, cause and fix.

        Case is ignored.
        """
        data = json.loads(self.out)
        assert (self.exit_code, data["exit_code"], data["error"]) == (exit_code, exit_code, error), data
        for field, parts in facts.items():
            text = data[field].casefold()
            for part in (parts,) if isinstance(parts, str) else parts:
                assert part.casefold() in text, f"{part!r} is not in {field}: {data}"
        assert data["what"] in self.message and "Traceback" not in self.message


Run = Callable[..., Outcome]


@pytest.fixture(autouse=True)
def reference_exports(monkeypatch: pytest.MonkeyPatch, export_once: ExportGraph) -> None:
    """Export each graph of a reference once for all tests: it depends only on module, weights and spec.

    A check and the culprit search export these graphs alongside a bundle. A bundle's own graphs are not affected."""
    monkeypatch.setattr(culprit, "export_graph", export_once)
    monkeypatch.setattr(sessions, "export_graph", export_once)
    monkeypatch.setattr(fresh, "export_graph", export_once)


@pytest.fixture
def stream_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restrict checks to the stream and its ladder, for tests that need neither state rules nor conversations.

    Those two take three quarters of a check's time. parity/state and parity/words test both."""
    check_stream_alone(monkeypatch)


def check_stream_alone(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(check, "converse", lambda *_, **__: [])
    patch.setattr(check, "ask_further", lambda *_: Evidence())
    patch.setattr(check, "check_rules", lambda *_, **__: ())


@pytest.fixture
def pvc_export(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.setattr(interrupt.signals, "install", lambda **_: None)  # this process's signals belong to pytest

    def run(*args: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["pvc-export", *map(str, args)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as info:
            cli.main()
        out, message = capsys.readouterr()
        return Outcome(exit_code=info.value.code, out=out, message=message)

    return run
