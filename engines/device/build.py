"""Builds a kit's engines on the device, checks them against the golden recording, and publishes a bundle.

    python3 -m engines.device.build KIT

The kit's build.sh runs it after the doctor. Each graph is built in its own process, smallest first, and stored as soon
as it is complete: after a power cut the same command resumes with the graph that was lost. KIT/bundle is published only
if the engines reproduce the recording.
Exit codes: 0 done, 2 usage, 3 engines differ from the reference, 4 environment, 5 a build failed, 6 not a kit.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ..builder import compute_capabilities, load_runtime
from ..bundle import OpenGraphs, open_graphs, verify_files
from ..cuda import CudaRuntime
from ..errors import BuildError, ParityError, PVCError
from ..golden.check import GoldenCheck, load_golden, play
from ..golden.recording import Golden
from ..manifest import Manifest, hash_file
from ..provenance import sign_engines
from ..publishing import link, publish, sync
from ..terminal import fail, print_json
from .build_graph import Finished, add_build_options, key_of
from .kit import BUNDLE, Kit
from .view import this_machine

LEAST_WORKSPACE_MIB, WORKSPACE_SHARE = 64, 4
"""A build's workspace is this share of the free memory, and never less: without a limit TensorRT takes everything."""

KNOWN_SHARE = 0.05
"""Time left is estimated once the bytes already built exceed this share of the bytes still to build."""

Open = Callable[[Path], OpenGraphs]
"""Opens a bundle that is not published yet, with its engines. Tests replace it."""


def main() -> int:
    """The command line. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="build.sh", description="Build this kit's engines, check them, and publish KIT/bundle."
    )
    parser.add_argument("kit", type=Path, help="the folder that holds kit.json")
    parser.add_argument("--json", action="store_true", dest="as_json", help="print one JSON object at the end")
    add_build_options(parser)
    options = parser.parse_args()
    try:
        summary = build(Kit.load(options.kit), options)
    except (PVCError, OSError) as error:
        return fail(error, as_json=options.as_json)
    except KeyboardInterrupt:
        print("interrupted; run the same command again to resume", file=sys.stderr)
        return 130
    if options.as_json:
        print_json(summary)
    return 0


def build(
    kit: Kit, options: argparse.Namespace, *, cuda: CudaRuntime | None = None, opened: Open | None = None
) -> dict[str, Any]:
    """Build the engines that are missing, check them and publish the bundle. Returns the summary for --json.

    In tests, cuda and opened replace the GPU and the engines. Raises BundleError for a damaged kit, BackendUnavailable
    without the runtime or its GPU, BuildError if a build fails, and ParityError if the engines do not reproduce the
    recording. After an error KIT/bundle is unchanged.
    """
    verify_files(kit.model, kit.manifest, engines=False)
    golden = load_golden(kit.model, kit.manifest)
    version = str(load_runtime(kit.target).__version__)
    capabilities = compute_capabilities(kit.target, cuda)
    kit.work.mkdir(exist_ok=True)
    prove = partial(_proven, golden=golden, version=version, capabilities=capabilities, opened=opened or _open)
    with tempfile.TemporaryDirectory(prefix=".bundle-", dir=kit.folder) as holder:
        staged = Path(holder) / BUNDLE
        manifest, checked = prove(kit.unfuse_parts(options.unfuse), options, staged)
        found = checked.to_json() | {"bundle": BUNDLE}
        replace(manifest, parity={**manifest.parity, "golden": found}).save(staged)
        for path in staged.rglob("*"):
            sync(path)
        publish(staged, kit.folder / BUNDLE)
    _say(f"published {kit.folder / BUNDLE}")
    visible = {name: entry.visible for name, entry in manifest.engines.items()}
    bundle = str(kit.folder / BUNDLE)
    return {"bundle": bundle, "golden": found, "visible": visible, "unfused": manifest.unfused}


def _proven(
    kit: Kit, options: argparse.Namespace, staged: Path, *, golden: Golden, version: str, capabilities: tuple[str, ...],
    opened: Open,
) -> tuple[Manifest, GoldenCheck]:  # fmt: skip
    """Build a bundle at `staged` that reproduces the recording. A graph that fails is replaced by its unfused variant,
    if it has one, once per graph. Raises ParityError, which names the first failure."""
    first = ""
    while True:
        try:
            finished = _build_all(kit, options, version, capabilities)
        except BuildError as error:
            if first:
                raise _unproven(kit, version, first, last=f"{error.what}: {error.cause}") from error
            raise
        manifest = _assemble(kit, finished, staged)
        _say("golden recording")
        checked = play(opened(staged), golden)
        for line in checked.report.lines():
            _say(f"  {line}")
        if checked.report.passed:
            return manifest, checked
        graph, said = checked.report.failed_graph, checked.report.summary()
        first = first or said
        if graph not in kit.fallbacks():
            raise _unproven(kit, version, first, last=said)
        _say(f"{said}\ntrying '{graph}' with attention that {kit.target.builder} cannot fuse")
        kit = kit.unfuse([graph])
        shutil.rmtree(staged)


def _unproven(kit: Kit, version: str, first: str, *, last: str) -> ParityError:
    """first, last: the first failure, and the last one after trying every variant."""
    tried = f". With unfused attention in {', '.join(sorted(kit.variants))}: {last}" if kit.variants else ""
    return ParityError(
        f"the engines do not reproduce the golden recording: {first}{tried}. Nothing was published",
        expected="the float32 reference's outputs, within the limits measured from the model itself",
        cause=f"{kit.target.builder} {version} compiled a graph wrongly",
        fix="build with another version of the compiler; report the line above with the device and the version",
    )


def _build_all(
    kit: Kit, options: argparse.Namespace, version: str, capabilities: tuple[str, ...]
) -> dict[str, Finished]:
    """Return every engine, built in this run or an earlier one."""
    order, finished = kit.order(), dict[str, Finished]()
    sizes = {graph: kit.num_bytes(graph) for graph in order}
    spent_s, built_bytes = 0.0, 0
    for index, graph in enumerate(order, start=1):
        key = key_of(kit, graph, version=version, capabilities=capabilities)
        title = f"build {graph} ({index}/{len(order)})" + (" unfused" if graph in kit.variants else "")
        found = Finished.find(kit, graph, key)
        if found is None:
            to_build = sum(sizes[one] for one in order[index - 1 :])
            left_s = spent_s / built_bytes * to_build if built_bytes > KNOWN_SHARE * to_build else None
            started = time.monotonic()
            _run(kit, graph, capabilities, options, _Progress(title, left_s))
            spent_s, built_bytes = spent_s + time.monotonic() - started, built_bytes + sizes[graph]
            found = Finished.find(kit, graph, key)
            if found is None:
                raise BuildError(
                    f"the build of '{graph}' succeeded, but its files in {kit.work} do not match its record",
                    cause="the disk is failing, or another build is running in this kit",
                    fix="run one build at a time, and look for disk errors: dmesg | tail",
                )
            _say(f"{title}: {found.note}, {time.monotonic() - started:.0f} s")
        else:
            _say(f"{title}: {found.note}, built earlier")
        finished[graph] = found
    return finished


def _run(kit: Kit, graph: str, capabilities: tuple[str, ...], options: argparse.Namespace, progress: _Progress) -> None:
    """Build one graph in its own process. Its stderr goes to a file, and becomes the error's text if it fails."""
    command = [sys.executable, "-m", f"{__package__}.build_graph", str(kit.folder), graph]
    command += ["--capabilities", *capabilities]
    workspace = options.workspace_mib
    if workspace is None:
        workspace = max(LEAST_WORKSPACE_MIB, this_machine().memory_mib("MemAvailable") // WORKSPACE_SHARE)
    command += ["--workspace-mib", str(workspace)] if workspace else []
    command += ["--no-timing-cache"] if options.no_timing_cache else []
    for part in kit.manifest.unfused[graph] if graph in kit.variants else ():
        command += ["--unfuse", part]
    with (
        tempfile.TemporaryFile("w+") as errors,  # not a pipe: a verbose library would fill it and block
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if line.startswith('{"progress"'):
                    progress.show(json.loads(line)["progress"])
            code = process.wait()
        except BaseException:
            process.kill()
            raise
        errors.seek(0)
        said = errors.read().strip()
    progress.end()
    if code:
        raise _failed(graph, code, said)


def _failed(graph: str, code: int, said: str) -> PVCError:
    """The error for a failed build: its own message, or the meaning of the signal that ended it."""
    if code < 0:
        return BuildError(
            f"signal {-code} ended the build of '{graph}'" + (f": {said.splitlines()[-1]}" if said else ""),
            cause="the system ran out of memory and killed it" if code == -9 else "the compiler crashed",
            fix="see: dmesg | tail. Stop other programs, add swap, or export a smaller model, then run this again",
        )
    return BuildError(
        f"the build of '{graph}' failed",
        cause=said.removeprefix("error: ") or f"it exited with code {code} and printed nothing",
        fix="fix that and run this again: finished engines are kept",
    )


class _Progress:
    """Progress of one build: one updated line on a terminal, one line per 10 % in a log."""

    def __init__(self, title: str, left_s: float | None) -> None:
        self._title, self._left_s = title, left_s
        self._on_terminal, self._shown, self._started = sys.stderr.isatty(), -1, time.monotonic()

    def show(self, fraction: float) -> None:
        tenth = int(10 * fraction)
        if not self._on_terminal and tenth == self._shown:
            return
        self._shown = tenth
        text = f"{self._title}: {fraction:.0%}{self._left(fraction)}"
        print(f"\r{text:<79}" if self._on_terminal else text, end="" if self._on_terminal else "\n", file=sys.stderr)

    def end(self) -> None:
        if self._on_terminal:
            print("\r" + " " * 79 + "\r", end="", file=sys.stderr)

    def _left(self, fraction: float) -> str:
        """Time left for all remaining builds, estimated from the bytes built so far."""
        if self._left_s is None:
            return ""
        left = max(self._left_s - (time.monotonic() - self._started), 0)
        return f", about {left / 60:.0f} min left" if left > 90 else f", about {left:.0f} s left"


def _assemble(kit: Kit, finished: dict[str, Finished], staged: Path) -> Manifest:
    """Assemble the bundle from links to the kit's files, or copies where the file system has no links."""
    for name in kit.manifest.files:
        link(kit.source(name), staged / name)
    for graph, one in finished.items():
        link(kit.work / f"{kit.noted_as(graph)}.engine", staged / one.entry.path)
    entries = {graph: one.entry for graph, one in finished.items()}
    files = kit.manifest.files | {entry.path: hash_file(staged / entry.path) for entry in entries.values()}
    manifest = sign_engines(replace(kit.manifest, engines=entries, files=files))
    manifest.save(staged)
    return manifest


def _open(folder: Path) -> OpenGraphs:
    return open_graphs(folder, runtime="target")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
