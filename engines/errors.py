"""Every error a user can meet, in one tree.

    PVCError                      exit code
    +-- SpecError                 6   a graph or tensor does not match its GraphSpec
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

Each states what happened, what was expected, the likely cause, and the next step: a command where there is one.
"""

from __future__ import annotations

EXIT_DIFFERENT = 3
"""Exit code of a command that found a difference from the reference. That is a result of a check, not an error."""


class PVCError(Exception):
    """Base of every error meant for users.

        try:
            stream.push(frame)
        except StreamFull:
            stream.reset()

    what       what happened, in one sentence
    expected   what was expected instead
    cause      the likely cause
    fix        the next step: a command where there is one
    exit_code  exit code of the command line

    `expected`, `cause` and `fix` may be empty. `str` has one line for each sentence that is not.
    """

    exit_code = 6

    def __init__(self, what: str, *, expected: str = "", cause: str = "", fix: str = "") -> None:
        super().__init__(what)
        self.what, self.expected, self.cause, self.fix = what, expected, cause, fix

    def __str__(self) -> str:
        said = {"": self.what, "expected: ": self.expected, "likely: ": self.cause, "fix: ": self.fix}
        return "\n".join(label + text for label, text in said.items() if text)

    def to_json(self) -> dict[str, str | int]:
        """Class, the four sentences and the exit code, for `--json`."""
        fields = ("what", "expected", "cause", "fix", "exit_code")
        return {"error": type(self).__name__, **{name: getattr(self, name) for name in fields}}


EXPORT_AGAIN = "export the bundle again: pvc-export onnx, or trt for one with engines"
"""The next step of several errors: a file of a bundle is damaged or belongs to another bundle."""


class SpecError(PVCError):
    """A graph or a tensor does not match its GraphSpec."""


class ModelError(PVCError):
    """A checkpoint folder or a model configuration cannot be used."""


class BundleError(PVCError):
    """A bundle folder is missing, damaged, or has another format."""


class MediaError(PVCError):
    """A video, an image or a camera cannot be read."""


class FrameError(MediaError):
    """A frame is not what the model expects: (H, W, 3) uint8."""


class StreamError(PVCError):
    """A stream was used in a way its rules forbid."""


class StreamFull(StreamError):
    """A stream reached a limit chosen at export; the message names the flag that raises it."""


class NonFiniteError(StreamError):
    """A graph returned NaN or infinity; nothing from that call was kept."""

    exit_code = EXIT_DIFFERENT


class BackendUnavailable(PVCError):
    """Something this machine must provide is missing: a package, a runtime, a GPU, disk space."""

    exit_code = 4


class BuildError(PVCError):
    """An ONNX export or an engine build failed."""

    exit_code = 5


class ParityError(PVCError):
    """A run or a benchmark did not return what the reference returns. A check reports instead of raising this."""

    exit_code = EXIT_DIFFERENT
