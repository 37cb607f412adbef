"""Every error a user can meet, in one tree.

    PVCError                      exit code
    +-- SpecError                 6   a graph or tensor is not what its GraphSpec says
    +-- ModelError                6   a checkpoint or model configuration cannot be used
    +-- BundleError               6   a bundle is missing, damaged, or not ours
    +-- MediaError                6   a video, image or camera cannot be read
    |   +-- FrameError            6   a frame has the wrong shape or type
    +-- StreamError               6   a stream was used against its rules
    |   +-- StreamFull            6   a limit chosen at export is reached
    |   +-- NonFiniteError        3   a graph returned NaN or infinity
    +-- BackendUnavailable        4   a runtime, package, GPU or disk space is missing
    +-- BuildError                5   an ONNX export or an engine build failed
    +-- ParityError               3   outputs differ from the reference

A message says what happened, what was expected, the likely cause, and the next command.
"""

from __future__ import annotations


class PVCError(ValueError):
    """Base of all errors meant for users. `exit_code` is what the command line returns."""

    exit_code = 6


class SpecError(PVCError):
    """A graph or a tensor does not match its GraphSpec."""


class ModelError(PVCError):
    """A checkpoint folder or a model configuration cannot be used."""


class BundleError(PVCError):
    """A bundle folder is missing, damaged, or of another format."""


class MediaError(PVCError):
    """A video, an image or a camera cannot be read."""


class FrameError(MediaError):
    """A frame is not what the model expects: (H, W, 3) uint8."""


class StreamError(PVCError):
    """A stream was used in a way its rules forbid."""


class StreamFull(StreamError):
    """A stream reached a limit that was chosen at export; the message names the flag that raises it."""


class NonFiniteError(StreamError):
    """A graph returned NaN or infinity; nothing of the call was kept."""

    exit_code = 3


class BackendUnavailable(PVCError):
    """Something this machine must provide is missing: a package, a runtime, a GPU, disk space."""

    exit_code = 4


class BuildError(PVCError):
    """An ONNX export or an engine build failed."""

    exit_code = 5


class ParityError(PVCError):
    """Outputs differ from the reference by more than the committed thresholds."""

    exit_code = 3
