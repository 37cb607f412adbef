"""A bundle whose codes need a CPU that sums int8 products in 32 bits is refused by a CPU that does not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx.reference
import pytest
from onnx import TensorProto, helper

from engines import open_bundle, wide_sums
from engines.errors import BackendUnavailable
from engines.manifest import Manifest
from engines.target import load_target
from engines.wide_sums import SIZE, SUMS, require_wide_sums
from pvc_export.terminal.quantization import FewBits


def test_the_file_that_is_tried_is_one_product_of_whole_numbers() -> None:
    tensors = [
        helper.make_tensor_value_info("x", TensorProto.UINT8, [1, SIZE]),
        helper.make_tensor_value_info("codes", TensorProto.INT8, [SIZE, 16]),
        helper.make_tensor_value_info("sums", TensorProto.INT32, [1, 16]),
    ]
    node = helper.make_node("MatMulInteger", ["x", "codes"], ["sums"])
    graph = helper.make_graph([node], "sums", tensors[:2], tensors[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 10)], ir_version=8)
    tried = onnx.load_from_string(SUMS)
    assert tried.graph == model.graph and tried.opset_import == model.opset_import
    x, codes = np.full((1, SIZE), 255, np.uint8), np.full((SIZE, 16), 127, np.int8)
    (sums,) = onnx.reference.ReferenceEvaluator(tried).run(None, {"x": x, "codes": codes})
    assert (sums == SIZE * 255 * 127).all()


class Saturating:
    """ONNX Runtime on a CPU that adds pairs of products in 16 bits."""

    def InferenceSession(self, *_: object, **__: object) -> Saturating:
        return self

    def run(self, _: None, fed: dict[str, np.ndarray]) -> list[np.ndarray]:
        products = fed["x"].astype(np.int64)[..., None] * fed["codes"]
        pairs = products.reshape(1, -1, 2, 16).sum(2).clip(-(2**15), 2**15 - 1)
        return [pairs.sum(1).astype(np.int32)]


@pytest.fixture
def saturating(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Pretend that this machine has such a CPU."""
    monkeypatch.setattr(wide_sums, "import_onnxruntime", Saturating)
    wide_sums._sums_are_right.cache_clear()
    yield
    wide_sums._sums_are_right.cache_clear()


@pytest.mark.usefixtures("saturating")
def test_a_cpu_that_cuts_off_is_told_from_the_others_and_which_target_fits_it() -> None:
    with pytest.raises(BackendUnavailable, match="in 16 bits with saturation") as caught:
        require_wide_sums()
    assert "--target cpu" in caught.value.fix and "VNNI" in caught.value.expected
    fed = {"x": np.full((1, SIZE), 255, np.uint8), "codes": np.full((SIZE, 16), 64, np.int8)}
    assert (Saturating().run(None, fed)[0] == SIZE * 255 * 64).all(), "codes of the target `cpu` must fit"


@pytest.mark.usefixtures("saturating")
def test_such_a_bundle_is_not_opened_there_and_every_other_is(bundle_int8: Path, tmp_path: Path) -> None:
    open_bundle(bundle_int8)
    manifest = Manifest.load(bundle_int8)
    wide = {part: replace(how, wide_codes=True) for part, how in manifest.quantization.items()}
    graphs = {
        name: replace(spec, quantization=spec.quantization and replace(spec.quantization, wide_codes=True))
        for name, spec in manifest.graphs.items()
    }
    for file in bundle_int8.rglob("*"):
        if file.is_file():
            (tmp_path / file.relative_to(bundle_int8)).parent.mkdir(exist_ok=True)
            (tmp_path / file.relative_to(bundle_int8)).symlink_to(file)
    (tmp_path / "manifest.json").unlink()
    replace(manifest, quantization=wide, graphs=graphs).save(tmp_path)
    with pytest.raises(BackendUnavailable, match="in 16 bits with saturation"):
        open_bundle(tmp_path)


def test_full_eight_bits_are_asked_for_where_whole_numbers_are_multiplied_and_nowhere_else() -> None:
    def wide(target: str, part: str) -> bool:
        return FewBits(int8=[part]).of(load_target(target), streams=1)[part].wide_codes  # type: ignore[index]

    assert all(wide("cpu-vnni", part) for part in ("vision", "llm", "head"))
    assert not any(wide("cpu", part) for part in ("vision", "llm", "head")) and not wide("rtx", "vision")
