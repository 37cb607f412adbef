"""A bundle on disk, verified and opened.

build/NAME/  manifest.json  graphs/*.onnx (+ .data)  engines/*.engine  tokenizer.json  parity.json

Note: engines are executable code. One is loaded only if the manifest, its SHA-256, the runtime's version and the GPU
match, and if this machine built it from the graph next to it (provenance.py), or if the caller passes `trust_engines`
for one built elsewhere: a hash detects damage, not malice.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .builder import load_runtime
from .cuda import CudaRuntime, LibCudart
from .errors import BackendUnavailable, BundleError
from .manifest import EngineEntry, FileEntry, Manifest, fingerprint, hash_file, list_files
from .memory import Caches, DeviceMemory, HostMemory
from .needs import require_onnxruntime
from .prompt import PromptTokenizer
from .provenance import origin_of
from .session import OrtSession, Session
from .spec import GraphSpec
from .table import TableSession
from .target import Target, load_target
from .wide_sums import require_wide_sums

TOKENIZER_NAME = "tokenizer.json"
ON_CPU = "ONNX Runtime CPU"
"""`Bundle.runs_on` if no GPU is used."""
Runtime = Literal["auto", "target", "cpu"]
"""target  what the bundle was made for, or an error    cpu  its ONNX files in ONNX Runtime on the CPU
auto    the target's runtime if this machine has an NVIDIA GPU and the bundle its engines, else the CPU: see runs_on
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenGraphs:
    """The computing part of an opened bundle: one session per graph. Sessions hold no state, so streams may share them,
    one call at a time.

    runs_on  what executes the graphs, as text for people and reports
    """

    folder: Path
    manifest: Manifest
    sessions: Mapping[str, Session]
    runs_on: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Bundle(OpenGraphs):
    """The same with its tokenizer: everything a stream needs."""

    tokenizer: PromptTokenizer

    def open_caches(self, graph: str) -> Caches:
        """New caches for one stream, or one episode of it."""
        return Caches(self.sessions[graph].spec, self.sessions[graph].memory)

    @property
    def of_successors(self) -> Bundle:
        """The same bundle, with separate caches for prepared episodes if those are kept elsewhere."""
        return self

    @property
    def threads(self) -> dict[str, int]:
        """Number of threads for each graph that ONNX Runtime runs on the CPU."""
        return {name: session.threads for name, session in self.sessions.items() if isinstance(session, OrtSession)}


def open_bundle(
    folder: str | Path,
    *,
    runtime: Runtime = "auto",
    trust_engines: bool = False,
    unchecked: bool = False,
    threads: int | None = None,
    cuda: CudaRuntime | None = None,
) -> Bundle:
    """Verify every file against the manifest and open a session for every graph.

    `threads` per graph on a CPU, by default as many as fit each graph (engines/threads.py); `cuda` replaces this
    machine's GPU in tests.
    A bundle copied without its engines opens on the CPU, unless `runtime` is target. Raises BundleError naming the
    first file that is missing, damaged or unlisted, if the bundle never passed its parity check (`unchecked` allows
    that, for the check itself), or if an engine belongs to another version, GPU, graph or machine; BackendUnavailable
    without the runtime. `trust_engines` runs engines built on another machine, unverified; an engine that this machine
    recognises as exchanged is still refused.
    """
    graphs = open_graphs(
        folder, runtime=runtime, trust_engines=trust_engines, unchecked=unchecked, threads=threads, cuda=cuda
    )
    tokenizer = PromptTokenizer(graphs.folder / TOKENIZER_NAME, graphs.manifest.prompt)
    return Bundle(
        folder=graphs.folder, manifest=graphs.manifest, sessions=graphs.sessions, tokenizer=tokenizer,
        runs_on=graphs.runs_on,
    )  # fmt: skip


def open_graphs(
    folder: str | Path,
    *,
    runtime: Runtime = "auto",
    trust_engines: bool = False,
    unchecked: bool = False,
    threads: int | None = None,
    cuda: CudaRuntime | None = None,
) -> OpenGraphs:
    """Like open_bundle, but without the tokenizer and the package it needs."""
    folder = Path(folder)
    manifest = Manifest.load(folder)
    if runtime == "auto" and lacks_engines(folder, manifest):
        runtime = "cpu"
    verify_files(folder, manifest, engines=runtime != "cpu")
    if not unchecked and manifest.parity.get("passed") is not True:
        raise BundleError(
            f"{folder} has not passed its parity check, so it is not opened",
            fix=f"see what differs: pvc-export check {shlex.quote(str(folder))}",
        )
    sessions, runs_on = _open_sessions(folder, manifest, runtime, trust_engines, threads, cuda)
    return OpenGraphs(folder=folder, manifest=manifest, sessions=sessions, runs_on=runs_on)


def _open_sessions(
    folder: Path,
    manifest: Manifest,
    runtime: Runtime,
    trust_engines: bool,
    threads: int | None,
    cuda: CudaRuntime | None,
) -> tuple[dict[str, Session], str]:
    target = load_target(manifest.target)
    needs_engines = target.builder is not None
    if runtime == "cpu" or target.runtime == "ort-cpu":
        return _open_on_cpu(folder, manifest, threads)
    if runtime == "auto" and needs_engines and not manifest.engines:
        return _open_on_cpu(folder, manifest, threads)
    if cuda is None:
        try:
            cuda = LibCudart()
        except BackendUnavailable:
            if runtime == "auto":
                return _open_on_cpu(folder, manifest, threads)
            for name in target.engine_graphs:  # faults of an engine can be found without a GPU
                entry = _engine_entry(folder, manifest, name, target)
                require_fitting_engine(entry, folder, version=str(load_runtime(target).__version__))
            raise
    if not needs_engines:
        require_onnxruntime(str(folder), manifest.graphs.values(), manifest.needs)
    memory = DeviceMemory(cuda)
    opened: dict[str, Session] = {}
    for name, spec in manifest.graphs.items():
        if name == "embed":  # on the host, so that the table takes no GPU memory
            opened[name] = TableSession(folder / graph_path(name), spec, vocab_size=manifest.shape.vocab_size)
        elif needs_engines:
            opened[name] = _open_engine(folder, manifest, spec, target, memory, trust_engines)
        else:
            from .gpu import OrtCudaSession

            opened[name] = OrtCudaSession(folder / graph_path(name), spec, memory)
    unverified = needs_engines and any(origin_of(manifest, name) != "here" for name in target.engine_graphs)
    runs_on = f"{target.runtime} on {cuda.compute_capability()}"
    return opened, f"{runs_on}, engines trusted unverified" if unverified else runs_on


def _open_on_cpu(folder: Path, manifest: Manifest, threads: int | None) -> tuple[dict[str, Session], str]:
    if manifest.precision == "bf16":
        raise BackendUnavailable(
            f"{folder} is bfloat16, which runs only on an NVIDIA GPU",
            cause="ONNX Runtime's CPU provider has no bfloat16 matmuls",
            fix=f"pvc-export check {shlex.quote(str(folder))}, which widens it, or export again with --fp16 or --fp32",
        )
    require_onnxruntime(str(folder), manifest.graphs.values(), manifest.needs)
    if any(how.wide_codes for how in manifest.quantization.values()):
        require_wide_sums()
    memory, opened = HostMemory(), dict[str, Session]()
    for name, spec in manifest.graphs.items():
        opened[name] = OrtSession(folder / graph_path(name), spec, memory=memory, threads=threads)
    return opened, ON_CPU


def _open_engine(
    folder: Path, manifest: Manifest, spec: GraphSpec, target: Target, memory: DeviceMemory, trust_engines: bool
) -> Session:
    from .gpu import TrtSession

    entry = _engine_entry(folder, manifest, spec.name, target)
    version = str(load_runtime(target).__version__)
    require_fitting_engine(entry, folder, version=version, capability=memory.cuda.compute_capability())
    if not trust_engines:
        _require_own_engine(entry, folder, manifest, spec.name)
    return TrtSession(folder / entry.path, spec, memory, target)


def _require_own_engine(entry: EngineEntry, folder: Path, manifest: Manifest, graph: str) -> None:
    """Raise BundleError unless this machine built the engine and can verify it."""
    origin = origin_of(manifest, graph)
    if origin == "here":
        return
    what, cause = "was built on another machine, so this machine cannot verify it", ""
    if origin == "unsigned":
        what = "is unsigned, so it cannot be verified which graph it was built from"
        cause = "an earlier version of pvc-export built it"
    raise BundleError(
        f"{folder / entry.path} {what}",
        expected="an engine built on this machine: engines are executable code, and a hash does not show who made one",
        cause=cause,
        fix="if you built it or trust whoever did: --trust-engines, in Python open_bundle(..., trust_engines=True). "
        "You then trust that the engines do no harm, and that each was built from the graph next to it. Otherwise "
        f"build them here: {_build_command(manifest)}",
    )


def _engine_entry(folder: Path, manifest: Manifest, graph: str, target: Target) -> EngineEntry:
    if graph not in manifest.engines:
        raise BundleError(
            f"{folder} has no engine for '{graph}', which target '{target.name}' needs",
            cause="the bundle was made by pvc-export onnx",
            fix=f"build its engines: {_build_command(manifest)}",
        )
    entry = manifest.engines[graph]
    if is_stale(manifest, graph):
        raise BundleError(
            f"{folder / entry.path} is stale: it was not built from {folder / graph_path(graph)}, so it "
            "would not run what was checked",
            cause="the graph or the engine was replaced",
            fix=f"build both again: {_build_command(manifest)}",
        )
    if origin_of(manifest, graph) == "exchanged":
        raise BundleError(
            f"{folder / entry.path} is not the engine that this machine built for '{graph}' of this bundle",
            expected="the engine, the graph and the manifest entries that were signed when it was built",
            cause="engines were exchanged, within the bundle or with another one, or the manifest was edited",
            fix=f"build them again: {_build_command(manifest)}",
        )
    return entry


def is_stale(manifest: Manifest, graph: str) -> bool:
    """Whether a graph's engine was built from another graph than the one next to it."""
    return manifest.engines[graph].built_from != fingerprint(manifest.files, graph_path(graph))


def require_fitting_engine(entry: EngineEntry, folder: Path, *, version: str, capability: str | None = None) -> None:
    """Raise BundleError unless an engine was built by this runtime version and, if given, for this GPU ('SM89')."""
    if entry.runtime_version == version and (capability is None or capability in entry.compute_capabilities):
        return
    raise BundleError(
        f"{folder / entry.path} was built with {entry.runtime} {entry.runtime_version} for "
        f"{', '.join(entry.compute_capabilities) or 'an unknown GPU'}; this machine has "
        f"{' and '.join(filter(None, (version, capability)))}",
        expected="the same version, and one of these GPUs",
        fix="build it here: pvc-export trt",
    )


def graph_path(name: str) -> str:
    return f"graphs/{name}.onnx"


def missing_files(folder: Path, manifest: Manifest) -> tuple[str, ...]:
    """Files that the manifest lists and the folder lacks."""
    return tuple(name for name in manifest.files if not (folder / name).is_file())


def lacks_engines(folder: Path, manifest: Manifest) -> bool:
    """Whether the bundle has engines and all of them are missing: it was copied without them."""
    engines = _engine_paths(manifest)
    return bool(engines) and engines <= set(missing_files(folder, manifest))


def _engine_paths(manifest: Manifest) -> set[str]:
    return {entry.path for entry in manifest.engines.values()}


def verify_files(folder: Path, manifest: Manifest, *, engines: bool = True) -> None:
    """Raise BundleError unless the folder contains exactly the listed files, each with its size and SHA-256.

    engines  whether engines must be there. A bundle may lack all of them; lacking only some is an incomplete copy
    """
    paths = _engine_paths(manifest)
    needed = {graph_path(name) for name in manifest.graphs} | paths
    unlisted = (list_files(folder) | needed | {TOKENIZER_NAME}) - set(manifest.files)
    if unlisted:
        raise BundleError(
            f"the manifest of {folder} does not list {', '.join(sorted(unlisted)[:4])}",
            cause="files were added, or the manifest was edited",
            fix="export the bundle again, and keep other files in another folder",
        )
    absent = paths if lacks_engines(folder, manifest) else set()
    if absent and engines:
        raise BundleError(
            f"{folder / min(absent)} is missing",
            expected=f"the {len(paths)} engines that the manifest lists; all of them are missing",
            cause="the bundle was copied without its engines",
            fix=f"build them here: {_build_command(manifest)}; or run its ONNX files: --runtime cpu, in Python "
            'open_bundle(..., runtime="cpu")',
        )
    for name, expected in manifest.files.items():
        if name in absent:
            continue
        fault = _fault_of(folder / name, expected)
        if fault is not None:
            what, wanted, cause = fault
            again = f"copy the bundle again, or export it again: {_export_command(folder, manifest)}"
            raise BundleError(
                f"{folder / name} {what}", expected=f"{wanted}, as in the manifest", cause=cause, fix=again
            )


def _fault_of(path: Path, expected: FileEntry) -> tuple[str, str, str] | None:
    """A file's fault, the expected state, and the likely cause; None if the file is intact."""
    if not path.is_file():
        return "is missing", f"{expected.num_bytes} bytes", "the bundle was copied incompletely"
    found = hash_file(path)
    if found.num_bytes != expected.num_bytes:
        return f"has {found.num_bytes} bytes", f"{expected.num_bytes} bytes", "the file was truncated or replaced"
    if found.sha256 != expected.sha256:
        cause = "the file was changed after the export"
        return f"has SHA-256 {found.sha256[:16]}...", f"{expected.sha256[:16]}...", cause
    return None


def _build_command(manifest: Manifest) -> str:
    return f"pvc-export trt -m {shlex.quote(manifest.model.name)} --target {manifest.target}"


def _export_command(folder: Path, manifest: Manifest) -> str:
    """The command that makes this bundle, for an error message."""
    model, limits = manifest.model, manifest.limits
    command = "trt" if manifest.engines else "onnx"
    seed = f"--seed {model.seed} " if model.seed else ""
    clock = "" if limits.num_times is None else "--clock reanchor "
    return (
        f"pvc-export {command} -m {shlex.quote(model.name)} --{manifest.precision} --target {manifest.target} "
        f"--window {limits.window} --context {limits.context} --streams {limits.streams} {clock}{seed}"
        f"-o {shlex.quote(str(folder))}"
    )
