"""A checkpoint's facts to share with people who do not have it: names, shapes, dtypes and config.json, no weights.

It also works for a folder that does not load, since that is when the facts are needed.
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
"""In bytes; the limit of safetensors itself."""
A_PATH = re.compile(r"^(?:[~/\\.]|[A-Za-z]:)|[/\\].*[/\\]")
"""A path starts at a root or home, or has two separators, unlike OWNER/NAME."""
LEFT_OUT = "(a path)"


def share(folder: Path) -> dict[str, Any]:
    """Collect a folder's facts, from the headers of its files:

    config      the content of config.json, or null; strings that look like paths are omitted
    tensors     name -> [dtype, shape]
    index_only  names in the index that are in no file here
    unreadable  file -> reason
    Raises CheckpointError if there is neither a config.json nor *.safetensors nor their index.
    """
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    others = [folder / name for name in (CONFIG_FILE, INDEX_FILE) if (folder / name).is_file()]
    if not files and not others:
        held = f"contains {listing(path.name for path in folder.iterdir())}" if folder.is_dir() else "is not a folder"
        raise CheckpointError(
            f"{folder} is not a checkpoint folder: it {held}",
            expected=f"a folder with {CONFIG_FILE} or *.safetensors",
            fix=f"pass the folder that contains {CONFIG_FILE}",
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
            unreadable[path.name] = "it contains no JSON object"
    weight_map = read.get(INDEX_FILE, {}).get("weight_map")
    return {
        "config": _without_paths(read.get(CONFIG_FILE)),
        "tensors": tensors,
        "index_only": sorted(set(weight_map if isinstance(weight_map, dict) else ()) - tensors.keys()),
        "unreadable": unreadable,
    }


def _header(path: Path) -> dict[str, list[Any]]:
    """Read dtype and shape by tensor name. Metadata is omitted, since it may contain anything."""
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
