"""A bundle on disk, verified and opened.

build/NAME/  manifest.json  graphs/*.onnx (+ .data)  engines/*.engine  tokenizer.json  parity.json
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .errors import BundleError
from .manifest import FileEntry, Manifest, hash_file, list_files
from .prompt import PromptTokenizer
from .session import OrtSession, Session

TOKENIZER_NAME = "tokenizer.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Bundle:
    """An opened bundle: one session a graph. Sessions hold no state, so any number of streams may share them."""

    folder: Path
    manifest: Manifest
    sessions: Mapping[str, Session]
    tokenizer: PromptTokenizer


def open_bundle(folder: str | Path, *, unchecked: bool = False, threads: int | None = None) -> Bundle:
    """Verify every file against the manifest and open a session for every graph, of `threads` or one a core.

    Raises BundleError naming the first file that is missing, damaged or unlisted, or if the bundle never passed its
    parity check (`unchecked` allows that, for the check itself); BackendUnavailable without the target's runtime.
    """
    folder = Path(folder)
    manifest = Manifest.load(folder)
    verify_files(folder, manifest)
    if not unchecked and manifest.parity.get("passed") is not True:
        raise BundleError(f"{folder} has not passed its parity check, so it is not run. See: pvc-export check {folder}")
    sessions = {
        name: OrtSession(folder / graph_path(name), spec, threads=threads) for name, spec in manifest.graphs.items()
    }
    tokenizer = PromptTokenizer(folder / TOKENIZER_NAME, manifest.prompt)
    return Bundle(folder=folder, manifest=manifest, sessions=sessions, tokenizer=tokenizer)


def graph_path(name: str) -> str:
    return f"graphs/{name}.onnx"


def verify_files(folder: Path, manifest: Manifest) -> None:
    """Raise BundleError unless the folder holds exactly the listed files, each with its size and SHA-256."""
    needed = {graph_path(name) for name in manifest.graphs} | {e.path for e in manifest.engines.values()}
    unlisted = (list_files(folder) | needed | {TOKENIZER_NAME}) - set(manifest.files)
    if unlisted:
        raise BundleError(
            f"{folder}: the manifest does not list {', '.join(sorted(unlisted)[:4])}. Files were added, or the "
            "manifest was edited. Export the bundle again, and keep other files elsewhere"
        )
    for name, expected in manifest.files.items():
        _verify_file(folder / name, expected)


def _verify_file(path: Path, expected: FileEntry) -> None:
    if not path.is_file():
        raise BundleError(
            f"{path} is missing. The manifest lists it with {expected.num_bytes} bytes; the bundle was copied "
            "incompletely. Copy or export it again"
        )
    found = hash_file(path)
    if found.num_bytes != expected.num_bytes:
        raise BundleError(
            f"{path} has {found.num_bytes} bytes, the manifest says {expected.num_bytes}; it was cut short or "
            "replaced. Copy or export the bundle again"
        )
    if found.sha256 != expected.sha256:
        raise BundleError(
            f"{path} has SHA-256 {found.sha256[:16]}..., the manifest says {expected.sha256[:16]}...; it was "
            "changed after the export. Copy or export the bundle again"
        )
