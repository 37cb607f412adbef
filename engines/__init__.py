"""The runtime: graphs, caches and streams, with numpy and the target's runtime. Never imports torch.

Note: these names import their modules on first use, so that a device that only builds engines needs no Pillow.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .answer import Answer, PushTiming
    from .bundle import Bundle, open_bundle
    from .stream import PVCStream

    open_stream = PVCStream.open

__all__ = ["Answer", "Bundle", "PVCStream", "PushTiming", "open_bundle", "open_stream"]

HOMES = {"Answer": "answer", "PushTiming": "answer", "Bundle": "bundle", "open_bundle": "bundle", "PVCStream": "stream"}


def __getattr__(name: str) -> Any:
    if name == "open_stream":
        return __getattr__("PVCStream").open
    if name not in HOMES:
        raise AttributeError(f"module 'engines' has no attribute {name!r}")
    return getattr(import_module(f".{HOMES[name]}", __name__), name)
