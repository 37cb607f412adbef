"""Variants for `pvc-export bench`: the same streaming vision step, run in four ways.

Only the number of threads is set in all four; see baselines.py.
Dimension key:  as in engines/spec.py
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from engines.memory import Array
from engines.session import Session
from engines.spec import VISION_GRAPHS, Part, Quantization, StreamLimits
from engines.target import load_target
from engines.vision import VisionEncoder
from pvc_ref import PVC, PVCConfig, VisionState
from pvc_ref.config import CompressorConfig, VisionConfig

from ..graphs.eight_bit_rows import joined_states
from ..graphs.onnx_file import quiet_exporter
from ..graphs.sessions import open_graphs
from .baselines import default_export

TINY = PVCConfig.preset("tiny")
MID = replace(
    TINY,
    vision=VisionConfig(
        image_size=448, hidden_size=384, num_layers=12, num_heads=6, mlp_size=1536, num_temporal_layers=6
    ),
    compressor=CompressorConfig(kind="pixel_shuffle", num_tokens=64),
)
HALF = replace(MID, vision=VisionConfig(num_layers=12, num_temporal_layers=3))
SIZES = {"tiny": TINY, "mid": MID, "half": HALF}
"""mid: the published resolution, 1025 positions, with a width and depth that two cores recompute within seconds.
half: the published width and resolution at half the depth. The compressor of mid and half has no AdaLN: at 16 times
the ViT's width, its weights alone (537 M) would take longer than the measured step."""

Run = Callable[[], Array]
"""Runs the step once; returns frame_embeds (M, E)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """A model with random weights, a clip whose last frame is new, and the reference's state before that frame."""

    model: PVC
    clip: Tensor  # uint8 (1, W, S, S, 3)
    state: VisionState

    @property
    def window(self) -> int:
        return self.clip.shape[1]

    @property
    def frame(self) -> Tensor:
        """uint8 (1, S, S, 3)"""
        return self.clip[:, -1]

    @staticmethod
    def render(config: PVCConfig, *, window: int) -> Scene:
        """Random pixels, from a seed; `window` at least 2."""
        model = PVC.random(config, seed=0)
        size, generator = config.vision.image_size, torch.Generator().manual_seed(0)
        clip = torch.randint(0, 256, (1, window, size, size, 3), dtype=torch.uint8, generator=generator)
        state: VisionState | None = None
        for index in range(window - 1):
            _, state = model.encode_frame(clip[:, index], state, window=window)
        assert state is not None and all(key.shape[1] == window - 1 for key, _ in state.past)
        return Scene(model=model, clip=clip, state=state)


def eager_step(scene: Scene) -> Run:
    """The reference in its documented use: a frame and a state in, embeddings and the next state out."""
    return lambda: _call(scene.model.encode_frame, scene)


def compiled_step(scene: Scene) -> Run:
    """The same under torch.compile in its default mode, compiled by a first call. Raises the compiler's errors."""
    with quiet_exporter():
        compiled = torch.compile(scene.model.encode_frame)
        _call(compiled, scene)
    return lambda: _call(compiled, scene)


def _call(encode_frame: Callable[..., tuple[Tensor, VisionState]], scene: Scene) -> Array:
    embeds, _ = encode_frame(scene.frame, scene.state, window=scene.window)
    return embeds[0].numpy()


class PlainStep(nn.Module):
    """The step in a plain export, without a ring: the past is an input, the next frame's past an output."""

    def __init__(self, model: PVC) -> None:
        super().__init__()
        self.model = model

    def forward(self, frame: Tensor, frame_time: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        """(1, S, S, 3), (1,), keys and values (1, W - 1, N, H, D) -> frame_embeds (1, M, E), the shifted past."""
        x = self.model.trunk(frame)[:, None]
        bias = x.new_zeros(1, 1, 1 + past[0].shape[1])
        features, new = self.model.temporal(x, frame_time[:, None], joined_states(past), bias)
        rows = (row for pair in new for row in pair)
        window = (torch.cat([old[:, 1:], row], dim=1) for old, row in zip(past, rows, strict=True))
        return self.model.compressor(features[:, 0], frame_time), *window


def plain_arguments(scene: Scene) -> tuple[Tensor, ...]:
    """Arguments for PlainStep."""
    past = (tensor.contiguous() for pair in scene.state.past for tensor in pair)
    return scene.frame, torch.tensor([scene.window - 1.0]), *past


def default_step(scene: Scene, path: Path, *, threads: int) -> Run:
    """PlainStep exported by torch's dynamo exporter and run by ONNX Runtime, both with default options."""
    arguments = plain_arguments(scene)
    run = default_export(PlainStep(scene.model), arguments, path, threads=threads)(*arguments)
    return lambda: run()[0][0]


def our_sessions(
    scene: Scene, folder: Path, *, threads: int, quantization: Mapping[Part, Quantization] | None = None
) -> dict[str, Session]:
    """The vision graphs of target `cpu`, exported and opened as in a bundle."""
    folder.mkdir(exist_ok=True)
    return open_graphs(
        scene.model, VISION_GRAPHS, load_target("cpu"), StreamLimits(window=scene.window), folder, threads=threads,
        quantization=quantization,
    )  # fmt: skip


def our_step(scene: Scene, sessions: Mapping[str, Session]) -> Run:
    """The runtime's encoder, its ring filled with the scene's past: encodes a frame and commits it."""
    encoder = VisionEncoder(sessions)
    names = [state.output for state in sessions["temporal"].spec.states]
    past = [tensor for pair in scene.state.past for tensor in pair]
    for index in range(scene.window - 1):
        encoder.ring.push({name: tensor[:, index].numpy() for name, tensor in zip(names, past, strict=True)})
    frame = scene.frame[0].numpy()

    def step() -> Array:
        encoder.ring.num_frames = scene.window - 1  # the same frame again: while it runs, its slot is masked
        encoded = encoder.encode(frame)
        encoder.commit(encoded)
        return encoded.frame_embeds

    return step
