"""OpenVINO's ways to run the vision step: the default export in float32, in bfloat16, and quantized by NNCF.

python -m tests.oracles.peers.openvino_steps DESCRIPTOR MODEL.onnx INPUTS.npz   in OpenVINO's environment
"""

from __future__ import annotations

import sys
from importlib.metadata import version

import nncf
import numpy as np
import openvino as ov

from .worker import Run, serve


def step(core: ov.Core, model: ov.Model, feeds: dict[str, np.ndarray], precision: str) -> Run:
    hints = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": precision}
    compiled = core.compile_model(model, "CPU", hints)
    request, first = compiled.create_infer_request(), compiled.output(0)
    return lambda: request.infer(feeds)[first]


def main() -> None:
    _, path, inputs = sys.argv[1:]
    core, feeds = ov.Core(), dict(np.load(inputs))
    model = core.read_model(path)
    # As NNCF's documentation recommends for transformers: attention matmuls stay unquantized, activations are smoothed.
    quantized = nncf.quantize(model, nncf.Dataset([feeds]), model_type=nncf.ModelType.TRANSFORMER, subset_size=1)
    runs = {
        "f32": step(core, model, feeds, "f32"),
        "bf16": step(core, model, feeds, "bf16"),
        "int8": step(core, quantized, feeds, "f32"),
        "int8 with bf16": step(core, quantized, feeds, "bf16"),
    }
    serve(runs, {name: version(name) for name in ("openvino", "nncf")})


if __name__ == "__main__":
    main()
