"""The blocks of Python on the pages, with the names that a page leaves to its reader."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest

from engines.synthetic import render_clip

from .commands import ADDRESS, ROOT, python_blocks


def blocks_of(page: str) -> list[str]:
    return python_blocks((ROOT / page).read_text(encoding="utf-8"))


def readers_names() -> dict[str, Any]:
    frames = list(render_clip(4, seed=2))
    return {"camera": frames, "frame_bgr": frames[0], "photo": np.ascontiguousarray(frames[-1])}


def execute(source: str, page: str, names: dict[str, Any]) -> dict[str, Any]:
    """Raises whatever the block does. Returns its names."""
    space = {"__name__": "page", **names}
    exec(compile(source, page, "exec"), space)
    return space


def openai_block(address: str, root: Path) -> None:
    """The block of serve.md, beside a server at this address, with data in place of its dots."""
    (source,) = blocks_of("docs/serve.md")
    assert ADDRESS in source
    source = source.replace(ADDRESS, address)
    jpeg, mp4 = (base64.b64encode((root / name).read_bytes()).decode() for name in ("card.jpg", "clip.mp4"))
    source = source.replace("data:image/jpeg;base64,...", f"data:image/jpeg;base64,{jpeg}")
    source = source.replace("data:video/mp4;base64,...", f"data:video/mp4;base64,{mp4}")
    source = source.replace("FIRST,SECOND,THIRD", ",".join([jpeg] * 3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "openai", stand_in())
        space = execute(source, "docs/serve.md", {})
        reply = space["about"](space["frames"], "What happens?")
        assert reply.choices[0].message.content, "the frames, as vLLM takes them"


def stand_in() -> ModuleType:
    """What the page uses of OpenAI's client, which `make serve-clients` has: the same requests, by httpx."""
    module = ModuleType("openai")
    module.OpenAI = OpenAI  # type: ignore[attr-defined]
    return module


class OpenAI:
    def __init__(self, *, base_url: str, api_key: str) -> None:
        self._url, self._key = base_url, api_key
        self.chat = SimpleNamespace(completions=SimpleNamespace(create=self._create))

    def _create(self, *, extra_body: dict[str, Any] | None = None, stream: bool = False, **body: Any) -> Any:
        headers = {"authorization": f"Bearer {self._key}"}
        told = {**body, "stream": stream, **(extra_body or {})}
        reply = httpx.post(f"{self._url}/chat/completions", json=told, headers=headers, timeout=120)
        assert reply.is_success, reply.text
        return _chunks(reply.text) if stream else _object(reply.text)


def _object(text: str) -> Any:
    return json.loads(text, object_hook=lambda fields: SimpleNamespace(**fields))


def _chunks(text: str) -> Iterator[Any]:
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]" and len(lines) > 2
    return map(_object, lines[:-1])
