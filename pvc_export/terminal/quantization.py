"""`--int4`, `--int8` and what goes with them: from options to what a target takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast, get_args

import typer

from engines.spec import Inputs, Method, Part, Quantization
from engines.target import Target
from engines.terminal import one_of

from .usage import usage_errors

FOUR_BITS: tuple[Part, ...] = ("llm",)
"""Parts that may have weights of four bits: on the vision side nobody has measured what they cost."""


@dataclass(frozen=True, slots=True)
class FewBits:
    """The options as they were given."""

    int4: Sequence[str] | None = None
    int8: Sequence[str] | None = None
    block: int | None = None
    method: str = "search"

    def of(self, target: Target, *, streams: int) -> dict[Part, Quantization]:
        """What each part becomes, where so many streams share a pass. Raises BadParameter for what the target does not
        take."""
        if self.block is not None and not self.int4:
            raise typer.BadParameter("--int4-block goes with --int4, which names the part")
        with usage_errors():
            int4 = [cast("Part", one_of("--int4", part, FOUR_BITS)) for part in dict.fromkeys(self.int4 or ())]
            int8 = [cast("Part", one_of("--int8", part, get_args(Part))) for part in dict.fromkeys(self.int8 or ())]
            method = cast("Method", one_of("--quantize-by", self.method, get_args(Method)))
        if both := next((part for part in int4 if part in int8), None):
            raise typer.BadParameter(f"--int4 {both} and --int8 {both}: a part's weights have four bits or eight")
        found = {part: _int8(target, part, method, streams) for part in int8}
        if int4:
            found |= dict.fromkeys(int4, self._int4(target, method))
        return found

    def _int4(self, target: Target, method: Method) -> Quantization:
        if not target.int4_blocks:
            raise typer.BadParameter(f"target '{target.name}' takes no int4 weights: {target.no_int4}")
        block = self.block or target.int4_blocks[0]
        if block not in target.int4_blocks:
            taken = ", ".join(map(str, target.int4_blocks))
            raise typer.BadParameter(f"target '{target.name}' takes int4 weights in blocks of {taken}, not of {block}")
        return Quantization(block=block, zero_points=target.int4_zero_points, method=method, inputs=target.int4_inputs)


def _int8(target: Target, part: Part, method: Method, streams: int) -> Quantization:
    if part not in target.int8:
        raise typer.BadParameter(f"target '{target.name}' takes no int8 weights: {target.no_int8}")
    inputs: Inputs = "rows" if streams > 1 else target.int8[part]
    return Quantization(bits=8, block=None, zero_points=False, method=method, inputs=inputs)


def quantization_text(part: str, how: Quantization) -> str:
    """In words: 'llm in int4 blocks of 32 with zero points, by search'."""
    fed = "" if how.inputs == "float" else f", its inputs by {how.inputs.removesuffix('s')}"
    if how.bits == 8:
        return f"{part} in int8, by {how.method}{fed}"
    points = " with zero points" if how.zero_points else ""
    return f"{part} in int4 blocks of {how.block}{points}, by {how.method}{fed}"


def quantization_options(quantization: Mapping[Part, Quantization]) -> list[str]:
    """The options that ask for it."""
    parts = list[str]()
    for part, how in quantization.items():
        parts += [f"--int{how.bits}", part]
        if how.block is not None:
            parts += ["--int4-block", str(how.block)]
    for method in list(dict.fromkeys(how.method for how in quantization.values()))[:1]:
        parts += ["--quantize-by", method]
    return parts
