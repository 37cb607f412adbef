"""The reference's errors.

    RefError
    +-- ConfigError       a model configuration contradicts itself
    +-- CheckpointError   a checkpoint folder cannot be read or written
    |   +-- OpenNamesError    some tensors have unknown names and could be more than one parameter
    +-- InputError        a function was called with an invalid argument

The runtime has a similar hierarchy in engines/errors.py. Neither package imports the other: parity proves something
only if the reference and the runtime share no code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence


class RefError(Exception):
    """Base of this package's user-facing errors.

    what      what happened, in one sentence
    expected  what was expected instead
    cause     the likely cause
    fix       the next step: a command where there is one

    The last three may be empty. `str` prints one line per non-empty part.
    """

    def __init__(self, what: str, *, expected: str = "", cause: str = "", fix: str = "") -> None:
        super().__init__(what)
        self.what, self.expected, self.cause, self.fix = what, expected, cause, fix

    def __str__(self) -> str:
        said = {"": self.what, "expected: ": self.expected, "likely: ": self.cause, "fix: ": self.fix}
        return "\n".join(label + text for label, text in said.items() if text)


class ConfigError(RefError):
    """A configuration contradicts itself; `what` names both values."""


class CheckpointError(RefError):
    """A checkpoint cannot be read or written; `what` names the file or the fact."""


class OpenNamesError(CheckpointError):
    """Some tensors of a checkpoint fit more than one parameter.

    candidates  possible mappings, each accepted by pvc_ref.load; at most as many as are worth listing
    """

    candidates: Sequence[Mapping[str, str]] = ()


class InputError(RefError, ValueError):
    """A function was called with an invalid argument."""
