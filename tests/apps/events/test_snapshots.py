"""Snapshot pictures: named immediately, written whole, limited in number."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from threading import Event as Flag
from typing import Any

import numpy as np
import pytest
from PIL import Image

from apps.events.snapshots import MAX_WAITING, Snapshots
from engines.errors import BackendUnavailable

from .fakes import captured, wait_until

AT = datetime(2026, 1, 2, 3, 4, 5, 678900, tzinfo=timezone.utc)
Open = Callable[..., Snapshots]


@pytest.fixture
def opened(tmp_path: Path, said: list[str]) -> Iterator[Open]:
    made: list[Snapshots] = []

    def start(**bounds: int) -> Snapshots:
        made.append(Snapshots(tmp_path / "shots", trouble=said.append, **bounds))
        return made[-1]

    yield start
    for snapshots in made:
        snapshots.close()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_path_is_known_at_once_and_the_picture_is_that_frame(opened: Open, tmp_path: Path) -> None:
    snapshots = opened()
    frame = captured(90)
    frame.bgr[:] = (200, 100, 20)  # blue, green, red
    path = snapshots.take(frame, AT)
    assert path == str(tmp_path / "shots" / "20260102T030405.678Z-frame90.jpg")
    snapshots.close()
    with Image.open(path) as image:
        assert image.format == "JPEG" and image.size == (64, 48)
        assert np.abs(np.asarray(image).reshape(-1, 3).mean(axis=0) - (20, 100, 200)).max() < 3


def test_names_are_of_utc_and_sort_by_time(opened: Open) -> None:
    snapshots, east = opened(), timezone(timedelta(hours=5))
    paths = [snapshots.take(captured(index), AT.astimezone(east) + timedelta(hours=index)) for index in range(3)]
    assert paths == sorted(map(str, paths)) and "T030405" in str(paths[0])


def test_two_events_of_one_frame_share_a_picture(opened: Open, tmp_path: Path) -> None:
    snapshots, frame = opened(), captured(5)
    assert snapshots.take(frame, AT) == snapshots.take(frame, AT + timedelta(seconds=1))
    snapshots.close()
    assert len(names(tmp_path / "shots")) == 1


@pytest.mark.parametrize("bounds", [{"max_files": 3}, {"max_bytes": 2400}], ids=["files", "bytes"])
def test_the_oldest_are_removed_also_those_of_earlier_sessions_and_nothing_else(
    opened: Open, tmp_path: Path, bounds: dict[str, int]
) -> None:
    folder = tmp_path / "shots"
    folder.mkdir()
    (folder / "mine.jpg").write_bytes(b"x" * 5000)
    for day in ("01", "02"):
        (folder / f"202501{day}T000000.000Z-frame1.jpg").write_bytes(b"x" * 700)
    snapshots = opened(**bounds)
    for index in range(4):
        snapshots.take(captured(index), AT + timedelta(seconds=index))
    snapshots.close()
    assert (folder / "20260102T030408.678Z-frame3.jpg").stat().st_size == pytest.approx(750, abs=100)
    assert names(folder) == [f"20260102T03040{5 + index}.678Z-frame{index}.jpg" for index in (1, 2, 3)] + ["mine.jpg"]


def test_what_a_kill_left_half_written_is_removed(opened: Open, tmp_path: Path) -> None:
    folder = tmp_path / "shots"
    folder.mkdir()
    (folder / "20250101T000000.000Z-frame1.jpg.part").write_bytes(b"half")
    opened()
    assert names(folder) == []


def test_a_name_appears_only_with_a_whole_picture(
    opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshots, gate, begun, save = opened(), Flag(), Flag(), Image.Image.save

    def slow(self: Image.Image, path: Path, *args: Any, **options: Any) -> None:
        save(self, path, *args, **options)
        begun.set()
        assert gate.wait(20)

    monkeypatch.setattr(Image.Image, "save", slow)
    path = Path(str(snapshots.take(captured(), AT)))
    assert begun.wait(20) and not path.exists()
    gate.set()
    wait_until(path.exists)


def test_more_than_can_be_written_is_lost_and_said_and_nothing_waits(
    opened: Open, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshots, gate, begun = opened(), Flag(), Flag()
    monkeypatch.setattr(Image.Image, "save", lambda *_, **__: begun.set() or gate.wait(20))
    paths = [snapshots.take(captured(0), AT)]
    assert begun.wait(20)
    started = time.perf_counter()
    paths += [snapshots.take(captured(index), AT) for index in range(1, MAX_WAITING + 3)]
    assert time.perf_counter() - started < 0.4
    assert [path is None for path in paths] == [False] * (MAX_WAITING + 1) + [True] * 2
    assert len(said) == 1 and f"{MAX_WAITING} pictures are waiting" in said[0] and snapshots.num_lost == 2
    monkeypatch.undo()
    gate.set()


def test_on_a_full_disk_pictures_are_lost_and_said_once_until_one_is_written(
    opened: Open, tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshots = opened()

    def full(self: Image.Image, path: Path, *_: Any, **__: Any) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", full)
        for index in range(3):
            snapshots.take(captured(index), AT)
        wait_until(lambda: snapshots.num_lost == 3)
        assert len(said) == 1 and "frame0.jpg cannot be written: No space left" in said[0]
    assert names(tmp_path / "shots") == []
    path = Path(str(snapshots.take(captured(9), AT)))
    wait_until(path.exists)


def test_a_place_that_is_no_folder_is_refused_before_the_first_frame(tmp_path: Path) -> None:
    (tmp_path / "shots").write_bytes(b"")
    with pytest.raises(BackendUnavailable, match="snapshots cannot be written to .*shots: "):
        Snapshots(tmp_path / "shots", trouble=pytest.fail)
