"""SmolLM2's decode and ingest: ours next to llama.cpp's, with the same weights and after the same text.

python -m tests.oracles.peers.language [ROUNDS [PAST]]

The file's weights are int4 with a minimum per block (Q4_1); the checkpoint has their values in float32.
"""

from __future__ import annotations

import functools
import sys
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pvc_export.bench.compare import FEW_BITS_LIMIT, Comparison, Timed
from pvc_export.bench.language import LanguageBench
from pvc_export.bench.language_variants import NUM_FRAME_ROWS, LanguageScene
from pvc_export.graphs.models import LoadedModel, load_model
from pvc_export.terminal.console import Console

from ..compare import HOME, ask_oracle, new_folder
from ..exchange import MODEL
from ..smollm2 import CHECKPOINT, write_checkpoint
from .elsewhere import Elsewhere

PYTHON = HOME / "llama-cpp/bin/python"
TEXT = "docs/performance.md"
PEERS = ExitStack()


@functools.cache
def loaded(checkpoint: str) -> LoadedModel:
    return load_model(checkpoint)


@dataclass(frozen=True, kw_only=True, slots=True)
class BesideLlamaCpp(LanguageBench):
    """The LLM of a checkpoint with real text in its cache, and llama.cpp with the same model."""

    program = "python -m tests.oracles.peers.language"

    checkpoint: str
    gguf: str

    def _ids(self) -> tuple[Tensor, Tensor]:
        """Return the past with the token to decode, and a frame (also text: llama.cpp takes tokens)."""
        text = Path(TEXT).read_text(encoding="utf-8")
        ids = torch.tensor(loaded(self.checkpoint).tokenizer.encode(text, add_special_tokens=False).ids)
        return ids[: self.past + 1], ids[self.past : self.past + NUM_FRAME_ROWS]

    def scene(self) -> LanguageScene:
        model, (ids, frame) = loaded(self.checkpoint).model, self._ids()
        return LanguageScene.of(model, ids, model.llm.embed_tokens(frame)[None])

    def model_text(self) -> str:
        return "SmolLM2-135M-Instruct"

    def prepare(self, folder: Path, console: Console) -> Comparison:
        found = LanguageBench.prepare(self, folder, console)
        ids, frame = self._ids()
        tokens = folder / "tokens.npz"
        np.savez(tokens, before=ids[:-1].numpy(), token=ids[-1:].numpy(), frame=frame.numpy())
        with console.stage("llama.cpp"):
            files = [self.gguf, str(tokens)]
            peer = PEERS.enter_context(Elsewhere(PYTHON, "tests.oracles.peers.llama_steps", files))
        console.print(f"  {peer.versions}, file of {peer.facts['model_bytes'] / 1e6:.0f} MB")
        theirs = {name: Timed(run=peer.step(name), limit=FEW_BITS_LIMIT) for name in ("decode", "ingest")}
        ours = {
            name: {step: _of_tokens(one, peer.facts["num_tokens"]) for step, one in variant.items()}
            for name, variant in found.variants.items()
            if not isinstance(variant, str)
        }
        return replace(found, variants={**found.variants, **ours, "llama.cpp, Q4_1": theirs})


def _of_tokens(timed: Timed, count: int) -> Timed:
    """Use the logits of the first tokens only: ours has three more, for images."""
    return replace(timed, output=lambda result: timed.output(result)[:count])


def real_model() -> tuple[Path, Path]:
    """Return SmolLM2's checkpoint, written if it is missing, and the GGUF file it was made from."""
    case = HOME / "smollm2-case"
    if not (case / CHECKPOINT / "config.json").is_file():
        ask_oracle("smollm2", new_folder(case))
        write_checkpoint(case / MODEL, case / CHECKPOINT)
    (gguf,) = (HOME / "smollm2").rglob("*.gguf")
    return case / CHECKPOINT, gguf


def main() -> None:
    console, (checkpoint, gguf) = Console(), real_model()
    given = [int(number) for number in sys.argv[1:]]
    rounds, past = (*given, *(9, 1024)[len(given) :])
    with PEERS, torch.no_grad():
        bench = BesideLlamaCpp(size="tiny", rounds=rounds, past=past, checkpoint=str(checkpoint), gguf=str(gguf))
        for line in bench.describe(bench.run(console)):
            console.print(line)


if __name__ == "__main__":
    main()
