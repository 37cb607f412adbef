"""`pvc-export kit`: a folder to copy to a device, where it builds and checks its engines (engines/device/kit.py)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from engines.device.kit import BUNDLE, KIT_NAME, MIB, MODEL, RUNTIME, Kit, write_facts
from engines.errors import BundleError
from engines.golden.recording import GOLDEN_NAME
from engines.manifest import hash_file, list_files, listed_files
from engines.target import load_target
from engines.variants import variant_path

from ..graphs.models import LoadedModel
from ..parity.report import ParityReport
from ..terminal.console import Console, size_text
from ..terminal.facts import installed, now_utc
from .engines import asked_of
from .export import ExportRequest, cast_for_graphs, export
from .runtime_source import APPS_NAME, RUNTIME_NAME, copy_runtime
from .variants import add_variants

PAGE = Path(__file__).with_name("kit.md")
BUILD = """#!/bin/sh
# Builds the engines on this device, checks them, and makes bundle/. Options: ./build.sh --help
cd "$(dirname "$0")" || exit
if [ "$1" = --skip-doctor ]; then shift; else ./doctor.sh || exit; fi
PYTHONPATH=runtime exec "${PYTHON:-python3}" -m ENGINES.device.build . "$@"
"""
SCRIPT = """#!/bin/sh
cd "$(dirname "$0")" || exit
PYTHONPATH=runtime exec "${PYTHON:-python3}" -m COMMAND "$@"
"""


def make_kit(loaded: LoadedModel, request: ExportRequest, *, console: Console) -> ParityReport:
    """Make, check and write a kit at request.out, replacing an older kit that was not built yet.

    request.target  the device's target, as for `onnx`: without engines
    If the model fails its check, no kit is made, and the report lists what failed. Raises the same errors as export,
    and BundleError for a folder that holds other things.
    """
    folder = request.out
    _refuse_other_things(folder)
    (folder / KIT_NAME).unlink(missing_ok=True)  # not complete from here on
    for path in folder.glob(f"{MODEL}/{variant_path('*')}"):  # an unfinished kit's manifest may not list them
        path.unlink()
    of_model = replace(request, out=folder / MODEL, golden=True)
    parity = export(loaded, of_model, console=console)
    if not parity.passed:
        return parity
    manifest = add_variants(loaded, of_model, folder / MODEL, console)
    with console.stage("add the runtime") as (stage, _):
        target = load_target(manifest.target)
        cast = cast_for_graphs(loaded.model, of_model, manifest.calibration)
        asked = {name: asked_of(cast, manifest.graphs[name], request.islands) for name in target.engine_graphs}
        kit = Kit(folder=folder, manifest=manifest, target=target, asked=asked)
        copy_runtime(folder / RUNTIME)
        for name, text in _texts(kit):
            (folder / name).write_text(text, encoding="utf-8")
            (folder / name).chmod(0o755 if name.endswith(".sh") else 0o644)
        names = {name for name in list_files(folder) if not name.startswith(f"{MODEL}/")}
        files = {name: hash_file(folder / name) for name in sorted(names)}
        write_facts(folder, asked, files=files, made_by=_made_by())
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        stage.note = f"{size_text(size)} in all, {len(asked)} engines to build"
    return parity


def _refuse_other_things(folder: Path) -> None:
    """Raise BundleError unless the folder is an unbuilt or unfinished kit. A built kit holds hours of device time."""
    if not folder.exists():
        return
    known = {MODEL, RUNTIME, KIT_NAME, *(name for name, _ in SCRIPTS), "build.sh", "README.md"}
    strangers = sorted(path.name for path in folder.iterdir() if path.name not in known) if folder.is_dir() else ["it"]
    has_model = listed_files(folder / MODEL) is not None
    if strangers or (any(folder.iterdir()) and not has_model):
        what = "it was already built" if BUNDLE in strangers else f"it holds {', '.join(strangers[:4])}"
        raise BundleError(
            f"{folder} exists and is not a kit that may be replaced: {what}",
            expected="a new folder, or a kit that has not been built yet",
            fix="choose another folder with -o, or remove it",
        )


SCRIPTS = (
    ("doctor.sh", "ENGINES.device.doctor --target TARGET --needs-mib NEEDS_MIB --folder ."),
    ("check.sh", "ENGINES.golden.check bundle"),
    ("run.sh", "APPS.watch bundle"),
)
"""Script name, and the module that it runs with its first arguments."""


def _texts(kit: Kit) -> Iterator[tuple[str, str]]:
    """Name and text of every file that people read or run."""
    names = {"ENGINES": RUNTIME_NAME, "APPS": APPS_NAME, "TARGET": kit.target.name, "NEEDS_MIB": kit.needs_mib()}
    texts = [(name, SCRIPT.replace("COMMAND", command)) for name, command in SCRIPTS]
    for name, text in (("build.sh", BUILD), *texts):
        for word, value in names.items():
            text = text.replace(word, str(value))
        yield name, text
    yield "README.md", PAGE.read_text(encoding="utf-8").format_map(_facts(kit))


def _facts(kit: Kit) -> dict[str, Any]:
    """Values for the placeholders in kit.md."""
    manifest, target = kit.manifest, kit.target
    on_jetson = target.name.startswith("jetson")
    first, beyond = target.builder_versions
    model_bytes = sum(entry.num_bytes for entry in manifest.files.values())
    return {
        "name": Path(manifest.model.name).name,
        "target": target.name,
        "description": target.description,
        "num_engines": len(kit.asked),
        "source": "csi:0" if on_jetson else "0",
        "numpy": "1.26 (below 2, for JetPack's OpenCV)" if on_jetson else "1.26 or later",
        "numpy_requirement": "numpy>=1.26,<2" if on_jetson else "numpy>=1.26",
        "runtime": f"The package `{target.builder}`, version {first} or later but below {beyond}"
        + (", as JetPack installs it for the system's Python" if on_jetson else ""),
        "needs_mib": kit.needs_mib(),
        "disk_mib": 2 * model_bytes // MIB + 1024,
        "golden": size_text(manifest.files[GOLDEN_NAME].num_bytes),
        "precision": f" in {manifest.precision}",
        "made": now_utc(),
        "made_by": _made_by(),
    }


def _made_by() -> str:
    name = "pvc-streaming-export"
    return f"{name} {installed((name,)).get(name, 'from source')}"
