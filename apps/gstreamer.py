"""GStreamer pipelines of cameras, as text for OpenCV, and whether an element of one is installed.

Each ends in BGR frames of which only the newest waits. The CSI one is that of JetsonHacksNano/CSI-Camera, but for its
sink. None was run on a device: docs/video.md.
Note: an address becomes a part of a pipeline only with everything percent-encoded that could end its quotes, so that no
address adds elements of its own.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from urllib.parse import quote

CSI_SOURCE, DECODER = "nvarguscamerasrc", "nvv4l2decoder"
PARSERS = {"h264": "rtph264depay ! h264parse", "hevc": "rtph265depay ! h265parse"}
"""By FFmpeg's name of a codec: what takes it out of RTP for the hardware decoder."""
# nvvidconv has no BGR; drop, or a slow model would see ever older frames; no sync, as they are wanted when they come.
TO_NEWEST_BGR = (
    "nvvidconv ! video/x-raw,format=BGRx ! videoconvert ! video/x-raw,format=BGR ! "
    "appsink drop=true max-buffers=1 sync=false"
)
CSI = re.compile(r"csi:(\d{1,2})(?:,(\d{2,4})x(\d{2,4}))?(?:@(\d{1,3}))?")
IN_URL = "!#$&()*+,-./:;=?@[]_~%"
"""What a URL may hold beside letters and digits, but for the quote '. A % begins what is encoded already."""
INSPECT_S = 20.0  # the first call after an installation reads every plugin


def csi_pipeline(text: str) -> str | None:
    """Of 'csi:0' or 'csi:0,1920x1080@30'; 1280x720 at 30 where not said. None if it is not of this form."""
    found = CSI.fullmatch(text)
    if found is None:
        return None
    sensor, width, height, fps = found.groups()
    frames = (
        f"video/x-raw(memory:NVMM),width={width or 1280},height={height or 720},format=NV12,framerate={fps or 30}/1"
    )
    return f"{CSI_SOURCE} sensor-id={sensor} ! {frames} ! {TO_NEWEST_BGR}"


def rtsp_pipeline(url: str, codec: str) -> str:
    """Decoded in hardware; `codec` is one of PARSERS. TCP, as a lost packet of UDP spoils pictures."""
    source = f'rtspsrc location="{encoded(url)}" latency=0 protocols=tcp'
    return f"{source} ! application/x-rtp,media=video ! {PARSERS[codec]} ! {DECODER} ! {TO_NEWEST_BGR}"


def encoded(url: str) -> str:
    """The same address without quotes, spaces and what else no URL may hold, nor an @ in its user or password."""
    scheme, _, rest = url.partition("://")
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    user, at, _ = authority.rpartition("@")
    encoded_user = ":".join(quote(part, safe="!$&()*+,;=-._~%") for part in user.split(":", 1))
    return f"{quote(scheme, safe='')}://{encoded_user}{at}{quote(rest.removeprefix(user + at), safe=IN_URL)}"


def has_element(name: str) -> bool | None:
    """None where GStreamer's own tool, which knows, is missing or does not answer."""
    tool = shutil.which("gst-inspect-1.0")
    if tool is None:
        return None
    try:
        return subprocess.run([tool, "--exists", name], capture_output=True, timeout=INSPECT_S).returncode == 0
    except subprocess.TimeoutExpired:
        return None
