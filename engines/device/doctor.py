"""Checks whether a device can build and run engines, and lists what is missing, each with the command that fixes it.

    python3 -m engines.device.doctor --target jetson-orin-jp62

Exit codes: 0 ready, perhaps with warnings; 2 usage; 4 something is missing (engines/errors.py).
Note: the other modules are imported late, so that an old Python prints a sentence instead of a traceback.
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import BackendUnavailable, PVCError

if TYPE_CHECKING:
    from ..target import Target
    from .view import Finding, Machine

WIDTH = 80


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python3 -m engines.device.doctor",
        description="List what this device lacks to build and run engines, each with the command that fixes it.",
    )
    parser.add_argument("--target", required=True, help="target the graphs were exported for, e.g. jetson-orin-jp62")
    parser.add_argument("--folder", type=Path, default=Path(), help="folder for the engines; default: current folder")
    parser.add_argument("--needs-mib", type=int, metavar="N", help="memory that the largest build needs, in MiB")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    if sys.version_info < (3, 10):  # noqa: UP036  (JetPack 5 has 3.8)
        return _refuse(as_json=options.json)

    from ..target import load_target
    from ..terminal import fail, print_json
    from .view import this_machine

    try:
        target = load_target(options.target)
    except PVCError as error:
        return fail(error, as_json=options.json)
    findings = examine(this_machine(), target, folder=options.folder, needs_mib=options.needs_mib)
    if options.json:
        print_json({"target": target.name, "findings": [asdict(finding) for finding in findings]})
    else:
        show(findings, print)
    return exit_code(findings)


def examine(machine: Machine, target: Target, *, folder: Path, needs_mib: int | None = None) -> list[Finding]:
    """Return every finding, including those that are ok. `needs_mib` is the memory of the largest build."""
    from . import resources, software

    gpu, problem = software.find_gpu(machine)
    python, board = software.python(machine), software.board(machine, target, gpu)
    if board.state == "error":
        return [python, board]  # the wrong machine: the other checks would not apply
    findings = (
        python,
        board,
        software.numpy(machine),
        software.opencv(machine),
        software.builder(machine, target, gpu),
        software.cuda(machine, target, problem),
        software.graphics(target, gpu),
        resources.memory(machine, resources.LEAST_MIB if needs_mib is None else needs_mib),
        resources.contiguous(machine),
        resources.zram(machine),
        resources.swap(machine),
        resources.desktop(machine),
        resources.power(machine),
        resources.disk(machine, folder),
    )
    return [finding for finding in findings if finding is not None]


def show(findings: Sequence[Finding], say: Callable[[str], object]) -> None:
    """Print one line per finding, wrapped at 80 columns, then its remedies, which are not wrapped: users copy them."""
    from ..terminal import printable

    for finding in findings:
        label = f"{finding.state:<8} {finding.name:<10} "
        wrap = textwrap.TextWrapper(WIDTH, initial_indent=label, subsequent_indent=" " * len(label))
        for line in (*wrap.wrap(printable(finding.detail)), *(f"      -> {line}" for line in finding.remedy)):
            say(line)


def exit_code(findings: Sequence[Finding]) -> int:
    return BackendUnavailable.exit_code if any(finding.state == "error" for finding in findings) else 0


def _refuse(*, as_json: bool) -> int:
    """Report a Python before 3.10, in code that such a Python can run."""
    detail = f"{sys.version.split()[0]} is too old: 3.10 or later is needed"
    remedy = "flash JetPack 6.2 or later; elsewhere: sudo apt install python3.10"
    if as_json:
        finding = {"name": "python", "state": "error", "detail": detail, "remedy": [remedy]}
        print(json.dumps({"findings": [finding]}))
    else:
        print(f"error    python     {detail}\n      -> {remedy}")
    return BackendUnavailable.exit_code


if __name__ == "__main__":
    raise SystemExit(main())
