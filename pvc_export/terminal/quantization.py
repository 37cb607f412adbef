"""`--int4`, `--int8` and the related options: from the command line to a target's quantization."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast, get_args

import typer

from engines.manifest import Calibration, Manifest
from engines.spec import CalibrationMethod, Method, Part, Quantization, State, is_smoothed
from engines.target import Target
from engines.terminal import one_of

from .usage import refuse, usage_errors

FOUR_BITS: tuple[Part, ...] = ("llm",)
"""Parts that may have int4 weights. On the vision side their effect on quality has not been measured."""


@dataclass(frozen=True, slots=True)
class FewBits:
    """The options as given."""

    int4: Sequence[str] | None = None
    int8: Sequence[str] | None = None
    block: int | None = None
    method: str = "search"
    clips: Sequence[Path] | None = None
    calibrate_by: str | None = None

    def of(self, target: Target, *, streams: int) -> dict[Part, Quantization]:
        """Quantization of each part, for passes shared by `streams` streams. Raises BadParameter for options that the
        target does not support."""
        if self.block is not None and not self.int4:
            raise typer.BadParameter("--int4-block needs --int4, which names the part")
        with usage_errors():
            int4 = [cast("Part", one_of("--int4", part, FOUR_BITS)) for part in dict.fromkeys(self.int4 or ())]
            names = [one_of("--int8", name, (*get_args(Part), *get_args(State))) for name in self.int8 or ()]
            int8 = [cast("Part", name) for name in dict.fromkeys(names) if name in get_args(Part)]
            method = cast("Method", one_of("--quantize-by", self.method, get_args(Method)))
        if both := next((part for part in int4 if part in int8), None):
            raise typer.BadParameter(f"--int4 {both} and --int8 {both} contradict each other; give one")
        found = {part: _int8(target, part, method, streams) for part in int8}
        if int4:
            found |= dict.fromkeys(int4, self._int4(target, method))
        if not any(how.inputs == "static" for how in found.values()):
            why = f"{{}} needs --int8 vision on a TensorRT target; target '{target.name}' computes scales at run time"
            clips = None if is_smoothed(found) else self.clips or None
            refuse({"--calibrate": clips, "--calibrate-by": self.calibrate_by}, why)
        return found

    @property
    def states(self) -> tuple[State, ...]:
        """Parts of a stream's state stored in int8. `of` has refused unknown words."""
        return tuple(state for state in get_args(State) if state in (self.int8 or ()))

    @property
    def calibration_method(self) -> CalibrationMethod:
        """How scales are chosen. Raises BadParameter for an unknown word."""
        with usage_errors():
            found = one_of("--calibrate-by", self.calibrate_by or "error", get_args(CalibrationMethod))
        return cast("CalibrationMethod", found)

    def _int4(self, target: Target, method: Method) -> Quantization:
        if not target.int4_blocks:
            instead = f". It has --int8 {' and --int8 '.join(target.int8)}" if target.int8 else ""
            raise typer.BadParameter(f"target '{target.name}' has no int4 weights: {target.no_int4}{instead}")
        block = self.block or target.int4_blocks[0]
        if block not in target.int4_blocks:
            taken = ", ".join(map(str, target.int4_blocks))
            raise typer.BadParameter(f"target '{target.name}' takes int4 weights in blocks of {taken}, not of {block}")
        return Quantization(block=block, zero_points=target.int4_zero_points, method=method, inputs=target.int4_inputs)


def _int8(target: Target, part: Part, method: Method, streams: int) -> Quantization:
    if part not in target.int8:
        raise typer.BadParameter(f"target '{target.name}' has no --int8 {part}: {target.no_int8}")
    inputs = target.int8[part]
    if inputs == "tensor" and streams > 1:
        inputs = "rows"
    return Quantization(
        bits=8, block=None, zero_points=False, method=method, inputs=inputs,
        wide_codes=target.wide_codes and inputs != "static",
    )  # fmt: skip


def quantization_text(part: str, how: Quantization) -> str:
    """As text: 'llm in int4 blocks of 32 with zero points, by search'."""
    ways = {"float": "", "static": ", its inputs by calibration"}
    fed = ways.get(how.inputs, f", its inputs by {how.inputs.removesuffix('s')}")
    if how.bits == 8:
        wide = " with the full 8-bit range" if how.wide_codes else ""
        return f"{part} in int8{wide}, by {how.method}{fed}"
    points = " with zero points" if how.zero_points else ""
    return f"{part} in int4 blocks of {how.block}{points}, by {how.method}{fed}"


def calibration_text(calibration: Calibration) -> str:
    """As text: '44 scales by error, on 22 frames: clip.mp4'."""
    clips = ", ".join(calibration.clips) or "the built-in rendered and real ones"
    found = [f"{len(calibration.scales)} scales by {calibration.method}"] if calibration.scales else []
    if calibration.smoothing:
        found.append(f"{sum(map(len, calibration.smoothing.values())):,} channels smoothed")
    text = " and text" if calibration.smoothing else ""
    return f"{', '.join(found)}, on {calibration.num_frames} frames{text}: {clips}"


def quantization_options(manifest: Manifest) -> list[str]:
    """The options that reproduce a bundle's quantization. For clips, only the file names are known, not the folders."""
    quantization, calibration = manifest.quantization, manifest.calibration
    parts = [part for state in manifest.int8_states for part in ("--int8", state)]
    for part, how in quantization.items():
        parts += [f"--int{how.bits}", part]
        if how.block is not None:
            parts += ["--int4-block", str(how.block)]
    for method in list(dict.fromkeys(how.method for how in quantization.values()))[:1]:
        parts += ["--quantize-by", method]
    if calibration is not None:
        parts += ["--calibrate-by", calibration.method] if calibration.scales else []
        for clip in calibration.clips:
            parts += ["--calibrate", clip]
    return parts
