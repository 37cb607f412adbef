"""Oracle: ONNX Runtime GenAI's model builder and generator. Runs in its own environment, from the project's root.

python -m tests.oracles.run_genai FOLDER   reads the case in FOLDER, writes FOLDER/genai.npz

Why: its graph is written node by node, with fused GroupQueryAttention and one cache shared by input and output. No part
was traced from PyTorch.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime_genai as og

from .exchange import MODEL, NUM_GREEDY, Answer, Answers, installed, load_prompts

PACKAGES = ("onnxruntime-genai", "onnxruntime", "transformers", "torch")


def build(folder: Path) -> Path:
    """Convert the Hugging Face folder to GenAI's ONNX graph, float32 on the CPU."""
    out = folder / "genai"
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(folder / MODEL), "-o", str(out)]
    subprocess.run([*command, "-p", "fp32", "-e", "cpu"], check=True)
    return out


def ask(model: og.Model, ids: np.ndarray) -> Answer:
    """Return the logits of the whole prompt from one pass, and the tokens of GenAI's greedy search."""
    params = og.GeneratorParams(model)
    params.set_search_options(do_sample=False, max_length=len(ids) + NUM_GREEDY)
    generator = og.Generator(model, params)
    generator.append_tokens(ids.astype(np.int32))
    logits = generator.get_output("logits")[0].copy()
    while not generator.is_done():
        generator.generate_next_token()
    greedy = np.array(generator.get_sequence(0)[len(ids) :], dtype=np.int64)
    return Answer(positions=np.arange(len(ids)), logits=logits, greedy=greedy)


def main(folder: Path) -> None:
    model = og.Model(str(build(folder)))
    answers = {name: ask(model, ids) for name, ids in load_prompts(folder).items()}
    Answers(versions=installed(PACKAGES), by_prompt=answers).save(folder / "genai.npz")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
