"""Checks of a checkpoint folder before anything in it is read: no folder, or files that are not there yet."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from .config_keys import CONFIG_FILE

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
TOKENIZER_FILE = "tokenizer.json"
LFS_POINTER = b"version https://git-lfs"
READ = (".json", ".safetensors", ".model", ".txt")
"""Suffixes of the files that are read: configuration, weights, tokenizer."""
BROKEN, FETCH_AGAIN = "a broken download", "fetch the file again"
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
"""OWNER/NAME."""


def check_folder(folder: Path) -> None:
    """Raise CheckpointError unless `folder` has a config.json and real files.

    A file that is read must be neither a dangling link, as in an unfinished hub cache, nor a git-lfs pointer.
    """
    if not folder.exists() and HUB_NAME.fullmatch(folder.as_posix()):
        raise CheckpointError(
            f"there is no folder {folder}, and models are not downloaded from the Hugging Face hub automatically",
            expected="a folder on this machine",
            cause=f"{folder} is a name on the hub, or a path that is relative to another folder than {Path.cwd()}",
            fix=f"hf download {folder.as_posix()} --local-dir {folder.name}, then pass {folder.name}",
        )
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.suffix in READ:
            _check_is_there(path)
    if not (folder / CONFIG_FILE).is_file():
        found = f"contains {listing(p.name for p in folder.iterdir())}" if folder.is_dir() else "is not a folder"
        raise CheckpointError(
            f"{folder} is not a checkpoint folder: it {found}",
            expected=f"a folder with {CONFIG_FILE} and *.safetensors",
            fix=f"pass the folder that contains {CONFIG_FILE}",
        )


def _check_is_there(path: Path) -> None:
    if path.is_symlink() and not path.exists():
        raise CheckpointError(
            f"{path} is a link to {path.readlink()}, which does not exist",
            expected="the file itself, or a link to it",
            cause="the hub cache was cleaned or copied without its blobs, or the download was interrupted",
            fix="download it again into a separate folder: hf download OWNER/NAME --local-dir FOLDER",
        )
    if path.is_file():
        with path.open("rb") as file:
            start = file.read(len(LFS_POINTER))
        if start == LFS_POINTER:
            raise CheckpointError(
                f"{path} is a git-lfs pointer, not the file itself",
                expected="the file that the pointer names",
                cause="the repository was cloned without git-lfs",
                fix=f"git -C {path.parent} lfs pull, or hf download OWNER/NAME --local-dir FOLDER",
            )


def read_json(path: Path) -> dict[str, Any]:
    """Read the object in a JSON file. Raises CheckpointError if there is none."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # not JSON, or not text
        raise CheckpointError(f"{path} is not JSON: {error}", cause=BROKEN, fix=FETCH_AGAIN) from error
    if not isinstance(data, dict):
        raise CheckpointError(
            f"{path} contains a JSON {type(data).__name__}", expected="a JSON object", fix=FETCH_AGAIN
        )
    return data


def listing(items: Iterable[str]) -> str:
    """Join the first ten names, sorted."""
    names = sorted(items)
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return (", ".join(names[:10]) or "nothing") + more
