"""Unfused variants of a kit's graphs, for a device whose compiler miscompiles fused attention.

graphs/trunk.unfused.onnx is next to graphs/trunk.onnx and uses the same weights. A bundle built with it stores it under
the name graphs/trunk.onnx, like the result of `pvc-export trt --unfuse`: a graph has one file and one engine.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from .bundle import graph_path
from .graph_specs import attention_of
from .manifest import Manifest
from .spec import Fusable


def variant_path(graph: str) -> str:
    return f"graphs/{graph}.unfused.onnx"


def variant_parts(manifest: Manifest) -> dict[str, tuple[Fusable, ...]]:
    """Graphs that can have a variant, and the attention unfused in it: all of it, unless that is already the case."""
    found = {graph: tuple(kinds) for graph, kinds in attention_of(manifest.shape).items()}
    return {graph: kinds for graph, kinds in found.items() if kinds != manifest.unfused.get(graph)}


def variants_in(manifest: Manifest) -> dict[str, tuple[Fusable, ...]]:
    """Graphs that have a variant. Kits made before variants existed have none."""
    return {graph: kinds for graph, kinds in variant_parts(manifest).items() if variant_path(graph) in manifest.files}


def with_variants(manifest: Manifest, graphs: Collection[str]) -> Manifest:
    """The manifest of a bundle with these variants instead of their graphs, and without the other variants."""
    parts = variants_in(manifest)
    unfused = manifest.unfused | {graph: parts[graph] for graph in graphs}
    files = {name: entry for name, entry in manifest.files.items() if name not in map(variant_path, parts)}
    files |= {graph_path(graph): manifest.files[variant_path(graph)] for graph in graphs}
    return replace(manifest, files=files, unfused=unfused, graphs=manifest.specs(unfused))


def source_of(name: str, graphs: Collection[str]) -> str:
    """Path of that bundle's file in the folder that has the variants."""
    return {graph_path(graph): variant_path(graph) for graph in graphs}.get(name, name)
