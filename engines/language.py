"""The LLM of one stream: rows in, the last hidden row out, keys and values in a linear cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from .cache import LinearCache
from .memory import Array, Caches
from .session import Session, require_finite


class LanguageModel:
    """Prefill, frame ingest and decode are one operation: `append` rows of embeddings."""

    def __init__(self, sessions: Mapping[str, Session], caches: Caches | None = None) -> None:
        self._embed, self._llm, self._head = sessions["embed"], sessions["llm"], sessions["head"]
        self._chunk = self._llm.spec.dims["rows"].max
        self._memory = self._llm.memory
        self.cache = LinearCache(self._llm.spec, self._memory, caches)

    def embed(self, ids: Sequence[int]) -> Array:
        """Token ids -> (L, E)."""
        pieces: list[Array] = []
        for start in range(0, len(ids), self._chunk):
            outputs = self._embed.run({"input_ids": np.asarray([ids[start : start + self._chunk]], dtype=np.int64)})
            pieces.append(self._embed.memory.to_host(outputs["inputs_embeds"]))
        embeds: Array = np.concatenate(pieces, axis=1)[0]
        return embeds

    def append(self, embeds: Array) -> Array:
        """Add rows (L, E) to the context, in passes of at most `chunk` rows. Returns hidden (1, 1, E) of the last row.

        Raises StreamFull before anything runs if they do not fit, and NonFiniteError before a bad row is kept. Rows of
        earlier passes stay, so a caller that needs all or nothing truncates the cache.
        """
        self.cache.reserve(len(embeds))
        hidden: Array | None = None
        for start in range(0, len(embeds), self._chunk):
            hidden = self._append_piece(embeds[None, start : start + self._chunk])
        assert hidden is not None, "append needs at least one row"
        return hidden

    def _append_piece(self, piece: Array) -> Array:
        """One pass over (1, L, E), L at most `chunk`. On failure, rows in use are unchanged and others cleared."""
        num_rows = piece.shape[1]
        try:
            outputs = self._llm.run({"inputs_embeds": piece, **self.cache.feeds(num_rows)})
            hidden = self._memory.to_host(outputs.pop("hidden"))
            require_finite({"hidden": hidden, **self.cache.new_rows(outputs, num_rows)}, "llm")
            self.cache.append(outputs, num_rows)
        except BaseException:
            self.cache.discard(num_rows)
            raise
        return hidden

    def logits(self, hidden: Array) -> Array:
        """hidden (1, 1, E) -> float32 (V,)."""
        logits = self._head.memory.to_host(self._head.run({"hidden": hidden})["logits"])
        require_finite({"logits": logits}, "head")
        row: Array = logits[0]
        return row
