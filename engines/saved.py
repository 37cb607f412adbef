"""A stream on disk: its caches, its clock and anchor, the text and frames that wait. One .npz file, no pickle.

A cache is written by its rows in use, as plain bits, so that every dtype survives and a file made on a GPU opens on a
CPU of the same bundle. The file replaces an older one in one step: a kill leaves one of the two, whole.
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
    """What PVCStream is made with, besides its bundle."""

    total_frames: int | None
    ingest: Ingest
    max_waiting: int
    clock: Clock | None
    retain: int | None
    reserve: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """Where a stream stands: everything but what its caches hold.

    num_frames                of its ring, since its anchor
    language_rows             in its LLM's cache
    first_frame, num_anchors  of its anchor (stream.Anchor)
    waiting, pending          of its context; streams may share frames that wait
    notes                     for its next start
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
"""The arrays of each of CACHES by name: what its `dump` returns; as bits, what its `restore` takes."""


def write_saved(path: Path, bundle: Bundle, snapshot: Snapshot, caches: Caches) -> None:
    """Write a stream to `path`. Raises BackendUnavailable if it cannot; then an older file is untouched."""
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
            cause="the disk is full, or the folder is not yours to write to",
            fix="save it to another path: the stream itself goes on",
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def _remove_left(path: Path) -> None:
    """What processes that were killed while they saved to this path have left: after some hundred, a full disk."""
    if os.name != "posix":
        return  # elsewhere nobody can be asked without being ended
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
    """What write_saved wrote. Without a bundle the folder that the file names is opened.

    Raises StreamError for a file that is missing, damaged, of another format or of another bundle, and what
    open_bundle raises.
    """
    facts, arrays = _read(path)
    try:
        bundle = bundle or open_bundle(facts["bundle"])
        if facts["bundle_id"] != _bundle_id(bundle):
            raise StreamError(
                f"{path} was saved with another bundle than {bundle.folder}",
                cause="the model was exported again, or this is another model: the saved caches mean nothing to it",
                fix=f"open it with the bundle that was at {facts['bundle']}, or start a new stream",
            )
        parts: dict[str, dict[str, Array]] = {part: {} for part in (*CACHES, "waiting")}
        for path_in_file, bits in arrays.items():
            part, _, name = path_in_file.partition("/")
            parts[part][name] = bits
        return bundle, _snapshot(facts, parts.pop("waiting"), bundle), parts
    except (KeyError, TypeError, ValueError) as error:
        raise StreamError(
            f"{path} lacks or garbles a field of a saved stream: {error!r}", cause="it is damaged", fix=ANOTHER
        ) from error


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Array]]:
    """The facts and the arrays' bits of a file of this format."""
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
            cause="it was cut short or damaged, or it is another program's file",
            fix=ANOTHER,
        ) from error
    if not isinstance(facts, dict) or facts.get("format_version") != FORMAT_VERSION:
        raise StreamError(
            f"{path} is a saved stream of another version of this program",
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
        frame_rows = from_bits(bits, "a frame that waits", inputs_embeds.dtype, shape)
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
    """A fingerprint of everything that gives a cache its meaning: the graphs' files, the limits, the target."""
    manifest = bundle.manifest
    graphs = {name: entry.sha256 for name, entry in manifest.files.items() if name.startswith("graphs/")}
    text = json.dumps([sorted(graphs.items()), manifest.target, manifest.precision, repr(manifest.limits)])
    return hashlib.sha256(text.encode()).hexdigest()
