"""Record a released model's results for `pvc-export compare`: fixed inputs, and the output of every layer.

    python record_original.py FOLDER RECORDING.npz [--dtype bfloat16] [--device cuda]

This file is standalone. Copy it to where the released model's code runs; it needs torch, numpy, and the version of
transformers for which that code was written. It RUNS THE CODE IN FOLDER (trust_remote_code).
Values are stored under the names of the modules that returned them, at most NUM_ROWS evenly spaced rows each, so that a
recording of 8 B parameters is about 80 MB and can be sent.
Dimension key:  T frames   S frame size   N rows: patches and the class token, or tokens   C width   L tokens of a text
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
from typing import Any

import numpy as np
import torch

VERSION = 1
NUM_ROWS = 64
NUM_FRAMES, NUM_TOKENS = 3, 8
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
VISION = re.compile(r"vision_model\.(embeddings|encoder\.layers\.\d+)")
LANGUAGE = re.compile(r"language_model\.model\.(layers\.\d+|norm)")
FEATURES, LOGITS = "extract_feature", "language_model.logits"


def draw_inputs(image_size: int, vocab_size: int) -> dict[str, Any]:
    """Draw frames (T, S, S, 3) uint8 RGB, coarse squares with noise; and ids (L,) int64 of text before and after."""
    rng = np.random.default_rng(0)
    square = np.arange(image_size) * 8 // image_size
    coarse = rng.integers(0, 192, (NUM_FRAMES, 8, 8, 3))[:, square][:, :, square]
    frames = (coarse + rng.integers(0, 64, coarse.shape)).astype(np.uint8)
    before, after = rng.integers(0, min(vocab_size, 1000), (2, NUM_TOKENS))
    return {"frames": frames, "before": before, "after": after}


def evenly_spaced(values: torch.Tensor) -> torch.Tensor:
    """(..., N, C) -> at most NUM_ROWS of the N rows, including the first and the last."""
    num_rows = values.shape[-2]
    index = np.linspace(0, num_rows - 1, min(num_rows, NUM_ROWS)).round().astype(np.int64)
    return values[..., torch.from_numpy(index).to(values.device), :]


@torch.no_grad()
def record(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """Map module names to their float32 outputs: (T, rows, C) on the vision side, (1, rows, C) in the LLM."""
    seen: dict[str, Any] = {}

    def keep(name: str, value: torch.Tensor, num_groups: int) -> None:
        rows = evenly_spaced(value.reshape(num_groups, -1, value.shape[-1]))
        seen[name] = rows.float().cpu().numpy()

    def watch(name: str, module: Any, num_groups: int) -> Any:
        def hook(_: Any, __: Any, output: Any) -> None:
            keep(name, output if isinstance(output, torch.Tensor) else output[0], num_groups)

        return module.register_forward_hook(hook)

    frames = torch.from_numpy(inputs["frames"])
    modules = list(model.named_modules())
    handles = [watch(name, module, len(frames)) for name, module in modules if VISION.fullmatch(name)]
    handles += [watch(name, module, 1) for name, module in modules if LANGUAGE.fullmatch(name)]
    weight = next(model.parameters())
    pixels = ((frames.float() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)).permute(0, 3, 1, 2).to(weight)
    # PVC's code takes the kind of its frames as an argument; 3 is a video. Change this if your version differs.
    video = {"data_flag": torch.tensor([3]), "split_sizes": torch.tensor([len(frames)])}
    asked = inspect.signature(model.extract_feature).parameters
    features = model.extract_feature(pixels, **{name: video[name].to(weight.device) for name in video if name in asked})
    keep(FEATURES, features, len(frames))
    embed = model.language_model.get_input_embeddings()
    before, after = (embed(torch.from_numpy(inputs[name]).to(weight.device)) for name in ("before", "after"))
    prompt = torch.cat([before, features.reshape(-1, features.shape[-1]).to(before), after])[None]
    keep(LOGITS, model.language_model(inputs_embeds=prompt, use_cache=False).logits, 1)
    for handle in handles:
        handle.remove()
    return seen


def save(path: str, model: Any, inputs: dict[str, Any], values: dict[str, Any], **facts: Any) -> None:
    """Write inputs, values, and facts about the run (as JSON) to one file."""
    facts |= {"version": VERSION, "dtype": str(next(model.parameters()).dtype).removeprefix("torch.")}
    facts |= {"model": type(model).__name__, "torch": torch.__version__}
    np.savez_compressed(path, facts=np.array(json.dumps(facts)), **inputs, **values)


def main() -> None:
    import transformers

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("recording")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False  # TF32 is less precise than float32
    model: Any = transformers.AutoModel.from_pretrained(
        args.folder, torch_dtype=DTYPES[args.dtype], trust_remote_code=True
    )
    model = model.to(args.device).eval()
    inputs = draw_inputs(model.config.vision_config.image_size, model.config.llm_config.vocab_size)
    values = record(model, inputs)
    save(args.recording, model, inputs, values, transformers=transformers.__version__)
    print(f"{args.recording}: {len(values)} values of {type(model).__name__} in {args.dtype}")


if __name__ == "__main__":
    main()
