"""`--window`, `--context`, `--streams` and `--memory`: the limits that are asked for, and sizes in words."""

from __future__ import annotations

import re
from dataclasses import dataclass

import typer

from engines.spec import StreamLimits

from .usage import usage_errors

SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) *(?:([KMGT])(I?B)?|B)?", re.IGNORECASE)
DECIMAL = {"K": 1000, "M": 1000**2, "G": 1000**3, "T": 1000**4}
BINARY = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


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
                parse_size(self.memory)
            return StreamLimits(streams=self.streams, **{name: x for name, x in given.items() if x is not None})

    @property
    def memory_bytes(self) -> int:
        assert self.memory is not None, "none was asked for"
        return parse_size(self.memory)


def parse_size(text: str) -> int:
    """'1.5GiB' or '1.5G' -> 1610612736, '1.5GB' -> 1500000000; a number alone is bytes. Raises ValueError.

    G is 1024**3 as where systemd and docker limit memory, GB 1000**3 as on a box; upper and lower case are the same.
    """
    match = SIZE.fullmatch(text.strip())
    size = 0
    if match is not None:
        number, prefix, rest = match.groups()
        units = DECIMAL if rest and rest.upper() == "B" else BINARY
        size = int(float(number) * (units[prefix.upper()] if prefix else 1))
    if size < 1:
        raise ValueError(f"--memory is '{text}', expected a size such as 2GiB, 900MiB, 2G or 2000000000")
    return size
