"""Fixed scales: chosen by each method from all observed values, and applied as torch and ONNX apply them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import onnx.reference
import onnxruntime
import pytest
import torch
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from torch import Tensor, nn

from engines.errors import MediaError, ModelError
from engines.manifest import Calibration
from engines.spec import CalibrationMethod as Method
from engines.spec import Quantization, StreamLimits
from engines.video import write_video
from pvc_export.bundles.calibrate import CalibrationRequest, calibrate
from pvc_export.graphs.calibration import Magnitudes, observed
from pvc_export.graphs.eight_bits import StaticLinear
from pvc_export.graphs.models import LoadedModel
from pvc_export.graphs.quantize import Quantizer, grid_of
from pvc_export.parity.clip import render_clip
from pvc_export.parity.recorded_stream import FAR_FRAME

HOW = Quantization(bits=8, block=None, zero_points=False, method="round", inputs="static")
LIMITS = StreamLimits(window=3, context=256)


def heavy_tailed(count: int = 20_000) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, generator=generator) * torch.rand(count, generator=generator).pow(-0.25)


def seen(*parts: Tensor) -> Magnitudes:
    found = Magnitudes()
    for part in parts:
        found.add(part)
    return found


def error_of(values: Tensor, scale: float) -> float:
    """Rounding error, computed by numpy from the values themselves."""
    x = values.double().numpy()
    return float(np.square(np.clip(np.rint(x / scale), -128, 127) * scale - x).sum())


def test_max_is_the_largest_and_percentile_leaves_out_one_in_ten_thousand() -> None:
    x = heavy_tailed()
    assert seen(x).scale("max", torch.float32) == pytest.approx(float(x.abs().max()) / 127, rel=1e-6)
    want = np.quantile(x.abs().numpy(), 0.9999) / 127
    assert seen(x).scale("percentile", torch.float32) == pytest.approx(want, rel=0.01)


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e4])
def test_error_has_the_least_squared_error_that_any_scale_has(size: float) -> None:
    x = heavy_tailed() * size
    found = error_of(x, seen(x).scale("error", torch.float32))
    reach = float(x.abs().max()) / 127
    least = min(error_of(x, reach * part) for part in np.linspace(0.01, 1, 400))
    assert found <= 1.02 * least < 0.95 * error_of(x, reach)


@pytest.mark.parametrize("method", get_args(Method))
def test_a_scale_does_not_depend_on_the_order_in_which_values_came(method: Method) -> None:
    x = heavy_tailed().sort().values
    parts = x.abs().sort().values.split(1000)
    scales = {seen(*some).scale(method, torch.float32) for some in ([x], parts, parts[::-1])}
    assert max(scales) <= min(scales) * 1.02


@pytest.mark.parametrize("method", get_args(Method))
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_scale_is_a_normal_number_of_its_dtype_even_of_zeros(dtype: torch.dtype, method: Method) -> None:
    for values in (torch.zeros(5), torch.full((5,), 1e-7), heavy_tailed(50)):
        scale = seen(values).scale(method, dtype)
        assert scale >= torch.finfo(dtype).tiny
        assert float(torch.tensor(scale).to(dtype)) == scale


def test_what_a_scale_costs_is_the_error_that_rounding_makes() -> None:
    x = heavy_tailed()
    for scale in (0.01, 0.05, 0.2):
        want = (error_of(x, scale) / float(x.double().square().sum())) ** 0.5
        assert seen(x).cost(scale) == pytest.approx(want, rel=0.02)
    assert seen(torch.zeros(3)).cost(0.1) == 0.0


def test_inputs_are_rounded_as_torch_fakes_it_and_as_onnx_s_reference_does() -> None:
    x, scale = heavy_tailed(4000).reshape(1, 40, 100), 0.03
    layer = StaticLinear(100, 1)
    layer.scale = scale
    want = torch.fake_quantize_per_tensor_affine(x, scale, 0, -128, 127)
    assert (layer.rounded(x) != want).float().mean() < 0.01  # torch multiplies by the inverse of the scale
    assert ((layer.rounded(x) - want).abs() <= scale * 1.001).all()
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["": 20]>
        one (float[1, 40, 100] x, float s, int8 z) => (float[1, 40, 100] y) {
            q = QuantizeLinear(x, s, z)  y = DequantizeLinear(q, s, z)
        }"""
    )
    feeds = {"x": x.numpy(), "s": np.float32(scale), "z": np.int8(0)}
    assert np.allclose(layer.rounded(x), onnx.reference.ReferenceEvaluator(model).run(None, feeds)[0], atol=1e-6)


class Rows(CalibrationDataReader):  # type: ignore[misc]  # it is untyped
    def __init__(self, rows: np.ndarray) -> None:
        self._feeds = iter([{"x": rows}])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._feeds, None)


def test_onnx_runtime_s_own_quantizer_makes_the_same_of_a_layer(tmp_path: Path) -> None:
    """Symmetric scales by the largest value, weights per output: codes, scales and results are equal."""
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(24, 40, generator=generator), torch.randn(50, 40, generator=generator)
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])], "one",
        [onnx.helper.make_tensor_value_info("x", 1, [50, 40])], [onnx.helper.make_tensor_value_info("y", 1, [50, 24])],
        [onnx.numpy_helper.from_array(weight.T.contiguous().numpy(), "w")],
    )  # fmt: skip
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=9)
    onnx.save(model, tmp_path / "one.onnx")
    quantize_static(
        tmp_path / "one.onnx", tmp_path / "eight.onnx", Rows(x.numpy()), quant_format=QuantFormat.QDQ,
        per_channel=True, activation_type=QuantType.QInt8, weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax, extra_options={"ActivationSymmetric": True, "WeightSymmetric": True},
        op_types_to_quantize=["MatMul"], nodes_to_exclude=[],
    )  # fmt: skip
    theirs = onnx.load(tmp_path / "eight.onnx")
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in theirs.graph.initializer}
    grid = grid_of(weight, HOW, torch.float32)
    assert np.array_equal(constants["w_quantized"], grid.codes(weight).T.numpy())
    assert np.allclose(constants["w_scale"], grid.scales[:, 0].numpy(), rtol=1e-6)
    scale = seen(x).scale("max", torch.float32)
    assert constants["x_scale"] == pytest.approx(scale, rel=1e-5)
    layer = StaticLinear(40, 24, bias=False)
    layer.scale, layer.weight = scale, nn.Parameter(grid.nearest(weight), requires_grad=False)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    product = next(node for node in theirs.graph.node if node.op_type == "MatMul")  # its result is also rounded
    theirs.graph.output.append(onnx.helper.make_tensor_value_info(product.output[0], 1, [50, 24]))
    session = onnxruntime.InferenceSession(theirs.SerializeToString(), options)
    want = session.run([product.output[0]], {"x": x.numpy()})[0]
    assert np.abs(want - layer(x).numpy()).max() < 1e-4 * float(np.abs(want).max())


def of_vision(loaded: LoadedModel) -> Quantizer:
    return Quantizer.of(loaded.model, {"vision": HOW}, "fp16")


def ignore(_: float) -> None:
    pass


def test_the_ring_wraps_and_the_clock_runs_ahead_while_scales_are_found(small: LoadedModel) -> None:
    quantizer, times = of_vision(small), list[float]()
    hook = small.model.compressor.register_forward_pre_hook(lambda _, args: times.append(float(args[1][0])))
    try:
        found = calibrate(small, quantizer, CalibrationRequest(), LIMITS, ignore)
    finally:
        hook.remove()
    assert not found.clips and found.num_frames > 2 * LIMITS.window
    assert times[: found.num_frames] == list(range(found.num_frames))
    assert small.config.trained_frames - 1 in times and FAR_FRAME - 1 in times
    assert set(found.scales) == set(quantizer.how), "every matmul of the vision side, and no clock"
    assert all(scale > 0 for scale in found.scales.values())
    with observed(small.model, found.scales):
        pass
    assert not any(module._forward_pre_hooks for module in small.model.modules())


def test_a_user_s_clip_decides_and_its_name_is_noted(small: LoadedModel, tmp_path: Path) -> None:
    clip = tmp_path / "dark.mp4"
    write_video(clip, [frame // 8 for frame in render_clip(9)], fps=25)
    dark = calibrate(small, of_vision(small), CalibrationRequest(clips=(clip,)), LIMITS, ignore)
    own = calibrate(small, of_vision(small), CalibrationRequest(), LIMITS, ignore)
    assert dark.clips == ("dark.mp4",) and dark.num_frames == 9
    assert dark.scales != own.scales


def test_what_is_no_video_is_refused_by_name(small: LoadedModel, tmp_path: Path) -> None:
    text = tmp_path / "notes.mp4"
    text.write_text("no video")
    with pytest.raises(MediaError, match=r"notes\.mp4"):
        calibrate(small, of_vision(small), CalibrationRequest(clips=(text,)), LIMITS, ignore)
    with pytest.raises(MediaError, match=r"nothing\.mp4"):
        CalibrationRequest(clips=(tmp_path / "nothing.mp4",)).require_files()


def test_a_model_that_stays_in_its_files_gets_the_same_scales(small: LoadedModel, tmp_path: Path) -> None:
    import pvc_ref

    pvc_ref.save(small.model, tmp_path)
    (tmp_path / "tokenizer.json").write_text(small.tokenizer.to_str())
    on_disk = pvc_ref.load(tmp_path, on_disk=True)
    assert on_disk.stored is not None
    loaded = replace(small, model=on_disk)
    found = calibrate(loaded, of_vision(loaded), CalibrationRequest(), LIMITS, ignore)
    assert found == calibrate(small, of_vision(small), CalibrationRequest(), LIMITS, ignore)
    assert on_disk.llm.layers[0].mlp.down_proj.weight.is_meta, "weights that no frame passes stay in their files"


def test_a_scale_too_few_or_too_many_is_refused(small: LoadedModel) -> None:
    quantizer = of_vision(small)
    scales = dict.fromkeys(quantizer.calibrated, 0.1)
    for wrong in ({**scales, "llm.layers.0.mlp.down_proj.weight": 0.1}, dict(list(scales.items())[1:])):
        with pytest.raises(ModelError, match="matmuls need one"):
            quantizer.with_calibration(Calibration(method="max", clips=("x",), num_frames=1, scales=wrong))
    with pytest.raises(ModelError, match="export the bundle again"):
        quantizer.with_calibration(None)
