"""The runtime: graphs, caches and streams, with numpy and the target's runtime. Never imports torch."""

from .answer import Answer, PushTiming
from .bundle import Bundle, open_bundle
from .reopen import open_stream
from .stream import PVCStream

__all__ = ["Answer", "Bundle", "PVCStream", "PushTiming", "open_bundle", "open_stream"]
