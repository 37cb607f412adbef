"""Videos as devices: files, and addresses served here, read with the reader of `run`; lost streams; refused sources."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from apps.addresses import parse_address
from apps.capture import open_source
from apps.synthetic import Shown
from apps.videos import VideoDevice
from engines.errors import MediaError
from engines.video import write_video

from .fakes import picture

av = pytest.importorskip("av")


def keep_waiting(seconds: float) -> bool:
    return False


def device(source: object, *, fps: float | None = None, pauses_s: tuple[float, ...] = (0.0,)) -> VideoDevice:
    return VideoDevice(parse_address(str(source)), wait=keep_waiting, fps=fps, pauses_s=pauses_s)


def value(shown: Shown | None) -> int:
    assert shown is not None
    return round(float(shown.bgr.mean()) / 8)


def drain(video: VideoDevice) -> list[Shown]:
    shown = list(iter(video.read, None))
    video.close()
    return shown


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "10:30.mp4"
    write_video(path, (picture(index) for index in range(12)), fps=12.0)
    return path


def test_a_file_is_read_to_its_end(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(clip.parent)  # relative: FFmpeg would take "10" for a protocol
    file = device(clip.name)
    assert file.waits and file.fps == pytest.approx(12.0)
    shown = drain(file)
    assert [value(one) for one in shown] == list(range(12)) and file.notice == "" and file.damage is None
    assert [one.time_s for one in shown] == pytest.approx([index / 12 for index in range(12)], abs=1e-4)


def test_a_file_that_ends_early_says_how_much_is_missing(clip: Path) -> None:
    fast = clip.with_name("fast.mp4")
    with av.open(f"file:{clip}") as source, av.open(str(fast), "w", options={"movflags": "faststart"}) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    fast.write_bytes(fast.read_bytes()[:-60])
    file = device(fast)
    num_shown = len(drain(file))
    assert 6 <= num_shown < 12 and file.damage is not None
    assert file.damage.num_missing == 12 - num_shown
    assert f"{12 - num_shown} of 12 frames" in file.notice


@pytest.fixture
def served(clip: Path) -> Iterator[str]:
    """Serve the clip from a web server in this process; yields its address."""
    handler = partial(QuietHandler, directory=str(clip.parent))
    with running(handler) as address:
        yield f"{address}/{clip.name}"


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None: ...


class running:  # noqa: N801
    """A web server on a free port, as a context."""

    def __init__(self, handler: Callable[..., BaseHTTPRequestHandler]) -> None:
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True

    def __enter__(self) -> str:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self.server.server_port}"

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


def test_a_video_on_a_web_server_waits_and_ends_like_a_file(served: str) -> None:
    video = device(served)
    assert video.waits
    assert [value(one) for one in drain(video)] == list(range(12)) and video.damage is None
    source = open_source(parse_address(served), every_frame=True)
    taken = []
    while not source.ended:
        if (captured := source.take(1.0)) is not None:
            taken.append(captured.index)
    source.close()
    assert taken == list(range(12))


class MotionJpeg(BaseHTTPRequestHandler):
    """A network camera: an endless series of pictures that breaks off after five."""

    num_connections = 0

    def do_GET(self) -> None:  # noqa: N802
        type(self).num_connections += 1
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace;boundary=frame")
        self.end_headers()
        for index in range(5):
            jpeg = BytesIO()
            Image.fromarray(np.full((48, 64, 3), 40 * index, np.uint8)).save(jpeg, "JPEG", quality=95)
            head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg.getvalue())}\r\n\r\n"
            self.wfile.write(head.encode() + jpeg.getvalue() + b"\r\n")

    def log_message(self, *_: object) -> None: ...


def test_a_network_stream_that_breaks_off_is_found_again_and_given_up_by_name() -> None:
    with running(MotionJpeg) as address:
        stream = device(f"{address}/live", pauses_s=(0.0, 0.0))
        assert not stream.waits
        shown = [stream.read() for _ in range(12)]
        assert [value(one) for one in shown[:5]] == [0, 5, 10, 15, 20] == [value(one) for one in shown[5:10]]
        assert stream.num_reconnects == 2 and shown[0] is not None and shown[0].time_s is None
    with pytest.raises(MediaError, match=r"live was lost after \d+ frames.*2 attempts"):
        for _ in range(10):
            stream.read()


def test_a_live_stream_does_not_wait_for_a_model() -> None:
    with running(MotionJpeg) as address, pytest.raises(MediaError, match="is a live stream and does not wait"):
        open_source(parse_address(f"{address}/live"), every_frame=True)


def test_an_address_that_nobody_answers_hides_the_password() -> None:
    with pytest.raises(MediaError) as caught:
        device("http://me:hunter2@127.0.0.1:9/clip.mp4")
    error = caught.value
    assert "hunter2" not in str(error) and "http://me:***@127.0.0.1:9/clip.mp4 cannot be opened" in error.what
    assert "user or password" in error.cause and "ffprobe" in error.fix


def make_text(path: Path) -> None:
    path.write_text("not a video " * 100)


def make_cut(path: Path) -> None:
    write_video(path, [picture(1)] * 30, fps=30)
    path.write_bytes(path.read_bytes()[:-400])


@pytest.mark.parametrize(
    ("name", "make", "what"),
    [
        ("none.mp4", lambda path: None, "does not exist"),
        ("folder.mp4", Path.mkdir, "is not a file"),
        ("empty.mp4", Path.touch, "is empty"),
        ("text.mp4", make_text, "cannot be read as a video"),
        ("captions.txt", make_text, "has no video stream"),
        ("cut.mp4", make_cut, "cannot be read as a video"),
    ],
)
def test_a_file_that_is_no_video_is_refused_by_name(tmp_path: Path, name: str, make: object, what: str) -> None:
    assert callable(make)
    make(tmp_path / name)
    with pytest.raises(MediaError) as caught:
        device(tmp_path / name)
    error = caught.value
    assert f"{name} {what}" in error.what and "video file" in error.expected and error.fix
    assert what != "cannot be read" or ("complete" in error.expected and "truncated" in error.cause)


def test_a_file_that_may_not_be_read_is_called_so(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(MediaError, match="cannot be read: permission denied") as caught:
        device(clip)
    assert "ls -l" in caught.value.fix


def test_a_misspelt_synthetic_gets_a_hint() -> None:
    with pytest.raises(MediaError) as caught:
        device("sinthetic")
    assert caught.value.fix == "did you mean --source synthetic?"
