"""Unfused variants of a bundle's graphs (engines/variants.py): written next to the graphs, and checked on this machine.

A variant is a fresh export that shares the graph's weight file: each of its weights is bit-equal to one there. Only its
attention remains to be checked, against the golden recording, as a device will do.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from engines.bundle import graph_path
from engines.errors import ParityError
from engines.golden.check import load_golden
from engines.golden.replay import replay
from engines.manifest import Manifest, hash_file
from engines.publishing import link
from engines.target import load_target
from engines.variants import source_of, variant_parts, variant_path, variants_in, with_variants

from ..graphs.lean import export_lean
from ..graphs.models import LoadedModel
from ..graphs.modules import graph_module
from ..graphs.onnx_file import export_graph
from ..graphs.operators import check_operators
from ..graphs.quantize import Quantizer
from ..parity.bfloat16_on_cpu import open_on_cpu
from ..terminal.console import Console, size_text
from .export import ExportRequest, cast_for_graphs, is_lean


def add_variants(loaded: LoadedModel, request: ExportRequest, folder: Path, console: Console) -> Manifest:
    """Write the variants into the bundle that `request` made, and list them in its manifest, which is returned.

    Raises BuildError for a weight that the graph's file does not have, and ParityError if the variants do not reproduce
    the golden recording; the manifest then does not list them.
    """
    manifest, target = Manifest.load(folder), load_target(request.target.name)
    model = cast_for_graphs(loaded.model, request, manifest.calibration)
    quantizer = Quantizer.of(loaded.model, request.quantization, request.precision, request.islands)
    quantizer = quantizer.with_calibration(manifest.calibration)
    parts = {name: kinds for name, kinds in variant_parts(manifest).items() if name in target.engine_graphs}
    specs = manifest.specs(manifest.unfused | parts)
    for index, name in enumerate(parts, start=1):
        path, own = folder / variant_path(name), folder / graph_path(name)
        with console.stage(f"export {name} unfused ({index}/{len(parts)})") as (stage, report):
            module = graph_module(model, specs[name], target.spelling)
            if is_lean(loaded.model, request):
                export_lean(
                    module, specs[name], path, quantizer.stored, quantizer=quantizer, progress=report, beside=own
                )
            else:
                export_graph(module, specs[name], path, beside=own)
            check_operators(path, target)
            stage.note = f"{size_text(path.stat().st_size)}, with the weights of {own.name}"
    listed = {variant_path(name): hash_file(folder / variant_path(name)) for name in parts}
    manifest = replace(manifest, files=dict(sorted((manifest.files | listed).items())))
    with console.stage("golden values, unfused") as (stage, _):
        stage.note = _proven(manifest, folder)
    manifest.save(folder)
    return manifest


def _proven(manifest: Manifest, folder: Path) -> str:
    """Check that all variants together reproduce the recording here, before a device falls back on them."""
    graphs = variants_in(manifest)
    proven = with_variants(manifest, graphs)
    with tempfile.TemporaryDirectory(prefix=".unfused-", dir=folder.parent.parent) as scratch:
        for name in proven.files:
            link(folder / source_of(name, graphs), Path(scratch) / name)
        proven.save(Path(scratch))
        with open_on_cpu(Path(scratch)) as bundle:
            found = replay(load_golden(folder, manifest), bundle.sessions)
    if not found.passed:
        raise ParityError(
            f"the unfused graphs do not reproduce the golden recording: {found.summary()}. The kit is incomplete",
            expected="the recording reproduced within its limits, as by the fused graphs",
            fix="report this as an issue, with the command line",
        )
    return f"{len(found.compared)} outputs"
