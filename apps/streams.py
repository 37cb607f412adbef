"""A network stream as a device, decoded by a Jetson's hardware decoder if GStreamer has it, otherwise by PyAV.

Note: PyAV opens it first in any case. It reports what is wrong with an address, while OpenCV's GStreamer only reports
after half a minute that no frame arrived. It also finds out the codec, which determines the pipeline's elements.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from engines.errors import BackendUnavailable, MediaError

from .addresses import Address
from .devices import CaptureDevice, Device, Wait
from .gstreamer import DECODER, PARSERS, has_element, rtsp_pipeline
from .opencv import Capture, has_gstreamer, import_cv2
from .videos import VideoDevice


def open_stream(
    address: Address,
    *,
    wait: Wait,
    fps: float | None,
    pauses_s: Sequence[float],
    factory: Callable[[Address], Capture] | None,
    say: Callable[[str], None],
    opener: Callable[..., VideoDevice] = VideoDevice,
    has_decoder: Callable[[], bool] | None = None,
) -> Device:
    """Open a stream. `say` is told if the hardware decoder fails and the CPU decodes. Raises as VideoDevice."""
    video = opener(address, wait=wait, fps=fps, pauses_s=pauses_s)
    if not (address.is_rtsp and video.codec in PARSERS and (has_decoder or has_hardware_decoder)()):
        return video
    video.close()  # first: a camera may serve only one viewer
    pipeline = rtsp_pipeline(address.target, video.codec)
    hardware = replace(address, kind="pipeline", target=pipeline, name=f"{address.name} ({DECODER})")
    try:
        return CaptureDevice(hardware, wait=wait, factory=factory, pauses_s=pauses_s)
    except MediaError:
        say(f"{address.name}: {DECODER} delivers no frame, so the CPU decodes this stream")
        return opener(address, wait=wait, fps=fps, pauses_s=pauses_s)


def has_hardware_decoder() -> bool:
    """Whether GStreamer has the hardware decoder and OpenCV can use it."""
    if not has_element(DECODER):
        return False
    try:
        return has_gstreamer(import_cv2())
    except BackendUnavailable:
        return False
