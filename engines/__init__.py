"""The runtime: graphs, caches and streams, with numpy and the target's runtime. Never imports torch."""

from .answer import Answer, PushTiming
from .bundle import Bundle, open_bundle
from .stream import PVCStream

open_stream = PVCStream.open

__all__ = ["Answer", "Bundle", "PVCStream", "PushTiming", "open_bundle", "open_stream"]
