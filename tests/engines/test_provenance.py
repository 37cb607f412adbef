"""A builder's signature covers everything that determines a build, and means nothing on another machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engines import machine
from engines.manifest import EngineEntry, FileEntry, Manifest
from engines.provenance import Origin, origin_of, sign_engines

from .exact import exact_bundle

GRAPHS = ("trunk", "head")


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    """A manifest with two engines built on this machine."""
    entries = {
        name: EngineEntry(
            path=f"engines/{name}.engine", runtime="tensorrt_rtx", runtime_version="1", compute_capabilities=("SM89",),
            num_layers=3, fused_attention={"gemm": 1, "gemv": 0}, build_s=1.5, built_on="", built_from=digest * 64,
        )
        for name, digest in zip(GRAPHS, "ab", strict=True)
    }  # fmt: skip
    files = {
        entry.path: FileEntry(sha256=digest * 64, num_bytes=4)
        for entry, digest in zip(entries.values(), "cd", strict=True)
    }
    return sign_engines(replace(exact_bundle(tmp_path).manifest, engines=entries, files=files))


def origins(manifest: Manifest) -> list[Origin]:
    return [origin_of(manifest, name) for name in GRAPHS]


def with_entry(manifest: Manifest, graph: str = "trunk", **fields: Any) -> Manifest:
    return replace(manifest, engines={**manifest.engines, graph: replace(manifest.engines[graph], **fields)})


def other_engine(manifest: Manifest) -> Manifest:
    changed = {manifest.engines["trunk"].path: FileEntry(sha256="e" * 64, num_bytes=4)}
    return replace(manifest, files=manifest.files | changed)


def other_files_exchanged(manifest: Manifest) -> Manifest:
    paths = [manifest.engines[name].path for name in GRAPHS]
    return replace(manifest, files=dict(zip(paths, (manifest.files[path] for path in reversed(paths)), strict=True)))


def other_entries_exchanged(manifest: Manifest) -> Manifest:
    trunk, head = (manifest.engines[name] for name in GRAPHS)
    return replace(manifest, engines={"trunk": head, "head": trunk})


def other_profile(manifest: Manifest) -> Manifest:
    """As in a bundle for more streams, whose graphs may have the same bytes."""
    spec = manifest.graphs["trunk"]
    wider = replace(spec, profiles=({"batch": replace(manifest.graphs["llm"].dims["rows"], max=9)},))
    return replace(manifest, graphs=manifest.graphs | {"trunk": wider})


def other_tensor(manifest: Manifest) -> Manifest:
    spec = manifest.graphs["trunk"]
    renamed = replace(spec, outputs=(replace(spec.outputs[0], dtype="float16"),))
    return replace(manifest, graphs=manifest.graphs | {"trunk": renamed})


def other_target(manifest: Manifest) -> Manifest:
    return replace(manifest, target="rtx")


ENTRIES: dict[str, Any] = {
    "path": "engines/head.engine", "runtime": "tensorrt", "runtime_version": "2", "compute_capabilities": ("SM80",),
    "num_layers": 4, "fused_attention": {"gemm": 0, "gemv": 0}, "build_s": 2.5, "built_from": "f" * 64,
    "signature": "0" * 32, "visible": "nothing",
}  # fmt: skip


def test_what_was_built_here_is_known_here_and_after_it_was_saved(manifest: Manifest, tmp_path: Path) -> None:
    assert origins(manifest) == ["here", "here"]
    again = with_entry(manifest, compute_capabilities=["SM89"])  # JSON has no tuples
    assert origins(again) == ["here", "here"]


@pytest.mark.parametrize(
    "change",
    [other_engine, other_files_exchanged, other_entries_exchanged, other_profile, other_tensor, other_target],
    ids=lambda change: change.__name__.replace("_", " "),
)
def test_another_engine_graph_or_target_is_not_what_was_built(
    manifest: Manifest, change: Callable[[Manifest], Manifest]
) -> None:
    assert origin_of(change(manifest), "trunk") == "exchanged"


@pytest.mark.parametrize("field", ENTRIES)
def test_an_edited_fact_of_an_engine_is_not_what_was_built(manifest: Manifest, field: str) -> None:
    assert origins(with_entry(manifest, **{field: ENTRIES[field]})) == ["exchanged", "here"]


def test_every_fact_of_an_engine_is_edited_above() -> None:
    assert set(EngineEntry.__dataclass_fields__) == {*ENTRIES, "built_on"}


def test_the_mark_of_another_engine_of_this_machine_is_signed_as_well(manifest: Manifest) -> None:
    assert origins(with_entry(manifest, built_on=manifest.engines["head"].built_on)) == ["exchanged", "here"]


@pytest.mark.parametrize("change", [lambda manifest: manifest, other_engine], ids=["as built", "exchanged"])
def test_another_machine_can_tell_neither(
    manifest: Manifest, change: Callable[[Manifest], Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "machine_id", lambda: "another")
    assert origins(change(manifest)) == ["elsewhere", "elsewhere"]


def test_an_engine_without_a_signature_is_called_so(manifest: Manifest) -> None:
    assert origins(with_entry(manifest, signature="")) == ["unsigned", "here"]


def test_what_a_signature_does_not_cover_does_not_change_it(manifest: Manifest) -> None:
    """A receipt is written after the check, when the engines are already signed."""
    assert origins(replace(manifest, parity={"passed": True}, created_utc="later")) == ["here", "here"]
