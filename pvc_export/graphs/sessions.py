"""Graphs of a reference, exported and opened for a check or a benchmark, and how much of this machine that may take."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch
from torch import nn

from engines.graph_specs import graph_specs
from engines.session import OrtSession, Session
from engines.spec import StreamLimits
from engines.target import Target
from pvc_ref import PVC

from .modules import graph_module, model_shape
from .onnx_file import export_graph

LARGEST_FP64 = 20_000_000
"""Parameters of a small model. Beyond, float64 would take minutes and twice the reference's memory."""


def open_graphs(
    model: PVC, names: Sequence[str], target: Target, limits: StreamLimits, folder: Path, *, threads: int | None = None
) -> dict[str, Session]:
    """Some graphs of a float32 model, spelled for `target`, opened on the CPU.

    They are written into `folder`, which holds graphs of nothing else: one that is there already is only opened.
    """
    shape = model_shape(model.config)
    specs = graph_specs(shape, limits, "fp32", target.spelling, cache_update=target.cache_update)
    sessions: dict[str, Session] = {}
    for name in names:
        path = folder / f"{name}.onnx"
        if not path.exists():
            export_graph(graph_module(model, specs[name], target.spelling), specs[name], path)
        sessions[name] = OrtSession(path, specs[name], threads=threads)
    return sessions


def is_small(model: nn.Module) -> bool:
    return sum(parameter.numel() for parameter in model.parameters()) <= LARGEST_FP64


def fitting_threads(model: nn.Module) -> AbstractContextManager[None]:
    """One torch thread for a small model: its operations gain nothing from a second, and on a busy machine each waits
    for it (0.4 s a frame of `tiny` in place of 0.02)."""
    return torch_threads(1) if is_small(model) else nullcontext()


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """So many threads for torch, until the end of the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
