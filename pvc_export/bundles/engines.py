"""The engines of a bundle: each built from its graph, and held against what the graph asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from engines.builder import build_engine
from engines.bundle import graph_path
from engines.gate import WideAttention, check_layers, count_attention
from engines.manifest import EngineEntry, FileEntry, fingerprint
from engines.spec import GraphSpec
from engines.target import Target
from pvc_ref import PVC
from pvc_ref.llm import CausalAttention
from pvc_ref.temporal import TemporalAttention
from pvc_ref.vision import SpatialAttention

from ..graphs.modules import graph_parameters
from ..graphs.precision import in_an_island
from ..graphs.quantize import is_coded
from ..terminal.console import Console, size_text


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """A graph, and what the gate must know of the cast model that it was made from.

    num_float32_weights  None for a float32 graph, where all of them are
    num_codes            weights that it holds in codes
    """

    spec: GraphSpec
    num_weights: int
    num_float32_weights: int | None
    num_codes: int
    wide: WideAttention


def asked_of(model: PVC, spec: GraphSpec, islands: Sequence[str] = ()) -> Asked:
    """What a graph of `model`, cast with these islands, asks of its engine. In float32 there are no islands."""
    named = graph_parameters(model, spec)
    weights = named.values()
    narrow = any(parameter.dtype != torch.float32 for parameter in model.parameters())
    num_float32 = sum(weight.numel() for weight in weights if weight.dtype == torch.float32)
    return Asked(
        spec=spec,
        num_weights=sum(weight.numel() for weight in weights),
        num_float32_weights=num_float32 if narrow else None,
        num_codes=sum(weight.numel() for name, weight in named.items() if is_coded(name, weight, spec)),
        wide=wide_attention(model, spec, islands if narrow else ()),
    )


def wide_attention(model: PVC, spec: GraphSpec, islands: Sequence[str]) -> WideAttention:
    """The attention of a graph that these islands put into float32, in part or whole."""
    modules = {name: module for name, module in model.named_modules() if name.startswith(f"{spec.name}.")}
    over_rows = [name for name, module in modules.items() if isinstance(module, (SpatialAttention, CausalAttention))]
    of_states = [name for name, module in modules.items() if isinstance(module, (TemporalAttention, CausalAttention))]
    pairs = zip(spec.states[0::2], spec.states[1::2], strict=True)
    return WideAttention(
        num_rows=sum(in_an_island(name, islands) for name in over_rows),
        states=frozenset(
            state.input
            for name, pair in zip(of_states, pairs, strict=False)  # the trunk has no states
            if in_an_island(name, islands)
            for state in pair
        ),
    )


def build_engines(
    graphs: dict[str, Asked], files: dict[str, FileEntry], target: Target, folder: Path, console: Console
) -> dict[str, EngineEntry]:
    """Build the target's engines into `folder`, each from the graph in `files`.

    Raises BuildError for an engine whose layers are not what its graph asked for.
    """
    entries: dict[str, EngineEntry] = {}
    (folder / "engines").mkdir()
    for index, name in enumerate(target.engine_graphs, start=1):
        with console.stage(f"build {name} ({index}/{len(target.engine_graphs)})") as (stage, report):
            asked = graphs[name]
            built = build_engine(folder / graph_path(name), asked.spec, target, progress=lambda _, x: report(x))
            check_layers(
                built.layers, asked.spec, num_float32_weights=asked.num_float32_weights,
                num_weights=asked.num_weights, num_codes=asked.num_codes, wide=asked.wide,
            )  # fmt: skip
            path = f"engines/{name}.engine"
            (folder / path).write_bytes(built.plan)
            fused = count_attention(built.layers)
            facts = f"{len(built.layers)} layers, fused attention {fused['gemm']} gemm + {fused['gemv']} gemv"
            stage.note = f"{size_text(len(built.plan))}, {facts}"
        entries[name] = EngineEntry(
            path=path,
            runtime=built.runtime,
            runtime_version=built.runtime_version,
            compute_capabilities=built.compute_capabilities,
            num_layers=len(built.layers),
            fused_attention=fused,
            build_s=round(built.build_s, 3),
            built_on="",  # signed with the manifest, when all files are known
            built_from=fingerprint(files, graph_path(name)),
        )
    return entries
