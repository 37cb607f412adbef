"""Snapshot stores: what is written is complete, whoever is killed; and which of two snapshots is valid."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from apps.serving.handover import Damaged, Snapshots, Standing, folder_of
from apps.serving.stores import FolderStore, Store, open_store
from engines.errors import BackendUnavailable

ROOT = Path(__file__).parents[3]


@pytest.fixture(params=["folder", "memory://", "local://"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    places = {"folder": tmp_path / "s", "memory://": f"memory://{tmp_path}", "local://": f"local://{tmp_path}/s"}
    return open_store(str(places[request.param]))


def test_a_store_has_what_was_written_and_nothing_else(store: Store) -> None:
    assert store.names("a") == () and store.read("a/1") is None
    store.write("a/1", b"one")
    store.write("a/2", b"two")
    store.write("a/1", b"three")
    assert store.names("a") == ("1", "2") and store.read("a/1") == b"three"
    store.remove("a/1")
    store.remove("a/1")
    assert store.names("a") == ("2",)
    store.remove_folder("a")
    store.remove_folder("a")
    assert store.names("a") == ()


WRITER = """
import sys
from apps.serving.handover import Snapshots, Standing
from apps.serving.stores import open_store
snapshots, count = Snapshots(open_store(sys.argv[1]), owner="a"), 0
while True:
    count += 1
    standing = Standing(session="door", owner="a", generation=1, next_index=count)
    snapshots.write(standing, bytes([count % 256]) * 8_000_000)
    print(count, flush=True)
"""


@pytest.mark.parametrize("scheme", ["", "local://"])
def test_a_snapshot_is_whole_whenever_its_writer_is_killed(tmp_path: Path, scheme: str) -> None:
    place = f"{scheme}{tmp_path}/snapshots"
    for attempt in range(4):
        command = [sys.executable, "-c", WRITER, place]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            time.sleep(0.011 * attempt)
            writer.send_signal(signal.SIGKILL)
        found = Snapshots(open_store(place), owner="b").read("door")
        assert found is not None
        assert found.saved == bytes([found.standing.next_index % 256]) * 8_000_000


def test_a_place_that_cannot_be_reached_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BackendUnavailable, match="cannot be read or written"):
        open_store(str(tmp_path / "file"))
    with pytest.raises(BackendUnavailable, match=r"at nowhere://\*\*\*@bucket cannot"):
        open_store("nowhere://key:secret@bucket")
    monkeypatch.setitem(sys.modules, "fsspec", None)
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(BackendUnavailable) as caught:
        open_store("s3://bucket/streams")
    assert "pip install fsspec" in caught.value.fix


def test_every_session_has_a_folder_of_its_own() -> None:
    ids = ["a", "A", "a/b", "a%2Fb", "..", ".", "a.b", "ü", "x" * 300, "x" * 301, "a b", "a\\b"]
    names = [folder_of(session) for session in ids]
    assert len(set(names)) == len(ids) and all("/" not in n and n.strip(".") and len(n) < 200 for n in names)


def test_of_two_that_take_a_stream_up_at_once_one_holds_it(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    for owner in ("b", "a"):
        Snapshots(store, owner=owner).write(Standing(session="s", owner=owner, generation=2), b"x")
    assert Snapshots(store, owner="c").newest("s") == (2, "b")
    store.write(Standing(session="s", owner="z", generation=10).name, b"no header")
    with pytest.raises(Damaged):
        Snapshots(store, owner="c").read("s")
