"""A stream's snapshots, from which whoever inherits it goes on.

    SESSION/00000003-OWNER.pvc   a line of JSON, then what PVCStream.save wrote; nothing, of a stream without frames

Who takes a stream up writes its snapshot anew with the next number, under its own name. The highest number holds: an
owner that finds another's above its own has lost the stream, and never writes over the other's, however long it was cut
off. Of two that take one up at the same moment, the last name in the alphabet holds it.
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
    """Where a stream stood.

    session      its id
    owner        of letters, digits, _, - and #; generation: how many had the stream before, and this one
    next_index   of the frame that comes next; num_frames: that its stream has seen
    is_released  the owner has let go of it, so nothing came after this
    is_untold    frames may have been lost before this, which nobody was told yet; anew: why it began anew, likewise
    told_index, told  of the frame whose sender was told last of a loss, and what: it may not have heard
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
    """A folder's name for any id, a different one for each."""
    name = quote(session, safe="").replace(".", "%2E")
    return name if len(name) <= MOST_NAME else f"{name[:40]}~{hashlib.sha256(session.encode()).hexdigest()}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """A snapshot. saved: bytes that PVCStream.open reads; empty of a stream without frames."""

    standing: Standing
    saved: bytes


class Snapshots:
    """Those of one owner, in a store that all owners share. Every method raises what the store raises."""

    def __init__(self, store: Store, *, owner: str) -> None:
        self.store, self.owner = store, owner

    def newest(self, session: str) -> tuple[int, str] | None:
        """Number and owner of the snapshot that holds; None where there is none. Reads a listing alone."""
        return max(self._ranks(session), default=None)

    def read(self, session: str) -> Found | None:
        """The snapshot that holds; None where there is none.

        Raises StreamError for one that is damaged; `Damaged` has what is known of it.
        """
        for _ in range(5):  # whoever takes it up at this moment removes what was just listed
            rank = self.newest(session)
            if rank is None:
                return None
            content = self.store.read(Standing(session=session, owner=rank[1], generation=rank[0]).name)
            if content is not None:
                return _decoded(content, session, rank)
        return None

    def write(self, standing: Standing, saved: bytes) -> None:
        """In one step, in place of the one of the same number. Those of lower numbers are removed."""
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
    """A snapshot that cannot be read. rank: its number and owner."""

    def __init__(self, what: str, *, rank: tuple[int, str] = (0, ""), cause: str = "", fix: str = "") -> None:
        super().__init__(what, cause=cause, fix=fix)
        self.rank = rank


def saved_bytes(save: Any) -> bytes:
    """What `save(path)` writes, PVCStream.save. Raises what it raises."""
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
            f"the snapshot of stream {session!r} is damaged, or of another version of this program", rank=rank,
            cause="its file was changed or cut by something else", fix="the stream starts anew",
        )  # fmt: skip
    return Found(standing=standing, saved=saved)
