"""A stream on disk: its caches, its clock and anchor, the text and frames that wait. One .npz file, no pickle.

Unusual: a cache is written by its rows in use, as plain bits, so that every dtype survives and a file made on a GPU
opens on a CPU of the same bundle. The file replaces an older one in one step; a kill leaves one of the two, whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from .bundle import Bundle
from .errors import BackendUnavailable, StreamError
from .memory import Array

FORMAT_VERSION = 3


def write_saved(path: Path, facts: dict[str, Any], caches: dict[str, Array]) -> None:
    """Write facts and caches to `path`. Raises BackendUnavailable if it cannot; then an older file is untouched."""
    bits = {name: np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}") for name, array in caches.items()}
    header = np.frombuffer(json.dumps({"format_version": FORMAT_VERSION, **facts}).encode(), dtype=np.uint8)
    partial = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        with partial.open("wb") as file:
            np.savez(file, header=header, **bits)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise BackendUnavailable(
            f"the stream could not be saved to {path}: {error}. Is the disk full, or the folder not yours to write to? "
            "The stream itself goes on; save it to another path"
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def read_saved(path: Path) -> tuple[dict[str, Any], dict[str, Array]]:
    """The facts and the caches' bits. Raises StreamError for a file that is missing, damaged or of another format."""
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            facts = json.loads(bytes(file["header"]))
            caches = {name: file[name] for name in file.files if name != "header"}
    except FileNotFoundError:
        raise StreamError(f"{path} does not exist, expected a stream written by PVCStream.save") from None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise StreamError(
            f"{path} cannot be read as a saved stream: {error}. It was cut short, damaged, or is another program's "
            "file. Open an older one, or start a new stream"
        ) from error
    if not isinstance(facts, dict) or facts.get("format_version") != FORMAT_VERSION:
        raise StreamError(f"{path} is a saved stream of another version of this program, expected {FORMAT_VERSION}")
    return facts, caches


def bundle_id(bundle: Bundle) -> str:
    """A fingerprint of everything that gives a cache its meaning: the graphs' files, the limits, the target."""
    manifest = bundle.manifest
    graphs = {name: entry.sha256 for name, entry in manifest.files.items() if name.startswith("graphs/")}
    text = json.dumps([sorted(graphs.items()), manifest.target, manifest.precision, repr(manifest.limits)])
    return hashlib.sha256(text.encode()).hexdigest()
