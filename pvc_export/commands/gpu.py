"""`pvc-export gpu`: every check and measurement on this machine's GPU, in one folder to send."""

from __future__ import annotations

from pathlib import Path

from engines.terminal import print_json

from ..gpu.run import OUT, ZIP, GpuRun, run_gpu
from ..gpu.runtimes import missing
from ..gpu.system import require_system
from ..terminal.console import Console


def gpu_command(*, model: str, output: Path | None, as_json: bool) -> GpuRun:
    """Run every step and print which file to send. A runtime's refusal is a result; so is a missing GPU.

    Raises BackendUnavailable on an unsupported system.
    """
    require_system()
    console = Console(quiet=as_json)
    for name, fix in missing().items():
        console.print(f"not installed, so not tested: {name}. {fix}")
    run = run_gpu(output or OUT, model, console)
    if as_json:
        print_json(run.to_json())
    console.print(f"\n{run.headline}; {run.seconds:.0f} s")
    console.print(f"page  {run.folder / 'index.html'}")
    console.print(f"send  {run.folder / ZIP}: attach it to an issue")
    return run
