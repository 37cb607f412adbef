"""A kit: one folder to copy to a device. There it builds its engines, checks them, and watches a camera.

kit.json   facts for the build (this module); written last, so a kit without it is incomplete
model/     a bundle without engines, with a golden recording
runtime/   engines/ and apps/ as source
work/      created by the build: each engine as soon as it is built, and the timing cache
bundle/    created by the build once the engines reproduce the recording
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..bundle import graph_path
from ..errors import BundleError, PVCError
from ..gate import Asked
from ..manifest import FileEntry, Manifest
from ..spec import Fusable
from ..target import Target, load_target
from ..variants import source_of, variants_in, with_variants

KIT_NAME, MODEL, RUNTIME, WORK, BUNDLE = "kit.json", "model", "runtime", "work", "bundle"
FORMAT = 1
MIB = 1 << 20
BUILD_TIMES, BUILD_BASE_MIB = 3, 600
"""Memory of a build in MiB: BUILD_BASE_MIB plus BUILD_TIMES the size of the graph's weights. For 24 layers in float16
TensorRT-RTX took 3.5 times 646 MB in total (on a CPU; not measured on a Jetson)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Kit:
    """A complete kit.

    manifest  of the bundle to build: the model's manifest, with some graphs replaced by variants
    asked     graph -> what the gate requires of its engine
    variants  the replaced graphs (engines/variants.py)
    """

    folder: Path
    manifest: Manifest
    target: Target
    asked: dict[str, Asked]
    variants: frozenset[str] = frozenset()

    @property
    def model(self) -> Path:
        return self.folder / MODEL

    @property
    def work(self) -> Path:
        return self.folder / WORK

    def source(self, name: str) -> Path:
        """Path, in the model folder, of a file of the bundle to build."""
        return self.model / source_of(name, self.variants)

    def noted_as(self, graph: str) -> str:
        """Name of the graph's engine and record in the work folder."""
        return f"{graph}.unfused" if graph in self.variants else graph

    def fallbacks(self) -> dict[str, tuple[Fusable, ...]]:
        """Graphs that have a variant and do not use it yet."""
        return {graph: kinds for graph, kinds in variants_in(self._of_model()).items() if graph not in self.variants}

    def unfuse(self, graphs: Collection[str]) -> Kit:
        """The same kit with the variants of these graphs, which must be in `fallbacks`."""
        chosen = self.variants | set(graphs)
        manifest = with_variants(self._of_model(), chosen)
        asked = {name: replace(one, spec=manifest.graphs[name]) for name, one in self.asked.items()}
        return replace(self, manifest=manifest, asked=asked, variants=chosen)

    def unfuse_parts(self, parts: Collection[Fusable]) -> Kit:
        """The same kit with every variant that unfuses one of these parts. Raises BundleError if no variant does."""
        found = self.fallbacks()
        unfused = {kind for kinds in (*found.values(), *self.manifest.unfused.values()) for kind in kinds}
        if missing := [part for part in parts if part not in unfused]:
            raise BundleError(
                f"no graph in {self.folder} has a variant with unfused {missing[0]} attention: --unfuse {missing[0]} "
                "has no effect",
                expected=f"one of {', '.join(sorted(unfused)) or 'none: the kit is older than this option'}",
                fix=f"make the kit again: pvc-export kit -m {self.manifest.model.name} --target {self.target.name}",
            )
        fused = {graph: set(kinds) - set(self.manifest.unfused.get(graph, ())) for graph, kinds in found.items()}
        return self.unfuse([graph for graph, kinds in fused.items() if kinds & set(parts)])

    def _of_model(self) -> Manifest:
        return Manifest.load(self.model)

    def num_bytes(self, graph: str) -> int:
        """Size of a graph's file and weights."""
        files, path = self.manifest.files, graph_path(graph)
        return sum(files[name].num_bytes for name in (path, f"{path}.data") if name in files)

    def order(self) -> list[str]:
        """Graphs that become engines, smallest first, so that a device that cannot build at all fails early."""
        return sorted(self.target.engine_graphs, key=self.num_bytes)

    def needs_mib(self) -> int:
        """Approximate memory for building the largest graph."""
        largest = max(self.num_bytes(graph) for graph in self.target.engine_graphs)
        return BUILD_BASE_MIB + BUILD_TIMES * largest // MIB

    @staticmethod
    def load(folder: Path) -> Kit:
        """Load a kit. Raises BundleError if the folder is not a complete kit."""
        path = folder / KIT_NAME
        try:
            facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if facts["format"] != FORMAT:
                raise ValueError(f"format {facts['format']}, expected {FORMAT}")
            manifest = Manifest.load(folder / MODEL)
            asked = {name: Asked.from_json(data, manifest.graphs[name]) for name, data in facts["asked"].items()}
        except PVCError:
            raise
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BundleError(
                f"{folder} is not a kit: {path.name} cannot be read ({error!r})",
                expected="a complete copy of a folder made by pvc-export kit",
                cause="the copy is not complete, or another version made it",
                fix="copy it again with all its files: rsync -a KIT/ DEVICE:KIT/",
            ) from error
        return Kit(folder=folder, manifest=manifest, target=load_target(manifest.target), asked=asked)


def write_facts(folder: Path, asked: dict[str, Asked], *, files: dict[str, FileEntry], made_by: str) -> None:
    """Write kit.json, which makes the folder a kit. files: all except the model's, which its manifest lists."""
    facts = {
        "format": FORMAT,
        "made_by": made_by,
        "asked": {name: one.to_json() for name, one in asked.items()},
        "files": {name: [entry.sha256, entry.num_bytes] for name, entry in files.items()},
    }
    (folder / KIT_NAME).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
