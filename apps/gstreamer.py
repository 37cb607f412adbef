"""GStreamer pipelines for cameras, as text for OpenCV, and a check whether an element is installed.

Each pipeline ends in BGR frames and keeps only the newest. The CSI pipeline is that of JetsonHacksNano/CSI-Camera,
except for its sink. None was run on a device: docs/video.md.
Note: an address enters a pipeline only after percent-encoding every character that could end its quotes, so that no
address can add elements.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from urllib.parse import quote

CSI_SOURCE, DECODER = "nvarguscamerasrc", "nvv4l2decoder"
PARSERS = {"h264": "rtph264depay ! h264parse", "hevc": "rtph265depay ! h265parse"}
"""Elements that unpack a codec from RTP for the hardware decoder, by FFmpeg's name of the codec."""
# nvvidconv has no BGR. drop: else a slow model would see ever older frames. sync=false: frames are taken on arrival.
TO_NEWEST_BGR = (
    "nvvidconv ! video/x-raw,format=BGRx ! videoconvert ! video/x-raw,format=BGR ! "
    "appsink drop=true max-buffers=1 sync=false"
)
CSI = re.compile(r"csi:(\d{1,2})(?:,(\d{2,4})x(\d{2,4}))?(?:@(\d{1,3}))?")
IN_URL = "!#$&()*+,-./:;=?@[]_~%"
"""Characters kept in a URL besides letters and digits; without the quote '. A % starts an encoded character."""
INSPECT_S = 20.0  # the first call after an installation reads every plugin


def csi_pipeline(text: str) -> str | None:
    """The pipeline for 'csi:0' or 'csi:0,1920x1080@30' (default 1280x720 at 30). None for any other form."""
    found = CSI.fullmatch(text)
    if found is None:
        return None
    sensor, width, height, fps = found.groups()
    frames = (
        f"video/x-raw(memory:NVMM),width={width or 1280},height={height or 720},format=NV12,framerate={fps or 30}/1"
    )
    return f"{CSI_SOURCE} sensor-id={sensor} ! {frames} ! {TO_NEWEST_BGR}"


def rtsp_pipeline(url: str, codec: str) -> str:
    """A pipeline that decodes in hardware; `codec` is one of PARSERS. TCP, since lost UDP packets spoil pictures."""
    source = f'rtspsrc location="{encoded(url)}" latency=0 protocols=tcp'
    return f"{source} ! application/x-rtp,media=video ! {PARSERS[codec]} ! {DECODER} ! {TO_NEWEST_BGR}"


def encoded(url: str) -> str:
    """The address with quotes, spaces and other characters invalid in a URL encoded, as is an @ in user or password."""
    scheme, _, rest = url.partition("://")
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    user, at, _ = authority.rpartition("@")
    encoded_user = ":".join(quote(part, safe="!$&()*+,;=-._~%") for part in user.split(":", 1))
    return f"{quote(scheme, safe='')}://{encoded_user}{at}{quote(rest.removeprefix(user + at), safe=IN_URL)}"


def has_element(name: str) -> bool | None:
    """Whether the element is installed; None if gst-inspect-1.0 is missing or does not respond."""
    tool = shutil.which("gst-inspect-1.0")
    if tool is None:
        return None
    try:
        return subprocess.run([tool, "--exists", name], capture_output=True, timeout=INSPECT_S).returncode == 0
    except subprocess.TimeoutExpired:
        return None
