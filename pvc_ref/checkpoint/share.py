"""What may be shown of a checkpoint to people who do not have it: names, shapes, dtypes and config.json, no weight.

Also of a folder that does not load, for that is when it is asked for.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from .config_keys import CONFIG_FILE
from .files import INDEX_FILE, listing, read_json

HEADER_LIMIT = 100_000_000
"""Bytes, as safetensors has it."""
A_PATH = re.compile(r"^(?:[~/\\.]|[A-Za-z]:)|[/\\].*[/\\]")
"""From a root or a home, or with two separators, which OWNER/NAME does not have."""
LEFT_OUT = "(a path)"


def share(folder: Path) -> dict[str, Any]:
    """Of a folder, read from the headers of its files:

    config      the content of config.json, or null; strings that look like paths are left out
    tensors     by name, [dtype, shape]
    index_only  names in the index that no file here holds
    unreadable  by file, why
    Raises CheckpointError if there is neither a config.json nor *.safetensors nor their index.
    """
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    others = [folder / name for name in (CONFIG_FILE, INDEX_FILE) if (folder / name).is_file()]
    if not files and not others:
        held = f"holds {listing(path.name for path in folder.iterdir())}" if folder.is_dir() else "is not a folder"
        raise CheckpointError(
            f"{folder} is no checkpoint folder: it {held}",
            expected=f"{CONFIG_FILE} or *.safetensors in it",
            fix=f"give the folder that holds {CONFIG_FILE}",
        )
    tensors: dict[str, list[Any]] = {}
    unreadable: dict[str, str] = {}
    for path in files:
        try:
            tensors.update(_header(path))
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            unreadable[path.name] = f"{type(error).__name__}: {path.name} has no safetensors header"
    read: dict[str, dict[str, Any]] = {}
    for path in others:
        try:
            read[path.name] = read_json(path)
        except (CheckpointError, OSError):
            unreadable[path.name] = "it holds no JSON object"
    weight_map = read.get(INDEX_FILE, {}).get("weight_map")
    return {
        "config": _without_paths(read.get(CONFIG_FILE)),
        "tensors": tensors,
        "index_only": sorted(set(weight_map if isinstance(weight_map, dict) else ()) - tensors.keys()),
        "unreadable": unreadable,
    }


def _header(path: Path) -> dict[str, list[Any]]:
    """By name, dtype and shape. Its metadata is left out: anything may be in it."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > min(HEADER_LIMIT, path.stat().st_size):
            raise ValueError("no header")
        header = json.loads(file.read(size))
    return {name: [entry["dtype"], entry["shape"]] for name, entry in header.items() if name != "__metadata__"}


def _without_paths(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_paths(item) for item in value]
    return LEFT_OUT if isinstance(value, str) and A_PATH.search(value) else value
