"""Quantised weights (int4, int8): each block of values along a matmul's input has one scale, and each value one code.

    value = (code - zero point) * scale

int4 codes are -8..7, or with zero points 0..15 (ONNX's int4 and uint4). int8 codes are -127..127, or -64..64 for a CPU
that is not known to have VNNI: x86 without it adds pairs of int8 products in 16 bits, and larger codes would saturate
silently (docs/decisions/0014). A block's grid depends only on its values, and errors are summed in float64, so that the
same weights give the same codes on every machine. A check computes them again and compares bit for bit
(parity/weights.py). A scale is rounded to its dtype in the graph before the codes are chosen.
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
"""Name prefixes of a part's linear layers in the model."""
SHRUNK = tuple(1 - step / 40 for step in range(13))
"""Scales that a search tries, 1 to 0.7, as fractions of the scale that covers the whole block."""
NOTHING = Calibration(method="error", clips=(), num_frames=0)
"""No calibration: no smoothing and no static scales."""
ROWS = 256
"""Rows of a matrix that are processed at a time, so that intermediate results stay small."""


def is_coded(name: str, weight: Tensor, spec: GraphSpec) -> bool:
    """Whether a graph stores a weight, given in its dtype there, in codes.

    In graphs with codes, every matrix belongs to a matmul. A matrix in another dtype than the graph's is an island, and
    a clock always is one.
    """
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
    """Quantisation grid of a matrix (O, I): scales (O, I / B) and optional zero points, int8 of the same shape.

    Codes are in the range `codes_from` to `codes_to`.
    """

    scales: Tensor
    zero_points: Tensor | None
    codes_from: int
    codes_to: int

    def codes(self, weight: Tensor) -> Tensor:
        """Return the nearest code of each value, int8 (O, I)."""
        blocks = weight.unflatten(-1, (self.scales.shape[-1], -1))
        nearest = (blocks.float() / self.scales[..., None].float()).round()
        codes = nearest if self.zero_points is None else nearest + self.zero_points[..., None]
        found: Tensor = codes.clamp(self.codes_from, self.codes_to).to(torch.int8).flatten(-2)
        return found

    def values(self, codes: Tensor) -> Tensor:
        """Dequantise codes as DequantizeLinear does: (O, I) in the dtype of the scales."""
        blocks = codes.unflatten(-1, (self.scales.shape[-1], -1)).float()
        if self.zero_points is not None:
            blocks = blocks - self.zero_points[..., None]
        values: Tensor = (blocks * self.scales[..., None].float()).flatten(-2)
        return values.to(self.scales.dtype)

    def nearest(self, weight: Tensor) -> Tensor:
        """Round a matrix to the grid."""
        return self.values(self.codes(weight))

    def better(self, other: Grid, is_better: Tensor) -> Grid:
        """Return this grid, with the other's blocks where `is_better`, bool (O, I / B)."""
        zero_points = None
        if self.zero_points is not None:
            assert other.zero_points is not None
            zero_points = torch.where(is_better, other.zero_points, self.zero_points)
        return replace(self, scales=torch.where(is_better, other.scales, self.scales), zero_points=zero_points)


def grid_of(weight: Tensor, how: Quantization, dtype: torch.dtype) -> Grid:
    """Compute the grid of a matrix (O, I), with I a multiple of the block, and with scales in `dtype`."""
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
    """Squared error of each block, float64 (O, I / B)."""
    off: Tensor = grid.nearest(rows).float() - rows
    blocks: Tensor = off.unflatten(-1, (grid.scales.shape[-1], -1))
    return blocks.double().square().sum(-1)


def _candidates(blocks: Tensor, how: Quantization, dtype: torch.dtype) -> Iterator[Grid]:
    """Yield grids of blocks (O, I / B, B): the plain grid first, and the others only for a search."""
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
            # int4 has one more negative than positive code. TensorRT does not accept a negative scale to reverse that.
            below = -codes_from if searching else codes_to
            reach = torch.maximum(-low / below, high / codes_to)
            yield Grid(scales=_rounded(reach * part, dtype), zero_points=None, codes_from=codes_from, codes_to=codes_to)


def _rounded(scales: Tensor, dtype: torch.dtype) -> Tensor:
    """Round scales to the graph's dtype, as positive normal numbers even for a block of zeros."""
    return scales.clamp_min(torch.finfo(dtype).tiny).to(dtype)


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantizer:
    """The weights of a model that a bundle stores in codes.

    source       the model, unchanged or smoothed
    how          weight name -> its quantisation
    dtype        dtype of the graphs
    is_smoothed  whether the model is to be smoothed (smoothing.py)
    scales       static input scales by weight name (calibration.py)
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
        """Create a quantizer without calibration; weights of islands keep their dtype.

        Raises ModelError for an island that cannot be one.
        """
        wide, how = kept_wide(model, islands), dict[str, Quantization]()
        bare = hollow(model, keep_clock=False) if quantization else model
        for part, one in quantization.items():
            for name, module in model.named_modules():
                if isinstance(module, nn.Linear) and name.startswith(PREFIXES[part]):
                    is_matrix = bare.get_submodule(name).weight.is_meta  # otherwise too small to matter
                    if is_matrix and id(module.weight) not in wide and one.fits(module.in_features):
                        how[f"{name}.weight"] = one
        return Quantizer(source=model, how=how, dtype=TORCH_DTYPE[precision], is_smoothed=is_smoothed(quantization))

    @property
    def calibrated(self) -> list[str]:
        """Names of the weights whose matmuls need a static input scale."""
        return [name for name, how in self.how.items() if how.inputs == "static"]

    def with_calibration(self, calibration: Calibration | None) -> Quantizer:
        """Add the calibration's scales and smooth the model by it.

        Raises ModelError unless there is exactly one scale for each matmul that needs one.
        """
        if calibration is None:
            calibration = NOTHING
        scales = calibration.scales
        if wrong := set(self.calibrated) ^ set(scales):
            raise ModelError(
                f"the calibration has {len(scales)} scales, but {len(self.calibrated)} matmuls need one",
                expected=f"one scale for each of them and no other; the first mismatch is '{min(wrong)}'",
                cause="the manifest was edited, or written by another version of pvc-export",
                fix="export the bundle again",
            )
        return replace(self, source=smoothed(self.source, calibration.smoothing), scales=scales)

    def dtype_of_scales(self, how: Quantization) -> torch.dtype:
        """Return the dtype of scales. Scales of integer matmuls are float32 in every graph."""
        return torch.float32 if how.is_integer else self.dtype

    def grid(self, name: str, weight: Tensor) -> Grid:
        """Compute the grid of a weight that becomes codes."""
        return grid_of(weight, self.how[name], self.dtype_of_scales(self.how[name]))

    def stored(self, name: str) -> Tensor:
        """Read any weight of the model, in floating point."""
        return self.source.weight(self.source.first_name(name))

    def read(self, name: str) -> Tensor:
        """Read a weight with the values it has in the graphs, in float32."""
        weight = self.stored(name)
        if name not in self.how:
            return weight
        return self.grid(name, weight).nearest(weight).float()

    def model(self) -> PVC:
        """Return the fake-quantised reference: the codes' values as weights, inputs rounded as in the bundle."""
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
    """Return a copy, with weights in floating point, whose graphs can store codes.

    It is smoothed, rounds matmul inputs by the static scales, and rounds the rows of states in codes. A head that
    becomes codes is untied from the embedding table, which does not.
    """
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
    """Return the fake-quantised model of a bundle, with rounded states as in the bundle."""
    quantizer = Quantizer.of(loaded.model, quantization, manifest.precision, manifest.islands)
    model = quantizer.with_calibration(manifest.calibration).model()
    return replace(loaded, model=round_states(model, manifest.int8_states))


def as_written(loaded: LoadedModel, manifest: Manifest) -> LoadedModel:
    """Return the model as a bundle's files define it, for a runtime that rounds no matmul inputs by itself."""
    quantization = {
        part: replace(how, inputs="float") if how.inputs == "blocks" else how
        for part, how in manifest.quantization.items()
    }
    return _quantized(loaded, manifest, quantization)


def as_held(loaded: LoadedModel, manifest: Manifest) -> LoadedModel:
    """Return the model with a bundle's weights, which the bundle is compared with. The cost of quantisation is not part
    of that comparison."""
    return _quantized(loaded, manifest, manifest.quantization)
