"""Streaming against recompute: what a new frame costs with a temporal KV cache and without.

    python -m pvc_export.bench.recompute

One process, one run, interleaved: in every round each variant is timed once, in turn, so that a machine whose speed
drifts slows all of them alike. The figure of interest is the ratio, near T when streaming costs one frame.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median
from typing import Any

import torch

from pvc_ref.config import CompressorConfig, PVCConfig, VisionConfig
from pvc_ref.model import PVC, VisionState

SIZES = {
    "tiny": PVCConfig.preset("tiny"),
    "mid": replace(
        PVCConfig.preset("tiny"),
        vision=VisionConfig(
            image_size=448, hidden_size=384, num_layers=12, num_heads=6, mlp_size=1536, num_temporal_layers=6
        ),
        compressor=CompressorConfig(kind="pixel_shuffle", num_tokens=64),
    ),
}
"""mid: the published resolution, 1025 positions, at a width and depth that two cores recompute within seconds."""


@torch.no_grad()
def compare(model: PVC, num_frames: int, *, num_rounds: int) -> dict[str, Any]:
    """Median seconds for the newest of `num_frames` frames: whole clip recomputed, and one streaming step."""
    size = model.config.vision.image_size
    generator = torch.Generator().manual_seed(0)
    clip = torch.randint(0, 256, (1, num_frames, size, size, 3), dtype=torch.uint8, generator=generator)
    state: VisionState | None = None
    for t in range(num_frames - 1):
        _, state = model.encode_frame(clip[:, t], state)
    assert state is not None
    variants: dict[str, Callable[[], Any]] = {
        "recompute": lambda: model.encode_clip(clip)[:, -1],
        "streaming": lambda: model.encode_frame(clip[:, -1], state)[0],
    }
    difference = float((variants["recompute"]() - variants["streaming"]()).abs().max())  # also warms both up
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for round_index in range(num_rounds):
        for name in sorted(variants, reverse=bool(round_index % 2)):
            started = time.perf_counter()
            variants[name]()
            seconds[name].append(time.perf_counter() - started)
    _, state = model.encode_frame(clip[:, -1], state)
    middle = {name: median(values) for name, values in seconds.items()}
    return {
        "num_frames": num_frames,
        "recompute_ms": 1e3 * middle["recompute"],
        "streaming_ms": 1e3 * middle["streaming"],
        "ratio": median(r / s for r, s in zip(seconds["recompute"], seconds["streaming"], strict=True)),
        "state_bytes": state.num_bytes(),
        "max_difference": difference,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m pvc_export.bench.recompute", description="streaming against recompute"
    )
    parser.add_argument("--size", choices=sorted(SIZES), default="mid")
    parser.add_argument("--frames", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    model = PVC.random(SIZES[args.size], seed=0)
    rows = [compare(model, num_frames, num_rounds=args.rounds) for num_frames in args.frames]
    if args.json:
        print(json.dumps({"size": args.size, "rounds": args.rounds, "rows": rows}))
        return
    vision = model.config.vision
    print(
        f"{args.size}: {vision.num_positions} positions, width {vision.hidden_size}, {vision.num_layers} layers, "
        f"{vision.num_temporal_layers} temporal; float32, torch {torch.__version__}, {platform.machine()} CPU, "
        f"{torch.get_num_threads()} threads; median of {args.rounds} interleaved rounds"
    )
    titles = ("recompute ms", "streaming ms", "ratio", "ratio / T", "state MiB", "max diff")
    print(f"{'T':>4}" + "".join(f"{title:>14}" for title in titles))
    for row in rows:
        times = f"{row['recompute_ms']:>14.1f}{row['streaming_ms']:>14.1f}"
        ratios = f"{row['ratio']:>14.2f}{row['ratio'] / row['num_frames']:>14.2f}"
        print(f"{row['num_frames']:>4}{times}{ratios}{row['state_bytes'] / 2**20:>14.2f}{row['max_difference']:>14.1e}")


if __name__ == "__main__":
    main()
