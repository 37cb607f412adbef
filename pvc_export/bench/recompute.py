"""Streaming against recompute: the cost of a new frame with a temporal KV cache and without.

    python -m pvc_export.bench.recompute

Both are timed in the same interleaved rounds. The result is their ratio, near T if streaming costs one frame.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from engines.terminal import print_json

from .rounds import Spread, interleave, ratio
from .vision_variants import SIZES, Scene


@torch.no_grad()
def compare(scene: Scene, *, num_rounds: int) -> dict[str, Any]:
    """Median milliseconds for the newest frame of a clip: recomputing the whole clip, and one streaming step."""
    variants: dict[str, Callable[[], Tensor]] = {
        "recompute": lambda: scene.model.encode_clip(scene.clip)[:, -1],
        "streaming": lambda: scene.model.encode_frame(scene.frame, scene.state)[0],
    }
    difference = float((variants["recompute"]() - variants["streaming"]()).abs().max())  # also warms both up
    seconds = interleave(variants, rounds=num_rounds, threads=torch.get_num_threads())
    _, state = scene.model.encode_frame(scene.frame, scene.state)
    return {
        "num_frames": scene.window,
        "recompute_ms": Spread.of(seconds["recompute"]).median_ms,
        "streaming_ms": Spread.of(seconds["streaming"]).median_ms,
        "ratio": ratio(seconds["recompute"], seconds["streaming"]),
        "state_bytes": state.num_bytes(),
        "max_difference": difference,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m pvc_export.bench.recompute", description="streaming against recompute"
    )
    parser.add_argument("--size", choices=list(SIZES), default="mid")
    parser.add_argument("--frames", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    config = SIZES[args.size]
    scenes = (Scene.render(config, window=num_frames) for num_frames in args.frames)
    rows = [compare(scene, num_rounds=args.rounds) for scene in scenes]
    if args.json:
        print_json({"size": args.size, "rounds": args.rounds, "rows": rows})
        return
    vision = config.vision
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
