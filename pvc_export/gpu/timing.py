"""Step 7: time of a frame on the vision side, of its rows in the LLM, and of a decoded token, also as a share of the
card's measured peaks (peaks.py).

The work of a step is a lower bound: each weight of its graphs read once, the caches in use read once, two operations
per weight and row. So a share is never overstated. A small model's steps consist mostly of kernel launches: its shares
are small on any card, and show the runtime's overhead rather than what a large model would reach.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from engines.bundle import open_graphs
from engines.language import LanguageModel
from engines.manifest import Manifest
from engines.preprocess import to_model_frame
from engines.session import Session
from engines.spec import ITEM_BYTES, GraphSpec, Precision, StreamLimits
from engines.target import load_target
from engines.vision import VisionEncoder
from pvc_ref import PVC

from ..bench.language_variants import append_rows
from ..bundles.export import ExportRequest
from ..graphs.models import load_model
from ..graphs.precision import TORCH_DTYPE, cast_model
from ..parity.clip import render_clip
from .hardware import Hardware
from .ladder import streaming_step
from .peaks import BANDWIDTH, gemm_name, synchronize
from .section import Found, Number, Section

NUM_FRAMES, NUM_INGESTED, NUM_TOKENS, NUM_WARM = 40, 8, 30, 10
STEPS = ("frame", "ingest", "decode")
TITLES = {"frame": "a frame, vision", "ingest": "a frame's rows, LLM", "decode": "a token, LLM and head"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """Minimum work of a step."""

    flop: float
    num_bytes: float


def work_of(model: PVC, specs: Mapping[str, GraphSpec], precision: Precision, *, past: int) -> dict[str, Work]:
    """Minimum work of the three steps; the LLM's with `past` rows in its cache."""
    config, item = model.config, ITEM_BYTES[str(TORCH_DTYPE[precision]).removeprefix("torch.")]
    weights = {
        part: sum(
            weight.numel()
            for name, weight in model.named_parameters(remove_duplicate=False)
            if name.startswith(f"{part}.")
        )
        for part in ("trunk", "temporal", "compressor", "llm.layers", "llm.lm_head")
    }
    ring = sum(prod(specs["temporal"].input(state.input).resolve({"batch": 1})) for state in specs["temporal"].states)
    rows_of_cache = sum(state.row_bytes for state in specs["llm"].states) * past
    positions, num_tokens = config.vision.num_positions, config.compressor.num_tokens
    seen = (weights["trunk"] + weights["temporal"]) * positions + weights["compressor"] * num_tokens
    vision = weights["trunk"] + weights["temporal"] + weights["compressor"] + ring
    llm, head = weights["llm.layers"], weights["llm.lm_head"]
    return {
        "frame": Work(flop=2.0 * seen, num_bytes=float(item * vision)),
        "ingest": Work(flop=2.0 * llm * num_tokens, num_bytes=float(item * llm + rows_of_cache)),
        "decode": Work(flop=2.0 * (llm + head), num_bytes=float(item * (llm + head) + rows_of_cache)),
    }


def time_bundle(hardware: Hardware, model: str, folder: Path, peaks: Section | None) -> Found:
    """Time a bundle on its runtime, as streams run it: copies to the host are included."""
    manifest = Manifest.load(folder)
    graphs = open_graphs(folder, runtime="target", cuda=hardware.cuda())
    seconds = {"frame": _frames_of(graphs.sessions, manifest)} | _language_of(graphs.sessions, manifest)
    loaded = load_model(model)
    work = work_of(loaded.model, manifest.graphs, manifest.precision, past=_past(loaded.model, manifest.limits))
    return report(seconds, work, manifest.precision, peaks, runs_on=graphs.runs_on)


def _frames_of(sessions: Mapping[str, Session], manifest: Manifest) -> list[float]:
    encoder = VisionEncoder(sessions, time_divisor=NUM_FRAMES if manifest.time_mode == "fixed" else 1)
    size = manifest.shape.image_size
    frames = [to_model_frame(frame, size=size) for frame in render_clip(NUM_FRAMES, width=size, height=size)]

    def step(frame: Any) -> None:
        encoder.commit(encoder.encode(frame))  # waits for the embeddings, and so for the whole frame

    return clocked(step, frames)


def _language_of(sessions: Mapping[str, Session], manifest: Manifest) -> dict[str, list[float]]:
    language, shape = LanguageModel(sessions), manifest.shape
    token = np.asarray(language.embed([1]))
    rows = np.repeat(token, shape.num_frame_tokens, axis=0)
    ingest = clocked(lambda _: language.append(rows), range(num_ingested(shape.num_frame_tokens, manifest.limits)))
    decode = clocked(lambda _: language.logits(language.append(token)), range(NUM_TOKENS))
    return {"ingest": ingest, "decode": decode}


@torch.no_grad()
def time_torch(hardware: Hardware, model: str, precision: Precision, peaks: Section | None) -> Found:
    """Time the PyTorch model on the card in eager mode: the baseline without this project."""
    loaded, device = load_model(model), hardware.torch_device
    request = ExportRequest(out=Path(), target=load_target("cuda"), precision=precision)
    specs, config = request.graph_specs(loaded.config), loaded.config
    cast: Any = cast_model(loaded.model, precision, ()).to(device)
    divisor = NUM_FRAMES if config.time_mode == "fixed" else None
    size = config.vision.image_size
    frames = [to_model_frame(frame, size=size) for frame in render_clip(NUM_FRAMES, width=size, height=size)]
    seconds = {"frame": clocked(streaming_step(cast, specs["temporal"], device, total_frames=divisor), frames)}
    with torch.device(device):
        token = cast.llm.embed_tokens(torch.ones(1, dtype=torch.int64))[None]
        rows = token.repeat(1, config.compressor.num_tokens, 1)
        past: Any = None

        def append(new: torch.Tensor) -> None:
            nonlocal past
            hidden, past = append_rows(cast.llm, new, past)
            if new is token:
                cast.llm.lm_head(hidden)
            synchronize(hardware)

        num_frames = num_ingested(config.compressor.num_tokens, request.limits)
        seconds["ingest"] = clocked(lambda _: append(rows), range(num_frames))
        seconds["decode"] = clocked(lambda _: append(token), range(NUM_TOKENS))
    work = work_of(loaded.model, specs, precision, past=_past(loaded.model, request.limits))
    return report(seconds, work, precision, peaks, runs_on=f"torch {torch.__version__} on {device}, eager")


def num_ingested(num_rows: int, limits: StreamLimits) -> int:
    """Number of frames of `num_rows` rows to ingest, so that they and the tokens fit in the context."""
    return max(min(NUM_INGESTED, (limits.context - NUM_TOKENS) // num_rows), 1)


def _past(model: PVC, limits: StreamLimits) -> int:
    """Rows before the first decoded token of a measurement."""
    num_rows = model.config.compressor.num_tokens
    return num_rows * num_ingested(num_rows, limits)


def clocked(step: Callable[[Any], object], inputs: Sequence[Any]) -> list[float]:
    """Wall seconds per call, except for the first ones, which load kernels and fill the window."""
    seconds = []
    for one in inputs:
        started = time.perf_counter()
        step(one)
        seconds.append(time.perf_counter() - started)
    return seconds[min(NUM_WARM, len(seconds) // 2) :]


def report(
    seconds: Mapping[str, Sequence[float]],
    work: Mapping[str, Work],
    precision: Precision,
    peaks: Section | None,
    *,
    runs_on: str,
) -> Found:
    """Medians, and their shares of the measured peaks."""
    found = {number.name: number.value for number in peaks.numbers} if peaks else {}
    bandwidth, gemm = found.get(BANDWIDTH), found.get(gemm_name(precision))
    numbers = []
    for step in STEPS:
        took, least = median(seconds[step]), work[step]
        numbers.append(Number(name=f"{TITLES[step]}: time", value=1e3 * took, unit="ms"))
        numbers.append(
            Number(
                name=f"{TITLES[step]}: read", value=least.num_bytes / took / 1e9, unit="GB/s",
                share=least.num_bytes / took / 1e9 / bandwidth if bandwidth else None, share_of=BANDWIDTH,
            )
        )  # fmt: skip
        numbers.append(
            Number(
                name=f"{TITLES[step]}: products", value=least.flop / took / 1e12, unit="TFLOP/s",
                share=least.flop / took / 1e12 / gemm if gemm else None, share_of=gemm_name(precision),
            )
        )  # fmt: skip
    facts = [("runs on", runs_on), ("computed in", precision)]
    if not (bandwidth and gemm):
        facts.append(("shares", "some peaks were not measured"))
    return Found(facts=tuple(facts), numbers=tuple(numbers))
