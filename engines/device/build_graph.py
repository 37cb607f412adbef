"""Builds the engine of one graph of a kit in a separate process, so that all its memory is freed at the end.

Prints progress for the parent process, one JSON object per line. The engine file gets its final name once it is
complete; its record is written after that, and an engine without a record is ignored.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from ..builder import BuildOptions, load_runtime
from ..bundle import graph_path
from ..checked_build import build_checked
from ..cuda import CudaRuntime
from ..errors import PVCError
from ..manifest import EngineEntry, fingerprint, hash_file
from ..publishing import sync
from ..spec import Fusable
from ..terminal import fail
from .kit import Kit

TIMING_CACHE = "timing.cache"


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    """A completely built engine. `key` holds everything it depends on."""

    entry: EngineEntry
    note: str

    @staticmethod
    def find(kit: Kit, graph: str, key: dict[str, Any]) -> Finished | None:
        """Return the engine that an earlier build finished with the same key, if its file is unchanged."""
        try:
            noted = json.loads((kit.work / f"{kit.noted_as(graph)}.json").read_text(encoding="utf-8"))
            entry = EngineEntry(**{**noted["entry"], "compute_capabilities": tuple(noted["key"]["capabilities"])})
            if noted["key"] == key and hash_file(kit.work / f"{kit.noted_as(graph)}.engine").sha256 == noted["sha256"]:
                return Finished(entry=entry, note=noted["note"])
        except (OSError, ValueError, KeyError, TypeError):
            pass
        return None


def key_of(kit: Kit, graph: str, *, version: str, capabilities: tuple[str, ...]) -> dict[str, Any]:
    """Everything an engine depends on: its graph, the compiler's version and the GPUs."""
    graph_sha256 = fingerprint(kit.manifest.files, graph_path(graph))
    return {"graph": graph_sha256, "version": version, "capabilities": list(capabilities)}


def build_one(kit: Kit, graph: str, key: dict[str, Any], options: argparse.Namespace, cuda: CudaRuntime) -> None:
    """Build one engine; write engine, record and timing cache to the kit's work folder. Raises as build_checked."""
    cache = kit.work / TIMING_CACHE
    keep_cache = not options.no_timing_cache
    built = build_checked(
        kit.source(graph_path(graph)),
        kit.asked[graph],
        kit.target,
        built_from=key["graph"],
        options=BuildOptions(
            workspace_bytes=None if options.workspace_mib is None else options.workspace_mib << 20,
            timing_cache=(cache.read_bytes() if cache.is_file() else b"") if keep_cache else None,
        ),
        progress=lambda _, fraction: _say({"progress": round(fraction, 3)}),
        cuda=cuda,
    )
    if built.report.timing_cache is not None:
        _put(cache, built.report.timing_cache)
    engine = kit.work / f"{kit.noted_as(graph)}.engine"
    _put(engine, built.report.plan)
    noted = {"key": key, "entry": asdict(built.entry), "note": built.note, "sha256": hash_file(engine).sha256}
    _put(kit.work / f"{kit.noted_as(graph)}.json", json.dumps(noted, indent=1).encode())


def _put(path: Path, content: bytes) -> None:
    """Write a file atomically: it is complete once it has its name."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_bytes(content)
    sync(partial)
    os.replace(partial, path)


def _say(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


@dataclass(frozen=True, slots=True)
class KnownGpu:
    """A GPU whose compute capability the parent process has already read."""

    capability: str

    def compute_capability(self) -> str:
        return self.capability


def main() -> int:
    """Exit codes: engines/errors.py."""
    parser = argparse.ArgumentParser(prog="python3 -m engines.device.build_graph", description=__doc__)
    parser.add_argument("kit", type=Path)
    parser.add_argument("graph")
    parser.add_argument(
        "--capabilities", required=True, nargs="+", help="compute capabilities to build for, such as SM87"
    )
    add_build_options(parser)
    options = parser.parse_args()
    try:
        kit, gpu = Kit.load(options.kit).unfuse_parts(options.unfuse), KnownGpu(options.capabilities[0])
        version = str(load_runtime(kit.target).__version__)
        key = key_of(kit, options.graph, version=version, capabilities=tuple(options.capabilities))
        build_one(kit, options.graph, key, options, gpu)  # type: ignore[arg-type]  # nothing else of it is used
    except (PVCError, OSError) as error:
        return fail(error, as_json=False)
    return 0


def add_build_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--workspace-mib", type=int, help="GPU memory for trying kernels, in MiB; default: a quarter of the free memory"
    )
    parser.add_argument(
        "--unfuse", action="append", default=[], choices=get_args(Fusable), metavar="PART",
        help="attention that the compiler must not fuse: spatial, temporal or llm. Repeatable. A graph that fails the "
        "golden recording is built this way automatically",
    )  # fmt: skip
    parser.add_argument("--no-timing-cache", action="store_true", help="time every kernel again")


if __name__ == "__main__":
    sys.exit(main())
