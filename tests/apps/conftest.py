"""pvc-live in the test process, and a session with scripted sources."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from apps import watch
from engines import Bundle, open_bundle
from engines.signals import Signals

from .scripted import Live

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


@pytest.fixture(scope="module")
def bundle(bundle_fp32: Path) -> Bundle:
    return open_bundle(bundle_fp32)


@pytest.fixture
def live(bundle: Bundle) -> Live:
    return Live(bundle)
