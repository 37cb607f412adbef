"""Gain from joined matmuls: engines and CPU steps with q|k|v, gate|up and W3|W5 apart and joined.

A third form is joined, but with gate and up separated by a Split instead of a Reshape.

python -m pvc_export.studies.products engines    layers, bytes and build time of TensorRT-RTX engines, float16
python -m pvc_export.studies.products cpu        a decoded token and 64 ingested rows, interleaved, CPU time
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from engines.builder import build_engine
from engines.graph_specs import graph_specs
from engines.spec import StreamLimits
from engines.target import load_target
from pvc_ref import PVC, PVCConfig

from ..bench.language_variants import SIZES, LanguageScene, our_language_model, our_language_sessions, our_variant
from ..bench.rounds import Spread, describe_environment, environment, interleave, ratio
from ..graphs.joined import JoinedSwiGLU
from ..graphs.modules import graph_module, model_shape
from ..graphs.onnx_file import export_graph
from ..graphs.precision import cast_model

SUBJECTS: dict[str, tuple[PVCConfig, tuple[str, ...]]] = {
    "tiny": (PVCConfig.preset("tiny"), ("temporal", "compressor", "llm")),
    "vision-8b": (PVCConfig.preset("vision-8b"), ("temporal", "compressor")),
    "0.5b": (SIZES["0.5b"], ("llm",)),
}
"""Models with random weights, and their graphs that have such matmuls."""
FORMS = ("apart", "split", "joined")
PAST = 1024


@contextmanager
def form(name: str) -> Iterator[None]:
    """Make graphs in this form until the end of the block."""
    if name == "joined":
        yield
    elif name == "split":
        with patch.object(JoinedSwiGLU, "forward", split_swiglu):
            yield
    else:
        with patch("pvc_export.graphs.modules.joined", lambda module: module):
            yield


def split_swiglu(self: JoinedSwiGLU, x: Tensor) -> Tensor:
    """SwiGLU with gate and up separated by a Split."""
    gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
    down: Tensor = self.down_proj(F.silu(gate) * up)
    return down


def engines(subjects: list[str]) -> Iterator[str]:
    """Yield a line for each graph and form; the builds of one graph follow one another."""
    target = load_target("rtx")
    yield f"{'model':<10} {'graph':<11} {'products':<9} {'layers':>6} {'engine':>12} {'build':>8}"
    for name in subjects:
        config, graphs = SUBJECTS[name]
        model = cast_model(PVC.random(config, seed=0), "fp16")
        specs = graph_specs(model_shape(config), StreamLimits(), "fp16", target.spelling, cache_update="aliased")
        for graph in graphs:
            for how in FORMS:
                with tempfile.TemporaryDirectory(prefix="pvc-products-") as folder, form(how):
                    path, spec = Path(folder) / f"{graph}.onnx", specs[graph]
                    export_graph(graph_module(model, spec, target.spelling), spec, path)
                    built = build_engine(path, spec, target)
                size = f"{len(built.plan) / 1e6:.2f} MB"
                yield f"{name:<10} {graph:<11} {how:<9} {len(built.layers or ()):>6} {size:>12} {built.build_s:>6.1f} s"


def cpu(size: str, rounds: int, num_layers: int | None) -> Iterator[str]:
    """Yield medians and quartiles of both steps in all forms, and the ratios within rounds."""
    config = SIZES[size]
    if num_layers is not None:
        config = replace(config, llm=replace(config.llm, num_layers=num_layers))
    scene = LanguageScene.render(config, num_past=PAST)
    runs: dict[tuple[str, str], Callable[[], Any]] = {}
    with tempfile.TemporaryDirectory(prefix="pvc-products-") as folder:
        for how in FORMS:
            (own := Path(folder) / how).mkdir()
            with form(how):
                sessions = our_language_sessions(scene, own, threads=1)
            variant = our_variant(scene, our_language_model(scene, sessions))
            runs |= {(step, how): timed.run for step, timed in variant.items()}
        interleave(runs, rounds=2, threads=1)
        seconds = interleave(runs, rounds=rounds, threads=1)
    of = f"{config.llm.num_layers} layers of {size}"
    yield f"{of}, {PAST} past rows, float32, {rounds} interleaved rounds"
    for step in ("decode", "ingest"):
        for how in FORMS:
            spread = Spread.of(seconds[step, how])
            quartiles = f"{spread.q1_ms:.2f} - {spread.q3_ms:.2f}"
            yield f"{step:<8} {how:<8} {spread.median_ms:>8.2f} ms   {quartiles}"
        for how in FORMS[1:]:
            yield f"{step:<8} {how} is {ratio(seconds[step, 'apart'], seconds[step, how]):.3f} times as fast as apart"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m pvc_export.studies.products", description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["engines", "cpu"])
    parser.add_argument("--model", choices=[*SUBJECTS], action="append", help="with engines: the models (default: all)")
    parser.add_argument("--size", choices=[*SIZES], default="0.5b", help="with cpu: size of the LLM (default 0.5b)")
    parser.add_argument("--rounds", type=int, default=15, help="with cpu: interleaved rounds (default 15)")
    parser.add_argument("--layers", type=int, help="with cpu: layers of the LLM (default: all)")
    args = parser.parse_args()
    facts = environment(" ".join(["python -m pvc_export.studies.products", *sys.argv[1:]]), threads=1)
    with torch.no_grad():
        measured = args.what == "cpu"
        lines = cpu(args.size, args.rounds, args.layers) if measured else engines(args.model or [*SUBJECTS])
        for line in lines:
            print(line, flush=True)
    print("\n".join(describe_environment(facts)))


if __name__ == "__main__":
    main()
