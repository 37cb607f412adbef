"""Heat maps: the error of every token, arranged as the tokens are in the frame.

Not every token order is row by row. A compressor with shuffle 'v1' lists its tokens column by column, and the queries
of a Q-Former have no place in the frame, so they have no map.
Dimension key:  N tokens   C width   S pixels a side
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf, isqrt
from typing import Any

import numpy as np

from engines.errors import SpecError
from engines.memory import Array
from engines.metrics import TINY
from pvc_ref import PVCConfig

from .metrics import Difference
from .places import Place, Rung

WORST_FRAMES = 2


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class HeatMap:
    """The error of every token of one tensor in one run.

    at           the comparison that it shows
    errors       (rows, columns): |a_i - b_i| over the root mean square of |b_i|, as in Difference.worst_token
    frame        (S, S, 3) uint8 RGB, the graphs' input
    class_token  the error of the class token, which has no place in the frame; None if there is none
    """

    at: Difference
    errors: Array
    frame: Array
    class_token: float | None

    @property
    def limit(self) -> float:
        """The largest error allowed for a token."""
        return self.at.limits["worst_token"]

    @property
    def peak(self) -> tuple[int, int]:
        """Row and column of the worst token; NaN and infinity are the worst."""
        row, column = np.unravel_index(np.argmax(_nan_as_inf(self.errors)), self.errors.shape)
        return int(row), int(column)

    @property
    def worst(self) -> float:
        """The largest error of the grid, infinite for NaN."""
        return float(_nan_as_inf(self.errors).max())


def heat_map(
    got: Array,
    want: Array,
    *,
    at: Difference,
    frame: Array,
    has_class_token: bool,
    grid: tuple[int, int] | None = None,
    by_columns: bool = False,
) -> HeatMap:
    """The map of one tensor (1, N, C) of one run, named by `at`.

    grid        rows and columns of the tokens after the class token; a square by default
    by_columns  whether the tokens are listed column by column
    Raises SpecError if the shapes differ or the tokens do not fill the grid.
    """
    if got.shape != want.shape or got.ndim != 3 or len(got) != 1:
        raise SpecError(f"'{at.name}' has shapes {got.shape} and {want.shape}", expected="(1, N, C) for both")
    a, b = got[0].astype(np.float64), want[0].astype(np.float64)
    size = float(np.sqrt(np.mean(np.sum(b * b, axis=-1))))
    errors = np.linalg.norm(a - b, axis=-1) / max(size, TINY)
    class_token = float(errors[0]) if has_class_token else None
    errors = errors[1:] if has_class_token else errors
    rows, columns = grid or (isqrt(len(errors)), isqrt(len(errors)))
    if rows * columns != len(errors):
        raise SpecError(
            f"{len(errors)} tokens of '{at.name}' do not fill a grid of {rows} x {columns}",
            expected="a square number of tokens, or the grid they are arranged in",
        )
    return HeatMap(
        at=at,
        errors=errors.reshape(columns, rows).T if by_columns else errors.reshape(rows, columns),
        frame=frame,
        class_token=class_token,
    )


def worst_heat_maps(
    rung: Rung,
    got: Sequence[Mapping[str, Array]],
    want: Sequence[Mapping[str, Array]],
    *,
    pixels: Sequence[Array],
    times: Sequence[int],
    config: PVCConfig,
    num_frames: int = WORST_FRAMES,
) -> tuple[HeatMap, ...]:
    """Maps of the vision outputs, each for the frames with its worst tokens, in the order of the graphs.

    got, want  recordings (recording.py): per frame, each output as 'graph/tensor'. An output whose shape differs from
               the reference's has no map
    """
    every = zip(got, want, pixels, times, strict=True)
    maps = (one for frame in every for one in heat_maps(rung, *frame, config=config))
    return worst_of(maps, num_frames=num_frames)


def heat_maps(
    rung: Rung, got: Mapping[str, Array], want: Mapping[str, Array], pixels: Array, time: int, *, config: PVCConfig
) -> Iterator[HeatMap]:
    """The maps of one frame, for every output in `want`."""
    for graph, tensor, layout in _layouts(config):
        name = f"{graph}/{tensor}"
        if name in want and got[name].shape == want[name].shape:
            at = Difference(rung=rung, graph=graph, tensor=tensor, where=Place("frame", time))
            is_trunk = tensor == "trunk_features"
            yield heat_map(got[name], want[name], at=at, frame=pixels, has_class_token=is_trunk, **layout)


def worst_of(maps: Iterable[HeatMap], *, num_frames: int = WORST_FRAMES) -> tuple[HeatMap, ...]:
    """For each output the maps of its worst frames, in the order of the graphs and frames."""
    of_output: dict[str, list[HeatMap]] = {}
    for one in maps:
        of_output.setdefault(one.at.name, []).append(one)
    found: list[HeatMap] = []
    for of_frames in of_output.values():
        worst = sorted(range(len(of_frames)), key=lambda index: of_frames[index].worst, reverse=True)[:num_frames]
        found += [of_frames[index] for index in sorted(worst)]
    return tuple(found)


def _layouts(config: PVCConfig) -> Iterator[tuple[str, str, dict[str, Any]]]:
    yield "trunk", "trunk_features", {}
    yield "temporal", "features", {}
    if config.compressor.kind != "q_former":
        by_columns = config.compressor.shuffle == "v1" and config.compressor.kind in ("pvc", "pixel_shuffle")
        yield "compressor", "frame_embeds", {"grid": config.compressor.token_grid, "by_columns": by_columns}


def _nan_as_inf(errors: Array) -> Array:
    return np.where(np.isnan(errors), inf, errors)
