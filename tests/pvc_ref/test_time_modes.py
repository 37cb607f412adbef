"""The time of a frame: absolute, fixed, relative."""

from __future__ import annotations

import pytest
import torch

from pvc_ref import PVC, PVCConfig
from pvc_ref.errors import InputError

from .test_streaming import CONFIG, FIXED, RELATIVE, W, make_double, random_frames, stream

pytestmark = pytest.mark.usefixtures("no_grad")


def test_frame_times_of_every_mode() -> None:
    def times(config: PVCConfig, total_frames: int | None = None) -> list[float]:
        model = PVC(config)
        return model.frame_times(0, 4, total_frames=total_frames, device=torch.device("cpu")).tolist()

    assert times(CONFIG) == [0, 1, 2, 3]
    assert times(FIXED, 8) == [0, 1 / 8, 2 / 8, 3 / 8]
    assert times(RELATIVE) == [0, 1 / 4, 2 / 4, 3 / 4]


def test_fixed_time_streams_when_the_length_is_known() -> None:
    model = make_double(FIXED)
    frames = random_frames(2, W + 3, seed=12)
    clip = model.encode_clip(frames, window=W, total_frames=10)
    streamed, _ = stream(model, frames, window=W, total_frames=10)
    torch.testing.assert_close(streamed, clip, rtol=0, atol=1e-12)  # worst 1.1e-14
    assert (clip - model.encode_clip(frames, window=W, total_frames=20))[:, 1:].abs().max() > 1e-3


def test_fixed_time_refuses_an_unknown_length() -> None:
    model = PVC.random(FIXED, seed=2)
    frames = random_frames(1, 2, seed=13)
    with pytest.raises(InputError, match="pass total_frames="):
        model.encode_frame(frames[:, 0])
    with pytest.raises(InputError, match="pass total_frames="):
        model.encode_clip(frames)


def test_relative_time_changes_past_frames_when_the_clip_grows() -> None:
    """Frame 0 does not change: it is at time 0 in any clip and sees no other frame. All other frames change."""
    frames = random_frames(1, 6, seed=14)
    model = PVC.random(RELATIVE, seed=2)
    differs = (model.encode_clip(frames[:, :5]) - model.encode_clip(frames)[:, :5]).abs().amax(dim=(0, 2, 3))
    assert differs[0] < 1e-5 < 1e-4 < differs[1:].min()  # frame 0: 0; the others: at least 8.1e-3
    model = PVC.random(CONFIG, seed=2)
    differs = (model.encode_clip(frames[:, :5]) - model.encode_clip(frames)[:, :5]).abs()
    assert differs.max() < 1e-5  # absolute time: worst 2.6e-6


def test_relative_time_refuses_to_stream_and_says_what_to_do() -> None:
    model = PVC.random(RELATIVE, seed=2)
    with pytest.raises(InputError, match="'relative' cannot be streamed") as info:
        model.encode_frame(random_frames(1, 1, seed=15)[:, 0])
    assert info.value.fix.startswith("use encode_clip on the whole clip, or a model")
