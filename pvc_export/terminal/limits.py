"""`--window`, `--context`, `--streams` and `--memory`: the limits that are asked for, and sizes in words."""

from __future__ import annotations

from dataclasses import dataclass

import typer

from engines.sizes import parse_size
from engines.spec import StreamLimits

from .usage import usage_errors


@dataclass(frozen=True, kw_only=True, slots=True)
class AskedLimits:
    """The options as they were given; None where one was not."""

    window: int | None
    context: int | None
    streams: int
    memory: str | None = None

    def limits(self) -> StreamLimits:
        """The usual ones in place of those that were not given. Raises BadParameter for what cannot be, for a memory
        that is no size, and where nothing is left for it to choose."""
        if self.memory is not None and None not in (self.window, self.context):
            raise typer.BadParameter(
                "--memory chooses the window and the context, and both are given; leave one of the three out "
                "(pvc-export plan says what given ones take)"
            )
        given = {"window": self.window, "context": self.context}
        with usage_errors():
            if self.memory is not None:
                parse_size(self.memory, option="--memory")
            return StreamLimits(streams=self.streams, **{name: x for name, x in given.items() if x is not None})

    @property
    def memory_bytes(self) -> int:
        assert self.memory is not None, "none was asked for"
        return parse_size(self.memory, option="--memory")
