"""Encodes one camera frame through trunk, temporal and compressor, with the ring that remembers earlier frames."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from .cache import RingCache
from .errors import StreamError
from .memory import Array, Caches, DeviceArray, Tensor
from .session import Session, require_finite


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedFrame:
    """frame_embeds (M, E) on the host, and the frame's new cache rows, which only `commit` places.

    On a GPU new_rows are the session's output buffers: commit before the next frame of any stream is encoded.
    """

    frame_embeds: Array
    new_rows: Mapping[str, Tensor]


class VisionEncoder:
    """The streaming per-frame ViT of one stream, or of one episode of it."""

    def __init__(self, sessions: Mapping[str, Session], *, time_divisor: int = 1, caches: Caches | None = None) -> None:
        """A frame's time is its index / time_divisor: 1 for absolute time, the clip's length for fixed time."""
        self._sessions = sessions
        self.time_divisor = time_divisor
        spec, self._memory = sessions["temporal"].spec, sessions["temporal"].memory
        self._num_times = spec.num_times
        self.ring = RingCache(spec, self._memory, caches)

    def encode(self, frame: Tensor) -> EncodedFrame:
        """(S, S, 3) uint8 RGB -> its embeddings. Changes nothing until `commit`, so a failure loses nothing.

        Raises NonFiniteError if a graph returns NaN or infinity.
        """
        return self.encode_features(self.trunk(frame))

    def encode_static(self, frame: Array, *, num_repeats: int) -> Array:
        """A frame repeated `num_repeats` times, each made part of the past: (repeats * M, E).

        The trunk, which does not depend on time, runs once. Raises what `encode` raises.
        """
        trunk_features = self.trunk(frame)
        embeds = []
        for _ in range(num_repeats):
            encoded = self.encode_features(trunk_features)
            embeds.append(encoded.frame_embeds)
            self.commit(encoded)
        return np.concatenate(embeds)

    def trunk(self, frame: Tensor) -> Tensor:
        """(S, S, 3) uint8 RGB -> (1, N, C), independent of time. On a GPU, a buffer that the next frame overwrites."""
        batch = frame.front((1, *frame.shape)) if isinstance(frame, DeviceArray) else frame[None]
        return self._run("trunk", {"frame": batch})["trunk_features"]

    def encode_features(self, trunk_features: Tensor) -> EncodedFrame:
        """A frame's trunk features (1, N, C) -> its embeddings, at the ring's time. Otherwise like `encode`."""
        ring = self.ring
        if self._num_times is not None and ring.num_frames >= self._num_times:
            raise StreamError(
                f"this frame's time is {ring.num_frames}, but the bundle has only {self._num_times} frame times",
                expected=f"at most {self._num_times} frames with clock 'run-on'",
                cause="it was exported with --clock reanchor, which stores frame times as a table",
                fix="let the stream re-anchor: clock='reanchor', on the command line --clock reanchor; or export with "
                "--clock run-on",
            )
        time = np.asarray([ring.num_frames / self.time_divisor], dtype=np.float32)
        temporal = self._run("temporal", {"trunk_features": trunk_features, "frame_time": time, **ring.feeds()})
        features = temporal.pop("features")
        compressed = self._sessions["compressor"].run({"features": features, "frame_time": time})
        # Data that arrives on the host is checked. On a GPU that is only the end of the chain: see require_finite.
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
