"""What the reference refuses, in the same four sentences as the runtime's errors, which it never imports."""

from __future__ import annotations


class ModelFault(ValueError):
    """A model cannot be made of what was given.

    what      what is wrong, with names and values
    expected  what was expected in its place
    cause     the likely cause
    fix       the next step

    The last three may be empty. `str` has a line for each that is not.
    """

    def __init__(self, what: str, *, expected: str = "", cause: str = "", fix: str = "") -> None:
        super().__init__(what)
        self.what, self.expected, self.cause, self.fix = what, expected, cause, fix

    def __str__(self) -> str:
        said = {"": self.what, "expected: ": self.expected, "likely: ": self.cause, "fix: ": self.fix}
        return "\n".join(label + text for label, text in said.items() if text)


class ConfigError(ModelFault):
    """A configuration contradicts itself; `what` names both sides."""


class CheckpointError(ModelFault):
    """A checkpoint cannot be read or written; `what` names the file or the fact."""
