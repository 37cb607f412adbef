"""Resuming an export that was killed or lost power: graphs that it finished are not written again.

A large model's graphs take minutes each. Every finished graph is noted with its key and hashes next to the temporary
bundle, and the next export of the same model, request and versions takes over the intact ones. A cancelled export
cleans up after itself, so there is nothing to resume.

    finished.json   graph -> its key and the hashes of its files    left/   graphs of a dead export, and left.json
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from engines.bundle import graph_path
from engines.manifest import FileEntry, hash_file
from engines.spec import GraphSpec

FINISHED, LEFT, LEFT_NOTE = "finished.json", "left", "left.json"


class Resume:
    """The graphs of one export. `holder` is its temporary folder, which contains the bundle's folder.

    facts  everything, besides its spec, that a graph's files depend on
    """

    def __init__(self, holder: Path, facts: Mapping[str, Any]) -> None:
        self._holder, self._facts = holder, facts
        self._left, self._finished = _read(holder / LEFT_NOTE), dict[str, Any]()

    def take_over(self, name: str, spec: GraphSpec, folder: Path) -> bool:
        """Move a dead export's graph into the bundle, if it has the same key and is intact. Returns whether it did."""
        noted = self._left.get(name, {})
        if noted.get("key") != self._key(spec):
            return False
        files = {path: self._holder / LEFT / Path(path).name for path in noted["files"]}
        for path, source in files.items():
            if not source.is_file() or asdict(hash_file(source)) != noted["files"][path]:
                return False
        for path, source in files.items():
            source.rename(folder / path)
        self._note(name, noted)
        return True

    def finish(self, name: str, spec: GraphSpec, folder: Path) -> None:
        """Note that a graph has been written."""
        paths = [path for path in (graph_path(name), f"{graph_path(name)}.data") if (folder / path).is_file()]
        self._note(name, {"key": self._key(spec), "files": {p: asdict(hash_file(folder / p)) for p in paths}})

    def hashes(self) -> dict[str, FileEntry]:
        """Hashes of every finished graph's files, by path in the bundle."""
        return {path: FileEntry(**entry) for noted in self._finished.values() for path, entry in noted["files"].items()}

    def _note(self, name: str, noted: Any) -> None:
        self._finished[name] = noted
        (self._holder / FINISHED).write_text(json.dumps(self._finished), encoding="utf-8")

    def _key(self, spec: GraphSpec) -> str:
        text = json.dumps({**self._facts, "spec": spec.to_json()}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def inherit(dead: Path, holder: Path) -> None:
    """Move a dead export's finished graphs to the export that replaces it."""
    with suppress(OSError):
        if (dead / FINISHED).is_file() and not (holder / LEFT).exists():
            (dead / FINISHED).rename(holder / LEFT_NOTE)
            (dead / "bundle" / "graphs").rename(holder / LEFT)


def _read(path: Path) -> dict[str, Any]:
    """Read a note; empty if there is none, or if a power cut truncated it."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
