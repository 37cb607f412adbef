"""What can go wrong with the reference, in one tree.

    RefError
    +-- ConfigError       a model configuration contradicts itself
    +-- CheckpointError   a checkpoint folder cannot be read or written
    |   +-- OpenNamesError    tensors of names that are not known, and more than one thing that they can be
    +-- InputError        an argument is not what a function takes

The runtime has a tree of the same form (engines/errors.py). It is not imported: that the two packages never meet is
what makes parity a proof.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence


class RefError(Exception):
    """Base of every error of this package that is meant for users.

    what      what happened, in one sentence
    expected  what was expected in its place
    cause     the likely cause
    fix       the next step: a command where there is one

    The last three may be empty. `str` has a line for each that is not.
    """

    def __init__(self, what: str, *, expected: str = "", cause: str = "", fix: str = "") -> None:
        super().__init__(what)
        self.what, self.expected, self.cause, self.fix = what, expected, cause, fix

    def __str__(self) -> str:
        said = {"": self.what, "expected: ": self.expected, "likely: ": self.cause, "fix: ": self.fix}
        return "\n".join(label + text for label, text in said.items() if text)


class ConfigError(RefError):
    """A configuration contradicts itself; `what` names both sides."""


class CheckpointError(RefError):
    """A checkpoint cannot be read or written; `what` names the file or the fact."""


class OpenNamesError(CheckpointError):
    """What some tensors of a checkpoint are is open.

    candidates  mappings that are possible, each of which pvc_ref.load takes; as many as are worth listing
    """

    candidates: Sequence[Mapping[str, str]] = ()


class InputError(RefError, ValueError):
    """An argument is not what a function takes."""
