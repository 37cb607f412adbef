"""The LLM of one stream: rows in, the last hidden row out, keys and values kept in a linear cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from .cache import LinearCache
from .session import Array, Session, require_finite


class LanguageModel:
    """Prefill, frame ingest and decode are one operation: `append` rows of embeddings."""

    def __init__(self, sessions: Mapping[str, Session]) -> None:
        self._embed, self._llm, self._head = sessions["embed"], sessions["llm"], sessions["head"]
        self._chunk = self._llm.spec.dims["rows"].max
        self.cache = LinearCache(self._llm.spec)

    def embed(self, ids: Sequence[int]) -> Array:
        """Token ids -> (L, E)."""
        pieces = [
            self._embed.run({"input_ids": np.asarray([ids[start : start + self._chunk]], dtype=np.int64)})[
                "inputs_embeds"
            ]
            for start in range(0, len(ids), self._chunk)
        ]
        embeds: Array = np.concatenate(pieces, axis=1)[0]
        return embeds

    def append(self, embeds: Array) -> Array:
        """Add rows (L, E) to the context, in pieces of at most `chunk`. Returns hidden (1, 1, E) of the last row.

        Raises StreamFull before anything is run if they do not fit, and NonFiniteError before a bad row is kept; rows
        of earlier pieces stay, so a caller that wants all or nothing truncates the cache.
        """
        self.cache.reserve(len(embeds))
        hidden: Array | None = None
        for start in range(0, len(embeds), self._chunk):
            piece = embeds[None, start : start + self._chunk]
            outputs = self._llm.run({"inputs_embeds": piece, **self.cache.feeds(piece.shape[1])})
            hidden = require_finite(outputs, "llm").pop("hidden")
            self.cache.append(outputs)
        assert hidden is not None, "append needs at least one row"
        return hidden

    def logits(self, hidden: Array) -> Array:
        """hidden (1, 1, E) -> float32 (V,)."""
        logits: Array = require_finite(self._head.run({"hidden": hidden}), "head")["logits"][0]
        return logits
