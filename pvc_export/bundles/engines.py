"""The engines of a bundle: each is built from its graph and checked against the graph's requirements."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from engines.bundle import graph_path
from engines.checked_build import build_checked
from engines.gate import Asked, WideAttention
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


def asked_of(model: PVC, spec: GraphSpec, islands: Sequence[str] = ()) -> Asked:
    """What a graph of `model`, cast with these islands, requires of its engine. In float32 there are no islands."""
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
    """The attention of a graph that these islands put into float32, partly or wholly."""
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

    Raises BuildError for an engine whose layers are not what its graph requires.
    """
    entries: dict[str, EngineEntry] = {}
    (folder / "engines").mkdir()
    for index, name in enumerate(target.engine_graphs, start=1):
        with console.stage(f"build {name} ({index}/{len(target.engine_graphs)})") as (stage, report):
            built = build_checked(
                folder / graph_path(name), graphs[name], target, built_from=fingerprint(files, graph_path(name)),
                progress=lambda _, x: report(x),
            )  # fmt: skip
            plan, entries[name] = built.report.plan, built.entry
            (folder / built.entry.path).write_bytes(plan)
            stage.note = f"{size_text(len(plan))}, {built.note}"
    return entries
