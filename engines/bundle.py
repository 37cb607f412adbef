"""A bundle on disk, verified and opened.

build/NAME/  manifest.json  graphs/*.onnx (+ .data)  engines/*.engine  tokenizer.json  parity.json
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .errors import BundleError
from .manifest import Manifest, hash_file
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


def open_bundle(folder: str | Path, *, num_threads: int = 0) -> Bundle:
    """Verify every file against the manifest and open a session for every graph.

    Raises BundleError naming the first file that is missing, damaged or unknown, and BackendUnavailable when the
    runtime of the bundle's target is not installed.
    """
    folder = Path(folder)
    manifest = Manifest.load(folder)
    verify_files(folder, manifest)
    sessions = {
        name: OrtSession(folder / graph_path(name), spec, num_threads=num_threads)
        for name, spec in manifest.graphs.items()
    }
    tokenizer = PromptTokenizer(folder / TOKENIZER_NAME, manifest.prompt)
    return Bundle(folder=folder, manifest=manifest, sessions=sessions, tokenizer=tokenizer)


def graph_path(name: str) -> str:
    return f"graphs/{name}.onnx"


def verify_files(folder: Path, manifest: Manifest) -> None:
    """Raise BundleError unless every listed file is there with its size and SHA-256."""
    for name, expected in manifest.files.items():
        path = folder / name
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
