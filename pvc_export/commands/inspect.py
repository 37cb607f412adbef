"""`pvc-export inspect BUNDLE`: sizes, graphs, state, engines, and the result of its check. Reads the manifest, and
looks which of its files are there."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from engines.bundle import missing_files
from engines.errors import BundleError
from engines.manifest import MANIFEST_NAME, Manifest
from engines.spec import GraphSpec, TensorSpec
from engines.terminal import print_json

from ..terminal.console import Console, size_text
from ..terminal.quantization import calibration_text, quantization_text

INDENT = " " * 12


def is_bundle(folder: Path) -> bool:
    """Whether a folder is a bundle rather than a checkpoint. True for neither, so that it gets a bundle's error."""
    return (folder / MANIFEST_NAME).is_file() or not (
        (folder / "config.json").is_file() or any(folder.glob("*.safetensors*"))
    )


def inspect_command(folder: Path, *, as_json: bool) -> None:
    """Print the manifest. Raises BundleError if there is none."""
    if not folder.is_dir():
        raise BundleError(
            f"{folder} is not a folder",
            expected="a bundle, or a checkpoint folder",
            cause="a typing error, or another working directory",
            fix=f"ls {folder.parent}",
        )
    manifest = Manifest.load(folder)
    if as_json:
        print_json(asdict(manifest) | {"missing_files": missing_files(folder, manifest)})
        return
    console = Console()
    for line in describe(folder, manifest):
        console.print(line)


def describe(folder: Path, manifest: Manifest) -> Iterator[str]:
    """The bundle's description, as lines of text."""
    missing = missing_files(folder, manifest)
    model, limits = manifest.model, manifest.limits
    random = f" (random weights, seed {model.seed}: its answers mean nothing)" if model.random_weights else ""
    here = [entry.num_bytes for name, entry in manifest.files.items() if name not in missing]
    yield f"model       {model.name}{random}, weights {model.weights_sha256[:12]}"
    what = f"target {manifest.target}, {manifest.precision}, {manifest.time_mode} time"
    yield f"made        {manifest.created_utc}: {what}"
    times = "any frame time" if limits.num_times is None else f"{limits.num_times} frame times"
    yield f"limits      window {limits.window} frames, context {limits.context} rows, streams {limits.streams}, {times}"
    for part, how in manifest.quantization.items():
        yield f"weights     {quantization_text(part, how)}"
    if manifest.int8_states:
        yield f"state       {' and '.join(manifest.int8_states)} in int8, one scale per row and head"
    if manifest.calibration is not None:
        yield f"inputs      {calibration_text(manifest.calibration)}"
    yield f"size        {size_text(sum(here))} in {len(here)} files"
    yield from _describe_missing(folder, manifest, missing)
    for spec in manifest.graphs.values():
        yield from _describe_graph(spec, manifest)
    yield from _describe_parity(manifest.parity)
    for package, first in manifest.needs.items():
        yield f"needs       {package} {first} or later, if it runs the ONNX files"
    yield "versions    " + ", ".join(f"{name} {version}" for name, version in manifest.versions.items())


def _describe_missing(folder: Path, manifest: Manifest, missing: Sequence[str]) -> Iterator[str]:
    engines = {entry.path for entry in manifest.engines.values()}
    if num_missing := len(engines.intersection(missing)):
        yield f"engines     {num_missing} of {len(engines)} are NOT HERE: the bundle was copied without them"
        yield f"{INDENT}it can run on the CPU: pvc-export run {shlex.quote(str(folder))} --runtime cpu"
    if others := [name for name in missing if name not in engines]:
        yield f"missing     {', '.join(others)}: the bundle cannot run; copy it again"


def _describe_graph(spec: GraphSpec, manifest: Manifest) -> Iterator[str]:
    prefix = f"graphs/{spec.name}.onnx"
    size = size_text(sum(entry.num_bytes for name, entry in manifest.files.items() if name.startswith(prefix)))
    yield f"{spec.name:<12}{_tensors(spec, spec.inputs)} -> {_tensors(spec, spec.outputs)}   {size}"
    if spec.states:
        total, row = size_text(spec.state_bytes(manifest.limits)), size_text(spec.row_bytes)
        state, unit = spec.states[0], "frame" if spec.states[0].order == "ring" else "row"
        kind = f"{len(spec.states)} caches {state.layout} {state.dtype}, {state.order}"
        yield f"{INDENT}state: {kind}, {total} per stream, {row} written per {unit}"
    if spec.name in manifest.engines:
        engine = manifest.engines[spec.name]
        fused = ", ".join(f"{count} {kind}" for kind, count in engine.fused_attention.items())
        size = size_text(manifest.files[engine.path].num_bytes)
        made = f"{engine.runtime} {engine.runtime_version} for {', '.join(engine.compute_capabilities)}"
        yield f"{INDENT}engine: {made}, {size}, {engine.num_layers} layers, fused attention {fused}"


def _describe_parity(receipt: dict[str, Any]) -> Iterator[str]:
    """One line per field of the receipt, whatever fields it has; levels grouped by verdict."""
    yield f"parity      {'passed' if receipt.get('passed') else 'NOT PASSED'}"
    tables = {name: receipt.get(name, {}) for name in ("held_out", "levels", "not_executed")}
    lines = {
        key.replace("_", " ").removeprefix("num "): _words(value)
        for key, value in receipt.items()
        if key != "passed" and key not in tables and value is not None
    }
    for rung, shares in tables["held_out"].items():
        lines[f"held out, {rung}"] = ", ".join(f"{name} {share:.1%}" for name, share in shares.items())
    for passed, word in {True: "passed", False: "FAILED", None: "not executed"}.items():
        if levels := [level for level, verdict in tables["levels"].items() if verdict is passed]:
            lines[f"levels {word}"] = " ".join(levels)
    lines |= {f"not executed: {what}": "; ".join(why.splitlines()) for what, why in tables["not_executed"].items()}
    width = max(map(len, lines), default=0)
    for label, text in lines.items():
        yield f"{INDENT}{label:<{width}}  {text}"


def _words(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _tensors(spec: GraphSpec, tensors: tuple[TensorSpec, ...]) -> str:
    """Names and shapes, without cache tensors, which have a line of their own."""
    hidden = {name for state in spec.states for name in (state.input, state.output)}
    shown = (t for t in tensors if t.name not in hidden)
    return ", ".join(f"{t.name} {t.dtype} ({', '.join(map(str, t.shape))})" for t in shown)
