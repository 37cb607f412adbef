"""Opens another source while the old one continues: a network camera may take half a minute to respond."""

from __future__ import annotations

from collections.abc import Callable
from queue import Empty, SimpleQueue
from threading import Thread

from engines.errors import MediaError, PVCError

from .addresses import Address
from .capture import Source

Opened = tuple[Address, Source | PVCError]


class Switching:
    """Opens one source at a time, on a thread."""

    def __init__(self, open_source: Callable[[Address], Source]) -> None:
        self._open = open_source
        self._done: SimpleQueue[Opened] = SimpleQueue()
        self._opening: Address | None = None
        self._abandoned = False

    def begin(self, address: Address) -> str:
        """Begin to open a source. Returns the reason if that is not possible now, otherwise ''."""
        if self._opening is not None:
            return f"{self._opening.name} is still being opened"
        self._opening = address
        Thread(target=self._run, args=(address,), name="switch", daemon=True).start()
        return ""

    def take(self) -> Opened | None:
        """The source that was opened, or its error; None if there is neither yet."""
        try:
            opened = self._done.get_nowait()
        except Empty:
            return None
        self._opening = None
        return opened

    def close(self) -> None:
        """Close opened sources; one still being opened is closed once it is open."""
        self._abandoned = True
        while (opened := self.take()) is not None:
            if not isinstance(opened[1], PVCError):
                opened[1].close()

    def _run(self, address: Address) -> None:
        try:
            source: Source | PVCError = self._open(address)
        except PVCError as error:
            source = error
        except OSError as error:
            source = MediaError(error.strerror or str(error))
        if self._abandoned and not isinstance(source, PVCError):
            source.close()
            return
        self._done.put((address, source))
