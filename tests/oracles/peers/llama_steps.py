"""llama.cpp's decode and ingest with the GGUF file that SmolLM2's package holds.

python -m tests.oracles.peers.llama_steps DESCRIPTOR MODEL.gguf TOKENS.npz   in llama.cpp's environment
"""

from __future__ import annotations

import os
import sys
from importlib.metadata import version

import llama_cpp
import numpy as np

from .worker import serve

CONTEXT = 2048


def main() -> None:
    _, path, tokens = sys.argv[1:]
    given = np.load(tokens)
    before, token, frame = (given[name].tolist() for name in ("before", "token", "frame"))
    llama = llama_cpp.Llama(
        path, n_ctx=CONTEXT, n_batch=512, n_threads=1, n_threads_batch=1, verbose=False, logits_all=False
    )
    llama.eval(before)

    def step(ids: list[int]) -> np.ndarray:
        llama.n_tokens = len(before)  # its next eval drops everything after this
        llama.eval(ids)
        logits = llama_cpp.llama_get_logits_ith(llama.ctx, -1)
        return np.ctypeslib.as_array(logits, (llama.n_vocab(),)).copy()

    serve(
        {"decode": lambda: step(token), "ingest": lambda: step(frame)},
        {"llama-cpp-python": version("llama-cpp-python")},
        {"model_bytes": os.path.getsize(path), "num_tokens": llama.n_vocab()},
    )


if __name__ == "__main__":
    main()
