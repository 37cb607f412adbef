"""Builds the engines of a kit on the device, holds them to the golden recording, and publishes a bundle.

    python3 -m engines.device.build KIT

Run by the kit's build.sh, which lets the doctor look at the device first. Each graph is built in a process of its own,
the smallest first, and kept as soon as it is whole: after a power cut the same command goes on with the graph that was
lost. Only engines that reproduce the recording become KIT/bundle.
Exit codes: 0, 2 usage, 3 the engines are not what the reference is, 4 environment, 5 a build failed, 6 no kit.
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
"""The workspace of a build is a part of the memory that is free: without a bound TensorRT takes all there is."""

KNOWN_SHARE = 0.05
"""From so much on, of what is left, the bytes that were built say how long the others take."""

Open = Callable[[Path], OpenGraphs]
"""Opens a bundle that is not published yet, with its engines."""


def main() -> int:
    """The command line. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="build.sh", description="Build the engines of this kit, prove them, publish KIT/bundle."
    )
    parser.add_argument("kit", type=Path, help="the folder that holds kit.json")
    parser.add_argument("--json", action="store_true", dest="as_json", help="one JSON object at the end")
    add_build_options(parser)
    options = parser.parse_args()
    try:
        summary = build(Kit.load(options.kit), options)
    except (PVCError, OSError) as error:
        return fail(error, as_json=options.as_json)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    if options.as_json:
        print_json(summary)
    return 0


def build(
    kit: Kit, options: argparse.Namespace, *, cuda: CudaRuntime | None = None, opened: Open | None = None
) -> dict[str, Any]:
    """Build what is not built yet, prove it and publish it. Returns what a program wants to know.

    cuda and opened stand in for the GPU and for the engines, in tests. Raises BundleError for a kit that is damaged,
    BackendUnavailable without the runtime or its GPU, BuildError, and ParityError for engines that do not reproduce the
    recording: then KIT/bundle is what it was before.
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
    """A bundle at `staged` that reproduces the recording. As long as a graph fails that has a variant, with that: each
    graph once. Raises ParityError, which tells what failed first."""
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
        _say(f"{said}\ntrying '{graph}' with attention that {kit.target.builder} can't fuse")
        kit = kit.unfuse([graph])
        shutil.rmtree(staged)


def _unproven(kit: Kit, version: str, first: str, *, last: str) -> ParityError:
    """first, last: what failed at the beginning, and with all that was tried."""
    tried = f". With unfused attention in {', '.join(sorted(kit.variants))}: {last}" if kit.variants else ""
    return ParityError(
        f"the engines do not reproduce the golden recording: {first}{tried}. Nothing was published",
        expected="what the float32 reference said, within the model's own limits",
        cause=f"{kit.target.builder} {version} compiled a graph to something else",
        fix="build with another version of it; send us the line above, with the device and the version",
    )


def _build_all(
    kit: Kit, options: argparse.Namespace, version: str, capabilities: tuple[str, ...]
) -> dict[str, Finished]:
    """Every engine, of this run or an earlier one."""
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
                    f"the build of '{graph}' ended well, but what it left in {kit.work} is not what it noted",
                    cause="the disk is failing, or another build runs in this kit",
                    fix="run one build at a time, and look at: dmesg | tail",
                )
            _say(f"{title}: {found.note}, {time.monotonic() - started:.0f} s")
        else:
            _say(f"{title}: {found.note}, built before")
        finished[graph] = found
    return finished


def _run(kit: Kit, graph: str, capabilities: tuple[str, ...], options: argparse.Namespace, progress: _Progress) -> None:
    """Build one graph in a process of its own. Its errors go where ours go."""
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
        tempfile.TemporaryFile("w+") as errors,  # not a pipe, which a talkative library would fill
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
    """The error of a build that ended: its own words, or what a signal means."""
    if code < 0:
        return BuildError(
            f"the build of '{graph}' was ended by signal {-code}" + (f": {said.splitlines()[-1]}" if said else ""),
            cause="the system ran out of memory and stopped it" if code == -9 else "the compiler crashed",
            fix="see: dmesg | tail. Stop other programs, add swap, or export a smaller model; then run this again",
        )
    return BuildError(
        f"the build of '{graph}' failed",
        cause=said.removeprefix("error: ") or f"it ended with exit code {code}, without a word",
        fix="mend that, and run this again: engines that are built are kept",
    )


class _Progress:
    """One line on a terminal; in a log, one for every tenth."""

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
        """Of all that is to be built, by the bytes that were built so far."""
        if self._left_s is None:
            return ""
        left = max(self._left_s - (time.monotonic() - self._started), 0)
        return f", about {left / 60:.0f} min left" if left > 90 else f", about {left:.0f} s left"


def _assemble(kit: Kit, finished: dict[str, Finished], staged: Path) -> Manifest:
    """The bundle, of links to the kit's files where the file system has links."""
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
