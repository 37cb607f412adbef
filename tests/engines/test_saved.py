"""Streams on disk: an opened stream continues as if nothing had happened, or is refused."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from engines import PVCStream, open_bundle, open_stream
from engines.bundle import Bundle
from engines.errors import BackendUnavailable, BundleError, StreamError

from .test_gpu import open_bindings

W = 4  # window of both bundles
Frames = list[np.ndarray]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def bundle(bundle_fp32: Path) -> Bundle:
    return open_bundle(bundle_fp32)


def go_on(stream: PVCStream, frames: Frames) -> list[object]:
    """Everything the stream returns from here on: embeddings, and two answers."""
    seen: list[object] = [stream.vision.encode(np.zeros((112, 112, 3), np.uint8)).frame_embeds.tobytes()]
    for frame in frames:
        stream.push(frame)
        seen.append(stream.context_rows)
    seen.append(stream.ask("What moves?", max_new_tokens=8, keep=True).token_ids)
    seen.append(stream.ask("And now?", max_new_tokens=8).token_ids)
    return seen


@pytest.mark.parametrize("num_frames", [0, 1, W - 1, W, W + 1, 2 * W + 1], ids=lambda n: f"T={n}")
@pytest.mark.parametrize("asked", [False, True], ids=["", "asked"])
def test_an_opened_stream_continues_with_identical_outputs(
    num_frames: int, asked: bool, bundle: Bundle, frames: Frames, tmp_path: Path
) -> None:
    stream = PVCStream(bundle)
    for frame in frames[:num_frames]:
        stream.push(frame)
    if asked:
        stream.ask("What was there?", max_new_tokens=4, keep=True)
    stream.save(tmp_path / "stream.npz")
    opened = open_stream(tmp_path / "stream.npz", bundle)
    assert (opened.num_frames, opened.context_rows) == (stream.num_frames, stream.context_rows)
    assert go_on(opened, frames[9:]) == go_on(stream, frames[9:])
    assert list(tmp_path.iterdir()) == [tmp_path / "stream.npz"]


@pytest.mark.parametrize("bundle_name", ["bundle_fp32", "bundle_fp16", "bundle_rows"])
def test_a_stream_moves_between_a_gpu_and_a_cpu(
    bundle_name: str, frames: Frames, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Rings of either layout, in GPU memory (a fake) and in host memory."""
    folder = request.getfixturevalue(bundle_name)
    on_cpu, (on_gpu, _) = open_bundle(folder, runtime="cpu"), open_bindings(folder)
    for first, second in ((on_cpu, on_gpu), (on_gpu, on_cpu)):
        stream = PVCStream(first)
        for frame in frames[:6]:
            stream.push(frame)
        stream.save(tmp_path / "stream.npz")
        assert go_on(open_stream(tmp_path / "stream.npz", second), frames[6:8]) == go_on(stream, frames[6:8])


def test_without_a_bundle_the_one_that_the_file_names_is_opened(bundle: Bundle, frames: Frames, tmp_path: Path) -> None:
    stream = PVCStream(bundle)
    stream.push(frames[0])
    stream.save(tmp_path / "s.npz")
    assert go_on(open_stream(tmp_path / "s.npz"), frames[1:3]) == go_on(stream, frames[1:3])


def test_a_stream_of_another_bundle_is_refused(
    bundle: Bundle, bundle_fp16: Path, bundle_fp32: Path, copy_bundle: Callable[[Path], Path], tmp_path: Path
) -> None:
    PVCStream(bundle).save(tmp_path / "s.npz")
    with pytest.raises(StreamError, match=f"another bundle than {bundle_fp16}") as info:
        open_stream(tmp_path / "s.npz", open_bundle(bundle_fp16, runtime="cpu"))
    assert f"was at {bundle_fp32}" in info.value.fix
    open_stream(tmp_path / "s.npz", open_bundle(copy_bundle(bundle_fp32)))  # a copy counts as the same bundle


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def text(path: Path) -> None:
    path.write_text("not a stream")


def pickled(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, header=np.array([{}], dtype=object))


@pytest.mark.parametrize("damage", [half, flip, text, pickled, Path.unlink], ids=lambda f: f.__name__)
def test_a_damaged_file_is_refused(damage: Callable[[Path], object], bundle: Bundle, tmp_path: Path) -> None:
    PVCStream(bundle).save(tmp_path / "s.npz")
    damage(tmp_path / "s.npz")
    with pytest.raises(StreamError, match=r"s\.npz (cannot be read as a saved stream|does not exist)"):
        open_stream(tmp_path / "s.npz", bundle)


def test_a_file_that_lacks_a_cache_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    PVCStream(bundle).save(tmp_path / "s.npz")
    with np.load(tmp_path / "s.npz") as file:
        arrays = {name: file[name] for name in file.files if name != "vision/past.1.value"}
    np.savez(tmp_path / "s.npz", **arrays)
    with pytest.raises(StreamError, match=r"holds no data as 'past\.1\.value'") as info:
        open_stream(tmp_path / "s.npz", bundle)
    assert info.value.expected.startswith("float32")


def test_a_full_disk_leaves_the_older_file_and_the_stream(
    bundle: Bundle, frames: Frames, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = PVCStream(bundle)
    stream.save(tmp_path / "s.npz")
    before = (tmp_path / "s.npz").read_bytes()
    stream.push(frames[0])

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BackendUnavailable, match="No space left on device") as info:
        stream.save(tmp_path / "s.npz")
    assert "the stream itself continues" in info.value.fix
    assert (tmp_path / "s.npz").read_bytes() == before and list(tmp_path.iterdir()) == [tmp_path / "s.npz"]
    stream.push(frames[1])
    assert stream.num_frames == 2


def test_a_bundle_that_is_gone_is_said_to_be_gone(
    bundle_fp32: Path, copy_bundle: Callable[[Path], Path], tmp_path: Path
) -> None:
    copy = copy_bundle(bundle_fp32)
    PVCStream(open_bundle(copy)).save(tmp_path / "s.npz")
    copy.rename(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match="is not a folder") as info:
        open_stream(tmp_path / "s.npz")
    assert "a bundle" in str(info.value)


KILLED = """
import sys
import numpy as np
from engines import PVCStream, open_bundle

stream = PVCStream(open_bundle(sys.argv[1]))
rng = np.random.default_rng(0)
while True:
    stream.push(rng.integers(0, 256, (96, 128, 3), dtype=np.uint8))
    stream.save(sys.argv[2])
    print(stream.num_frames, flush=True)
"""


def test_a_process_killed_at_any_moment_leaves_a_stream_that_continues(bundle: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "s.npz"
    command = [sys.executable, "-c", KILLED, str(bundle.folder), str(path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(5):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    opened = open_stream(path, bundle)
    assert opened.num_frames >= 5
    rng, expected = np.random.default_rng(0), PVCStream(bundle)
    for _ in range(opened.num_frames):
        expected.push(rng.integers(0, 256, (96, 128, 3), dtype=np.uint8))
    assert go_on(opened, []) == go_on(expected, [])


def test_what_a_killed_process_left_half_written_is_removed_by_the_next_save(bundle: Bundle, tmp_path: Path) -> None:
    """Files that a running process is still writing are kept."""
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    left, in_use, other = (tmp_path / f".s.npz-{name}" for name in (ended.pid, os.getppid(), "mine"))
    for path in (left, in_use, other):
        path.write_bytes(b"half")
    PVCStream(bundle).save(tmp_path / "s.npz")
    assert not left.exists() and in_use.exists() and other.exists() and (tmp_path / "s.npz").exists()
