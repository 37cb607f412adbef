"""What `pvc-export bench` compares: the same streaming vision step, made to run in four ways, and the GEMM peak.

Unusual: baselines are what a user gets who follows the documentation of torch and ONNX Runtime, with default options;
the number of threads is the only thing set in all four.
Dimension key:  as in engines/spec.py
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engines.memory import Array
from engines.session import Session
from engines.spec import VISION_GRAPHS, StreamLimits
from engines.target import load_target
from engines.vision import VisionEncoder
from pvc_export.bench.recompute import SIZES as REFERENCE_SIZES
from pvc_ref import PVC, PVCConfig, VisionState
from pvc_ref.config import CompressorConfig, VisionConfig

from ..graphs.modules import pairs
from ..graphs.onnx_file import quiet_exporter
from ..graphs.sessions import open_graphs

SIZES: dict[str, PVCConfig] = REFERENCE_SIZES | {
    "half": replace(
        REFERENCE_SIZES["mid"],
        vision=VisionConfig(num_layers=12, num_temporal_layers=3),
        compressor=CompressorConfig(kind="pixel_shuffle", num_tokens=64),
    )
}
"""half: the published width and resolution at half the depth. The compressor of mid and half has no AdaLN: at 16 times
the ViT's width its weights alone (537 M) would take longer than the step that is measured."""

GEMM_SIZE = 1024

Step = Callable[[], Array]
"""Runs the step once: frame_embeds (M, E)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """A model with random weights, one new frame, and the reference's state after the window - 1 frames before it."""

    model: PVC
    window: int
    frame: Tensor  # uint8 (1, S, S, 3)
    state: VisionState

    @property
    def config(self) -> PVCConfig:
        return self.model.config

    @property
    def frame_time(self) -> float:
        return float(self.window - 1)

    @staticmethod
    def render(config: PVCConfig, *, window: int) -> Scene:
        """Random pixels, from a seed; `window` at least 2."""
        model = PVC.random(config, seed=0)
        size, generator = config.vision.image_size, torch.Generator().manual_seed(0)
        clip = torch.randint(0, 256, (window, 1, size, size, 3), dtype=torch.uint8, generator=generator)
        state: VisionState | None = None
        for frame in clip[:-1]:
            _, state = model.encode_frame(frame, state, window=window)
        assert state is not None and all(key.shape[1] == window - 1 for key, _ in state.past)
        return Scene(model=model, window=window, frame=clip[-1], state=state)


def eager_step(scene: Scene) -> Step:
    """The reference as its docstring says to use it: a frame and a state in, embeddings and the next state out."""
    return lambda: _call(scene.model.encode_frame, scene)


def compiled_step(scene: Scene) -> Step:
    """The same under torch.compile, in its default mode, compiled by a first call. Raises whatever that raises."""
    with quiet_exporter():
        compiled = torch.compile(scene.model.encode_frame)
        _call(compiled, scene)
    return lambda: _call(compiled, scene)


def _call(encode_frame: Callable[..., tuple[Tensor, VisionState]], scene: Scene) -> Array:
    embeds, _ = encode_frame(scene.frame, scene.state, window=scene.window)
    array: Array = embeds[0].numpy()
    return array


class PlainStep(nn.Module):
    """The step as one exports it without a ring: the past is an input, the past of the next frame an output."""

    def __init__(self, model: PVC) -> None:
        super().__init__()
        self.model = model

    def forward(self, frame: Tensor, frame_time: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        """(1, S, S, 3), (1,), keys and values (1, W - 1, N, H, D) -> frame_embeds (1, M, E), the past one frame on."""
        x = self.model.trunk(frame)[:, None]
        bias = x.new_zeros(1, 1, 1 + past[0].shape[1])
        features, new = self.model.temporal(x, frame_time[:, None], pairs(past), bias)
        rows = (row for pair in new for row in pair)
        window = (torch.cat([old[:, 1:], row], dim=1) for old, row in zip(past, rows, strict=True))
        return self.model.compressor(features[:, 0], frame_time), *window


def default_step(scene: Scene, path: Path, *, threads: int) -> Step:
    """PlainStep by the dynamo exporter with its default options, run by ONNX Runtime with its own."""
    past = [tensor.contiguous() for pair in scene.state.past for tensor in pair]
    arguments = (scene.frame, torch.tensor([scene.frame_time]), *past)
    with quiet_exporter():
        torch.onnx.export(PlainStep(scene.model).eval(), arguments, path, dynamo=True)
    session = open_with_defaults(path, threads=threads)
    names = [value.name for value in session.get_inputs()]
    feeds = {name: tensor.numpy() for name, tensor in zip(names, arguments, strict=True)}

    def step() -> Array:
        embeds: Array = session.run(None, feeds)[0][0]
        return embeds

    return step


def open_with_defaults(path: Path, *, threads: int) -> Any:
    """An InferenceSession with ONNX Runtime's own options, but for the number of threads."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # prints less, computes the same
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def our_sessions(scene: Scene, folder: Path, *, threads: int) -> dict[str, Session]:
    """The vision graphs of target `cpu`, exported and opened as a bundle's are."""
    limits = StreamLimits(window=scene.window)
    return open_graphs(scene.model, VISION_GRAPHS, load_target("cpu"), limits, folder, threads=threads)


def our_step(scene: Scene, sessions: Mapping[str, Session]) -> Step:
    """The runtime's own encoder with its ring, filled with the scene's past: encode a frame and commit it."""
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


def gemm_steps() -> dict[str, Callable[[], Any]]:
    """A product of two square float32 matrices, by torch and by ONNX Runtime, the right one constant as weights are."""
    import onnxruntime as ort
    from onnx import TensorProto, helper, numpy_helper

    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(2, GEMM_SIZE, GEMM_SIZE, generator=generator)
    shape = [GEMM_SIZE, GEMM_SIZE]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["left", "right"], ["product"])],
        "gemm",
        [helper.make_tensor_value_info("left", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("product", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(right.numpy(), "right")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return {
        "torch": lambda: left @ right,
        "ONNX Runtime": lambda: session.run(None, {"left": left.numpy()}),
    }
