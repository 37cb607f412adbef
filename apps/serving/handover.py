"""A stream's snapshots, from which another replica can continue it.

    SESSION/00000003-OWNER.pvc   a line of JSON, then the output of PVCStream.save; nothing if the stream has no frames

A replica that takes over a stream rewrites its snapshot with the next number, under its own name. The highest number
is valid: an owner that finds a higher one has lost the stream, and never overwrites the other's snapshot, however long
it was disconnected. If two take over at the same moment, the alphabetically last name wins.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from engines.errors import StreamError

from .stores import Store

FORMAT = 1
NAME = re.compile(r"(\d{8,})-([\w#-]+)\.pvc", re.ASCII)
MOST_NAME = 120


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """The state of a stream at its snapshot.

    session      its id
    owner        letters, digits, _, - and #; generation: number of owners so far, including this one
    next_index   index of the next frame; num_frames: frames in the stream
    is_released  the owner has released it, so no frames came after this snapshot
    is_untold    frames may have been lost, which is not reported yet; anew: reason for a restart not reported yet
    told_index, told  the last frame whose sender was told of a loss, and the text; it may not have been received
    """

    session: str
    owner: str
    generation: int
    next_index: int = 0
    num_frames: int = 0
    is_released: bool = False
    is_untold: bool = False
    anew: str = ""
    told_index: int = -1
    told: str = ""

    @property
    def name(self) -> str:
        return f"{folder_of(self.session)}/{self.generation:08}-{self.owner}.pvc"

    @property
    def rank(self) -> tuple[int, str]:
        return self.generation, self.owner


def folder_of(session: str) -> str:
    """A unique folder name for any id."""
    name = quote(session, safe="").replace(".", "%2E")
    return name if len(name) <= MOST_NAME else f"{name[:40]}~{hashlib.sha256(session.encode()).hexdigest()}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """A snapshot. saved: bytes for PVCStream.open; empty if the stream has no frames."""

    standing: Standing
    saved: bytes


class Snapshots:
    """One owner's snapshots, in a store shared by all owners. Every method raises what the store raises."""

    def __init__(self, store: Store, *, owner: str) -> None:
        self.store, self.owner = store, owner

    def newest(self, session: str) -> tuple[int, str] | None:
        """Number and owner of the valid snapshot; None if there is none. Reads only a listing."""
        return max(self._ranks(session), default=None)

    def read(self, session: str) -> Found | None:
        """The valid snapshot; None if there is none.

        Raises Damaged, a StreamError that has its number and owner, for a damaged one.
        """
        for _ in range(5):  # a replica taking over at this moment removes the snapshot just listed
            rank = self.newest(session)
            if rank is None:
                return None
            content = self.store.read(Standing(session=session, owner=rank[1], generation=rank[0]).name)
            if content is not None:
                return _decoded(content, session, rank)
        return None

    def write(self, standing: Standing, saved: bytes) -> None:
        """Write atomically, replacing the one with the same number. Those with lower numbers are removed."""
        self.store.write(standing.name, _encoded(standing, saved))
        for generation, owner in self._ranks(standing.session):
            if (generation, owner) < standing.rank:
                self.store.remove(replace(standing, generation=generation, owner=owner).name)

    def forget(self, session: str) -> None:
        self.store.remove_folder(folder_of(session))

    def _ranks(self, session: str) -> list[tuple[int, str]]:
        matches = map(NAME.fullmatch, self.store.names(folder_of(session)))
        return [(int(match[1]), match[2]) for match in matches if match]


class Damaged(StreamError):
    """A snapshot cannot be read. rank: its number and owner."""

    def __init__(self, what: str, *, rank: tuple[int, str] = (0, ""), cause: str = "", fix: str = "") -> None:
        super().__init__(what, cause=cause, fix=fix)
        self.rank = rank


def saved_bytes(save: Any) -> bytes:
    """The bytes that `save(path)`, PVCStream.save, writes. Raises what it raises."""
    with tempfile.TemporaryDirectory(prefix="pvc-snapshot-") as folder:
        path = Path(folder) / "stream.npz"
        save(path)
        return path.read_bytes()


def _encoded(standing: Standing, saved: bytes) -> bytes:
    facts = asdict(standing) | {"format": FORMAT, "bytes": len(saved), "sha256": hashlib.sha256(saved).hexdigest()}
    return json.dumps(facts).encode() + b"\n" + saved


def _decoded(content: bytes, session: str, rank: tuple[int, str]) -> Found:
    line, _, saved = content.partition(b"\n")
    try:
        facts = json.loads(line)
        told = {name: facts[name] for name in Standing.__dataclass_fields__}
        standing = Standing(**told)
        is_whole = facts["sha256"] == hashlib.sha256(saved).hexdigest() and facts["format"] == FORMAT
    except (ValueError, KeyError, TypeError):
        is_whole = False
    if not is_whole or standing.rank != rank or standing.session != session:
        raise Damaged(
            f"the snapshot of stream {session!r} is damaged, or was written by another version", rank=rank,
            cause="its file was changed or truncated from outside", fix="nothing to do: the stream starts from scratch",
        )  # fmt: skip
    return Found(standing=standing, saved=saved)
