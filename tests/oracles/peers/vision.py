"""One streaming vision step: ours next to OpenVINO's.

python -m tests.oracles.peers.vision [ROUNDS]
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import torch

from pvc_export.bench.compare import FEW_BITS_LIMIT, Comparison, Timed
from pvc_export.bench.vision import STEP, VisionBench
from pvc_export.bench.vision_variants import SIZES, Scene, plain_arguments
from pvc_export.terminal.console import Console

from ..compare import HOME
from .elsewhere import Elsewhere

PYTHON = HOME / "openvino/bin/python"
STEPS = ("f32", "bf16", "int8", "int8 with bf16")


class BesideOpenVINO(VisionBench):
    """The vision step, and OpenVINO running its default export."""

    def prepare(self, folder: Path, console: Console) -> Comparison:
        found = VisionBench.prepare(self, folder, console)
        arguments = plain_arguments(Scene.render(SIZES[self.size], window=self.window))
        names = [value.name for value in onnx.load(folder / "default.onnx", load_external_data=False).graph.input]
        feeds = {name: tensor.numpy() for name, tensor in zip(names, arguments, strict=True)}
        np.savez(folder / "inputs.npz", **feeds)  # type: ignore[arg-type]  # numpy could take a keyword for an option
        with console.stage("OpenVINO"):
            files = [str(folder / name) for name in ("default.onnx", "inputs.npz")]
            peer = PEERS.enter_context(Elsewhere(PYTHON, "tests.oracles.peers.openvino_steps", files))
        console.print(f"  {peer.versions}")
        variants = {
            f"OpenVINO {name}": {
                STEP: Timed(run=peer.step(name), output=lambda embeds: embeds[0], limit=FEW_BITS_LIMIT)
            }
            for name in STEPS
        }
        return replace(found, variants={**found.variants, **variants})


PEERS = ExitStack()


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 9
    console = Console()
    with PEERS, torch.no_grad():
        bench = BesideOpenVINO(size="mid", rounds=rounds, skip=("compile",))
        for line in bench.describe(bench.run(console)):
            console.print(line)


if __name__ == "__main__":
    main()
