"""Streams of a real bundle in ONNX Runtime on the CPU, driven by random stories (tests/engines/stories.py).

Each stream equals a fresh stream that replays its events, bit for bit. Its next frame equals, within the committed
limits, the PyTorch reference over all frames together. Ingest is eager, because real arithmetic depends on how many
rows share a pass, and with lazy ingest that depends on when a question was asked.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engines import open_bundle
from engines.metrics import metrics_of
from engines.vision import VisionEncoder
from pvc_export.graphs.models import LoadedModel
from pvc_export.parity.limits import GATED
from pvc_ref.preprocess import resize_frame

from ....engines.stories import Streams, frames_of, run_stories, slot_off_by_one
from ....engines.story_oracles import NUM_FRAMES, Differs, Fresh, next_embeds_of

TRAINED = 4


class BesideReference(Streams):
    """Streams whose next frame is compared with the reference at the end of every story."""

    def __init__(self, loaded: LoadedModel, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.loaded = loaded

    def teardown(self) -> None:
        for live in self.live:
            clip = [self.frames[event] for event in frames_of(live.events)]
            clip.append(self.frames[NUM_FRAMES])
            got = next_embeds_of(live.stream, clip[-1])
            self._compare(got, self._whole_clip(clip)[-1], f"frame {len(clip) - 1}")
        super().teardown()

    def _whole_clip(self, clip: list[np.ndarray]) -> np.ndarray:
        size, window = self.loaded.config.vision.image_size, self.bundle.manifest.limits.window
        pixels = torch.from_numpy(np.stack([resize_frame(frame[..., ::-1], size=size) for frame in clip]))
        with torch.no_grad():
            embeds: np.ndarray = self.loaded.model.encode_clip(pixels[None], window=window)[0].numpy()
        return embeds

    def _compare(self, got: np.ndarray, want: np.ndarray, where: str) -> None:
        difference = metrics_of(got, want)
        for metric in GATED:
            if not getattr(difference, metric) <= (1e-9 if metric == "cosine_gap" else 1e-5):
                raise Differs(f"{where}: {metric} {getattr(difference, metric):.1e} against the reference")


@pytest.fixture(autouse=True)
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)


def run(folder: Path, tiny: LoadedModel, frames: list[np.ndarray]) -> None:
    bundle = open_bundle(folder, runtime="cpu", threads=1)
    bundle = replace(bundle, manifest=replace(bundle.manifest, trained_frames=TRAINED))
    run_stories(
        bundle,
        frames[: NUM_FRAMES + 1],
        [Fresh(bundle, frames)],
        ingests=[{"ingest": "eager"}],
        max_examples=10,
        num_steps=20,
        machine=partial(BesideReference, tiny),
    )


@pytest.mark.parametrize("name", ["bundle_fp32", "bundle_rows"])
def test_every_stream_is_its_story_and_what_the_reference_makes_of_it(
    name: str, tiny: LoadedModel, frames: list[np.ndarray], request: pytest.FixtureRequest
) -> None:
    """Covers both updates of the LLM's cache and both layouts of the ring."""
    run(request.getfixturevalue(name), tiny, frames)


def clock_one_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    encode = VisionEncoder.encode_features

    def late(self: VisionEncoder, features: Any) -> Any:
        num_frames = self.ring.num_frames
        self.time_divisor = num_frames / (num_frames + 1) if num_frames else 1  # type: ignore[assignment]
        return encode(self, features)

    monkeypatch.setattr(VisionEncoder, "encode_features", late)


@pytest.mark.parametrize("fault", [slot_off_by_one, clock_one_ahead], ids=lambda fault: fault.__name__)
def test_a_fault_that_a_fresh_stream_shares_is_found_by_the_reference(
    fault: Callable[[pytest.MonkeyPatch], None],
    bundle_fp32: Path,
    tiny: LoadedModel,
    frames: list[np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fault(monkeypatch)
    with pytest.raises(Differs, match="against the reference"):
        run(bundle_fp32, tiny, frames)
