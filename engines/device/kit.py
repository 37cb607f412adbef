"""A kit: one folder to copy to a device, which builds its engines there, proves them and watches a camera.

kit.json   what this file says, written last: a kit without it is not complete
model/     a bundle without engines, with a golden recording
runtime/   engines/ and apps/ as source
work/      made by the build: each engine as soon as it is built, and what the builds measured
bundle/    made by the build, once its engines reproduced the recording
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..bundle import graph_path
from ..errors import BundleError, PVCError
from ..gate import Asked
from ..manifest import FileEntry, Manifest
from ..target import Target, load_target

KIT_NAME, MODEL, RUNTIME, WORK, BUNDLE = "kit.json", "model", "runtime", "work", "bundle"
FORMAT = 1
MIB = 1 << 20
BUILD_TIMES, BUILD_BASE_MIB = 3, 600
"""Memory of a build: so many times the graph's weights, and what any build takes. Of 24 layers in float16 TensorRT-RTX
took 3.5 times 646 MB in all (on a CPU; no Jetson has measured it)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Kit:
    """A complete kit. asked: graph -> what the gate holds its engine to."""

    folder: Path
    manifest: Manifest
    target: Target
    asked: dict[str, Asked]

    @property
    def model(self) -> Path:
        return self.folder / MODEL

    @property
    def work(self) -> Path:
        return self.folder / WORK

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
