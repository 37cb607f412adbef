"""`--int4` and what goes with it: from options to what a target takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast, get_args

import typer

from engines.spec import Method, Part, Quantization
from engines.target import Target
from engines.terminal import one_of

from .usage import usage_errors


@dataclass(frozen=True, slots=True)
class Int4Choice:
    """The options as they were given."""

    parts: Sequence[str] | None = None
    block: int | None = None
    method: str = "search"

    def of(self, target: Target) -> dict[Part, Quantization]:
        """What each part becomes. Raises BadParameter for what the target does not take."""
        if not self.parts:
            if self.block is not None:
                raise typer.BadParameter("--int4-block goes with --int4, which names the part")
            return {}
        with usage_errors():
            parts = [cast("Part", one_of("--int4", part, get_args(Part))) for part in dict.fromkeys(self.parts)]
            method = cast("Method", one_of("--int4-method", self.method, get_args(Method)))
        if not target.int4_blocks:
            raise typer.BadParameter(f"target '{target.name}' takes no int4 weights: {target.no_int4}")
        block = self.block or target.int4_blocks[0]
        if block not in target.int4_blocks:
            taken = ", ".join(map(str, target.int4_blocks))
            raise typer.BadParameter(f"target '{target.name}' takes int4 weights in blocks of {taken}, not of {block}")
        how = Quantization(block=block, zero_points=target.int4_zero_points, method=method)
        return dict.fromkeys(parts, how)


def quantization_text(part: str, how: Quantization) -> str:
    """In words: 'llm in int4 blocks of 32 with zero points, by search'."""
    points = " with zero points" if how.zero_points else ""
    return f"{part} in int4 blocks of {how.block}{points}, by {how.method}"


def quantization_options(quantization: Mapping[Part, Quantization]) -> list[str]:
    """The options that ask for it."""
    parts = [option for part in quantization for option in ("--int4", part)]
    for how in list(quantization.values())[:1]:
        parts += ["--int4-block", str(how.block), "--int4-method", how.method]
    return parts
