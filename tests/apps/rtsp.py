"""An RTSP network camera in its own process, so that it can be killed: python -m tests.apps.rtsp PORT.

Implements as much of RFC 2326 as a viewer needs. FFmpeg cuts H.264 into RTP packets, which are sent over the same
connection, between the replies ("interleaved", section 10.12).
"""

from __future__ import annotations

import socket
import subprocess
import sys
from contextlib import suppress
from threading import Event, Thread

import av
import numpy as np

from .fakes import picture

FPS = 25
SDP = "\r\n".join(
    (
        "v=0", "o=- 0 0 IN IP4 127.0.0.1", "s=camera", "c=IN IP4 127.0.0.1", "t=0 0", "m=video 0 RTP/AVP 96",
        "a=rtpmap:96 H264/90000", "a=fmtp:96 packetization-mode=1", "a=control:0", "",
    )
)  # fmt: skip
REPLIES = {
    "OPTIONS": "Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN",
    "SETUP": "Session: 1\r\nTransport: RTP/AVP/TCP;unicast;interleaved=0-1",
    "PLAY": "Session: 1",
    "TEARDOWN": "Session: 1",
}


class RtspCamera:
    """A camera with 25 pictures per second, until it is killed."""

    def __init__(self, port: int = 0) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.apps.rtsp", str(port)], stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())
        self.url = f"rtsp://127.0.0.1:{self.port}/live"

    def kill(self) -> None:
        """Kill the process with SIGKILL: no connection is closed properly."""
        self._process.kill()
        self._process.communicate()


def serve(port: int) -> None:
    listening = socket.create_server(("127.0.0.1", port))
    print(listening.getsockname()[1], flush=True)
    while True:
        connection, _ = listening.accept()
        Thread(target=_until_it_hangs_up, args=(connection,), daemon=True).start()


def _until_it_hangs_up(connection: socket.socket) -> None:
    with suppress(OSError):
        _serve(connection)


def _serve(connection: socket.socket) -> None:
    gone, received = Event(), connection.makefile("rb")
    while request := received.readline().decode(errors="replace"):
        headers = {}
        while line := received.readline().decode(errors="replace").strip():
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        method = request.split()[0]
        body = SDP if method == "DESCRIBE" else ""
        more = REPLIES.get(method, f"Content-Type: application/sdp\r\nContent-Length: {len(body)}")
        connection.sendall(f"RTSP/1.0 200 OK\r\nCSeq: {headers.get('cseq', '')}\r\n{more}\r\n\r\n{body}".encode())
        if method == "PLAY":
            Thread(target=_play, args=(connection, gone), daemon=True).start()
    gone.set()


def _play(connection: socket.socket, gone: Event) -> None:
    with suppress(OSError):
        _send_pictures(connection, gone)


def _send_pictures(connection: socket.socket, gone: Event) -> None:
    packets = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    packets.bind(("127.0.0.1", 0))
    packets.setblocking(False)
    with av.open(f"rtp://127.0.0.1:{packets.getsockname()[1]}", "w", format="rtp") as output:
        stream = output.add_stream(
            "libx264", rate=FPS, options={"tune": "zerolatency", "x264-params": "repeat-headers=1:keyint=5"}
        )
        stream.pix_fmt = "yuv420p"
        stream.height, stream.width, _ = picture(0).shape
        index = 0
        while not gone.wait(1 / FPS):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture(5 + index % 25)), format="bgr24")
            frame.pts, index = index, index + 1
            output.mux(stream.encode(frame))
            with suppress(BlockingIOError):  # no more packets of this picture
                while packet := packets.recv(65535):
                    connection.sendall(b"$\x00" + len(packet).to_bytes(2, "big") + packet)


if __name__ == "__main__":
    serve(int(sys.argv[1]))
