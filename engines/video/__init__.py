"""Videos in and out, through PyAV: one reader for files and addresses, one path for their colours, one writer.

source.py opens, reader.py reads and times, picture.py makes the picture of a frame, damage.py says what is missing,
writer.py writes. Note: PyAV is imported inside the functions, so this package can be imported without it.
"""

from .damage import Damage
from .reader import VideoFrame, VideoInfo, VideoReader, probe_video, read_video
from .source import check_is_file, is_url, no_frame_rate, without_password
from .writer import VideoWriter, write_video

__all__ = [
    "Damage",
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
