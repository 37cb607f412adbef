"""`--window`, `--context`, `--streams` and `--memory`: the requested limits."""

from __future__ import annotations

from dataclasses import dataclass

import typer

from engines.sizes import parse_size
from engines.spec import StreamLimits

from .usage import usage_errors


@dataclass(frozen=True, kw_only=True, slots=True)
class AskedLimits:
    """The options as given; None for those that were not."""

    window: int | None
    context: int | None
    streams: int
    memory: str | None = None

    def limits(self) -> StreamLimits:
        """The limits, with defaults for those that were not given. Raises BadParameter for impossible limits, for an
        invalid --memory, and for a --memory that has nothing left to choose."""
        if self.memory is not None and None not in (self.window, self.context):
            raise typer.BadParameter(
                "--memory chooses the window and the context, but both are given; leave one of the three out "
                "(pvc-export plan shows the memory for given ones)"
            )
        given = {"window": self.window, "context": self.context}
        with usage_errors():
            if self.memory is not None:
                parse_size(self.memory, option="--memory")
            return StreamLimits(streams=self.streams, **{name: x for name, x in given.items() if x is not None})

    @property
    def memory_bytes(self) -> int:
        assert self.memory is not None, "no --memory was given"
        return parse_size(self.memory, option="--memory")
