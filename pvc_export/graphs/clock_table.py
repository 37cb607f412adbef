"""The clock as a table: TE of every frame time that a stream can have, a row each, in place of the MLP that makes it.

A stream that re-anchors knows no time beyond those that its model was trained on, and frame times are whole numbers, so
the table is exact: each row is what the MLP computes for that time alone, bit for bit. At 8B it is 1.09 GB of float32
less, in the ViT and in the compressor. Graph parameters are those of the reference but for time_embedding.table.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engines.spec import StreamLimits
from pvc_ref import PVCConfig
from pvc_ref.temporal import TimeEmbedding

from .precision import ModuleT, copy_with

NAME = "time_embedding"


class TimeTable(nn.Module):
    """TimeEmbedding of the times 0 .. num_times - 1."""

    def __init__(self, embedding: TimeEmbedding, num_times: int) -> None:
        super().__init__()
        self.table = nn.Parameter(table_of(embedding, num_times), requires_grad=False)

    def forward(self, times: Tensor) -> Tensor:
        """Times (...), whole numbers below num_times, -> (..., size)."""
        return F.embedding(times.to(torch.int64), self.table)


@torch.no_grad()
def table_of(embedding: TimeEmbedding, num_times: int) -> Tensor:
    """(num_times, size). One time after the other, as a stream computes them: a product of many rows may round
    otherwise. Without values where the weights have none."""
    if embedding.w2.weight.is_meta:
        return embedding.w2.weight.new_empty(num_times, embedding.w2.out_features)
    return torch.cat([embedding(torch.tensor([float(time)])) for time in range(num_times)])


def with_table(module: ModuleT, num_times: int | None) -> ModuleT:
    """A copy whose time embeddings are tables, sharing all other weights; the module itself where num_times is None."""
    if num_times is None:
        return module
    copy = copy_with(module, lambda weight: weight)
    for part in list(copy.modules()):
        for name, child in list(part.named_children()):
            if isinstance(child, TimeEmbedding):
                setattr(part, name, TimeTable(child, num_times))
    return copy


def with_num_times(limits: StreamLimits, config: PVCConfig) -> StreamLimits:
    """These limits, of graphs whose clock is a table."""
    return replace(limits, num_times=num_frame_times(config, window=limits.window))


def num_frame_times(config: PVCConfig, *, window: int) -> int:
    """Rows of a table: the trained times, those of an image's repeats and tiles, and those of the ten windows that a
    check streams."""
    tiles = config.max_image_tiles + config.use_thumbnail if config.image_layout == "tiles_in_time" else 1
    return max(config.trained_frames, config.num_image_repeats * tiles, 10 * window)
