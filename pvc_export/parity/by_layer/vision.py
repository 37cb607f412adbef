"""Check of a bundle's vision side against a reference whose weights stay in their files, in bounded memory.

Trunk and temporal layers stay in memory while the frames go through them, and a frame's tensors are freed once
compared. The compressor's matrices may be larger than both together, so it runs on all frames at once and reads each
matrix once.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest

import torch
from torch import Tensor

from engines.bundle import Bundle
from engines.memory import Array
from pvc_ref import PVC

from ...terminal.facts import give_back
from ..clip import check_clip
from ..clock import probe_clock
from ..edge_cases import probe_batch
from ..evidence import Evidence
from ..float16_on_cpu import Float16Products
from ..heat import HeatMap, heat_maps, worst_of
from ..metrics import Difference
from ..places import Rung
from ..recorded_stream import RecordedStream, stream_clip
from ..recording import (
    EMBEDS,
    FEATURES,
    SAMPLED_FRAMES,
    TRUNK_FEATURES,
    Progress,
    Recording,
    compare,
    noise_of,
    to_numpy,
    torch_features,
)
from ..rounding import Reference
from ..value_states import with_values
from .held import held


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """Result of the vision side.

    frame_embeds  (T, M, E) of the reference
    ended_early   whether a graph returned NaN, so that nothing can be checked after it
    """

    evidence: Evidence
    num_frames: int
    frame_embeds: Tensor
    ended_early: bool


@torch.no_grad()
def see(bundle: Bundle, reference: Reference, progress: Progress) -> Seen:
    """Check a stream: every frame, far ones, every time, and rows of a batch."""
    clip = check_clip(2 * bundle.manifest.limits.window + 2)
    recorded = stream_clip(bundle, clip, num_frames=0, progress=lambda x: progress(0.5 * x))
    evidence, own = Evidence(), _Side(reference.model)
    if recorded.frames.times:  # else the first one ended the stream
        evidence = _compare(bundle, reference, recorded, own, lambda x: progress(0.5 + 0.3 * x))
    if recorded.stop is None:
        recorded.vision.clear()
        values = with_values(bundle)
        evidence += probe_clock(values, reference, own.first) + probe_batch(values, reference)
    progress(1.0)
    return Seen(
        evidence=evidence + (recorded.stop or Evidence()),
        num_frames=recorded.num_frames,
        frame_embeds=own.embeds,
        ended_early=recorded.stop is not None,
    )


class _Side:
    """Tensors kept from the frames of the reference, or of its twin."""

    def __init__(self, model: PVC) -> None:
        self.model = model
        self.first: Recording = []
        self._patches, self._times = list[Tensor](), list[Tensor]()
        self.embeds = torch.empty(0)

    def keep(self, tensors: dict[str, Tensor], times: Tensor) -> dict[str, Array]:
        """Keep a frame's inputs of the compressor. Returns all its tensors for comparison."""
        self._patches.append(tensors[FEATURES])
        self._times.append(times)
        recorded = {name: to_numpy(tensor) for name, tensor in tensors.items()}
        if not self.first:
            self.first = [{name: recorded[name] for name in (TRUNK_FEATURES, FEATURES)}]
        return recorded

    def compress(self) -> Recording:
        """frame_embeds of every kept frame, computed together."""
        with Float16Products():
            self.embeds = self.model.compressor(torch.cat(self._patches), torch.cat(self._times))
        return [{EMBEDS: to_numpy(one)} for one in self.embeds.split(1)]


def _compare(
    bundle: Bundle, reference: Reference, recorded: RecordedStream, own: _Side, progress: Progress
) -> Evidence:
    """Compare every output of every frame, and measure the rounding noise of the first few frames."""
    manifest, frames, twin = bundle.manifest, recorded.frames, _Side(reference.twin)
    rung, temporal, times = Rung("bundle", manifest.precision), manifest.graphs["temporal"], frames.times
    found, maps = list[Difference](), list[HeatMap]()

    def hold(index: int, want: Recording, theirs: Recording) -> None:
        """Compare frames from `index` on."""
        some = slice(index, index + len(want))
        found.extend(compare(rung, recorded.vision[some], want, times[some]).differences)
        found.extend(noise_of(reference, want, theirs, times[some]).differences)
        each = zip(recorded.vision[some], want, frames.pixels[some], times[some], strict=True)
        maps.extend(one for frame in each for one in heat_maps(rung, *frame, config=reference.model.config))

    with held(reference, "trunk"), held(reference, "temporal"):
        both = zip_longest(
            torch_features(own.model, frames, temporal),
            torch_features(twin.model, frames.first(SAMPLED_FRAMES), temporal),
        )
        for index, (mine, theirs) in enumerate(both):
            hold(index, [own.keep(*mine)], [] if theirs is None else [twin.keep(*theirs)])
            give_back()
            progress((index + 1) / len(times))
    hold(0, own.compress(), twin.compress())
    return Evidence(differences=tuple(found), heat=worst_of(maps))
