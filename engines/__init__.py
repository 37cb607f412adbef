"""The runtime: graphs, caches and streams, with numpy and the target's runtime. Never imports torch."""

from .bundle import Bundle, open_bundle
from .stream import Answer, PushTiming, PVCStream, open_stream

__all__ = ["Answer", "Bundle", "PVCStream", "PushTiming", "open_bundle", "open_stream"]
