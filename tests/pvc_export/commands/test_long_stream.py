"""Five hundred frames: each equals the reference and writes the same number of bytes, and memory does not grow."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from engines import open_bundle
from engines.metrics import metrics_of
from engines.vision import VisionEncoder
from pvc_export.graphs.models import LoadedModel
from pvc_ref import VisionState

NUM_FRAMES = 500
ROOT = Path(__file__).parents[3]


def camera(num_frames: int, size: int) -> np.ndarray:
    """(T, S, S, 3) uint8: a moving picture with noise, so that all frames differ."""
    rng = np.random.default_rng(7)
    base = np.clip(rng.normal(128, 60, (size, size, 3)), 0, 255)
    frames = [np.roll(base, 3 * t, axis=1) + rng.normal(0, 4, base.shape) for t in range(num_frames)]
    return np.clip(frames, 0, 255).astype(np.uint8)


def test_every_one_of_500_frames_equals_the_reference(bundle_fp32: Path, tiny: LoadedModel) -> None:
    bundle = open_bundle(bundle_fp32)
    window = bundle.manifest.limits.window
    encoder, state = VisionEncoder(bundle.sessions), None
    memory, written, worst = bundle.sessions["temporal"].memory, [], {"rel_l2": 0.0, "worst_token": 0.0}
    texts = set()
    for frame in camera(NUM_FRAMES, bundle.manifest.shape.image_size):
        memory.traffic.clear()
        encoded = encoder.encode(frame)
        encoder.commit(encoded)
        written.append(memory.traffic.state)
        with torch.no_grad():
            want, state = tiny.model.encode_frame(torch.from_numpy(frame)[None], state, window=window)
        difference = metrics_of(encoded.frame_embeds, want[0].numpy())
        worst = {metric: max(value, getattr(difference, metric)) for metric, value in worst.items()}
        texts.add(encoded.frame_embeds.tobytes())
    assert isinstance(state, VisionState) and state.num_frames == encoder.ring.num_frames == NUM_FRAMES
    assert len(texts) == NUM_FRAMES
    for metric, value in worst.items():
        assert value <= 1e-5, metric
    rows = sum(s.row_bytes for s in bundle.manifest.graphs["temporal"].states)
    assert set(written) == {rows}  # frame 500 writes as much as frame 1: only the new rows


STREAM = """
import resource, sys
import numpy as np
from engines import PVCStream, open_bundle
from engines.vision import VisionEncoder

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

bundle = open_bundle(sys.argv[1])
encoder = VisionEncoder(bundle.sessions)
rng = np.random.default_rng(0)
size = bundle.manifest.shape.image_size
for t in range(1, 501):
    encoder.commit(encoder.encode(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)))
    if t in (50, 500):
        print(resident())
assert "torch" not in sys.modules and "onnx" not in sys.modules
"""


def test_500_frames_take_no_more_memory_than_50_and_no_torch(bundle_fp32: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", STREAM, str(bundle_fp32)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    at_50, at_500 = map(int, result.stdout.split())
    one_frame = 5 * 1024  # leaking a single row of the smallest tensor 450 times takes over two megabytes
    assert at_500 - at_50 < 450 * one_frame
