"""Run pvc-live in the test process."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from apps import watch
from engines.signals import Signals

Run = Callable[..., SimpleNamespace]


@pytest.fixture
def pvc_live(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., SimpleNamespace]:
    """Run the command line in this process. The result has code, out and err."""

    def run(*args: object) -> SimpleNamespace:
        monkeypatch.setattr(sys, "argv", ["pvc-live", *map(str, args)])
        monkeypatch.setattr(Signals, "install", lambda self, **_: None)  # pytest handles this process's signals
        with pytest.raises(SystemExit) as caught:
            watch.main()
        out, err = capsys.readouterr()
        return SimpleNamespace(code=caught.value.code, out=out, err=err)

    return run
