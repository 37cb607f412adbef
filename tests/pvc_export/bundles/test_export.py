"""Export: a bundle appears whole and checked, or not at all, and never replaces something that is not a bundle."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models

from engines.bundle import open_bundle
from engines.errors import BackendUnavailable, BundleError, ModelError
from engines.spec import StreamLimits
from engines.target import load_target
from pvc_export.bundles.export import ExportRequest, export, num_weight_bytes
from pvc_export.graphs.models import LoadedModel, load_model, loaded_model
from pvc_export.parity.check import check_bundle
from pvc_export.terminal.console import Console, size_text
from pvc_ref import PVC, CompressorConfig, PVCConfig
from pvc_ref.checkpoint.folder import save as save_model
from pvc_ref.prompt import byte_tokenizer
from pvc_ref.temporal import TimeEmbedding

from ...conftest import few_layers
from ..conftest import Run


def request_for(out: Path, **changes: object) -> ExportRequest:
    request = ExportRequest(out=out, target=load_target("cpu"), precision="fp32", limits=StreamLimits(window=3))
    return replace(request, **changes)  # type: ignore[arg-type]


def variant(**changes: object) -> LoadedModel:
    config = replace(PVCConfig.preset("tiny"), **changes)  # type: ignore[arg-type]
    return loaded_model(PVC.random(config, seed=0), byte_tokenizer(), name="variant")


@pytest.mark.usefixtures("shared_graphs")
@pytest.mark.parametrize(
    ("kind", "family"),
    [("pixel_shuffle", "internlm2"), ("pool", "llama"), ("conv", "qwen2"), ("q_former", "internlm2")],
)
def test_every_compressor_and_decoder_exports_and_passes(kind: str, family: str, tmp_path: Path) -> None:
    config = few_layers(PVCConfig.preset("tiny"))
    llm = config.llm
    if family != "qwen2":  # no biases, one shared key/value head, a tied head
        llm = replace(llm, family=family, qkv_bias=False, num_kv_heads=1, tie_embeddings=True)  # type: ignore[arg-type]
    # With the shuffle it is a plain InternVL, which remembers only the tokens of earlier frames.
    vision = replace(config.vision, num_temporal_layers=0) if kind == "pixel_shuffle" else config.vision
    loaded = variant(compressor=CompressorConfig(kind=kind, num_tokens=4), vision=vision, llm=llm)  # type: ignore[arg-type]
    assert export(loaded, request_for(tmp_path / kind)).passed


def test_a_disk_that_is_too_small_is_known_before_any_work(
    tiny: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = request_for(tmp_path / "bundle", precision="fp16")
    usage, num_bytes = shutil.disk_usage(tmp_path), num_weight_bytes(tiny.model, request)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=num_bytes - 1))
    with pytest.raises(BackendUnavailable, match="Nothing was written") as info:
        export(tiny, request)
    assert size_text(num_bytes) in info.value.what and list(tmp_path.iterdir()) == []


def test_the_room_that_is_asked_for_is_what_the_weights_take(tiny: LoadedModel, bundle_fp16: Path) -> None:
    written = sum(path.stat().st_size for path in (bundle_fp16 / "graphs").glob("*.data"))
    request = request_for(bundle_fp16, precision="fp16")
    assert num_weight_bytes(tiny.model, request) == pytest.approx(written, rel=0.02)
    clocks = [module for module in tiny.model.modules() if isinstance(module, TimeEmbedding)]
    of_clocks = 4 * sum(weight.numel() for clock in clocks for weight in clock.parameters())  # they stay float32
    without = num_weight_bytes(tiny.model, replace(request, clock="reanchor"))
    assert num_weight_bytes(tiny.model, request) - without == of_clocks
    assert num_weight_bytes(tiny.model, replace(request, target=load_target("rtx"))) == 2 * (without + of_clocks)


@pytest.mark.usefixtures("shared_graphs", "stream_alone")
def test_a_saved_checkpoint_exports_like_the_model_it_came_from(small: LoadedModel, tmp_path: Path) -> None:
    save_model(small.model, tmp_path / "checkpoint", tokenizer=small.tokenizer)
    loaded = load_model(str(tmp_path / "checkpoint"))
    assert loaded.source.weights_sha256 == small.source.weights_sha256
    assert loaded.source.random_weights and loaded.source.seed == 0, "saving lost the mark that the weights are random"
    export(loaded, request_for(tmp_path / "bundle"))
    assert check_bundle(tmp_path / "bundle", small).passed


def test_relative_time_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"(?s)'relative'.*every new frame changes the keys of all earlier ones"):
        export(variant(time_mode="relative"), request_for(tmp_path / "bundle"))
    assert not list(tmp_path.iterdir())


def test_a_context_beyond_the_model_s_positions_is_refused_with_the_largest_that_fits(
    tiny: LoadedModel, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="choose --context 32768 or less"):
        export(tiny, request_for(tmp_path / "bundle", limits=StreamLimits(context=65536)))


def failing_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the exporter change one weight."""
    from pvc_export.graphs import precision

    cast_model = precision.cast_model

    def wrong(model: PVC, chosen: str, islands: tuple[str, ...]) -> PVC:
        model = copy.deepcopy(cast_model(model, chosen, islands))  # type: ignore[arg-type]
        with torch.no_grad():
            model.trunk.layers[0].mlp.fc1.weight[3, 5] += 0.5
        return model

    monkeypatch.setattr("pvc_export.bundles.export.cast_model", wrong)


@pytest.mark.usefixtures("shared_graphs", "stream_alone")
def test_a_failed_check_publishes_nothing_and_keeps_the_old_bundle(
    small: LoadedModel, tiny: LoadedModel, bundle_fp32: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Path(shutil.copytree(bundle_fp32, tmp_path / "bundle"))
    before = (out / "manifest.json").read_bytes()
    failing_check(monkeypatch)
    report = export(small, request_for(out))
    assert not report.passed and report.first_failed_graph == "trunk"
    assert report.looked and "First failing graph: 'trunk'" in report.failure_text()
    assert (out / "manifest.json").read_bytes() == before
    assert check_bundle(out, tiny, ladder=False).passed
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"], "a temporary folder was left behind"


@pytest.mark.usefixtures("shared_graphs", "stream_alone")
def test_a_failed_export_exits_3_and_says_what_failed_in_words_and_in_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pvc_export: Run
) -> None:
    failing_check(monkeypatch)
    done = pvc_export("onnx", "-m", "tiny", "-o", tmp_path / "b", "--window", 4, "--context", 512, "--json")
    done.says(3, "FAIL: the bundle differs from the reference", "First failing graph: 'trunk'", "Nothing was published")
    said = json.loads(done.out)
    assert said["published"] is False and said["parity"]["passed"] is False and not (tmp_path / "b").exists()
    assert [fault["kind"] for fault in said["faults"]][:2] == ["weights", "row"]
    assert said["culprit"]["layer"] == "trunk.layers.0.mlp.fc1" and not said["culprit"]["is_precision"]


@pytest.mark.parametrize(
    "manifest", [None, '{"name": "my browser extension"}', "not json"], ids=["none", "web", "text"]
)
def test_a_folder_that_is_no_bundle_is_never_replaced(tiny: LoadedModel, tmp_path: Path, manifest: str | None) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    if manifest is not None:
        (tmp_path / "manifest.json").write_text(manifest)
    with pytest.raises(BundleError, match="exists and is not a bundle, so it was not replaced"):
        export(tiny, request_for(tmp_path))
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_bundle_with_files_of_yours_in_it_is_not_replaced(
    tiny: LoadedModel, bundle_fp32: Path, copy_bundle: Callable[[Path], Path]
) -> None:
    bundle = copy_bundle(bundle_fp32)
    (bundle / "notes.txt").write_text("mine")
    with pytest.raises(BundleError, match=r"other files in it, so it was not replaced: notes\.txt"):
        export(tiny, request_for(bundle))
    assert (bundle / "notes.txt").read_text() == "mine"


@pytest.mark.usefixtures("shared_graphs", "stream_alone")
def test_a_bundle_of_an_older_format_is_replaced(
    small: LoadedModel, bundle_fp32: Path, copy_bundle: Callable[[Path], Path]
) -> None:
    bundle = copy_bundle(bundle_fp32)
    data = json.loads((bundle / "manifest.json").read_text("utf-8"))
    del data["shape"], data["prompt"]
    (bundle / "manifest.json").write_text(json.dumps(data | {"format_version": 0}), "utf-8")
    with pytest.raises(BundleError, match="has format version 0"):
        open_bundle(bundle)
    export(small, request_for(bundle))
    assert open_bundle(bundle).manifest.limits.window == 3


def test_a_tokenizer_of_another_model_is_refused() -> None:
    config = PVCConfig.preset("tiny")
    small = replace(config, llm=replace(config.llm, vocab_size=200))
    with pytest.raises(ModelError, match="has 264 tokens, but the model's vocabulary has 200"):
        loaded_model(PVC.random(small, seed=0), byte_tokenizer(), name="small")
    with pytest.raises(ModelError, match=r"has no token '<img>'"):
        loaded_model(PVC.random(config, seed=0), Tokenizer(models.BPE()), name="bare")


def test_a_missing_builder_is_known_before_any_work(
    tiny: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tensorrt_rtx", None)
    console = Console(quiet=True)
    with pytest.raises(BackendUnavailable, match="tensorrt_rtx"):
        export(tiny, request_for(tmp_path / "bundle", target=load_target("rtx")), console=console)
    assert console.stages == []


def test_the_built_in_model_is_the_same_on_every_machine() -> None:
    """Bundles, thresholds and figures refer to the weights of `tiny` with this fingerprint."""
    assert load_model("tiny").source.weights_sha256[:16] == TINY_FINGERPRINT
    assert load_model("tiny", seed=1).source.weights_sha256[:16] != TINY_FINGERPRINT


def test_a_name_on_the_hub_gets_the_command_that_downloads_it() -> None:
    with pytest.raises(ModelError, match="no folder OpenGVLab/InternVL2-1B") as info:
        load_model("OpenGVLab/InternVL2-1B")
    assert "hf download OpenGVLab/InternVL2-1B --local-dir InternVL2-1B" in info.value.fix


def test_an_unknown_model_gets_its_nearest_name() -> None:
    with pytest.raises(ModelError, match="no model 'tinny'") as info:
        load_model("tinny")
    assert info.value.fix == "Did you mean 'tiny'?"


def test_an_opened_bundle_runs_without_its_reference(bundle_fp16: Path) -> None:
    bundle = open_bundle(bundle_fp16)
    assert set(bundle.sessions) == set(bundle.manifest.graphs)
    assert {session.computes_in for session in bundle.sessions.values()} == {"float32"}


@pytest.mark.parametrize(
    ("num_bytes", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 20, "5.0 MiB"), (3 << 30, "3.0 GiB")]
)
def test_sizes_are_written_in_binary_units(num_bytes: int, text: str) -> None:
    assert size_text(num_bytes) == text


TINY_FINGERPRINT = "2c6ab4ec4f59a60a"
