"""A kit: one folder to copy to a device, which builds its engines there, proves them and watches a camera.

kit.json   what this file says, written last: a kit without it is not complete
model/     a bundle without engines, with a golden recording
runtime/   engines/ and apps/ as source
work/      made by the build: each engine as soon as it is built, and what the builds measured
bundle/    made by the build, once its engines reproduced the recording
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
"""Memory of a build: so many times the graph's weights, and what any build takes. Of 24 layers in float16 TensorRT-RTX
took 3.5 times 646 MB in all (on a CPU; no Jetson has measured it)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Kit:
    """A complete kit.

    manifest  of what is to be built: the model's, or that with variants in the place of some graphs
    asked     graph -> what the gate holds its engine to
    variants  those graphs (engines/variants.py)
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
        """Where a file of the bundle to be built lies in the model."""
        return self.model / source_of(name, self.variants)

    def noted_as(self, graph: str) -> str:
        """What its engine and its note are called in the work folder."""
        return f"{graph}.unfused" if graph in self.variants else graph

    def fallbacks(self) -> dict[str, tuple[Fusable, ...]]:
        """Graphs that have a variant, and are not one yet."""
        return {graph: kinds for graph, kinds in variants_in(self._of_model()).items() if graph not in self.variants}

    def unfuse(self, graphs: Collection[str]) -> Kit:
        """The same with the variants of these graphs, which must be among `fallbacks`."""
        chosen = self.variants | set(graphs)
        manifest = with_variants(self._of_model(), chosen)
        asked = {name: replace(one, spec=manifest.graphs[name]) for name, one in self.asked.items()}
        return replace(self, manifest=manifest, asked=asked, variants=chosen)

    def unfuse_parts(self, parts: Collection[Fusable]) -> Kit:
        """The same with every variant that has one of these parts. Raises BundleError for a part that none has."""
        found = self.fallbacks()
        unfused = {kind for kinds in (*found.values(), *self.manifest.unfused.values()) for kind in kinds}
        if missing := [part for part in parts if part not in unfused]:
            raise BundleError(
                f"{self.folder} has no graph whose {missing[0]} attention is unfused, so --unfuse {missing[0]} does "
                "nothing",
                expected=f"one of {', '.join(sorted(unfused)) or 'none: it was made before there were any'}",
                fix=f"make the kit again: pvc-export kit -m {self.manifest.model.name} --target {self.target.name}",
            )
        fused = {graph: set(kinds) - set(self.manifest.unfused.get(graph, ())) for graph, kinds in found.items()}
        return self.unfuse([graph for graph, kinds in fused.items() if kinds & set(parts)])

    def _of_model(self) -> Manifest:
        return Manifest.load(self.model)

    def num_bytes(self, graph: str) -> int:
        """Of a graph's file and its weights."""
        files, path = self.manifest.files, graph_path(graph)
        return sum(files[name].num_bytes for name in (path, f"{path}.data") if name in files)

    def order(self) -> list[str]:
        """Graphs that become engines, the smallest first: what a device cannot do at all shows early."""
        return sorted(self.target.engine_graphs, key=self.num_bytes)

    def needs_mib(self) -> int:
        """Memory that building the largest graph takes, roughly."""
        largest = max(self.num_bytes(graph) for graph in self.target.engine_graphs)
        return BUILD_BASE_MIB + BUILD_TIMES * largest // MIB

    @staticmethod
    def load(folder: Path) -> Kit:
        """Raises BundleError for what is no kit, or half of one."""
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
                expected="a folder that pvc-export kit made, copied whole",
                cause="the copy is not complete, or another version made it",
                fix="copy it again, with all files: rsync -a KIT/ DEVICE:KIT/",
            ) from error
        return Kit(folder=folder, manifest=manifest, target=load_target(manifest.target), asked=asked)


def write_facts(folder: Path, asked: dict[str, Asked], *, files: dict[str, FileEntry], made_by: str) -> None:
    """Make a folder a kit. files: all but the model's, which its manifest lists."""
    facts = {
        "format": FORMAT,
        "made_by": made_by,
        "asked": {name: one.to_json() for name, one in asked.items()},
        "files": {name: [entry.sha256, entry.num_bytes] for name, entry in files.items()},
    }
    (folder / KIT_NAME).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
