"""Time and peak memory to export and check a full-size model with random weights.

    python -m pvc_export.studies.full_size PRESET [--command onnx] [--folder FOLDER] [--keep] [OPTIONS]

OPTIONS are those of the command, `onnx` or `trt`: --fp16 --int8 vision --int4 llm.

It writes a checkpoint folder as on a hub: config.json, bfloat16 shards with an index, and a tokenizer. The weights are
drawn while they are written, so that at most one shard is in memory. Everything is removed at the end. Memory is the
high-water mark of the process's resident set in each stage, including pages of mapped files.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import pvc_ref
from pvc_ref import PVC, PVCConfig
from pvc_ref.init import draw
from pvc_ref.prompt import byte_tokenizer

from ..bundles.publish import require_room
from ..terminal.console import size_text

SEED = 0
BUNDLE = 1.15
"""Size of a 16-bit bundle relative to its checkpoint, with float32 islands and a reserve."""


def write_checkpoint(config: PVCConfig, folder: Path) -> None:
    """Draw and write a checkpoint of `config` in bfloat16, tensor by tensor."""
    model, generator = PVC.empty(config), torch.Generator().manual_seed(SEED)
    model.random_seed = SEED
    model.stored = lambda name: draw(name, model.get_parameter(name).shape, generator, llm_layers=config.llm.num_layers)
    pvc_ref.save(model, folder, dtype=torch.bfloat16, tokenizer=byte_tokenizer())


def run(*arguments: str) -> dict[str, Any]:
    """Run a command with --json in a separate process. Returns its output and its seconds."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "pvc_export.cli", *arguments, "--json"]
    found = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if found.returncode:
        raise SystemExit(f"{' '.join(command)}: exit {found.returncode}")
    data: dict[str, Any] = json.loads(found.stdout)
    return data | {"seconds": time.perf_counter() - started}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m pvc_export.studies.full_size", description=__doc__.splitlines()[0])
    parser.add_argument("preset")
    parser.add_argument("--command", default="onnx", choices=("onnx", "trt"))
    parser.add_argument(
        "--folder", type=Path, help="folder for the model and the bundle while it runs (default: a temporary one)"
    )
    parser.add_argument("--keep", action="store_true", help="do not remove the model and the bundle")
    args, options = parser.parse_known_args()
    config = PVCConfig.preset(args.preset)
    num_bytes = 2 * sum(weight.numel() for weight in PVC.empty(config).parameters())
    parent = args.folder or Path(tempfile.mkdtemp(prefix="pvc-full-size-"))
    model, bundle = parent / "model", parent / "bundle"
    require_room(model, int(num_bytes * (1 + BUNDLE)))
    try:
        if not model.exists():
            write_checkpoint(config, model)
        print(f"{args.preset}: {size_text(num_bytes)} in bfloat16", flush=True)
        made = run(args.command, "-m", str(model), "-o", str(bundle), *(options or ["--fp16"]))
        for stage in made["stages"]:
            peak = size_text(stage["peak_bytes"]) if stage["peak_bytes"] else ""
            print(f"  {stage['name']:<30}{stage['seconds']:>8.1f} s  {peak:>10}  {stage['note']}", flush=True)
        print(f"  total {made['seconds']:.0f} s; {made['parity']['not_executed']}")
    finally:
        if not args.keep:
            shutil.rmtree(model, ignore_errors=True)
            shutil.rmtree(bundle, ignore_errors=True)


if __name__ == "__main__":
    main()
