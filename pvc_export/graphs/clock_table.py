"""The clock as a table with one row of TE per frame time, instead of the MLP that computes it.

A stream that re-anchors never exceeds its model's trained times, and frame times are integers, so the table is exact:
each row is what the MLP computes for that time alone, bit for bit. At 8B this saves 1.09 GB of float32 in the ViT and
the compressor. The graph's parameters are those of the reference, except for time_embedding.table.
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
    """Table of TimeEmbedding for the times 0 .. num_times - 1."""

    def __init__(self, embedding: TimeEmbedding, num_times: int) -> None:
        super().__init__()
        self.table = nn.Parameter(table_of(embedding, num_times), requires_grad=False)

    def forward(self, times: Tensor) -> Tensor:
        """Times (...), integers below num_times -> (..., size)."""
        return F.embedding(times.to(torch.int64), self.table)


@torch.no_grad()
def table_of(embedding: TimeEmbedding, num_times: int) -> Tensor:
    """Compute the table (num_times, size), without values if the weights have none.

    Times are computed one by one, as in a stream: a matmul of many rows may round differently.
    """
    if embedding.w2.weight.is_meta:
        return embedding.w2.weight.new_empty(num_times, embedding.w2.out_features)
    return torch.cat([embedding(torch.tensor([float(time)])) for time in range(num_times)])


def with_table(module: ModuleT, num_times: int | None) -> ModuleT:
    """Return a copy with tables as time embeddings, which shares all other weights; for None, the module itself."""
    if num_times is None:
        return module
    copy = copy_with(module, lambda weight: weight)
    for part in list(copy.modules()):
        for name, child in list(part.named_children()):
            if isinstance(child, TimeEmbedding):
                setattr(part, name, TimeTable(child, num_times))
    return copy


def with_num_times(limits: StreamLimits, config: PVCConfig) -> StreamLimits:
    """Return these limits for graphs whose clock is a table."""
    return replace(limits, num_times=num_frame_times(config, window=limits.window))


def num_frame_times(config: PVCConfig, *, window: int) -> int:
    """Number of table rows: enough for the trained times, an image's repeats and tiles, and a check's ten windows."""
    tiles = config.max_image_tiles + config.use_thumbnail if config.image_layout == "tiles_in_time" else 1
    return max(config.trained_frames, config.num_image_repeats * tiles, 10 * window)
