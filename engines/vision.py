"""One camera frame through trunk, temporal and compressor, with the ring that remembers its past."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from .cache import FeatureCache, RingCache
from .errors import StreamError
from .memory import Array, DeviceArray, Tensor
from .session import Session, require_finite


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedFrame:
    """frame_embeds (M, E) on the host, and what is kept of the frame, which is placed only by `commit`.

    On a GPU new_rows and trunk_features are the sessions' output buffers: commit before the next frame of any stream
    is encoded.
    """

    frame_embeds: Array
    new_rows: Mapping[str, Tensor]
    trunk_features: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Anchor:
    """Where a stream's time starts. Replaced as a whole, so that an interrupt finds the old one or the new one.

    ring         the frames since then, by their time
    spare        a second ring, for the next anchor; None for a clock that runs on
    first_frame  the frame that has time 0, of all that were pushed
    index        counts anchors; the first one is where the stream began
    """

    ring: RingCache
    spare: RingCache | None = None
    first_frame: int = 0
    index: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Replay:
    """The retained frames once more, from time 0, and a new frame after them.

    anchor        not adopted yet: its ring holds the retained frames, and not the new one
    frame_embeds  (M, E) of each retained frame on the host, oldest first
    newest        the new frame, to be committed once the anchor is adopted
    """

    anchor: Anchor
    frame_embeds: tuple[Array, ...]
    newest: EncodedFrame


class VisionEncoder:
    """The streaming per-frame ViT of one stream."""

    def __init__(self, sessions: Mapping[str, Session], *, time_divisor: int = 1, retain: int = 0) -> None:
        """A frame's time is its index / time_divisor: 1 for absolute time, the clip's length for fixed time.

        The last `retain` frames can be replayed: their features and a second ring take memory from the start.
        """
        self._sessions = sessions
        self.time_divisor = time_divisor
        spec, self._memory = sessions["temporal"].spec, sessions["temporal"].memory
        self._num_times = spec.num_times
        self.anchor = Anchor(
            ring=RingCache(spec, self._memory), spare=RingCache(spec, self._memory) if retain else None
        )
        self.retained = FeatureCache(spec, retain, self._memory)

    @property
    def ring(self) -> RingCache:
        return self.anchor.ring

    @property
    def num_frames(self) -> int:
        """Of all frames, those before the anchor included."""
        return self.anchor.first_frame + self.ring.num_frames

    def encode(self, frame: Tensor) -> EncodedFrame:
        """(S, S, 3) uint8 RGB -> its embeddings. Changes nothing until `commit`, so a failure loses nothing.

        Raises NonFiniteError if a graph returns NaN or infinity.
        """
        return self._over_time(self._trunk(frame), self.ring)

    def encode_anew(self, frame: Tensor) -> Replay:
        """(S, S, 3) uint8 RGB, at the time after the retained frames, which are replayed from time 0 on.

        Changes nothing but the spare ring until the replay's anchor is adopted. Raises what `encode` raises.
        """
        spare, num_frames = self.anchor.spare, self.num_frames
        assert spare is not None, "nothing was retained"
        trunk_features = self._trunk(frame)
        spare.reset()
        kept, embeds = self.retained.last(num_frames), []
        for features in kept:
            encoded = self._over_time(features, spare)
            embeds.append(encoded.frame_embeds)
            spare.push(encoded.new_rows)
        anchor = Anchor(ring=spare, spare=self.ring, first_frame=num_frames - len(kept), index=self.anchor.index + 1)
        newest = self._over_time(trunk_features, spare)
        return Replay(anchor=anchor, frame_embeds=tuple(embeds), newest=newest)

    def encode_static(self, frame: Array, *, num_repeats: int) -> Array:
        """A frame that stands still for `num_repeats` frames, each made part of the past: (repeats * M, E).

        What knows no time, the trunk, runs once. Raises what `encode` raises.
        """
        trunk_features = self._trunk(frame)
        embeds = []
        for _ in range(num_repeats):
            encoded = self._over_time(trunk_features, self.ring)
            embeds.append(encoded.frame_embeds)
            self.commit(encoded)
        return np.concatenate(embeds)

    def _trunk(self, frame: Tensor) -> Tensor:
        batch = frame.front((1, *frame.shape)) if isinstance(frame, DeviceArray) else frame[None]
        return self._run("trunk", {"frame": batch})["trunk_features"]

    def _over_time(self, trunk_features: Tensor, ring: RingCache) -> EncodedFrame:
        if self._num_times is not None and ring.num_frames >= self._num_times:
            raise StreamError(
                f"this frame's time is {ring.num_frames}, and the bundle knows {self._num_times} frame times",
                expected=f"at most {self._num_times} frames under clock 'run-on'",
                cause="it was exported with --clock reanchor, which keeps frame times as a table",
                fix="let the stream re-anchor: clock='reanchor', on the command line --clock reanchor; or export with "
                "--clock run-on",
            )
        time = np.asarray([ring.num_frames / self.time_divisor], dtype=np.float32)
        temporal = self._run("temporal", {"trunk_features": trunk_features, "frame_time": time, **ring.feeds()})
        features = temporal.pop("features")
        compressed = self._sessions["compressor"].run({"features": features, "frame_time": time})
        # What comes to the host is looked at. On a GPU that is the end of the chain: see require_finite.
        embeds = self._memory.to_host(compressed["frame_embeds"])
        require_finite({"frame_embeds": embeds}, "compressor")
        return EncodedFrame(frame_embeds=embeds[0], new_rows=temporal, trunk_features=trunk_features)

    def _run(self, graph: str, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return require_finite(self._sessions[graph].run(inputs), graph)

    def commit(self, encoded: EncodedFrame) -> None:
        """Make an encoded frame part of the past."""
        # Interrupted here, the oldest retained frame is lost early. The next frame takes its place before any replay.
        self.retained.push(encoded.trunk_features, self.num_frames)
        self.ring.push(encoded.new_rows)

    def copy_from(self, other: VisionEncoder) -> None:
        """Take over another encoder's ring and retained frames, copied where they live. This one is fresh; the anchor's
        place in the stream is not part of it."""
        self.ring.copy_from(other.ring)
        self.retained.copy_from(other.retained)

    def reset(self) -> None:
        self.anchor = replace(self.anchor, first_frame=0, index=0)
        self.ring.reset()
        if self.anchor.spare is not None:
            self.anchor.spare.reset()
        self.retained.reset()
