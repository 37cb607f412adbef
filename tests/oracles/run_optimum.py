"""Oracle: optimum's ONNX export of transformers' Qwen2. Runs in its own environment, from the project's root.

python -m tests.oracles.run_optimum FOLDER   reads the case in FOLDER, writes FOLDER/optimum.npz

Why: traced by the older exporter, from a version of transformers that the project's own environment no longer has.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from optimum.onnxruntime import ORTModelForCausalLM

from .exchange import MODEL, NUM_GREEDY, Answer, Answers, installed, load_prompts

PACKAGES = ("optimum-onnx", "optimum", "onnxruntime", "transformers", "torch")


def build(folder: Path) -> Path:
    """Convert the Hugging Face folder to optimum's ONNX graph with a cache."""
    out = folder / "optimum"
    command = [str(Path(sys.executable).with_name("optimum-cli")), "export", "onnx", "--model", str(folder / MODEL)]
    subprocess.run([*command, "--task", "text-generation-with-past", str(out)], check=True)
    return out


def ask(model: ORTModelForCausalLM, ids: np.ndarray) -> Answer:
    """Return the logits of the whole prompt from one pass, and the tokens of transformers' greedy search."""
    prompt = torch.from_numpy(ids)[None]
    mask = torch.ones_like(prompt)
    logits = model(input_ids=prompt, attention_mask=mask).logits[0].numpy()
    tokens = model.generate(input_ids=prompt, attention_mask=mask, do_sample=False, max_new_tokens=NUM_GREEDY)
    greedy = tokens[0, len(ids) :].numpy()
    return Answer(positions=np.arange(len(ids)), logits=logits, greedy=greedy)


def main(folder: Path) -> None:
    model = ORTModelForCausalLM.from_pretrained(build(folder))
    answers = {name: ask(model, ids) for name, ids in load_prompts(folder).items()}
    Answers(versions=installed(PACKAGES), by_prompt=answers).save(folder / "optimum.npz")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
