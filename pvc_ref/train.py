"""`python -m pvc_ref.train`: train a small PVC on the shapes world.

A small version of the paper's recipe: two stages (captions with images and videos 1:1, then instructions 3:1), all
parameters trained in both, images as static videos of 1, 2 or 4 repeats, videos of 4 to 16 frames. To resume a killed
run, repeat the command. OUT/model is a checkpoint folder in the Hugging Face layout; OUT/log.jsonl is the log.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import get_args

from .config import CompressorKind
from .training.loop import Recipe, train


def main() -> None:
    default = Recipe()
    parser = argparse.ArgumentParser(prog="python -m pvc_ref.train", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("build/training"), help="folder of the run")
    parser.add_argument("--steps", type=int, default=default.num_steps)
    parser.add_argument("--seed", type=int, default=default.seed, help="seed of the weights and the data")
    parser.add_argument(
        "--workers", type=int, default=default.num_workers, help="training processes; they change the result"
    )
    parser.add_argument("--scale", type=int, default=default.scale, help="factor on the clips per worker and step")
    parser.add_argument("--compressor", choices=get_args(CompressorKind), default=default.compressor)
    parser.add_argument("--tokens", type=int, default=None, help="tokens per frame (default: the preset's)")
    parser.add_argument("--no-temporal", action="store_true", help="train without temporal attention")
    parser.add_argument("--no-token-labels", action="store_true", help="label patches only, not frame tokens")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--loaders", type=int, default=0, help="processes per worker that draw clips")
    args = parser.parse_args()
    recipe = Recipe(
        num_steps=args.steps, seed=args.seed, num_workers=args.workers, scale=args.scale, compressor=args.compressor,
        temporal=not args.no_temporal, num_tokens=args.tokens, token_labels=not args.no_token_labels,
    )  # fmt: skip
    print(f"checkpoint in {train(recipe, args.out, device=args.device, num_loaders=args.loaders)}")


if __name__ == "__main__":
    main()
