"""`make boxes`: in every box, build, check and publish a kit; kill the build and resume it; and expect wrong kits to be
refused.

Writes build/boxes/report.json and prints one line for each result. make_box.py explains what a box is and what it
cannot show. Exit code 1 if any result is wrong. A box that cannot be made is reported as not tried (`--`).
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .make_box import BOXES, Box, NoBox, environment, make_box

ROOT = Path(__file__).parent.parent.parent
OUT = ROOT / "build/boxes"
INSIDE = Path(__file__).with_name("inside.py")
KILLED_IN = ("llm", "temporal", "compressor")
PLANTED = "temporal"
"""The graph whose engine returns values that are 1 % off."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """The result of one trial in a box. `passed` is None if it could not be tried."""

    box: str
    what: str
    passed: bool | None
    detail: str

    def line(self) -> str:
        word = {True: "ok  ", False: "FAIL", None: "--  "}[self.passed]
        return f"{word} {self.what:<28} {self.detail}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Workshop:
    """A finished box, and a kit for it that is never changed."""

    box: Box
    python: Path
    folder: Path
    kit: Path

    def copy(self, name: str) -> Path:
        """A fresh copy of the kit."""
        folder = self.folder / "kits" / name
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.kit, folder)
        return folder

    def run(self, kit: Path, *arguments: str, **extra: str) -> tuple[int, dict[str, Any], str]:
        """Run inside.py on a kit. Returns its exit code, its JSON result and its error output."""
        command = [str(self.python), "-B", str(INSIDE), str(kit), "--capability", self.box.capability]
        command += ["--onnxruntime", str(self.folder / "ort"), *arguments]
        env = environment(self.folder, kit) | extra
        found = subprocess.run(command, env=env, cwd=kit, capture_output=True, text=True, check=False)
        last = (found.stdout.strip().splitlines() or ["{}"])[-1]
        return found.returncode, json.loads(last) if last.startswith("{") else {}, found.stderr


def main() -> int:
    shown = list[Shown]()
    for box in BOXES:
        print(f"{box.name} ({box.jetpack})")
        for one in _try(box):
            print(f"  {one.line()}", flush=True)
            shown.append(one)
    OUT.mkdir(parents=True, exist_ok=True)
    report = {"boxes": [asdict(box) for box in BOXES], "shown": [asdict(one) for one in shown]}
    (OUT / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"written: {OUT / 'report.json'}")
    return int(any(one.passed is False for one in shown))


def _try(box: Box) -> Iterator[Shown]:
    folder = OUT / box.version
    try:
        python = make_box(box, folder)
    except NoBox as error:
        yield Shown(box=box.version, what="made", passed=None, detail=str(error))
        return
    workshop = Workshop(box=box, python=python, folder=folder, kit=_kit_for(box))
    yield from tried(workshop, (_builds, _goes_on, _a_fault_stops_it, _the_wrong_device))


def tried(workshop: Workshop, steps: tuple[Callable[[Workshop], Iterator[Shown]], ...]) -> Iterator[Shown]:
    for step in steps:
        yield from step(workshop)


def _kit_for(box: Box) -> Path:
    """Export a kit of `tiny`, once for each target."""
    kit = OUT / "kits" / box.target
    if not (kit / "kit.json").exists():
        command = [sys.executable, "-m", "pvc_export.cli", "kit", "-m", "tiny", "--window", "4", "--context", "512"]
        subprocess.run([*command, "--target", box.target, "-o", str(kit)], check=True, stdout=subprocess.DEVNULL)
    return kit


def _builds(workshop: Workshop) -> Iterator[Shown]:
    """Build from nothing, as a first ./build.sh does."""
    kit, version = workshop.copy("first"), workshop.box.version
    code, found, said = workshop.run(kit)

    def show(what: str, passed: bool | None, detail: str) -> Shown:
        return Shown(box=version, what=what, passed=passed, detail=detail)

    if code:
        yield show("build", False, f"exit {code}: {found.get('what', said.strip()[-300:])} {found.get('cause', '')}")
        return
    where = f"Python {found['python']}, numpy {found['numpy']}"
    alone = not found["refused"]
    yield show("imports nothing else", alone, f"{where}" if alone else f"tried to import {', '.join(found['refused'])}")
    visible = sorted(set(found["visible"].values()))
    yield show("parse, profiles, build", True, f"5 engines in {found['seconds']} s, {found['peak_mib']} MiB at most")
    yield show("what the list shows", True, f"of every engine: {', '.join(visible)}")
    yield show("progress monitor", "0%" in said and "100%" in said, "every build reported its progress")
    cache = kit / "work/timing.cache"
    size = cache.stat().st_size if cache.exists() else 0
    yield show("workspace, timing cache", size > 0, f"{size} bytes kept")
    yield show("golden recording", found["golden"]["passed"], f"{found['golden']['summary']}; ONNX Runtime stood in")
    yield show("publish", (kit / "bundle/manifest.json").exists(), "bundle/ is there")


def _goes_on(workshop: Workshop) -> Iterator[Shown]:
    """Kill a build in three graphs, one after another, and then resume it; and cancel a build through its monitor."""
    kit, version = workshop.copy("killed"), workshop.box.version
    for graph in KILLED_IN:
        code, found, _ = workshop.run(kit, DIE_IN=graph)
        right = code == 5 and "ended by signal 9" in found.get("what", "") and not (kit / "bundle").exists()
        detail = found.get("what", f"exit {code}")
        yield Shown(box=version, what=f"killed in {graph}", passed=right, detail=detail)
    code, _, said = workshop.run(kit)
    kept = said.count("built earlier")
    yield Shown(box=version, what="goes on", passed=code == 0 and kept >= 2, detail=f"exit {code}, {kept} kept")
    code, found, _ = workshop.run(workshop.copy("cancelled"), CANCEL="trunk")
    detail = found.get("cancelled", f"exit {code}")
    yield Shown(box=version, what="cancel", passed=code == 130 and "cancelled" in found, detail=detail)


def _a_fault_stops_it(workshop: Workshop) -> Iterator[Shown]:
    """Build an engine that passes the gate but computes wrong values."""
    kit = workshop.copy("fault")
    code, found, _ = workshop.run(kit, PLANT=PLANTED)
    named = f"graph '{PLANTED}', frame 0" in found.get("what", "")
    passed = code == 3 and named and not (kit / "bundle").exists()
    yield Shown(
        box=workshop.box.version, what="a planted fault", passed=passed, detail=found.get("what", f"exit {code}")
    )


def _the_wrong_device(workshop: Workshop) -> Iterator[Shown]:
    """Another GPU, and a damaged kit: both are refused before anything is built."""
    version = workshop.box.version
    others = {"another GPU": ("--capability", "SM75"), "a damaged kit": ()}
    for what, arguments in others.items():
        kit = workshop.copy("wrong")
        if not arguments:
            (kit / "model/graphs/llm.onnx").write_bytes(b"?")
        code, found, _ = workshop.run(kit, *arguments)
        is_any = what == "another GPU" and workshop.box.target == "tensorrt"  # it builds for any GPU
        right = code == 0 if is_any else code in (4, 6) and bool(found.get("fix"))
        detail = "built for what is there" if is_any else found.get("what", f"exit {code}")
        yield Shown(box=version, what=what, passed=right, detail=detail)


if __name__ == "__main__":
    sys.exit(main())
