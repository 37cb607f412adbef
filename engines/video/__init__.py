"""Reading and writing videos through PyAV: one reader for files and addresses, one colour conversion, one writer.

source.py opens, packets.py counts and decodes, reader.py adds times and picture.py converts colours, damage.py reports
what is missing, probe.py describes a video, writer.py writes.
Note: PyAV is imported inside the functions, so this package can be imported without it.
"""

from .damage import Damage
from .probe import VideoInfo, probe_video
from .reader import DecodedFrame, VideoFrame, VideoReader, read_video
from .source import check_is_file, is_url, no_frame_rate, without_password
from .writer import VideoWriter, write_video

__all__ = [
    "Damage",
    "DecodedFrame",
    "VideoFrame",
    "VideoInfo",
    "VideoReader",
    "VideoWriter",
    "check_is_file",
    "is_url",
    "no_frame_rate",
    "probe_video",
    "read_video",
    "without_password",
    "write_video",
]
