"""The steps of a run, in order: description, prerequisites, time limit, and the work itself."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from engines.errors import PVCError
from engines.spec import Precision

from .hardware import Hardware
from .runtimes import RUNTIMES, look_at_runtime
from .section import Found, Section
from .system import look_at_machine

PRECISIONS: tuple[Precision, ...] = ("fp16", "bf16")
TARGETS = {"rtx": "tensorrt_rtx", "tensorrt": "tensorrt", "cuda": "onnxruntime"}
"""Target -> the runtime it needs."""
SHORT_S, LONG_S = 60.0, 240.0
"""Time limits of a step; the whole run has a limit too (run.py)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One step of a run.

    does     a sentence that describes the step
    needs    steps that must have succeeded
    command  the command to run the step by hand, or ''
    """

    name: str
    title: str
    does: str
    needs: tuple[str, ...] = ()
    command: str = ""
    limit_s: float = SHORT_S

    @property
    def kind(self) -> str:
        return self.name.partition(":")[0]

    @property
    def of(self) -> str:
        """The part of the name after the kind: a runtime, a bundle, a precision."""
        return self.name.partition(":")[2]

    def section(self, found: Found, *, seconds: float = 0.0) -> Section:
        """This step with its findings."""
        return Section(
            name=self.name, title=self.title, does=self.does, command=self.command, state=found.state,
            facts=found.facts, numbers=found.numbers, data=found.data, error=found.error, fix=found.fix,
            seconds=seconds,
        )  # fmt: skip


def steps_of(model: str, folder: Path, precisions: Sequence[Precision] = PRECISIONS) -> tuple[Step, ...]:
    """All steps for these precisions."""
    looks = [
        Step(
            name=f"runtime:{name}", title=title, does="Imports it, queries its GPUs, and computes a matmul.",
            command=f"python -c 'import {name}; print({name}.__version__)'",
        )
        for name, (title, _) in RUNTIMES.items()
    ]  # fmt: skip
    machine = "Lists GPU, driver, processor, system and versions."
    peaks = "Copies 512 MiB within the GPU and multiplies 4096 x 4096 matrices: the peaks that all shares refer to."
    return (
        Step(name="machine", title="The machine", does=machine, command="pvc-export doctor"),
        *looks,
        Step(name="peaks", title="Measured peaks", does=peaks),
        *(step for precision in precisions for step in _of_precision(model, folder, precision)),
    )


def _of_precision(model: str, folder: Path, precision: Precision) -> Iterator[Step]:
    for target, runtime in TARGETS.items():
        name, runs = f"{target}-{precision}", f"runtime:{runtime}"
        path, bundle = bundle_path(folder, name), f"bundle:{name}"
        title, made = f"{RUNTIMES[runtime][0]}, {precision}", "onnx" if target == "cuda" else "trt"
        yield Step(
            name=bundle, title=f"{title}: bundle", needs=(runs,), limit_s=LONG_S,
            does=f"Exports '{model}' for target {target}, builds it, checks it on the CPU, and records golden values.",
            command=f"pvc-export {made} -m {model} --{precision} --target {target} --golden -o {path}",
        )  # fmt: skip
        of_bundle = {
            "ladder": ("ladder", f"check {path}",
                       "Runs a clip on the card and compares every output of the vision graphs with its neighbours."),
            "golden": ("golden self-test", f"check {path} --golden",
                       "Replays the golden recording on the card: values, tokens, equal bits twice, two rows as one."),
            "time": ("times", f"bench {path}",
                     "Times a frame, its rows in the LLM and a decoded token, also as shares of the measured peaks."),
        }  # fmt: skip
        for kind, (what, command, does) in of_bundle.items():
            yield Step(
                name=f"{kind}:{name}", title=f"{title}: {what}", does=does, needs=(bundle,),
                command=f"pvc-export {command}", limit_s=LONG_S,
            )  # fmt: skip
    title, needs = f"{RUNTIMES['torch'][0]}, {precision}", ("runtime:torch",)
    does = "Runs the PyTorch model on the card and compares it with its float32 results on the CPU."
    yield Step(name=f"torch-ladder:{precision}", title=f"{title}: ladder", does=does, needs=needs, limit_s=LONG_S)
    does = "Times the same steps of the PyTorch model on the card in eager mode, without this project's runtime."
    yield Step(name=f"torch-time:{precision}", title=f"{title}: times", does=does, needs=needs, limit_s=LONG_S)


def bundle_path(folder: Path, name: str) -> Path:
    return folder / "bundles" / name


def why_not(step: Step, done: Mapping[str, Section]) -> str:
    """Why a step cannot be started: a prerequisite did not succeed. '' if it can."""
    lacking = [done[name] for name in step.needs if not done[name].is_good]
    return f"it needs '{lacking[0].title}', which is {lacking[0].state}" if lacking else ""


def execute(step: Step, hardware: Hardware, model: str, folder: Path, peaks: Section | None) -> Section:
    """Run a step in this process. Any exception goes into the section: drivers' and runtimes' errors share no base
    class."""
    started = time.perf_counter()
    try:
        found = _work(step, hardware, model, folder, peaks)
    except PVCError as error:
        causes = [text for text in (error.what, error.expected, error.cause) if text]
        found = Found(state="refused", error=". ".join(causes), fix=error.fix)
    except Exception as error:
        found = Found(state="refused", error=f"{type(error).__name__}: {error}")
    return step.section(found, seconds=time.perf_counter() - started).measured(hardware.measured_on)


def _work(step: Step, hardware: Hardware, model: str, folder: Path, peaks: Section | None) -> Found:
    """Do the work. Torch and its dependents are imported only where used, so that runtimes are tested without them."""
    if step.kind == "machine":
        return look_at_machine(hardware)
    if step.kind == "runtime":
        return look_at_runtime(step.of, hardware)
    if step.kind == "peaks":
        from .peaks import measure_peaks

        return measure_peaks(hardware)
    path, (target, _, name) = bundle_path(folder, step.of), step.of.rpartition("-")
    precision = next(one for one in PRECISIONS if one == name)
    if step.kind == "golden":
        from .self_test import play_golden

        return play_golden(hardware, path)
    if step.kind == "bundle":
        from .bundles import export_one

        return export_one(hardware, model, target, precision, path)
    from . import ladder, timing

    if step.kind == "ladder":
        return ladder.climb_bundle(hardware, model, path)
    if step.kind == "time":
        return timing.time_bundle(hardware, model, path, peaks)
    if step.kind == "torch-ladder":
        return ladder.climb_torch(hardware, model, precision)
    return timing.time_torch(hardware, model, precision, peaks)


def by_name(steps: Sequence[Step], name: str) -> Step:
    return next(step for step in steps if step.name == name)
