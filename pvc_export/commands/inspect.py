"""What a bundle is, for a person: sizes, graphs, state, engines, and how it was checked. Reads the manifest only."""

from __future__ import annotations

from collections.abc import Iterator

from engines.manifest import Manifest
from engines.spec import GraphSpec, TensorSpec

from ..terminal.console import size_text


def describe(manifest: Manifest) -> Iterator[str]:
    """Lines of text."""
    model, limits, parity = manifest.model, manifest.limits, manifest.parity
    random = f" (random weights, seed {model.seed}: what it says means nothing)" if model.random_weights else ""
    size = size_text(sum(entry.num_bytes for entry in manifest.files.values()))
    receipt = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in parity.items() if key != "passed")
    yield f"model       {model.name}{random}, weights {model.weights_sha256[:12]}"
    what = f"target {manifest.target}, {manifest.precision}, {manifest.time_mode} time"
    yield f"made        {manifest.created_utc}: {what}"
    yield f"limits      window {limits.window} frames, context {limits.context} rows, streams {limits.streams}"
    yield f"size        {size} in {len(manifest.files)} files"
    for spec in manifest.graphs.values():
        yield from _describe_graph(spec, manifest)
    yield f"parity      {'passed' if parity.get('passed') else 'NOT PASSED'}: {receipt}"
    yield "versions    " + ", ".join(f"{name} {version}" for name, version in manifest.versions.items())


def state_bytes(spec: GraphSpec, manifest: Manifest) -> tuple[int, int]:
    """(bytes of one stream's caches, bytes that one new frame or row writes into them)."""
    slots = {"ring": manifest.limits.window, "linear": manifest.limits.context}
    return sum(s.row_bytes * slots[s.order] for s in spec.states), sum(s.row_bytes for s in spec.states)


def _describe_graph(spec: GraphSpec, manifest: Manifest) -> Iterator[str]:
    prefix, indent = f"graphs/{spec.name}.onnx", " " * 12
    size = size_text(sum(entry.num_bytes for name, entry in manifest.files.items() if name.startswith(prefix)))
    yield f"{spec.name:<12}{_tensors(spec, spec.inputs)} -> {_tensors(spec, spec.outputs)}   {size}"
    if spec.states:
        total, row = (size_text(count) for count in state_bytes(spec, manifest))
        state, unit = spec.states[0], "frame" if spec.states[0].order == "ring" else "row"
        kind = f"{len(spec.states)} caches {state.layout} {state.dtype}, {state.order}"
        yield f"{indent}state: {kind}, {total} a stream, {row} written a {unit}"
    if spec.name in manifest.engines:
        engine = manifest.engines[spec.name]
        fused = ", ".join(f"{count} {kind}" for kind, count in engine.fused_attention.items())
        size = size_text(manifest.files[engine.path].num_bytes)
        made = f"{engine.runtime} {engine.runtime_version} for {', '.join(engine.compute_capabilities)}"
        yield f"{indent}engine: {made}, {size}, {engine.num_layers} layers, fused attention {fused}"


def _tensors(spec: GraphSpec, tensors: tuple[TensorSpec, ...]) -> str:
    """Names and shapes, cache tensors left out: their line follows."""
    hidden = {name for state in spec.states for name in (state.input, state.output)}
    shown = (t for t in tensors if t.name not in hidden)
    return ", ".join(f"{t.name} {t.dtype} ({', '.join(map(str, t.shape))})" for t in shown)
