"""Bad input on the command line: each kind gets its exit code and an error with four fields.

The fields are what happened, what was expected, the likely cause, and what to do.
The commands run in this process, because starting Python and torch for each would take most of the time.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from engines import checked_build
from engines.manifest import Manifest
from engines.provenance import sign_engines
from engines.video import write_video
from pvc_export.controls.graph_edits import restamp
from pvc_export.graphs.models import LoadedModel
from pvc_export.parity.clip import render_clip
from pvc_ref.checkpoint.folder import save as save_model

from ..conftest import Run

EXPORT_AGAIN = "pvc-export trt -m tiny --fp16 --target rtx --window 4 --context 512 --streams 1 -o "
LIKE_BUNDLE = ("--window", "4", "--context", "512")
"""The options that bundle_fp16 was exported with, so that its graphs can replace freshly exported ones."""


# Ways to damage a file. Each takes the file's path.


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def text(path: Path) -> None:
    path.write_text("this is not a network")


def flip_one_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def remove(path: Path) -> None:
    path.unlink()


Facts = dict[str, str | tuple[str, ...]]
"""Texts that an error must contain, by field."""

SIZE: Facts = {"what": "bytes", "expected": "the manifest", "cause": "truncated or replaced", "fix": EXPORT_AGAIN}
CHANGED: Facts = {
    "what": "has SHA-256", "expected": "the manifest", "cause": "changed after the export", "fix": EXPORT_AGAIN,
}  # fmt: skip
MISSING: Facts = {
    "what": "is missing", "expected": "the manifest", "cause": "copied incompletely", "fix": EXPORT_AGAIN,
}  # fmt: skip
NO_JSON: Facts = {"what": "is not valid JSON", "cause": "truncated or edited", "fix": "pvc-export trt -o "}
NO_MANIFEST: Facts = {"what": "has no manifest.json", "fix": "folder made by pvc-export"}


@pytest.mark.parametrize(
    ("file", "damage", "facts"),
    [
        ("graphs/llm.onnx", truncate, SIZE),
        ("graphs/llm.onnx", empty, SIZE),
        ("graphs/llm.onnx", text, SIZE),
        ("graphs/llm.onnx", remove, MISSING),
        ("graphs/llm.onnx.data", remove, MISSING),
        ("graphs/temporal.onnx", flip_one_bit, CHANGED),
        ("graphs/temporal.onnx.data", flip_one_bit, CHANGED),
        ("engines/trunk.engine", flip_one_bit, CHANGED),
        ("engines/trunk.engine", remove, MISSING),
        ("tokenizer.json", flip_one_bit, CHANGED),
        ("manifest.json", truncate, NO_JSON),
        ("manifest.json", remove, NO_MANIFEST),
    ],
    ids=lambda value: value.__name__ if callable(value) else value if isinstance(value, str) else "",
)
def test_a_damaged_bundle(
    bundle_fp16: Path,
    copy_bundle: Callable[[Path], Path],
    pvc_export: Run,
    file: str,
    damage: Callable[[Path], None],
    facts: Facts,
) -> None:
    bundle = copy_bundle(bundle_fp16)
    damage(bundle / file)
    outcome = pvc_export("check", bundle, "--json")
    outcome.refuses(6, "BundleError", **facts)
    outcome.refuses(6, "BundleError", what=str(bundle) if file == "manifest.json" else f"{bundle}/{file}")


def test_the_command_in_the_message_makes_the_same_bundle(bundle_fp32: Path, bundle_fp16: Path) -> None:
    from engines.bundle import _export_command

    assert _export_command(Path("my bundle"), Manifest.load(bundle_fp16)) == f"{EXPORT_AGAIN}'my bundle'"
    assert _export_command(Path("b"), Manifest.load(bundle_fp32)) == (
        "pvc-export onnx -m tiny --fp32 --target cpu --window 4 --context 512 --streams 2 -o b"
    )


NO_GRAPH: Facts = {
    "what": "cannot be opened", "expected": "an ONNX graph", "cause": "damaged or missing",
    "fix": "pvc-export onnx, or trt",
}  # fmt: skip
NO_TOKENIZER: Facts = {
    "what": "is not a tokenizer file", "cause": "another program wrote it", "fix": "pvc-export onnx, or trt",
}  # fmt: skip


@pytest.mark.parametrize(
    ("file", "damage", "facts"),
    [
        ("graphs/llm.onnx", truncate, NO_GRAPH),
        ("graphs/llm.onnx", empty, NO_GRAPH),
        ("graphs/llm.onnx", text, NO_GRAPH),
        ("graphs/llm.onnx.data", remove, NO_GRAPH),
        ("graphs/llm.onnx.data", truncate, NO_GRAPH),
        ("tokenizer.json", truncate, NO_TOKENIZER),
        ("tokenizer.json", empty, NO_TOKENIZER),
    ],
    ids=lambda value: value.__name__ if callable(value) else value if isinstance(value, str) else "",
)
def test_damage_that_the_hashes_do_not_show(
    bundle_fp16: Path,
    copy_bundle: Callable[[Path], Path],
    pvc_export: Run,
    file: str,
    damage: Callable[[Path], None],
    facts: Facts,
) -> None:
    """The manifest was stamped after the damage, as by a faulty exporter.

    A valid graph with wrong weights ends with exit code 3: see test_check.py.
    """
    bundle = copy_bundle(bundle_fp16)
    damage(bundle / file)
    restamp(bundle)
    outcome = pvc_export("check", bundle, "--json")
    outcome.refuses(6, "BundleError", **facts)
    outcome.refuses(6, "BundleError", what=f"{bundle}/{file}".removesuffix(".data"))


def before(monkeypatch: pytest.MonkeyPatch, name: str, act: Callable[[Path], None], *, argument: int) -> None:
    """Call `act` with the bundle's folder before engines/checked_build.py calls its `name`."""
    original = getattr(checked_build, name)

    def wrapped(*args: object, **kwargs: object) -> object:
        path = args[argument]
        assert isinstance(path, Path)
        act(path.parent.parent)
        return original(*args, **kwargs)

    monkeypatch.setattr(checked_build, name, wrapped)


NOT_ONNX: Facts = {
    "what": "graphs/trunk.onnx cannot be read as ONNX by tensorrt_rtx",
    "cause": "damaged, its .data file is missing, or another program wrote it",
    "fix": "pvc-export onnx, or trt",
}
OTHER_GRAPH: Facts = {
    "what": "graphs/trunk.onnx has other inputs",
    "expected": ("GraphSpec", "'trunk'", "['frame']"),
    "cause": "another graph",
    "fix": "pvc-export",
}


def replace_by_another_graph(path: Path) -> None:
    shutil.copy(path.with_name("head.onnx"), path)


@pytest.mark.parametrize(
    ("file", "damage", "facts"),
    [
        ("graphs/trunk.onnx", truncate, NOT_ONNX),
        ("graphs/trunk.onnx", empty, NOT_ONNX),
        ("graphs/trunk.onnx", text, NOT_ONNX),
        ("graphs/trunk.onnx.data", remove, NOT_ONNX),
        ("graphs/trunk.onnx", replace_by_another_graph, OTHER_GRAPH),
    ],
    ids=lambda value: value.__name__ if callable(value) else value if isinstance(value, str) else "",
)
def test_a_file_that_the_engine_builder_cannot_use(
    ready_made: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    pvc_export: Run,
    file: str,
    damage: Callable[[Path], None],
    facts: Facts,
) -> None:
    """Uses the real compiler, whose parser reports success for some files that are not ONNX at all."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install -e '.[rtx]'")
    from engines.builder import build_engine

    monkeypatch.setattr(checked_build, "build_engine", build_engine)
    before(monkeypatch, "build_engine", lambda folder: damage(folder / file), argument=0)
    pvc_export("trt", *LIKE_BUNDLE, "-o", tmp_path / "b", "--json").refuses(5, "BuildError", **facts)
    assert not list(tmp_path.iterdir())


CUT_WEIGHTS: Facts = {
    "what": ("cannot be read", "it has", "bytes"), "expected": "bytes", "cause": "interrupted download",
    "fix": "fetch the file again",
}  # fmt: skip
EMPTY_WEIGHTS: Facts = {
    "what": ("cannot be read", "0 bytes"), "expected": "safetensors header", "cause": "broken download",
    "fix": "fetch the file again",
}  # fmt: skip
NO_WEIGHTS: Facts = {
    "what": "has a config.json but no weights", "expected": "model.safetensors", "fix": "fetch the *.safetensors",
}  # fmt: skip
CUT_TOKENIZER: Facts = {
    "what": "tokenizer.json is not a tokenizer file", "cause": "broken download", "fix": "fetch or convert it again",
}  # fmt: skip


@pytest.mark.parametrize(
    ("file", "damage", "facts"),
    [
        ("model.safetensors", truncate, CUT_WEIGHTS),
        ("model.safetensors", empty, EMPTY_WEIGHTS),
        ("model.safetensors", remove, NO_WEIGHTS),
        ("tokenizer.json", truncate, CUT_TOKENIZER),
    ],
    ids=lambda value: value.__name__ if callable(value) else value if isinstance(value, str) else "",
)
def test_a_damaged_checkpoint(
    tiny: LoadedModel,
    tmp_path: Path,
    pvc_export: Run,
    file: str,
    damage: Callable[[Path], None],
    facts: Facts,
) -> None:
    checkpoint = tmp_path / "checkpoint"
    save_model(tiny.model, checkpoint, tokenizer=tiny.tokenizer)
    damage(checkpoint / file)
    outcome = pvc_export("onnx", "-m", checkpoint, "-o", tmp_path / "b", "--json")
    outcome.refuses(6, "ModelError", **facts)
    outcome.refuses(6, "ModelError", what=str(checkpoint))
    assert list(tmp_path.iterdir()) == [checkpoint]


def test_a_folder_that_may_not_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pvc_export: Run) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied", str(tmp_path))

    monkeypatch.setattr("tempfile.mkdtemp", refuse)  # not chmod, which does not stop root
    pvc_export("onnx", "-o", tmp_path / "b", "--json").refuses(
        4, "BackendUnavailable", what=("cannot write next to", "Permission denied"), cause="you may not write",
        fix="another folder with -o",
    )  # fmt: skip
    assert not list(tmp_path.iterdir())


def test_a_full_disk_for_temporary_files_names_that_disk(
    bundle_fp32: Path, monkeypatch: pytest.MonkeyPatch, pvc_export: Run
) -> None:

    def full(*_: object, **__: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pvc_export.parity.check.open_on_cpu", full)
    pvc_export("check", bundle_fp32, "--json").refuses(
        4, "BackendUnavailable", what="No space left on device", cause="temporary files go to", fix="TMPDIR=FOLDER"
    )


def test_a_bundle_that_may_not_be_read(bundle_fp32: Path, monkeypatch: pytest.MonkeyPatch, pvc_export: Run) -> None:
    def refuse(path: Path, *_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_text", refuse)
    what = ("Permission denied", "manifest.json")
    pvc_export("check", bundle_fp32, "--json").refuses(6, "BundleError", what=what, fix="owner and permissions")


def test_an_engine_of_another_version_is_known_without_a_gpu(
    bundle_fp16: Path, copy_bundle: Callable[[Path], Path], tmp_path: Path, pvc_export: Run
) -> None:
    bundle = copy_bundle(bundle_fp16)
    manifest = Manifest.load(bundle)
    old = {name: replace(entry, runtime_version="1.6.0") for name, entry in manifest.engines.items()}
    sign_engines(replace(manifest, engines=old)).save(bundle)
    write_video(tmp_path / "clip.mp4", render_clip(4), fps=4.0)
    run = pvc_export("run", bundle, "--video", tmp_path / "clip.mp4", "--runtime", "target")
    run.says(6, "was built with tensorrt_rtx 1.6.0", "this machine has 1.7.1", "uild it here: pvc-export trt")
    assert "answer" not in run.out and "tokens" not in run.out


def test_a_bundle_without_engines_is_not_blamed_on_the_gpu(
    bundle_fp16: Path, copy_bundle: Callable[[Path], Path], tmp_path: Path, pvc_export: Run
) -> None:
    bundle = copy_bundle(bundle_fp16)
    shutil.rmtree(bundle / "engines")
    replace(Manifest.load(bundle), engines={}).save(bundle)
    restamp(bundle)
    write_video(tmp_path / "clip.mp4", render_clip(4), fps=4.0)
    run = pvc_export("run", bundle, "--video", tmp_path / "clip.mp4", "--runtime", "target")
    run.says(6, "has no engine for 'trunk'", "pvc-export trt -m tiny --target rtx")
    assert "CUDA" not in run.message
