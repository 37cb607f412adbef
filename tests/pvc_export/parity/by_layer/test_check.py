"""A bundle checked layer by layer against a reference whose weights stay in their files."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

import pvc_ref
from engines.bundle import graph_path
from engines.manifest import Manifest
from engines.spec import Precision
from pvc_export.graphs.models import LoadedModel, loaded_model
from pvc_export.parity import check
from pvc_export.parity.by_layer import check as by_layer
from pvc_export.parity.by_layer.cut import CutDecoder
from pvc_export.parity.by_layer.held import held, read_when_called
from pvc_export.parity.by_layer.sweep import OVERFLOW, sweep
from pvc_export.parity.check import check_bundle
from pvc_export.parity.float16_on_cpu import Float16Products
from pvc_export.parity.fresh import FreshGraphs
from pvc_export.parity.limits import NoiseTable
from pvc_export.parity.places import Rung
from pvc_export.parity.rounding import Reference
from pvc_ref.model import stored_matrices

from ...conftest import Run

Copy = Callable[[Path], Path]


@pytest.fixture(scope="module")
def stored(tiny: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """`tiny` loaded from a folder, with its matrices left on disk."""
    folder = tmp_path_factory.mktemp("stored") / "model"
    pvc_ref.save(tiny.model, folder)
    model = pvc_ref.load(folder, on_disk=True)
    return loaded_model(model, tiny.tokenizer, name="stored")


def matrices(model: nn.Module) -> int:
    """Count the matrices in memory that could stay on disk."""
    return sum(not weight.is_meta for name, weight in model.named_parameters() if name in stored_matrices(model))


@pytest.mark.parametrize("bundle_name", ["bundle_rows", "bundle_fp16"])
def test_a_faithful_bundle_passes_with_every_output_compared_at_every_layer(
    bundle_name: str, stored: LoadedModel, tiny: LoadedModel, request: pytest.FixtureRequest,
    sharing_graphs: Callable[[], AbstractContextManager[None]],
) -> None:  # fmt: skip
    bundle: Path = request.getfixturevalue(bundle_name)
    manifest = Manifest.load(bundle)
    with pytest.MonkeyPatch.context() as patch, sharing_graphs(), FreshGraphs.of(tiny.model, None) as fresh:
        patch.setattr(by_layer, "see", counting(stored, by_layer.see))
        report = check_bundle(bundle, stored, fresh=fresh, by_layer=True)
    assert report.passed, report.failure_text()
    rows = [row for row in report.rows if row.rung == Rung("bundle", manifest.precision)]
    layers = {("llm", f"layer.{layer}") for layer in range(manifest.shape.num_llm_layers - 1)}
    assert {(row.graph, row.tensor) for row in rows} == layers | {
        (spec.name, tensor.name) for spec in manifest.graphs.values() for tensor in spec.outputs
    }
    assert report.num_weights > 100 and report.num_tokens == by_layer.NUM_HEADS
    levels = report.levels()
    assert all(levels[level].passed for level in "ABCDEFK")
    assert levels["H"].passed is (True if manifest.limits.streams > 1 else None)
    assert report.left_out()[by_layer.LEFT_OUT] == by_layer.ASKED
    assert matrices(stored.model) == 0


def counting(stored: LoadedModel, compare: Callable[..., object]) -> Callable[..., object]:
    """Wrap a step of the check: before and after it, no matrix is in memory."""

    def around(*args: object, **options: object) -> object:
        assert matrices(stored.model) == 0
        found = compare(*args, **options)
        assert matrices(stored.model) == 0
        return found

    return around


def test_one_wrong_layer_fails_and_no_other_does(bundle_rows: Path, copy_bundle: Copy, stored: LoadedModel) -> None:
    """Each layer is fed the reference's input, so a fault in the first does not reach the second."""
    folder = copy_bundle(bundle_rows)
    path = folder / graph_path("llm")
    model = onnx.load(path, load_external_data=False)
    silu = next(node for node in model.graph.node if node.op_type in ("Sigmoid", "Swish"))
    silu.op_type = "HardSigmoid" if silu.op_type == "Sigmoid" else "HardSwish"
    onnx.save(model, path)
    manifest = Manifest.load(folder)
    reference = Reference.of(stored.model, manifest.precision)
    cut = CutDecoder(path, manifest.graphs["llm"])
    conversation = 0.3 * torch.randn(1, 40, stored.config.llm.hidden_size, generator=torch.Generator().manual_seed(0))
    with read_when_called(reference):
        found = sweep(cut, manifest, reference, conversation, lambda _: None).evidence.differences
    noise = NoiseTable(found)
    wrong = {one.tensor for one in map(noise.judged, found) if not one.passed}
    assert wrong == {"layer.0"}


def test_what_leaves_the_range_of_the_dtype_ends_the_sweep_and_is_reported(
    bundle_fp16: Path, stored: LoadedModel
) -> None:
    manifest = Manifest.load(bundle_fp16)
    reference = Reference.of(stored.model, manifest.precision)
    cut = CutDecoder(bundle_fp16 / graph_path("llm"), manifest.graphs["llm"])
    loud = 7e4 * torch.ones(1, 40, stored.config.llm.hidden_size)
    with read_when_called(reference):
        swept = sweep(cut, manifest, reference, loud, lambda _: None)
    assert swept.hidden is None and list(swept.evidence.not_executed.values()) == [OVERFLOW]


def test_of_a_held_layer_and_of_a_running_module_both_sides_have_the_weights_and_then_neither(
    stored: LoadedModel, tiny: LoadedModel
) -> None:
    reference = Reference.of(stored.model, "fp32")
    name = "llm.layers.0.mlp.up_proj.weight"
    with held(reference, "llm.layers.0"):
        sides = [side.get_parameter(name) for side in (reference.model, reference.twin)]
        assert sides[0] is sides[1] and torch.equal(sides[0], tiny.model.get_parameter(name))
        assert 0 < matrices(stored.model) < 10
    assert matrices(stored.model) == matrices(reference.twin) == 0
    ids = torch.tensor([[1, 2]])
    with read_when_called(reference), torch.no_grad():
        assert torch.equal(reference.model.llm.embed_tokens(ids), tiny.model.llm.embed_tokens(ids))
        assert reference.twin.llm.embed_tokens(ids).dtype == torch.float64
    assert matrices(stored.model) == 0
    assert reference.model.llm.embed_tokens(ids).is_meta  # the hooks were removed


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_a_twin_computes_the_same_with_weights_that_were_cast_once(precision: Precision, stored: LoadedModel) -> None:
    reference = Reference.of(stored.model, precision)
    x = torch.randn(1, 3, stored.config.llm.hidden_size, generator=torch.Generator().manual_seed(0))
    product, said = reference.twin.get_submodule("llm.layers.0.mlp.up_proj"), list[torch.Tensor]()
    for cast in (False, True, False):
        with held(reference, "llm.layers.0", cast=cast), Float16Products(), torch.no_grad():
            said.append(product(x.to(reference.dtype)))
            assert (product.weight.dtype == torch.float32) is (not cast or precision == "fp16")
    assert torch.equal(said[0], said[1]) and torch.equal(said[0], said[2]) and said[1].dtype == reference.dtype


def test_the_whole_model_is_checked_where_it_fits(
    stored: LoadedModel, tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(by_layer, "available_bytes", lambda: 1000)
    assert "and only 1000 B are free" in (by_layer.why_by_layer(stored) or "")
    assert by_layer.why_by_layer(tiny) is None
    monkeypatch.setattr(by_layer, "available_bytes", lambda: 10**10)
    assert by_layer.why_by_layer(stored) is None
    monkeypatch.setattr(by_layer, "available_bytes", lambda: None)
    assert by_layer.why_by_layer(stored) is None
    whole = check._in_memory(stored)
    assert whole.model.stored is None and matrices(whole.model) == len(stored_matrices(tiny.model))
    assert replace(whole.source, name="") == replace(stored.source, name="")


def test_the_command_says_what_it_left_out(
    bundle_fp32: Path, pvc_export: Run, monkeypatch: pytest.MonkeyPatch,
    sharing_graphs: Callable[[], AbstractContextManager[None]],
) -> None:  # fmt: skip
    with sharing_graphs():
        outcome = pvc_export("check", bundle_fp32, "--by-layer")
    assert outcome.exit_code == 0
    assert f"{by_layer.LEFT_OUT}: not executed: {by_layer.ASKED}" in outcome.out
