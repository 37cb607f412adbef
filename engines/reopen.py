"""A saved stream, opened again: what it says next is what it would have said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from .bundle import Bundle, open_bundle
from .errors import PVCError, StreamError
from .ingest import WaitingFrame
from .memory import Array, host_dtype
from .saved import bundle_id, read_saved
from .snapshot import Snapshot, StreamOptions
from .stream import PVCStream


def open_stream(path: str | Path, bundle: Bundle | None = None) -> PVCStream:
    """Continue a stream that PVCStream.save wrote, with its clock and everything that waits.

    `bundle` is the opened bundle it ran on; by default the folder that the file names is opened. Raises StreamError
    for a file that cannot be read or belongs to another bundle, and what open_bundle raises.
    """
    path = Path(path)
    facts, caches = read_saved(path)
    try:
        bundle = bundle or open_bundle(facts["bundle"])
        if facts["bundle_id"] != bundle_id(bundle):
            raise StreamError(
                f"{path} was saved with another bundle than {bundle.folder}: its caches mean nothing here. Open it "
                f"with the bundle that was at {facts['bundle']}, or start a new stream"
            )
        parts: dict[str, dict[str, Array]] = {"vision": {}, "language": {}, "waiting": {}, "retained": {}}
        for name, bits in caches.items():
            part, _, cache = name.partition("/")
            parts[part][cache] = bits
        snapshot = _snapshot(facts, parts["waiting"], bundle, path)
        stream = PVCStream(bundle, **snapshot.options)
        stream.vision.ring.restore(parts["vision"], int(facts["num_frames"]))
        stream.vision.retained.restore(parts["retained"])
        stream.language.cache.restore(parts["language"], int(facts["language_rows"]))
        snapshot.put_into(stream)
    except PVCError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise StreamError(
            f"{path} lacks or garbles a field of a saved stream: {error!r}. It is damaged: open an older one, or start "
            "a new stream"
        ) from error
    return stream


def _snapshot(facts: dict[str, Any], rows: dict[str, Array], bundle: Bundle, path: Path) -> Snapshot:
    """What Snapshot.to_json wrote, with the rows of the frames that waited."""
    return Snapshot(
        options=StreamOptions(
            total_frames=facts["total_frames"],
            ingest=facts["ingest"],
            max_waiting=int(facts["max_waiting"]),
            clock=facts["clock"],
            retain=facts["retain"],
        ),
        first_frame=int(facts["first_frame"]),
        num_anchors=int(facts["num_anchors"]),
        pending=str(facts["pending"]),
        waiting=tuple(
            WaitingFrame(
                rows=_waiting_rows(rows[str(index)], bundle, path), pending=str(pending), index=int(frame_index)
            )
            for index, (pending, frame_index) in enumerate(facts["waiting"])
        ),
    )


def _waiting_rows(bits: Array, bundle: Bundle, path: Path) -> Array:
    """The rows of a frame that waited. Raises StreamError for others."""
    tensor = bundle.sessions["llm"].spec.input("inputs_embeds")
    dtype, width = host_dtype(tensor.dtype), tensor.shape[-1]
    if bits.ndim != 2 or bits.shape[1] != width or bits.dtype != np.dtype(f"u{dtype.itemsize}"):
        raise StreamError(
            f"{path} holds {bits.dtype} {bits.shape} as a frame that waits, expected {dtype} (rows, {width}). "
            "It is damaged: open an older one, or start a new stream"
        )
    return bits.view(dtype)
