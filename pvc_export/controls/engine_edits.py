"""Engines that do not match their bundle. This must be detected even where they cannot run, so any bytes will do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from engines.bundle import graph_path
from engines.manifest import EngineEntry, Manifest, fingerprint, hash_folder
from engines.provenance import sign_engines

from .graph_edits import restamp

PAIR = ("trunk", "compressor")


def build_engines(bundle: Path, *, of_an_earlier_graph: bool = False, of_other_weights: str = "") -> None:
    """Give two graphs of a bundle engines, signed by this machine; correct ones unless the options make them wrong."""
    manifest, engines = Manifest.load(bundle), {}
    (bundle / "engines").mkdir(exist_ok=True)
    for name in PAIR:
        path = f"engines/{name}.engine"
        (bundle / path).write_bytes(f"the plan of {name}{of_other_weights}".encode())
        built_from = fingerprint(manifest.files, graph_path(name))
        engines[name] = EngineEntry(
            path=path, runtime="tensorrt_rtx", runtime_version="1", compute_capabilities=("SM89",), num_layers=1,
            fused_attention={"gemm": 0, "gemv": 0}, build_s=0.0, built_on="",
            built_from="0" * 64 if of_an_earlier_graph or of_other_weights else built_from,
        )  # fmt: skip
    sign_engines(replace(manifest, files=hash_folder(bundle), engines=engines)).save(bundle)


def forget_to_build_anew(bundle: Path) -> None:
    """Give the bundle engines built from earlier graphs."""
    build_engines(bundle, of_an_earlier_graph=True)


def exchange_engines(bundle: Path) -> None:
    """Exchange two engines with their manifest entries, and restamp the bundle."""
    build_engines(bundle)
    manifest = Manifest.load(bundle)
    first, second = (manifest.engines[name] for name in PAIR)
    plans = [(bundle / entry.path).read_bytes() for entry in (first, second)]
    (bundle / first.path).write_bytes(plans[1])
    (bundle / second.path).write_bytes(plans[0])
    entries = (replace(second, path=first.path), replace(first, path=second.path))
    replace(manifest, engines=dict(zip(PAIR, entries, strict=True))).save(bundle)
    restamp(bundle)


def take_engines_of_another_bundle(bundle: Path) -> None:
    """Give it engines built here for a bundle with equal shapes but other weights, and restamp the bundle."""
    build_engines(bundle, of_other_weights=" of other weights")
    restamp(bundle)
