"""Runs one step in a child process, so that a runtime that crashes or hangs loses only its own section.

python -m pvc_export.gpu.child STEP MODEL FOLDER RESULT
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from .hardware import Hardware, ask_driver
from .section import Found, Section
from .steps import Step, by_name, execute, steps_of

RESULTS = "steps"
"""Folder of a run in which every step stores its section, so that the results survive a killed run."""
NUM_LAST_LINES = 4


def result_path(folder: Path, name: str) -> Path:
    return folder / RESULTS / f"{name.replace(':', '-')}.json"


def in_a_child(step: Step, model: str, folder: Path, limit_s: float, log: IO[str]) -> Section:
    """Run a step in a child process for at most `limit_s` seconds. Its output goes to the log."""
    result = result_path(folder, step.name)
    result.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pvc_export.gpu.child", step.name, model, str(folder), str(result)]
    return isolated(step, command, result, limit_s, log)


def isolated(step: Step, command: Sequence[str], result: Path, limit_s: float, log: IO[str]) -> Section:
    """Run the command. Returns the section that it wrote to `result`, or one that describes how it ended."""
    started = time.perf_counter()
    log.write(f"== {step.name}\n")
    log.flush()
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        # Output goes to a file: a pipe must be read, and a grandchild that keeps it open would block the read.
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
        try:
            code = process.wait(timeout=limit_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            process.kill()  # also when this run is interrupted
            process.wait()
        output.seek(0)
        said = output.read()
    log.write(said + "\n")
    log.flush()
    seconds = time.perf_counter() - started
    if code == 0 and result.is_file():
        return Section.from_json(json.loads(result.read_text(encoding="utf-8")))
    return step.section(Found(state="refused", error=_how_it_ended(code, limit_s, said)), seconds=seconds)


def _how_it_ended(code: int | None, limit_s: float, said: str) -> str:
    last = " | ".join(line.strip() for line in said.splitlines() if line.strip()).split(" | ")[-NUM_LAST_LINES:]
    tail = f"; its last output: {' | '.join(last)}" if last != [""] else ""
    if code is None:
        return f"it was stopped at its time limit of {limit_s:.0f} s{tail}"
    if code < 0:
        return f"it crashed: {signal.Signals(-code).name}{tail}"
    return f"it ended with exit code {code}{tail}"


def main() -> None:
    name, model, folder, result = sys.argv[1:]
    step = by_name(steps_of(model, Path(folder)), name)
    peaks = result_path(Path(folder), "peaks")
    measured = Section.from_json(json.loads(peaks.read_text(encoding="utf-8"))) if peaks.is_file() else None
    section = execute(step, Hardware(drivers=ask_driver()), model, Path(folder), measured)
    Path(result).write_text(json.dumps(section.to_json(), indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
