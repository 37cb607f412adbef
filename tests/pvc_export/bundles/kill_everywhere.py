"""Kill an export with SIGKILL before every single file operation, and report what each kill left.

Runs as a separate process without torch, so that it may fork: python kill_everywhere.py OUT OLD NEW [--no-exchange]
OUT starts as a copy of the bundle OLD ('-': missing); the export publishes a copy of NEW. Prints one JSON list with one
entry per kill: the operation, the state of OUT, and the state of OUT and its folder after one more export.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from engines import publishing
from engines.bundle import verify_files
from engines.errors import BundleError
from engines.manifest import Manifest
from pvc_export.bundles import publish


def export(out: Path, new: Path) -> None:
    """Run an export whose graphs already exist."""
    with publish.staging(out) as folder:
        shutil.copytree(new, folder, dirs_exist_ok=True)


def die_before(operation: int, inside: Path, report: int) -> None:
    """Make this process kill itself before its n-th file operation below `inside`, and report the operation."""
    count = itertools.count()

    def on_event(event: str, args: tuple[object, ...]) -> None:
        # rmtree names files relative to their folder's handle, so their paths are not visible here
        touches = any(isinstance(arg, str | bytes | Path) and str(inside) in os.fsdecode(arg) for arg in args)
        if (touches or event.startswith(("ctypes", "os.remove", "os.rmdir"))) and next(count) == operation:
            os.write(report, event.encode())
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(on_event)


def in_a_fork(action: Callable[[], None]) -> bool:
    """Run `action` in a fork of this process. Return False if the fork was killed."""
    child = os.fork()
    if child == 0:
        try:
            action()
            os._exit(0)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        return False
    assert os.waitstatus_to_exitcode(status) == 0
    return True


def what_is(out: Path) -> str:
    """Return 'none', the name in the manifest of a whole bundle, or what is wrong with the bundle."""
    if not out.exists():
        return "none"
    try:
        manifest = Manifest.load(out)
        verify_files(out, manifest)
    except BundleError as error:
        return f"damaged: {error}"
    return manifest.created_utc


def main() -> None:
    out, old, new = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    if "--no-exchange" in sys.argv:
        publishing._exchange = lambda first, second: False
    os.fsync = lambda handle: None  # a kill loses nothing that was written, only a power cut does
    kills = []
    for operation in itertools.count():
        shutil.rmtree(out, ignore_errors=True)
        if old != "-":
            shutil.copytree(old, out)
        reading, report = os.pipe()

        def killed_export(operation: int = operation, report: int = report) -> None:
            die_before(operation, out.parent, report)
            export(out, new)

        finished = in_a_fork(killed_export)
        os.close(report)
        event = os.read(reading, 100).decode()
        os.close(reading)
        if finished:
            break
        left = what_is(out)
        hidden = len(list(out.parent.iterdir())) - out.exists()
        in_a_fork(lambda: export(out, new))
        names = sorted(path.name for path in out.parent.iterdir())
        kills.append({"before": event, "left": left, "hidden": hidden, "next": what_is(out), "names": names})
    print(json.dumps(kills))


if __name__ == "__main__":
    main()
