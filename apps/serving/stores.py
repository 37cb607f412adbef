"""Storage for snapshots: a folder shared by all machines, or anything fsspec supports.

A name is FOLDER/FILE. A write is atomic: a file is complete or absent, even if the writer is killed.
"""

from __future__ import annotations

import importlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from engines.errors import BackendUnavailable

PARTIAL = ".part-"


class Store(Protocol):
    """Every method raises BackendUnavailable if the store cannot be reached, is full, or denies access."""

    @property
    def where(self) -> str:
        """The store's place for messages, without a password."""

    def names(self, folder: str) -> tuple[str, ...]:
        """Files of a folder, without those still being written; empty if the folder does not exist."""

    def read(self, name: str) -> bytes | None:
        """The file's content; None if it does not exist."""

    def write(self, name: str, content: bytes) -> None:
        """Write atomically, replacing an existing file."""

    def remove(self, name: str) -> None:
        """Remove a file, which may be gone already."""

    def remove_folder(self, folder: str) -> None:
        """Remove a folder with its files; it may be gone already."""


def open_store(place: str) -> Store:
    """Open a path or an address such as s3://bucket/streams. An address needs fsspec; else BackendUnavailable."""
    if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*://", place) and not place.startswith("file://"):
        return FsspecStore(place)
    return FolderStore(Path(place.removeprefix("file://")))


class FolderStore:
    """Files in a folder, possibly on a network."""

    def __init__(self, root: Path) -> None:
        self._root = root
        with _explained(self.where, OSError):
            root.mkdir(parents=True, exist_ok=True)

    @property
    def where(self) -> str:
        return str(self._root)

    def names(self, folder: str) -> tuple[str, ...]:
        with _explained(self.where, OSError):
            try:
                return tuple(sorted(name for name in os.listdir(self._root / folder) if PARTIAL not in name))
            except FileNotFoundError:
                return ()

    def read(self, name: str) -> bytes | None:
        with _explained(self.where, OSError):
            try:
                return (self._root / name).read_bytes()
            except FileNotFoundError:
                return None

    def write(self, name: str, content: bytes) -> None:
        path = self._root / name
        partial = path.with_name(f"{path.name}{PARTIAL}{secrets.token_hex(4)}")
        with _explained(self.where, OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with partial.open("wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(partial, path)
            finally:
                partial.unlink(missing_ok=True)

    def remove(self, name: str) -> None:
        with _explained(self.where, OSError):
            (self._root / name).unlink(missing_ok=True)

    def remove_folder(self, folder: str) -> None:
        shutil.rmtree(self._root / folder, ignore_errors=True)


class FsspecStore:
    """Objects below an address. Listings are never cached, since another machine may have written."""

    def __init__(self, address: str) -> None:
        self._address = address.rstrip("/")
        with _explained(self.where, Exception):
            self._files, self._root = import_fsspec().core.url_to_fs(self._address)

    @property
    def where(self) -> str:
        return re.sub(r"//[^/@]*@", "//***@", self._address)

    def names(self, folder: str) -> tuple[str, ...]:
        with _explained(self.where, Exception):
            self._files.invalidate_cache()
            try:
                found = self._files.ls(f"{self._root}/{folder}", detail=False)
            except FileNotFoundError:
                return ()
            names = (str(path).rstrip("/").rpartition("/")[2] for path in found)
            return tuple(sorted(name for name in names if PARTIAL not in name))

    def read(self, name: str) -> bytes | None:
        with _explained(self.where, Exception):
            try:
                return bytes(self._files.cat_file(f"{self._root}/{name}"))
            except FileNotFoundError:
                return None

    def write(self, name: str, content: bytes) -> None:
        path = f"{self._root}/{name}"
        partial = f"{path}{PARTIAL}{secrets.token_hex(4)}"
        with _explained(self.where, Exception):
            self._files.makedirs(path.rpartition("/")[0], exist_ok=True)
            try:
                self._files.pipe_file(partial, content)
                self._files.mv(partial, path)
            except BaseException:
                with suppress(Exception):
                    self._files.rm_file(partial)
                raise

    def remove(self, name: str) -> None:
        with _explained(self.where, Exception), suppress(FileNotFoundError):
            self._files.rm_file(f"{self._root}/{name}")

    def remove_folder(self, folder: str) -> None:
        with _explained(self.where, Exception), suppress(FileNotFoundError):
            self._files.rm(f"{self._root}/{folder}", recursive=True)


def import_fsspec() -> Any:
    """Import fsspec. Raises BackendUnavailable without it."""
    try:
        importlib.import_module("fsspec.core")
        return importlib.import_module("fsspec")
    except ImportError as error:
        raise BackendUnavailable(
            f"snapshots at an address need the package fsspec, which cannot be imported here: {error}",
            fix="pip install fsspec and the package for the address, such as s3fs; a folder needs neither",
        ) from error


@contextmanager
def _explained(where: str, kind: type[Exception]) -> Iterator[None]:
    try:
        yield
    except BackendUnavailable:
        raise
    except kind as error:
        raise BackendUnavailable(
            f"snapshots at {where} cannot be read or written: {type(error).__name__}: {error}",
            expected="a folder or bucket that every machine may read and write",
            cause="it is full, unreachable, or denies access",
            fix="check the place; streams continue without snapshots",
        ) from error  # fmt: skip
