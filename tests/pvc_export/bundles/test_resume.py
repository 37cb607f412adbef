"""An export reuses the graphs that an earlier, killed export had finished, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engines.bundle import graph_path
from engines.manifest import Manifest, hash_folder
from engines.spec import StreamLimits
from engines.target import load_target
from pvc_export.bundles import export as exporting
from pvc_export.bundles import publish
from pvc_export.bundles.export import ExportRequest, write_graphs
from pvc_export.bundles.publish import require_room, staging
from pvc_export.bundles.resume import Resume
from pvc_export.graphs.models import LoadedModel
from pvc_export.terminal.console import Console

FACTS = {"weights": "those of a test"}


@pytest.fixture
def specs(bundle_fp32: Path) -> dict[str, Any]:
    return dict(Manifest.load(bundle_fp32).graphs)


def write(folder: Path, name: str, text: str) -> None:
    for path in (graph_path(name), f"{graph_path(name)}.data"):
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(f"{path} {text}")


def die(out: Path, specs: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run an export that finishes two graphs, begins a third, and dies."""
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt), staging(out) as folder:
        patch.setattr(publish, "_remove_holder", lambda *_: None)
        resume = Resume(folder.parent, FACTS)
        for name in ("trunk", "llm"):
            write(folder, name, "whole")
            resume.finish(name, specs[name], folder)
        write(folder, "head", "half")
        raise KeyboardInterrupt


def test_what_was_finished_is_taken_over_and_what_was_begun_is_not(
    specs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "bundle"
    die(out, specs, monkeypatch)
    with staging(out) as folder:
        (folder / "graphs").mkdir()
        resume = Resume(folder.parent, FACTS)
        assert [name for name in specs if resume.take_over(name, specs[name], folder)] == ["trunk", "llm"]
        assert resume.hashes() == hash_folder(folder) and len(resume.hashes()) == 4
        assert (folder / graph_path("llm")).read_text().endswith("whole")
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize("change", ["other weights", "another spec", "a byte", "a halved note"])
def test_nothing_is_taken_over_of_another_export_or_if_it_is_damaged(
    change: str, specs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "bundle"
    die(out, specs, monkeypatch)
    (holder,) = tmp_path.iterdir()
    facts, spec = FACTS, specs["llm"]
    if change == "other weights":
        facts = {"weights": "others"}
    elif change == "another spec":
        spec = replace(spec, num_times=7)
    elif change == "a byte":
        (holder / "bundle" / f"{graph_path('llm')}.data").write_text("graphs/llm.onnx.data hole")
    else:
        note = holder / "finished.json"
        note.write_text(note.read_text()[:-9])
    with staging(out) as folder:
        (folder / "graphs").mkdir()
        assert not Resume(folder.parent, facts).take_over("llm", spec, folder)
        assert hash_folder(folder) == {}


def test_an_export_that_dies_twice_loses_nothing_that_it_had_taken_over(
    specs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "bundle"
    die(out, specs, monkeypatch)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt), staging(out) as folder:
        patch.setattr(publish, "_remove_holder", lambda *_: None)
        (folder / "graphs").mkdir()
        assert Resume(folder.parent, FACTS).take_over("trunk", specs["trunk"], folder)
        raise KeyboardInterrupt
    with staging(out) as folder:
        (folder / "graphs").mkdir()
        assert Resume(folder.parent, FACTS).take_over("trunk", specs["trunk"], folder)


def test_the_room_that_a_dead_export_takes_counts_as_free(
    specs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "bundle"
    die(out, specs, monkeypatch)
    num_bytes = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    monkeypatch.setattr(publish.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    require_room(out, 1000 + num_bytes)
    with pytest.raises(publish.BackendUnavailable, match="are free"):
        require_room(out, 1001 + num_bytes)


def test_a_real_export_writes_only_the_graphs_that_are_missing(
    small: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, written = tmp_path / "bundle", list[str]()
    limits = StreamLimits(window=4, context=512)
    request = ExportRequest(out=out, target=load_target("cpu"), precision="fp16", limits=limits)
    export_graph = exporting.export_graph

    def counted(module: Any, spec: Any, path: Path) -> None:
        if len(written) == 2:
            written.append("died")
            raise KeyboardInterrupt
        written.append(spec.name)
        export_graph(module, spec, path)

    monkeypatch.setattr(exporting, "export_graph", counted)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt), staging(out) as folder:
        patch.setattr(publish, "_remove_holder", lambda *_: None)
        write_graphs(small, request, folder, Console(quiet=True), resume=Resume(folder.parent, FACTS))
    console = Console(quiet=True)
    with staging(out) as folder:
        manifest = write_graphs(small, request, folder, console, resume=Resume(folder.parent, FACTS))
    assert written == ["trunk", "temporal", "died", "compressor", "embed", "llm", "head"]
    assert manifest.files == hash_folder(out)
    assert ["interrupted" in stage.note for stage in console.stages] == [True, True, False, False, False, False]
