"""Weights in few bits: each block of values along a product's input has one scale, and each value one of a few codes.

    value = (code - zero point) * scale

Codes of four bits are -8..7, or with zero points 0..15: ONNX's int4 and uint4. Those of eight are -127..127, but on a
CPU that is not known to have VNNI -64..64: the products of two rows of eight bits by larger ones do not fit in the 16
bits in which x86 without it adds them, and what does not fit is cut off without a word (docs/decisions/0014). A block's
grid depends on its values alone, and errors are summed in float64, so that the same weights give the same codes
wherever it is done: a check finds them anew and compares bit for bit (parity/weights.py). A scale is rounded to the
dtype that it has in the graph before the codes are chosen.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from engines.errors import ModelError
from engines.manifest import Calibration, Manifest
from engines.spec import GraphSpec, Part, Precision, Quantization, State, is_smoothed
from pvc_ref import PVC

from .clock_table import NAME as CLOCK
from .eight_bit_rows import round_states
from .eight_bits import round_inputs
from .hollow import SMALL, hollow
from .models import LoadedModel
from .precision import TORCH_DTYPE, copy_with, kept_wide
from .smoothing import smoothed

PREFIXES: dict[Part, tuple[str, ...]] = {
    "vision": ("trunk.", "temporal.", "compressor."), "llm": ("llm.layers.",), "head": ("llm.lm_head",),
}  # fmt: skip
"""Where a part's products are in the model."""
SHRUNK = tuple(1 - step / 40 for step in range(13))
"""Scales that a search tries, 1 to 0.7, as parts of the one that reaches all of a block."""
NOTHING = Calibration(method="error", clips=(), num_frames=0)
"""Was found ahead."""
ROWS = 256
"""Rows of a matrix that are worked on at once: what is computed beside them stays small."""


def is_coded(name: str, weight: Tensor, spec: GraphSpec) -> bool:
    """Whether a weight of a graph, cast to the dtype that it has there, is held in codes. Of the graphs that hold any,
    every matrix is a product's; one in another dtype than the graph's is an island, and a clock always is."""
    how = spec.quantization
    if how is None or weight.ndim != 2 or weight.numel() <= SMALL or f".{CLOCK}." in name:
        return False
    return how.fits(weight.shape[1]) and str(weight.dtype) == f"torch.{spec.real_dtype}"


def code_range(how: Quantization) -> tuple[int, int]:
    """The smallest and the largest code."""
    if how.bits == 8:
        return (-64, 64) if how.is_integer and not how.wide_codes else (-127, 127)
    return (0, 15) if how.zero_points else (-8, 7)


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """What the codes of a matrix (O, I) stand for: scales (O, I / B) and, if there are any, zero points, int8 of the
    same shape. `codes_from` to `codes_to`: the codes that there are."""

    scales: Tensor
    zero_points: Tensor | None
    codes_from: int
    codes_to: int

    def codes(self, weight: Tensor) -> Tensor:
        """The nearest one of each value, int8 (O, I)."""
        blocks = weight.unflatten(-1, (self.scales.shape[-1], -1))
        nearest = (blocks.float() / self.scales[..., None].float()).round()
        codes = nearest if self.zero_points is None else nearest + self.zero_points[..., None]
        found: Tensor = codes.clamp(self.codes_from, self.codes_to).to(torch.int8).flatten(-2)
        return found

    def values(self, codes: Tensor) -> Tensor:
        """What a DequantizeLinear makes of codes, (O, I) in the dtype of the scales."""
        blocks = codes.unflatten(-1, (self.scales.shape[-1], -1)).float()
        if self.zero_points is not None:
            blocks = blocks - self.zero_points[..., None]
        values: Tensor = (blocks * self.scales[..., None].float()).flatten(-2)
        return values.to(self.scales.dtype)

    def nearest(self, weight: Tensor) -> Tensor:
        """What a matrix becomes."""
        return self.values(self.codes(weight))

    def better(self, other: Grid, is_better: Tensor) -> Grid:
        """This one, and the other where that is better: bool (O, I / B)."""
        zero_points = None
        if self.zero_points is not None:
            assert other.zero_points is not None
            zero_points = torch.where(is_better, other.zero_points, self.zero_points)
        return replace(self, scales=torch.where(is_better, other.scales, self.scales), zero_points=zero_points)


def grid_of(weight: Tensor, how: Quantization, dtype: torch.dtype) -> Grid:
    """The grid of a matrix (O, I), whose I is a multiple of the block, with scales in `dtype`."""
    parts = [_grid_of_rows(rows.float(), how, dtype) for rows in weight.detach().split(ROWS)]
    zero_points = [part.zero_points for part in parts if part.zero_points is not None]
    return replace(
        parts[0],
        scales=torch.cat([part.scales for part in parts]),
        zero_points=torch.cat(zero_points) if zero_points else None,
    )


def _grid_of_rows(rows: Tensor, how: Quantization, dtype: torch.dtype) -> Grid:
    candidates = _candidates(rows.unflatten(-1, (-1, how.block or rows.shape[-1])), how, dtype)
    best = next(candidates)
    least = _error(best, rows)
    for candidate in candidates:
        error = _error(candidate, rows)
        best, least = best.better(candidate, error < least), torch.minimum(error, least)
    return best


def _error(grid: Grid, rows: Tensor) -> Tensor:
    """The squared error of each block, float64 (O, I / B)."""
    off: Tensor = grid.nearest(rows).float() - rows
    blocks: Tensor = off.unflatten(-1, (grid.scales.shape[-1], -1))
    return blocks.double().square().sum(-1)


def _candidates(blocks: Tensor, how: Quantization, dtype: torch.dtype) -> Iterator[Grid]:
    """Grids of blocks (O, I / B, B): the plain one first, and that alone unless it is a search."""
    low, high = blocks.amin(-1).clamp_max(0), blocks.amax(-1).clamp_min(0)
    codes_from, codes_to = code_range(how)
    searching = how.method == "search"
    for part in SHRUNK if searching else SHRUNK[:1]:
        if how.zero_points:
            scales = _rounded((high - low) * (part / codes_to), dtype)
            exact = -low * part / scales.float()
            for points in (exact.floor(), exact.ceil()) if searching else (exact.round(),):
                zero_points = points.clamp(codes_from, codes_to).to(torch.int8)
                yield Grid(scales=scales, zero_points=zero_points, codes_from=codes_from, codes_to=codes_to)
        else:
            # Of four bits there is one code more for what is negative. TensorRT takes no scale below zero to turn that
            # around.
            below = -codes_from if searching else codes_to
            reach = torch.maximum(-low / below, high / codes_to)
            yield Grid(scales=_rounded(reach * part, dtype), zero_points=None, codes_from=codes_from, codes_to=codes_to)


def _rounded(scales: Tensor, dtype: torch.dtype) -> Tensor:
    """In the graph's dtype, and a normal number above zero, which a block of zeros needs too."""
    return scales.clamp_min(torch.finfo(dtype).tiny).to(dtype)


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantizer:
    """The weights of a model that a bundle holds in few bits.

    source  the model as it is, or smoothed;  how  of each such weight, by its name;  dtype  of the graphs
    is_smoothed  whether it is to be (smoothing.py)
    scales  of what those products are fed that have one scale for ever, by the names of the weights (calibration.py)
    """

    source: PVC
    how: Mapping[str, Quantization]
    dtype: torch.dtype
    is_smoothed: bool = False
    scales: Mapping[str, float] = field(default_factory=dict)

    @staticmethod
    def of(
        model: PVC, quantization: Mapping[Part, Quantization], precision: Precision, islands: Sequence[str] = ()
    ) -> Quantizer:
        """Without what is found ahead. Raises ModelError for an island that cannot be one, as its weights keep their
        dtype."""
        wide, how = kept_wide(model, islands), dict[str, Quantization]()
        bare = hollow(model, keep_clock=False) if quantization else model
        for part, one in quantization.items():
            for name, module in model.named_modules():
                if isinstance(module, nn.Linear) and name.startswith(PREFIXES[part]):
                    is_matrix = bare.get_submodule(name).weight.is_meta  # else it is too small to matter
                    if is_matrix and id(module.weight) not in wide and one.fits(module.in_features):
                        how[f"{name}.weight"] = one
        return Quantizer(source=model, how=how, dtype=TORCH_DTYPE[precision], is_smoothed=is_smoothed(quantization))

    @property
    def calibrated(self) -> list[str]:
        """The weights whose products need a scale of their input."""
        return [name for name, how in self.how.items() if how.inputs == "static"]

    def with_calibration(self, calibration: Calibration | None) -> Quantizer:
        """What was found ahead, and the model smoothed by it. Raises ModelError unless there is a scale for each
        product that needs one, and no other."""
        if calibration is None:
            calibration = NOTHING
        scales = calibration.scales
        if wrong := set(self.calibrated) ^ set(scales):
            raise ModelError(
                f"the calibration has {len(scales)} scales, and {len(self.calibrated)} products need one",
                expected=f"one for each, also for '{min(wrong)}'",
                cause="the manifest was edited, or written by another version of pvc-export",
                fix="export the bundle again",
            )
        return replace(self, source=smoothed(self.source, calibration.smoothing), scales=scales)

    def dtype_of_scales(self, how: Quantization) -> torch.dtype:
        """Those of whole numbers are float32 in every graph."""
        return torch.float32 if how.is_integer else self.dtype

    def grid(self, name: str, weight: Tensor) -> Grid:
        """Of a weight that becomes codes."""
        return grid_of(weight, self.how[name], self.dtype_of_scales(self.how[name]))

    def stored(self, name: str) -> Tensor:
        """Any weight of the model, in floating point."""
        return self.source.weight(self.source.first_name(name))

    def read(self, name: str) -> Tensor:
        """The same as the graphs hold it, in float32."""
        weight = self.stored(name)
        if name not in self.how:
            return weight
        return self.grid(name, weight).nearest(weight).float()

    def model(self) -> PVC:
        """The model with what its weights have become, and with inputs that are rounded where they are: the reference
        of a bundle that holds them so."""
        if not self.how:
            return self.source
        copy = copy_with(self.source, lambda weight: weight)
        for name in self.how:
            owner = copy.get_submodule(name.removesuffix(".weight"))
            weight = self.source.get_parameter(name)
            values = weight.detach() if weight.is_meta else self.read(name)
            owner.weight = nn.Parameter(values, requires_grad=False)
            if self.how[name].rounds_inputs:
                how = self.how[name]
                round_inputs(owner, how.inputs, block=how.block, scale=self.scales.get(name))
        copy.stored = None if self.source.stored is None else self.read
        return copy


def prepared(
    model: PVC,
    quantization: Mapping[Part, Quantization],
    calibration: Calibration | None,
    int8_states: Collection[State] = (),
) -> PVC:
    """A copy whose graphs can hold codes, its weights in floating point: smoothed, it rounds what its products are fed
    by the scales that were found ahead, a head that becomes codes is not the table of embeddings, which stays, and
    states in codes are made of rounded rows."""
    model = round_states(model, int8_states)
    if not quantization:
        return model
    if calibration is None:
        calibration = NOTHING
    copy = copy_with(smoothed(model, calibration.smoothing), lambda weight: weight)
    for name, scale in calibration.scales.items():
        round_inputs(copy.get_submodule(name.removesuffix(".weight")), "static", scale=scale)
    if "head" in quantization:
        copy.llm.lm_head.weight = nn.Parameter(copy.llm.lm_head.weight.detach(), requires_grad=False)
    return copy


def _quantized(loaded: LoadedModel, manifest: Manifest, quantization: Mapping[Part, Quantization]) -> LoadedModel:
    """The model whose weights are what their codes say, and which remembers what a bundle does."""
    quantizer = Quantizer.of(loaded.model, quantization, manifest.precision, manifest.islands)
    model = quantizer.with_calibration(manifest.calibration).model()
    return replace(loaded, model=round_states(model, manifest.int8_states))


def as_written(loaded: LoadedModel, manifest: Manifest) -> LoadedModel:
    """The model as the files of a bundle say it: what its graphs compute where a runtime rounds nothing by itself."""
    quantization = {
        part: replace(how, inputs="float") if how.inputs == "blocks" else how
        for part, how in manifest.quantization.items()
    }
    return _quantized(loaded, manifest, quantization)


def as_held(loaded: LoadedModel, manifest: Manifest) -> LoadedModel:
    """The model with the weights that a bundle has: what it is held against. What it costs that some of them are codes
    is another question."""
    return _quantized(loaded, manifest, manifest.quantization)
