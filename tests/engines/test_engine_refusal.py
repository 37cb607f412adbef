"""Engines are executable code: one that is another version's, GPU's, graph's or machine's is refused before it runs."""

from __future__ import annotations

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
from engines.machine import sign
from engines.manifest import Manifest, hash_file, hash_folder

from .fake_trt import Engine, fake_plan, make_module

VERSION = "1.7.2.9"
Folder = Callable[..., Path]


@pytest.fixture
def folder(bundle_fp16: Path, tmp_path: Path) -> Folder:
    """A bundle with engines of the fake runtime; `plans` are other contents by name, `entry` other facts of them all,
    `missing` is one that was never built."""

    def make(*, plans: dict[str, bytes] | None = None, missing: str = "", **entry: Any) -> Path:
        folder = Path(shutil.copytree(bundle_fp16, tmp_path / "copy"))
        manifest, engines = Manifest.load(folder), {}
        for name, old in manifest.engines.items():
            plan = fake_plan(folder / graph_path(name), manifest.graphs[name])
            (folder / old.path).write_bytes((plans or {}).get(name, plan))
            signature = sign(hash_file(folder / old.path).sha256)
            engines[name] = replace(old, **{"runtime_version": VERSION, "built_on": signature, **entry})
        if missing:
            (folder / engines.pop(missing).path).unlink()
        replace(manifest, engines=engines, files=hash_folder(folder)).save(folder)
        return folder

    return make


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> RecordingCuda:
    """A GPU of this machine, with the fake runtime on it."""
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
    assert "trunk.engine was built on another machine" in text
    assert "--trust-engines" in text and "pvc-export trt -m tiny --target rtx" in text
    assert open_bundle(made, cuda=cuda, trust_engines=True).runs_on == "tensorrt_rtx on SM89"


def test_what_a_bundle_says_of_its_machine_vouches_for_no_other_engine(folder: Folder, cuda: RecordingCuda) -> None:
    """Whoever reads a published bundle must not be able to pass an engine off as built where that bundle was."""
    made = folder()
    manifest = Manifest.load(made)
    head = manifest.engines["head"]
    (made / head.path).write_bytes((made / head.path).read_bytes() + b" ")  # any other content
    replace(manifest, files=hash_folder(made)).save(made)
    assert "head.engine was built on another machine, or changed since" in refusal(made, cuda)
    assert len({entry.built_on for entry in manifest.engines.values()}) == 5, "a signature of each, not of the machine"


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
    assert open_bundle(made, cuda=cuda).runs_on == ON_CPU, "auto is the CPU where the target's engines are not"
    text = refusal(made, cuda)
    assert (
        "engines/compressor.engine is missing" in text
        and "5 engines that the manifest lists, of which none is here" in text
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
    """The graph was exported again, the engine was not built again: nothing but its fingerprint tells."""
    made = folder()
    weights = made / f"{graph_path('trunk')}.data"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    replace(Manifest.load(made), files=hash_folder(made)).save(made)
    text = refusal(made, cuda, trust_engines=True)
    assert "trunk.engine was built from another graph than" in text and "it is stale" in text
    assert "pvc-export trt -m tiny --target rtx" in text


def test_the_engine_of_another_graph_is_refused(folder: Folder, cuda: RecordingCuda, bundle_fp16: Path) -> None:
    other = fake_plan(bundle_fp16 / graph_path("head"), Manifest.load(bundle_fp16).graphs["head"])
    text = refusal(folder(plans={"compressor": other}), cuda)
    assert "compressor.engine: tensor 'features' is not there" in text
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
    """A larger output would be written beyond the buffer that waits for it."""
    for name, answer in wrong.items():
        original = getattr(Engine, name)
        monkeypatch.setattr(
            Engine, name, lambda self, tensor, o=original, a=answer: a(tensor) if is_head(self) else o(self, tensor)
        )
    text = refusal(folder(), cuda)
    assert "head.engine: tensor '" in text and says in text


def test_an_engine_that_the_runtime_refuses_is_refused_with_its_reason(folder: Folder, cuda: RecordingCuda) -> None:
    text = refusal(folder(plans={"llm": b"\x00 not a plan"}), cuda)
    assert f"llm.engine was refused by tensorrt_rtx {VERSION}: Serialization assertion" in text
    assert "build it here: pvc-export trt" in text


def test_an_engine_without_a_context_is_a_lack_of_memory(
    folder: Folder, cuda: RecordingCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Engine, "create_execution_context", lambda self: None)
    with pytest.raises(BackendUnavailable, match="no execution context for ") as caught:
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
        raise BackendUnavailable("no NVIDIA GPU is visible here")

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
        open_bundle(made, runtime="target")  # known without a GPU


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
    """Opening does not read the graphs before it refuses, so a manifest that says bfloat16 is enough here."""
    load = Manifest.load

    def no_gpu() -> None:
        raise BackendUnavailable("no NVIDIA GPU is visible here")

    monkeypatch.setattr("engines.bundle.LibCudart", no_gpu)
    monkeypatch.setattr(Manifest, "load", staticmethod(lambda path: replace(load(path), precision="bf16")))
    with pytest.raises(PVCError, match=r"is bfloat16.*runs on an NVIDIA GPU only") as caught:
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
