"""Hangs are detected, reported once, and reported to systemd by silence."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread

import pytest

from apps.systemd import Systemd
from apps.watchdog import Hang, Watchdog, stack_of

from .web import told
from .web.conftest import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


def started(
    clock: Clock,
    changes: list[Hang | None] | None = None,
    said: list[str] | None = None,
    systemd: Systemd | None = None,
) -> Watchdog:
    """Create a watchdog without its thread; tests call check()."""
    changes, said = [] if changes is None else changes, [] if said is None else said
    return Watchdog(
        hang_s=20.0, no_frame_s=5.0, changed=changes.append, say=said.append, clock=clock,
        systemd=systemd or Systemd({}),
    )  # fmt: skip


def test_a_session_that_continues_is_well(clock: Clock) -> None:
    changes: list[Hang | None] = []
    watchdog = started(clock, changes)
    for _ in range(10):
        clock.now += 4.0
        watchdog.saw(told.captured(), told.status())
        assert watchdog.check() is None
    assert changes == []


def test_a_hanging_session_is_reported_once_with_where_it_is_and_so_is_its_end(clock: Clock) -> None:
    changes: list[Hang | None] = []
    said: list[str] = []
    watchdog, entered, leave = started(clock, changes, said), Event(), Event()

    def an_engine_that_hangs() -> None:
        watchdog.start()
        entered.set()
        leave.wait(10)

    session = Thread(target=an_engine_that_hangs)
    session.start()
    entered.wait(10)
    clock.now += 21.0
    for _ in range(3):
        assert watchdog.check() == Hang(what="session", since_s=21.0)
    leave.set()
    session.join()
    assert len(changes) == len(said) == 1 and changes[0] is not None
    assert "an_engine_that_hangs" in changes[0].stack and "an_engine_that_hangs" in said[0]
    watchdog.saw(told.captured(), told.status())
    assert watchdog.check() is None and len(changes) == 2 and changes[1] is None
    watchdog.close()


def test_a_camera_without_frames_is_told_from_a_session_that_hangs(clock: Clock) -> None:
    changes: list[Hang | None] = []
    said: list[str] = []
    watchdog = started(clock, changes, said)
    for _ in range(4):
        clock.now += 2.0
        watchdog.beat()
        watchdog.check()
    assert [str(change) for change in changes] == ["no frame for 6 s"] and not said
    clock.now += 21.0
    watchdog.check()
    assert [change.what for change in changes if change] == ["frames", "session"]


@pytest.mark.parametrize("sign", ["said", "happened", "beat"])
def test_every_sign_of_life_counts(clock: Clock, sign: str) -> None:
    watchdog = started(clock)
    clock.now += 19.0
    calls = {
        "said": lambda: watchdog.said("Q", "A"),
        "happened": lambda: watchdog.happened(told.event(), told.captured()),
        "beat": watchdog.beat,
    }
    calls[sign]()
    clock.now += 19.0
    hang = watchdog.look()
    assert hang is not None and hang.what == "frames"


def test_the_thread_looks_by_itself() -> None:
    changed = Event()
    watchdog = Watchdog(hang_s=0.05, no_frame_s=9.0, changed=lambda hang: changed.set(), systemd=Systemd({}))
    watchdog.start()
    assert changed.wait(5)
    watchdog.close()


def test_a_thread_that_is_gone_has_no_stack() -> None:
    assert stack_of(None) == stack_of(1) == ""


# -- systemd


@pytest.fixture
def notified(tmp_path: Path) -> Iterator[tuple[socket.socket, dict[str, str]]]:
    """A socket in systemd's place, and the environment that systemd would set."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        path = tmp_path / "notify"
        listening.bind(str(path))
        listening.settimeout(5)
        yield listening, {"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}


def heard(listening: socket.socket) -> list[str]:
    listening.setblocking(False)
    messages = []
    try:
        while True:
            messages.append(listening.recv(1000).decode())
    except BlockingIOError:
        return messages


def test_systemd_hears_that_it_lives_while_it_does(
    clock: Clock, notified: tuple[socket.socket, dict[str, str]]
) -> None:
    listening, environment = notified
    systemd = Systemd(environment)
    watchdog = started(clock, systemd=systemd)
    systemd.ready()
    watchdog.check()
    clock.now += 6.0
    watchdog.beat()
    watchdog.check()  # a lost camera is no reason to restart
    clock.now += 21.0
    watchdog.check()
    watchdog.close()
    assert heard(listening) == [
        "READY=1", "WATCHDOG=1\nSTATUS=watching", "WATCHDOG=1\nSTATUS=no frame for 6 s",
        "STATUS=the session has been hanging for 21 s", "STOPPING=1",
    ]  # fmt: skip
    assert systemd.watchdog_s == 30.0


def test_an_abstract_socket_is_one() -> None:
    name = f"@pvc-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind("\0" + name[1:])
        Systemd({"NOTIFY_SOCKET": name}).ready()
        assert heard(listening) == ["READY=1"]


@pytest.mark.parametrize(
    "environment",
    [
        {}, {"WATCHDOG_USEC": "30000000"}, {"NOTIFY_SOCKET": "/none", "WATCHDOG_USEC": "x"},
        {"NOTIFY_SOCKET": "/none", "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"},
    ],
    ids=["none", "no socket", "no number", "another process"],
)  # fmt: skip
def test_without_systemd_nothing_is_sent_and_nothing_fails(environment: dict[str, str]) -> None:
    systemd = Systemd(environment)
    systemd.ready()
    systemd.alive("a\nb")
    assert systemd.watchdog_s is None
