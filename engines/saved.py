"""A stream on disk: its caches, clock, anchor, and waiting text and frames. One .npz file, no pickle.

Of a cache only the rows in use are written, as raw bits: every dtype survives, and a file written on a GPU opens on a
CPU with the same bundle. An older file is replaced atomically: if the process is killed, one of the two is intact.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from .bundle import Bundle, open_bundle
from .cache import from_bits
from .clock import Clock
from .context import FrameRows
from .errors import BackendUnavailable, StreamError
from .ingest import Ingest
from .memory import Array

FORMAT_VERSION = 4
CACHES = ("vision", "retained", "language")
COUNTS = ("num_frames", "language_rows", "first_frame", "num_anchors")
ANOTHER = "open an older one, or start a new stream"


class StreamOptions(TypedDict):
    """The arguments of PVCStream, except the bundle."""

    total_frames: int | None
    ingest: Ingest
    max_waiting: int
    clock: Clock | None
    retain: int | None
    reserve: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """A stream's position: everything except its caches' contents.

    num_frames                frames in the ring, since the anchor
    language_rows             rows in the LLM's cache
    first_frame, num_anchors  of the anchor (episodes.Anchor)
    waiting, pending          of the context; streams may share waiting frames
    notes                     for the next anchor
    """

    options: StreamOptions
    num_frames: int
    language_rows: int
    first_frame: int
    num_anchors: int
    waiting: tuple[FrameRows, ...]
    pending: str
    notes: str


Caches = Mapping[str, Mapping[str, Array]]
"""The arrays of each of CACHES by name: the result of its `dump`; as bits, the argument of its `restore`."""


def write_saved(path: Path, bundle: Bundle, snapshot: Snapshot, caches: Caches) -> None:
    """Write a stream to `path`. Raises BackendUnavailable on failure; an older file is then untouched."""
    facts = {
        "format_version": FORMAT_VERSION,
        "bundle_id": _bundle_id(bundle),
        "bundle": str(bundle.folder.resolve()),
        **snapshot.options,
        **{name: getattr(snapshot, name) for name in COUNTS},
        "pending": snapshot.pending,
        "notes": snapshot.notes,
        "waiting": [[frame.pending, frame.index] for frame in snapshot.waiting],
    }
    arrays = {f"waiting/{index}": frame.rows for index, frame in enumerate(snapshot.waiting)}
    arrays |= {f"{part}/{name}": array for part in CACHES for name, array in caches[part].items()}
    bits = {name: np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}") for name, array in arrays.items()}
    header = np.frombuffer(json.dumps(facts).encode(), dtype=np.uint8)
    partial = path.with_name(f".{path.name}-{os.getpid()}")
    _remove_left(path)
    try:
        with partial.open("wb") as file:
            np.savez(file, header=header, **bits)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise BackendUnavailable(
            f"the stream could not be saved to {path}: {error}",
            cause="the disk is full, or you may not write to that folder",
            fix="save it to another path; the stream itself continues",
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def _remove_left(path: Path) -> None:
    """Delete partial files of processes killed while saving to this path: a few hundred would fill the disk."""
    if os.name != "posix":
        return  # elsewhere os.kill(pid, 0) would end the process
    for left in path.parent.glob(f".{glob.escape(path.name)}-*"):
        pid = left.name.rpartition("-")[2]
        if pid.isdigit() and not _is_running(int(pid)):
            with suppress(OSError):
                left.unlink()


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def read_saved(path: Path, bundle: Bundle | None) -> tuple[Bundle, Snapshot, Caches]:
    """Read what write_saved wrote. Without a bundle, open the folder that the file names.

    Raises StreamError for a file that is missing, damaged, of another format or of another bundle, and what
    open_bundle raises.
    """
    facts, arrays = _read(path)
    try:
        bundle = bundle or open_bundle(facts["bundle"])
        if facts["bundle_id"] != _bundle_id(bundle):
            raise StreamError(
                f"{path} was saved with another bundle than {bundle.folder}",
                cause="the model was exported again, or this is another model: the saved caches do not fit it",
                fix=f"open it with the bundle that was at {facts['bundle']}, or start a new stream",
            )
        parts: dict[str, dict[str, Array]] = {part: {} for part in (*CACHES, "waiting")}
        for path_in_file, bits in arrays.items():
            part, _, name = path_in_file.partition("/")
            parts[part][name] = bits
        return bundle, _snapshot(facts, parts.pop("waiting"), bundle), parts
    except (KeyError, TypeError, ValueError) as error:
        raise StreamError(
            f"{path} has a missing or invalid field: {error!r}", cause="it is damaged", fix=ANOTHER
        ) from error


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Array]]:
    """The facts and the arrays' bits of a saved file."""
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            facts = json.loads(bytes(file["header"]))
            arrays = {name: file[name] for name in file.files if name != "header"}
    except FileNotFoundError:
        raise StreamError(
            f"{path} does not exist", expected="a stream written by PVCStream.save", fix=f"ls {path.parent}"
        ) from None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise StreamError(
            f"{path} cannot be read as a saved stream: {error}",
            cause="it is truncated or damaged, or another program wrote it",
            fix=ANOTHER,
        ) from error
    if not isinstance(facts, dict) or facts.get("format_version") != FORMAT_VERSION:
        raise StreamError(
            f"{path} was saved by another version of this program",
            expected=f"format version {FORMAT_VERSION}",
            fix="open it with the version that saved it, or start a new stream",
        )
    return facts, arrays


def _snapshot(facts: dict[str, Any], rows: Mapping[str, Array], bundle: Bundle) -> Snapshot:
    inputs_embeds = bundle.sessions["llm"].spec.input("inputs_embeds")
    waiting = []
    for at, (pending, index) in enumerate(facts["waiting"]):
        bits = rows[str(at)]
        shape = inputs_embeds.resolve({"batch": 1, "rows": len(bits)})[1:]
        frame_rows = from_bits(bits, "a waiting frame", inputs_embeds.dtype, shape)
        waiting.append(FrameRows(rows=frame_rows, pending=str(pending), index=int(index)))
    return Snapshot(
        options=StreamOptions(
            total_frames=_optional_int(facts["total_frames"]),
            ingest=facts["ingest"],
            max_waiting=int(facts["max_waiting"]),
            clock=facts["clock"],
            retain=_optional_int(facts["retain"]),
            reserve=int(facts["reserve"]),
        ),
        **{name: int(facts[name]) for name in COUNTS},
        waiting=tuple(waiting),
        pending=str(facts["pending"]),
        notes=str(facts["notes"]),
    )


def _optional_int(value: Any) -> int | None:
    return None if value is None else int(value)


def _bundle_id(bundle: Bundle) -> str:
    """A fingerprint of everything that determines a cache's meaning: the graphs' files, the limits, the target."""
    manifest = bundle.manifest
    graphs = {name: entry.sha256 for name, entry in manifest.files.items() if name.startswith("graphs/")}
    text = json.dumps([sorted(graphs.items()), manifest.target, manifest.precision, repr(manifest.limits)])
    return hashlib.sha256(text.encode()).hexdigest()
