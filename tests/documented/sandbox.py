"""A directory laid out as the pages assume: bundles, a checkpoint, clips, pictures, a recording."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import av
import numpy as np
from PIL import Image

from engines.golden.recording import GOLDEN_NAME
from engines.manifest import Manifest, hash_file
from engines.preprocess import to_model_frame
from engines.synthetic import render_clip
from engines.video import write_video
from pvc_export.graphs.models import LoadedModel
from pvc_export.parity.golden import record_golden
from pvc_ref.bundled import SHAPES_FOLDER
from pvc_ref.checkpoint.folder import save
from pvc_ref.shapes import make_clip

from ..pvc_export.parity.test_original import CONFIGS, chat_model, record_to, write_folder
from .commands import ROOT

NUM_FRAMES, NUM_PICTURES = 12, 4


@dataclass(frozen=True, slots=True)
class Sandbox:
    """The folder where commands run, and the commands that have run."""

    root: Path
    done: set[str] = field(default_factory=set)


def lay_out(root: Path, *, shapes: Path, mine: Path, tiny: LoadedModel) -> Sandbox:
    """Bundles are linked: no command writes into one that it reads."""
    (root / "build").mkdir(parents=True)
    for name in ("build/shapes", "build/demo", "BUNDLE"):
        (root / name).symlink_to(shapes)
    (root / "build/mine").symlink_to(mine)
    _add_golden(Path(shutil.copytree(mine, root / "build/golden")), tiny)
    (root / "shapes").symlink_to(SHAPES_FOLDER)
    (root / "checkout").symlink_to(ROOT)
    put_inputs(root, tiny)
    _show(root, size=Manifest.load(shapes).shape.image_size)
    _record(root)
    return Sandbox(root)


def put_inputs(root: Path, tiny: LoadedModel) -> None:
    """What exports take: a checkpoint and a clip; and the pages' own files."""
    root.mkdir(exist_ok=True)
    (root / "docs").symlink_to(ROOT / "docs")
    save(tiny.model, root / "checkpoint", tokenizer=tiny.tokenizer)
    write_video(root / "clip.mp4", _frames(), fps=10.0)


def _frames() -> Iterator[np.ndarray]:
    return render_clip(NUM_FRAMES, seed=5)


def _add_golden(bundle: Path, model: LoadedModel) -> None:
    """What --golden adds to an export."""
    manifest = Manifest.load(bundle)
    record_golden(model, manifest).save(bundle / GOLDEN_NAME)
    replace(manifest, files=manifest.files | {GOLDEN_NAME: hash_file(bundle / GOLDEN_NAME)}).save(bundle)


def _show(root: Path, *, size: int) -> None:
    """What a camera saw."""
    frames = list(_frames())
    for folder in ("frames", "videos/gate"):
        (root / folder).mkdir(parents=True)
    for name in ("videos/one.mp4", "videos/gate/two.mp4"):
        shutil.copy(root / "clip.mp4", root / name)
    for index, frame in enumerate(frames[:NUM_PICTURES]):
        _picture(frame).save(root / f"frames/{index:03d}.png")
    _raw(root / "camera.h264", frames)
    card = make_clip(1, num_frames=1, kind="card", size=224).bgr()[0]
    _picture(card).save(root / "card.jpg")
    _picture(frames[0]).save(root / "frame.jpg")
    np.save(root / "FRAMES.npy", np.stack([to_model_frame(frame, size=size) for frame in frames]))


def _raw(path: Path, frames: list[np.ndarray]) -> None:
    """H.264 without a container, so without timestamps."""
    with av.open(str(path), "w", format="h264") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="bgr24")))
        container.mux(stream.encode())


def _picture(bgr: np.ndarray) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(bgr[..., ::-1]))


def _record(root: Path) -> None:
    """A checkpoint with the recording of its own code."""
    model = chat_model(CONFIGS["pvc"])
    write_folder(model, CONFIGS["pvc"], root / "original")
    record_to(root / "RECORDING.npz", model)
