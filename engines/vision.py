"""One camera frame through trunk, temporal and compressor, with the ring that remembers its past."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from .cache import RingCache
from .memory import Array, Tensor
from .session import Session, require_finite


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedFrame:
    """frame_embeds (M, E) on the host, and the new cache rows, which are placed only by `commit`.

    On a GPU the rows are the session's output buffers: commit before the next frame of any stream is encoded.
    """

    frame_embeds: Array
    new_rows: Mapping[str, Tensor]


class VisionEncoder:
    """The streaming per-frame ViT of one stream."""

    def __init__(self, sessions: Mapping[str, Session], *, time_divisor: int = 1) -> None:
        """A frame's time is its index / time_divisor: 1 for absolute time, the clip's length for fixed time."""
        self._sessions = sessions
        self.time_divisor = time_divisor
        self._memory = sessions["temporal"].memory
        self.ring = RingCache(sessions["temporal"].spec, self._memory)

    @property
    def num_frames(self) -> int:
        return self.ring.num_frames

    def encode(self, frame: Array) -> EncodedFrame:
        """(S, S, 3) uint8 RGB -> its embeddings. Changes nothing until `commit`, so a failure loses nothing.

        Raises NonFiniteError if a graph returns NaN or infinity.
        """
        return self._over_time(self._run("trunk", {"frame": frame[None]}))

    def encode_static(self, frame: Array, *, num_repeats: int) -> Array:
        """A frame that stands still for `num_repeats` frames, each made part of the past: (repeats * M, E).

        What knows no time, the trunk, runs once. Raises what `encode` raises.
        """
        trunk = self._run("trunk", {"frame": frame[None]})
        embeds = []
        for _ in range(num_repeats):
            encoded = self._over_time(trunk)
            embeds.append(encoded.frame_embeds)
            self.commit(encoded)
        return np.concatenate(embeds)

    def _over_time(self, trunk: Mapping[str, Tensor]) -> EncodedFrame:
        time = np.asarray([self.ring.num_frames / self.time_divisor], dtype=np.float32)
        temporal = self._run("temporal", {**trunk, "frame_time": time, **self.ring.feeds()})
        features = temporal.pop("features")
        compressed = self._sessions["compressor"].run({"features": features, "frame_time": time})
        # What comes to the host is looked at. On a GPU that is the end of the chain: see require_finite.
        embeds = self._memory.to_host(compressed["frame_embeds"])
        require_finite({"frame_embeds": embeds}, "compressor")
        return EncodedFrame(frame_embeds=embeds[0], new_rows=temporal)

    def _run(self, graph: str, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return require_finite(self._sessions[graph].run(inputs), graph)

    def commit(self, encoded: EncodedFrame) -> None:
        """Make an encoded frame part of the past."""
        self.ring.push(encoded.new_rows)

    def reset(self) -> None:
        self.ring.reset()
