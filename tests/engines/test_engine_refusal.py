"""Engines are executable code: one for another version, GPU, graph or machine is refused before it runs."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engines import PVCStream, machine, open_bundle
from engines.bundle import ON_CPU, Runtime, graph_path
from engines.errors import BackendUnavailable, BundleError, PVCError
from engines.fake import RecordingCuda
from engines.machine import is_own_mark, make_mark, sign
from engines.manifest import Manifest, hash_folder
from engines.provenance import sign_engines
from pvc_export.controls.graph_edits import edit_graph, perturb_one_weight, restamp

from .fake_trt import Engine, fake_plan, make_module

VERSION = "1.7.2.9"
Folder = Callable[..., Path]


@pytest.fixture
def folder(bundle_fp16: Path, tmp_path: Path) -> Folder:
    """Make a bundle with fake-runtime engines, built here. `plans`: other contents by graph; `entry`: other facts for
    all engines; `missing`: an engine that was never built."""

    def make(*, plans: dict[str, bytes] | None = None, missing: str = "", **entry: Any) -> Path:
        folder = Path(shutil.copytree(bundle_fp16, tmp_path / "copy"))
        manifest, engines = Manifest.load(folder), {}
        for name, old in manifest.engines.items():
            plan = fake_plan(folder / graph_path(name), manifest.graphs[name])
            (folder / old.path).write_bytes((plans or {}).get(name, plan))
            engines[name] = replace(old, **{"runtime_version": VERSION, **entry})
        if missing:
            (folder / engines.pop(missing).path).unlink()
        sign_engines(replace(manifest, engines=engines, files=hash_folder(folder))).save(folder)
        return folder

    return make


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> RecordingCuda:
    """A GPU in this machine, with the fake runtime."""
    gpu = RecordingCuda()
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", make_module("tensorrt_rtx", VERSION, cuda=gpu))
    return gpu


def is_head(engine: Engine) -> bool:
    return "logits" in engine.values


def refusal(folder: Path, cuda: RecordingCuda, **options: Any) -> str:
    with pytest.raises(BundleError) as caught:
        open_bundle(folder, runtime="target", cuda=cuda, **options)
    assert caught.value.exit_code == 6
    return str(caught.value)


def test_engines_of_this_machine_need_no_word_of_trust(folder: Folder, cuda: RecordingCuda, frames: Any) -> None:
    bundle = open_bundle(folder(), cuda=cuda)
    assert bundle.runs_on == "tensorrt_rtx on SM89"
    assert {s.computes_in for n, s in bundle.sessions.items() if n != "embed"} == {
        f"the engine's own dtypes (tensorrt_rtx {VERSION})"
    }
    PVCStream(bundle).push(frames[0])


def test_an_engine_of_another_runtime_version_is_refused_with_both(folder: Folder, cuda: RecordingCuda) -> None:
    text = refusal(folder(runtime_version="1.6.0.1"), cuda, trust_engines=True)
    assert "trunk.engine was built with tensorrt_rtx 1.6.0.1 for SM80, SM86, SM89, SM120" in text
    assert f"this machine has {VERSION} and SM89" in text and "pvc-export trt" in text


def test_an_engine_of_another_gpu_is_refused_with_both(folder: Folder, cuda: RecordingCuda) -> None:
    cuda.capability = "SM75"
    text = refusal(folder(), cuda, trust_engines=True)
    assert "for SM80, SM86, SM89, SM120; this machine has 1.7.2.9 and SM75" in text and "pvc-export trt" in text


def test_an_engine_that_knows_no_gpu_is_refused(folder: Folder, cuda: RecordingCuda) -> None:
    assert "for an unknown GPU" in refusal(folder(compute_capabilities=()), cuda)


def test_an_engine_of_another_machine_needs_a_word_of_trust(
    folder: Folder, cuda: RecordingCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = folder()
    monkeypatch.setattr(machine, "machine_id", lambda: "another")
    text = refusal(made, cuda)
    assert "trunk.engine was built on another machine, so this machine cannot verify it" in text
    assert "--trust-engines" in text and "pvc-export trt -m tiny --target rtx" in text
    assert "You then trust that the engines do no harm, and that each was built from the" in text
    trusted = open_bundle(made, cuda=cuda, trust_engines=True)
    assert trusted.runs_on == "tensorrt_rtx on SM89, engines trusted unverified"


def test_what_a_bundle_says_of_its_machine_vouches_for_no_other_engine(folder: Folder, cuda: RecordingCuda) -> None:
    """A reader of a published bundle must not be able to pass off an engine as built on that bundle's machine."""
    made = folder()
    manifest = Manifest.load(made)
    head = manifest.engines["head"]
    (made / head.path).write_bytes((made / head.path).read_bytes() + b" ")  # any other content
    restamp(made)
    for options in ({}, {"trust_engines": True}):
        text = refusal(made, cuda, **options)
        assert "head.engine is not the engine that this machine built for 'head' of this bundle" in text
        assert "build them again: pvc-export trt -m tiny --target rtx" in text
    marks = [field for entry in manifest.engines.values() for field in (entry.built_on, entry.signature)]
    assert len(set(marks)) == 10, "each signature must be of its engine, not of the machine"


@pytest.mark.parametrize("whole_entries", [False, True], ids=["files alone", "entries too"])
def test_two_engines_of_a_bundle_that_changed_places_are_refused(
    folder: Folder, cuda: RecordingCuda, whole_entries: bool
) -> None:
    made = folder()
    manifest = Manifest.load(made)
    trunk, head = manifest.engines["trunk"], manifest.engines["head"]
    plans = [(made / entry.path).read_bytes() for entry in (trunk, head)]
    for entry, plan in zip((head, trunk), plans, strict=True):
        (made / entry.path).write_bytes(plan)
    if whole_entries:
        changed = {"trunk": replace(head, path=trunk.path), "head": replace(trunk, path=head.path)}
        replace(manifest, engines={**manifest.engines, **changed}).save(made)
    restamp(made)
    for options in ({}, {"trust_engines": True}):
        assert "trunk.engine is not the engine that this machine built" in refusal(made, cuda, **options)


@pytest.mark.parametrize("whole_entry", [False, True], ids=["file alone", "entry too"])
def test_an_engine_of_another_bundle_of_the_same_shapes_is_refused(
    folder: Folder, cuda: RecordingCuda, tmp_path: Path, whole_entry: bool
) -> None:
    """Both bundles were built here, and only the weights distinguish them."""
    made = folder()
    other = Path(shutil.copytree(made, tmp_path / "other"))
    edit_graph(other, "temporal", perturb_one_weight)
    manifest, path = Manifest.load(other), Manifest.load(made).engines["temporal"].path
    plan = fake_plan(other / graph_path("temporal"), manifest.graphs["temporal"])
    (other / path).write_bytes(plan)
    manifest = sign_engines(replace(manifest, files=hash_folder(other)))
    manifest.save(other)
    assert open_bundle(other, cuda=cuda, runtime="target").runs_on == "tensorrt_rtx on SM89"
    (made / path).write_bytes(plan)
    if whole_entry:
        own = Manifest.load(made)
        engines = {**own.engines, "temporal": manifest.engines["temporal"]}
        replace(own, engines=engines).save(made)
    restamp(made)
    for options in ({}, {"trust_engines": True}):
        assert "temporal.engine is not the engine that this machine built" in refusal(made, cuda, **options)


def test_exchanged_engines_are_known_without_a_gpu(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_gpu() -> None:
        raise BackendUnavailable("no NVIDIA GPU is visible")

    monkeypatch.setattr("engines.bundle.LibCudart", no_gpu)
    made = folder()
    (made / "engines/llm.engine").write_bytes(b"another")
    restamp(made)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", SimpleNamespace(__version__=VERSION))
    with pytest.raises(BundleError, match=r"llm\.engine is not the engine that this machine built"):
        open_bundle(made, runtime="target")


def test_engines_of_an_earlier_version_need_a_word_of_trust_and_it_says_why(
    folder: Folder, cuda: RecordingCuda
) -> None:
    """Its manifests had a signature of only the engine's bytes, stored as `built_on`."""
    made = folder()
    data = json.loads((made / "manifest.json").read_text("utf-8"))
    for entry in data["engines"].values():
        entry["built_on"] = sign(data["files"][entry["path"]]["sha256"])
        del entry["signature"]
    (made / "manifest.json").write_text(json.dumps(data), "utf-8")
    text = refusal(made, cuda)
    assert "trunk.engine is unsigned" in text and "an earlier version of pvc-export built it" in text
    assert "--trust-engines" in text and "build them here: pvc-export trt -m tiny --target rtx" in text
    assert open_bundle(made, cuda=cuda, trust_engines=True).runs_on.endswith("engines trusted unverified")
    assert open_bundle(made, runtime="cpu").runs_on == ON_CPU


def test_a_missing_engine_is_named_with_the_command_that_builds_it(folder: Folder, cuda: RecordingCuda) -> None:
    text = refusal(folder(missing="llm"), cuda)
    assert "has no engine for 'llm', which target 'rtx' needs" in text
    assert "pvc-export trt -m tiny --target rtx" in text


def test_a_bundle_copied_without_its_engines_runs_on_the_cpu_and_nowhere_else(
    folder: Folder, cuda: RecordingCuda, frames: Any
) -> None:
    made = folder()
    told = on_the_cpu(made, frames)
    shutil.rmtree(made / "engines")
    assert on_the_cpu(made, frames) == told
    assert open_bundle(made, cuda=cuda).runs_on == ON_CPU, "auto must use the CPU if the target's engines are missing"
    text = refusal(made, cuda)
    assert (
        "engines/compressor.engine is missing" in text
        and "5 engines that the manifest lists; all of them are missing" in text
    )
    assert "copied without its engines" in text and "--runtime cpu" in text and "pvc-export trt -m tiny" in text


def on_the_cpu(folder: Path, frames: Any) -> tuple[int, ...]:
    stream = PVCStream(open_bundle(folder, runtime="cpu"))
    stream.push(frames[0])
    return stream.ask("What is it?", max_new_tokens=4).token_ids


@pytest.mark.parametrize("runtime", ["auto", "cpu", "target"])
def test_one_engine_that_is_missing_is_an_incomplete_copy_wherever_it_would_run(
    folder: Folder, cuda: RecordingCuda, runtime: Runtime
) -> None:
    made = folder()
    (made / "engines/llm.engine").unlink()
    with pytest.raises(BundleError, match=r"llm\.engine is missing") as caught:
        open_bundle(made, runtime=runtime, cuda=cuda)
    assert caught.value.cause == "the bundle was copied incompletely" and "copy the bundle again" in caught.value.fix


def test_an_engine_older_than_its_graph_is_refused(folder: Folder, cuda: RecordingCuda) -> None:
    """The graph was exported again but the engine was not rebuilt: only its fingerprint reveals it."""
    made = folder()
    weights = made / f"{graph_path('trunk')}.data"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    replace(Manifest.load(made), files=hash_folder(made)).save(made)
    text = refusal(made, cuda, trust_engines=True)
    assert "trunk.engine is stale: it was not built from" in text and "would not run what was checked" in text
    assert "pvc-export trt -m tiny --target rtx" in text


def test_the_engine_of_another_graph_is_refused(folder: Folder, cuda: RecordingCuda, bundle_fp16: Path) -> None:
    other = fake_plan(bundle_fp16 / graph_path("head"), Manifest.load(bundle_fp16).graphs["head"])
    text = refusal(folder(plans={"compressor": other}), cuda)
    assert "compressor.engine: tensor 'features' is missing" in text
    assert "('input', 'float16', (1, 64, 64))" in text and "export again: pvc-export trt" in text


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"get_tensor_shape": lambda name: (1, 999) if name == "logits" else (1, 1, 64)}, r"(1, 999)"),
        ({"get_tensor_dtype": lambda name: "DataType.HALF"}, "'output', 'float16'"),
        ({"get_tensor_dtype": lambda name: "DataType.FP8"}, "'FP8'"),
        ({"get_tensor_mode": lambda name: None}, "'output', 'float16', (1, 1, 64)"),
    ],
    ids=["larger output", "other dtype", "unknown dtype", "all outputs"],
)
def test_an_engine_whose_tensors_are_not_the_spec_s_is_refused(
    folder: Folder, cuda: RecordingCuda, monkeypatch: pytest.MonkeyPatch, wrong: dict[str, Any], says: str
) -> None:
    """A larger output would be written past the end of its buffer."""
    for name, answer in wrong.items():
        original = getattr(Engine, name)
        monkeypatch.setattr(
            Engine, name, lambda self, tensor, o=original, a=answer: a(tensor) if is_head(self) else o(self, tensor)
        )
    text = refusal(folder(), cuda)
    assert "head.engine: tensor '" in text and says in text


def test_an_engine_that_the_runtime_refuses_is_refused_with_its_reason(folder: Folder, cuda: RecordingCuda) -> None:
    text = refusal(folder(plans={"llm": b"\x00 not a plan"}), cuda)
    assert f"llm.engine was rejected by tensorrt_rtx {VERSION}: Serialization assertion" in text
    assert "build it here: pvc-export trt" in text


def test_an_engine_without_a_context_is_a_lack_of_memory(
    folder: Folder, cuda: RecordingCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Engine, "create_execution_context", lambda self, *_: None)
    with pytest.raises(BackendUnavailable, match="no execution context could be created for ") as caught:
        open_bundle(folder(), cuda=cuda)
    assert caught.value.exit_code == 4 and "--context" in caught.value.fix


def test_a_refused_bundle_leaves_nothing_on_the_gpu(folder: Folder, cuda: RecordingCuda) -> None:
    import gc

    refusal(folder(plans={"head": b"?"}), cuda)
    gc.collect()
    assert cuda.count("allocate") > 0 and cuda.allocated() == 0


def test_auto_without_a_gpu_runs_on_the_cpu_and_says_so(
    folder: Folder, frames: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_gpu() -> None:
        raise BackendUnavailable("no NVIDIA GPU is visible")

    monkeypatch.setattr("engines.bundle.LibCudart", no_gpu)
    made = folder()
    bundle = open_bundle(made)
    assert bundle.runs_on == "ONNX Runtime CPU" and bundle.sessions["llm"].computes_in == "float32"
    PVCStream(bundle).push(frames[0])
    version = Manifest.load(made).engines["llm"].runtime_version
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", SimpleNamespace(__version__=version))
    with pytest.raises(BackendUnavailable, match="no NVIDIA GPU"):
        open_bundle(made, runtime="target")
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", SimpleNamespace(__version__="1.8"))
    with pytest.raises(BundleError, match=f"was built with tensorrt_rtx {version}.*this machine has 1.8"):
        open_bundle(made, runtime="target")  # detected without a GPU


def test_a_bundle_without_engines_runs_on_the_cpu_unless_its_target_is_asked_for(
    folder: Folder, cuda: RecordingCuda
) -> None:
    made = folder()
    manifest = Manifest.load(made)
    shutil.rmtree(made / "engines")
    replace(manifest, engines={}, files=hash_folder(made)).save(made)
    assert open_bundle(made, cuda=cuda).runs_on == "ONNX Runtime CPU"
    assert "has no engine for 'trunk'" in refusal(made, cuda)


@pytest.mark.parametrize("runtime", ["cpu", "auto"])
def test_a_bfloat16_bundle_is_refused_on_the_cpu_with_the_next_command(
    bundle_fp16: Path, monkeypatch: pytest.MonkeyPatch, runtime: Any
) -> None:
    """Opening refuses before it reads the graphs, so a manifest that declares bfloat16 is enough here."""
    load = Manifest.load

    def no_gpu() -> None:
        raise BackendUnavailable("no NVIDIA GPU is visible")

    monkeypatch.setattr("engines.bundle.LibCudart", no_gpu)
    monkeypatch.setattr(Manifest, "load", staticmethod(lambda path: replace(load(path), precision="bf16")))
    with pytest.raises(PVCError, match=r"is bfloat16.*runs only on an NVIDIA GPU") as caught:
        open_bundle(bundle_fp16, runtime=runtime)
    assert caught.value.exit_code == 4 and "pvc-export check" in caught.value.fix


def test_a_machine_is_the_same_after_a_restart_and_not_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = []
    for content in (b"", b"0123abcd\n", b"0123abcd\0", b"ffff"):
        (tmp_path / "id").write_bytes(content)
        monkeypatch.setattr(machine, "SOURCES", (tmp_path / "none", tmp_path / "id"))
        ids.append(machine.machine_id())
    assert ids[1] == ids[2] and len(set(ids)) == 3 and "0123abcd" not in ids[1]
    assert sign("a") != sign("b") and machine.machine_id() not in sign("a")
    mark = make_mark()
    assert is_own_mark(mark) and make_mark() != mark and machine.machine_id() not in mark
    salt, _, signature = mark.partition(".")
    assert not any(map(is_own_mark, ("", ".", salt, f"{salt}.", f".{signature}", f"{salt}0.{signature}", sign("a"))))
    monkeypatch.setattr(machine, "machine_id", lambda: "another")
    assert not is_own_mark(mark)
