"""Step 4: one bundle per runtime and precision, with a golden recording, for the later steps.

Note: the check before publishing leaves out the ladder, which would run the engines. Otherwise a card that computes an
engine wrongly would leave no bundle to examine. The ladder is a separate step (ladder.py).
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from engines.errors import ParityError
from engines.golden.recording import GOLDEN_NAME
from engines.manifest import Manifest, hash_file
from engines.spec import Precision
from engines.target import load_target

from ..bundles.export import ExportRequest, require_exportable, write_graphs
from ..bundles.publish import staging
from ..graphs.models import load_model
from ..parity.check import check_bundle
from ..parity.golden import record_golden
from ..parity.report import PARITY_NAME
from ..terminal.console import Console, size_text
from .hardware import Hardware
from .section import Found


def make_bundle(model: str, target: str, precision: Precision, out: Path) -> None:
    """Export, build, check on the CPU, record, publish. Raises what an export raises, ParityError for a difference."""
    loaded, console = load_model(model), Console()
    request = ExportRequest(out=out, target=load_target(target), precision=precision, golden=True)
    require_exportable(loaded.config, request)
    with staging(out) as folder:
        manifest = write_graphs(loaded, request, folder, console)
        with console.stage("check against the reference") as (stage, report):
            parity = check_bundle(
                folder, loaded, ladder=False, num_questions=0, scratch=folder.parent, progress=report
            )  # fmt: skip
            stage.note = parity.summary()
        if not parity.passed:
            raise ParityError(parity.failure_text(), fix=f"look closer: pvc-export trt -m {model} --target {target}")
        with console.stage("record golden values"):
            record_golden(loaded, manifest).save(folder / GOLDEN_NAME)
        (folder / PARITY_NAME).write_text(json.dumps(parity.to_json(), indent=1) + "\n", encoding="utf-8")
        files = manifest.files | {name: hash_file(folder / name) for name in (PARITY_NAME, GOLDEN_NAME)}
        replace(manifest, parity=parity.receipt(), files=files).save(folder)


def export_one(hardware: Hardware, model: str, target: str, precision: Precision, out: Path) -> Found:
    """Make a bundle, and describe it."""
    (hardware.make_bundle or make_bundle)(model, target, precision, out)
    manifest = Manifest.load(out)
    total = sum(entry.num_bytes for entry in manifest.files.values())
    engines = [
        f"{graph}: {size_text(manifest.files[entry.path].num_bytes)}, {entry.build_s:.1f} s"
        for graph, entry in manifest.engines.items()
    ]
    capabilities = sorted({one for entry in manifest.engines.values() for one in entry.compute_capabilities})
    facts = [
        ("bundle", f"{size_text(total)} in {len(manifest.files)} files"),
        ("engines", "; ".join(engines) or "none: this runtime reads the ONNX files"),
        ("built for", ", ".join(capabilities) or "any GPU of the runtime"),
        ("check on the CPU", "passed, without the GPU rungs" if manifest.parity.get("passed") else "not passed"),
    ]
    data = {"target": manifest.target, "precision": manifest.precision, "versions": manifest.versions}
    return Found(facts=tuple(facts), data=data)
