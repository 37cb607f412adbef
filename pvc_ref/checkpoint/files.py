"""What is wrong with a checkpoint folder before anything in it is read: no folder, or files that are not there yet."""

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
"""Ends of the names of files that are read: configuration, weights, tokenizer."""
BROKEN, FETCH_AGAIN = "a broken download", "fetch the file again"
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
"""OWNER/NAME."""


def check_folder(folder: Path) -> None:
    """Raise CheckpointError unless `folder` holds a config.json, and all of its files that are read are the files
    themselves: no link to nowhere, as in an unfinished hub cache, and no git-lfs pointer."""
    if not folder.exists() and HUB_NAME.fullmatch(folder.as_posix()):
        raise CheckpointError(
            f"there is no folder {folder} here, and a name on the Hugging Face hub is not fetched by itself",
            expected="a folder on this machine",
            cause=f"{folder} is a name on the hub, or a path from another folder than {Path.cwd()}",
            fix=f"hf download {folder.as_posix()} --local-dir {folder.name}, and give {folder.name}",
        )
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.suffix in READ:
            _check_is_there(path)
    if not (folder / CONFIG_FILE).is_file():
        found = f"holds {listing(p.name for p in folder.iterdir())}" if folder.is_dir() else "is not a folder"
        raise CheckpointError(
            f"{folder} is no checkpoint folder: it {found}",
            expected=f"{CONFIG_FILE} and *.safetensors in it",
            fix=f"give the folder that holds {CONFIG_FILE}",
        )


def _check_is_there(path: Path) -> None:
    if path.is_symlink() and not path.exists():
        raise CheckpointError(
            f"{path} is a link to {path.readlink()}, which is not there",
            expected="the file itself, or a link to it",
            cause="a hub cache that was cleaned or copied without its blobs, or a download that was not finished",
            fix="download it again into a folder of its own: hf download OWNER/NAME --local-dir FOLDER",
        )
    if path.is_file():
        with path.open("rb") as file:
            start = file.read(len(LFS_POINTER))
        if start == LFS_POINTER:
            raise CheckpointError(
                f"{path} cannot be read: it is a git-lfs pointer and not the file itself",
                expected="the file, which the pointer names",
                cause="the repository was cloned without git-lfs",
                fix=f"git -C {path.parent} lfs pull, or hf download OWNER/NAME --local-dir FOLDER",
            )


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises CheckpointError if it holds none."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # not JSON, or not text
        raise CheckpointError(f"{path} is not JSON: {error}", cause=BROKEN, fix=FETCH_AGAIN) from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} holds a JSON {type(data).__name__}", expected="an object", fix=FETCH_AGAIN)
    return data


def listing(items: Iterable[str]) -> str:
    """The first ten, sorted."""
    names = sorted(items)
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return (", ".join(names[:10]) or "nothing") + more
