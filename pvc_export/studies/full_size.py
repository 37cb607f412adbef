"""What it takes to export and check a model of full size: time and peak memory, with random weights.

    python -m pvc_export.studies.full_size PRESET [--precision fp16] [--folder FOLDER] [--keep]

The folder that is written is a checkpoint as a hub has it: config.json, bfloat16 shards with an index, a tokenizer. Its
weights are drawn tensor by tensor, so that it needs no more memory than its largest one. Everything is removed at the
end. Memory is the resident set's high-water mark of the process in each stage, pages of mapped files included.
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
from safetensors.torch import save_file

from pvc_ref import PVC, PVCConfig
from pvc_ref.checkpoint.config_json import config_to_json
from pvc_ref.checkpoint.config_keys import CONFIG_FILE
from pvc_ref.checkpoint.files import INDEX_FILE, TOKENIZER_FILE
from pvc_ref.checkpoint.folder import plan_shards
from pvc_ref.checkpoint.tensor_names import checkpoint_tensors, pack_qkv
from pvc_ref.init import draw
from pvc_ref.prompt import byte_tokenizer

from ..bundles.publish import require_room
from ..terminal.console import size_text

SHARD_BYTES = 5_000_000_000
BUNDLE = 1.15
"""A half-precision bundle, in bytes of its checkpoint: its float32 islands, and room to spare."""


def write_checkpoint(config: PVCConfig, folder: Path) -> int:
    """Draw a checkpoint of `config` in bfloat16, shard by shard. Returns its bytes."""
    with torch.device("meta"):
        model = PVC(config)
    shapes = {name: weight.shape for name, weight in model.named_parameters()}
    tensors = {tensor.name: tensor for tensor in checkpoint_tensors(model)}
    sizes = {name: 2 * torch.Size(tensor.shape).numel() for name, tensor in tensors.items()}
    folder.mkdir()
    facts = config_to_json(config)
    facts["pvc"]["random_seed"] = 0
    (folder / CONFIG_FILE).write_text(json.dumps(facts, indent=2), encoding="utf-8")
    (folder / TOKENIZER_FILE).write_text(byte_tokenizer().to_str(), encoding="utf-8")
    plan = plan_shards(sizes, max_shard_bytes=SHARD_BYTES)
    weight_map, generator = dict[str, str](), torch.Generator().manual_seed(0)
    for index, names in enumerate(plan, start=1):
        file = f"model-{index:05}-of-{len(plan):05}.safetensors"
        shard = {}
        for name in names:
            parts = [
                draw(one, shapes[one], generator, llm_layers=config.llm.num_layers).bfloat16()
                for one in tensors[name].parameters
            ]
            shard[name] = parts[0] if len(parts) == 1 else pack_qkv(*parts, head_dim=config.llm.attention_head_dim)
        save_file(shard, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    total = sum(sizes.values())
    index_text = json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map})
    (folder / INDEX_FILE).write_text(index_text, encoding="utf-8")
    return total


def run(*arguments: str) -> dict[str, Any]:
    """A command with --json, in a process of its own: what it printed, and its seconds."""
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
    parser.add_argument("--precision", default="fp16", choices=("fp16", "bf16"))
    parser.add_argument("--target", default="cpu")
    parser.add_argument("--folder", type=Path, help="where the model and the bundle are written for a while")
    parser.add_argument("--keep", action="store_true", help="do not remove them")
    args = parser.parse_args()
    config = PVCConfig.preset(args.preset)
    with torch.device("meta"):
        num_bytes = 2 * sum(weight.numel() for weight in PVC(config).parameters())
    parent = args.folder or Path(tempfile.mkdtemp(prefix="pvc-full-size-"))
    model, bundle = parent / "model", parent / "bundle"
    require_room(model, int(num_bytes * (1 + BUNDLE)))
    try:
        if not model.exists():
            write_checkpoint(config, model)
        print(f"{args.preset}: {size_text(num_bytes)} of bfloat16", flush=True)
        made = run("onnx", f"--{args.precision}", "--target", args.target, "-m", str(model), "-o", str(bundle))
        for stage in made["stages"]:
            peak = size_text(stage["peak_bytes"]) if stage["peak_bytes"] else ""
            print(f"  {stage['name']:<30}{stage['seconds']:>8.1f} s  {peak:>10}  {stage['note']}", flush=True)
        print(f"  in all {made['seconds']:.0f} s; {made['parity']['not_executed']}")
    finally:
        if not args.keep:
            shutil.rmtree(model, ignore_errors=True)
            shutil.rmtree(bundle, ignore_errors=True)


if __name__ == "__main__":
    main()
