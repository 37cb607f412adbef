"""A run continues after any failure of a step: a crash, a hang, a runtime that refuses the card, no GPU at all."""

from __future__ import annotations

import json
import re
import sys
import time
from dataclasses import asdict, replace
from io import StringIO
from pathlib import Path
from typing import IO

import pytest
from typer.testing import CliRunner

from engines.errors import BackendUnavailable
from engines.fake import RecordingCuda
from pvc_export.cli import app
from pvc_export.gpu import system
from pvc_export.gpu.child import isolated
from pvc_export.gpu.hardware import Drivers, Gpu, Hardware, ask_driver_apart
from pvc_export.gpu.run import GpuRun, run_gpu
from pvc_export.gpu.runtimes import look_at_runtime
from pvc_export.gpu.section import NO_GPU, Found, Number, Section
from pvc_export.gpu.steps import Step, execute, steps_of
from pvc_export.terminal.console import Console

STEP = Step(name="runtime:torch", title="PyTorch", does="Something.")
CRASH = "import ctypes, sys; print('about to', flush=True); ctypes.string_at(0)"
TURING = Gpu(name="a card", capability=(7, 5), memory_bytes=2**33)


def hardware() -> Hardware:
    return Hardware(
        drivers=Drivers(gpus=(TURING,)), cuda=RecordingCuda, torch_device="cpu", provider="CPUExecutionProvider",
        is_stand_in=True,
    )  # fmt: skip


def good(step: Step, model: str, folder: Path, limit_s: float, log: IO[str]) -> Section:
    """A step that does nothing and succeeds."""
    return step.section(Found())


def run_with(tmp_path: Path, launch: object = good, **options: object) -> dict[str, Section]:
    given = {"hardware": hardware(), "launch": launch, **options}
    run = run_gpu(tmp_path / "out", "tiny", Console(quiet=True), **given)  # type: ignore[arg-type]
    return {one.name: one for one in run.sections}


# -- a separate process ------------------------------------------------------------------------------------------------


def alone(tmp_path: Path, code: str, *, limit_s: float = 60.0) -> tuple[Section, str]:
    log = StringIO()
    section = isolated(STEP, [sys.executable, "-c", code], tmp_path / "result.json", limit_s, log)
    return section, log.getvalue()


def test_a_crash_is_a_section_that_names_the_signal_and_what_was_said_last(tmp_path: Path) -> None:
    section, log = alone(tmp_path, CRASH)
    assert section.state == "refused" and section.error == "it crashed: SIGSEGV; its last output: about to"
    assert "about to" in log


def test_a_step_is_ended_at_its_time_limit(tmp_path: Path) -> None:
    started = time.monotonic()
    section, _ = alone(tmp_path, "import time; time.sleep(60)", limit_s=0.5)
    assert time.monotonic() - started < 20
    assert section.state == "refused" and "stopped at its time limit of 0 s" in section.error.replace("1 s", "0 s")


def test_a_process_that_leaves_no_section_is_refused(tmp_path: Path) -> None:
    section, _ = alone(tmp_path, "raise SystemExit(7)")
    assert section.state == "refused" and section.error == "it ended with exit code 7"
    assert alone(tmp_path, "pass")[0].error == "it ended with exit code 0"


@pytest.mark.parametrize("code", [CRASH, "raise SystemExit(1)"], ids=["crash", "exit"])
def test_a_driver_that_crashes_is_no_gpu_and_no_end(code: str) -> None:
    drivers = ask_driver_apart([sys.executable, "-c", code])
    assert drivers.gpus == () and "querying the NVIDIA driver for its GPUs failed" in drivers.error


def test_what_the_driver_says_comes_back_from_its_process() -> None:
    told = Drivers(gpus=(TURING,), cuda_version="13.0")
    code = f"print({json.dumps(asdict(told))!r})"
    assert ask_driver_apart([sys.executable, "-c", code]) == told


# -- other steps continue ----------------------------------------------------------------------------------------------


def test_one_runtime_that_crashes_does_not_end_the_run(tmp_path: Path) -> None:
    def launch(step: Step, model: str, folder: Path, limit_s: float, log: IO[str]) -> Section:
        if step.name == "runtime:tensorrt":
            return isolated(step, [sys.executable, "-c", CRASH], folder / "none.json", limit_s, log)
        return good(step, model, folder, limit_s, log)

    found = run_with(tmp_path, launch)
    assert found["runtime:tensorrt"].error.startswith("it crashed: SIGSEGV")
    without = {name for name, one in found.items() if one.state == "not executed"}
    assert without == {f"{kind}:tensorrt-fp16" for kind in ("bundle", "ladder", "golden", "time")}
    assert found["bundle:tensorrt-fp16"].error == "it needs 'TensorRT', which is refused"
    assert found["golden:rtx-fp16"].state == "shown" and found["torch-time:fp16"].state == "shown"
    assert "SIGSEGV" in (tmp_path / "out" / "index.html").read_text(encoding="utf-8")


def test_a_runtime_that_refuses_the_card_says_why_and_what_mends_it() -> None:
    refusing = replace(hardware(), provider="CUDAExecutionProvider")
    found = look_at_runtime("onnxruntime", refusing)
    assert found.state == "refused" and "not CUDAExecutionProvider" in found.error and "'.[ort-gpu]'" in found.fix
    on_cuda = look_at_runtime("torch", replace(hardware(), torch_device="cuda"))
    assert on_cuda.state == "refused" and "CUDA" in on_cuda.error
    assert look_at_runtime("torch", hardware()).state == "shown"


def test_an_error_in_a_step_is_its_section(tmp_path: Path) -> None:
    (step,) = (one for one in steps_of("tiny", tmp_path) if one.name == "golden:rtx-fp16")
    section = execute(step, hardware(), "tiny", tmp_path, None)
    assert section.state == "refused" and "rtx-fp16" in section.error and section.fix


def test_no_step_is_begun_when_the_time_is_over(tmp_path: Path) -> None:
    found = run_with(tmp_path, budget_s=1.0)
    assert {one.state for one in found.values()} == {"not executed"}
    assert found["machine"].error == "the run's time limit of 1 s is used up"


def test_a_step_gets_no_more_time_than_is_left(tmp_path: Path) -> None:
    limits: list[float] = []

    def launch(step: Step, model: str, folder: Path, limit_s: float, log: IO[str]) -> Section:
        limits.append(limit_s)
        return good(step, model, folder, limit_s, log)

    run_with(tmp_path, launch, budget_s=50.0)
    assert max(limits) <= 50.0 and limits[0] > 40.0


def test_an_ampere_card_is_tried_in_bfloat16_too(tmp_path: Path) -> None:
    ampere = replace(hardware(), drivers=Drivers(gpus=(replace(TURING, capability=(8, 6)),)))
    assert "golden:rtx-bf16" in run_with(tmp_path, hardware=ampere)
    assert not any("bf16" in name for name in run_with(tmp_path))


def test_a_number_says_what_it_was_measured_on() -> None:
    section = STEP.section(Found(numbers=(Number(name="x", value=1.0, unit="ms"),)))
    assert section.measured("RTX 4090").numbers[0].measured_on == "RTX 4090"
    assert section.measured("RTX 4090").state == "shown"
    failed = replace(section, state="failed").measured(hardware().measured_on)
    assert failed.state == "failed" and "no GPU" in failed.numbers[0].measured_on


# -- no GPU ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def without_gpu(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Run the command itself, with its processes, as on a machine without a driver."""
    folder = tmp_path_factory.mktemp("no-gpu") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Hardware, "here", lambda: Hardware(drivers=Drivers(error="no NVIDIA driver is installed")))
        result = CliRunner().invoke(app, ["gpu", "-o", str(folder)], catch_exceptions=False)
    assert result.exit_code == 0
    return folder, result.stdout


def test_without_a_gpu_it_says_so_and_what_it_would_have_done(without_gpu: tuple[Path, str]) -> None:
    folder, said = without_gpu
    assert f"not executed: {NO_GPU}" in said.splitlines()[-3]
    assert f"send  {folder / 'report.zip'}" in said
    data = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    states = {one["name"]: one["state"] for one in data["sections"]}
    assert states.pop("machine") == "shown" and set(states.values()) == {"not executed"}
    assert not any(one["numbers"] for one in data["sections"])
    page = (folder / "index.html").read_text(encoding="utf-8")
    assert page.count("Not done: ") == len(states)
    for command in ("pvc-export trt -m shapes --fp16 --target rtx --golden", "--golden</span>", "pvc-export bench"):
        assert command in re.sub(r"</span> <span>", " ", page) or command in page


def test_every_command_of_the_page_is_one_that_exists(tmp_path: Path) -> None:
    from tests.test_docs import wrong_commands

    commands = [step.command for step in steps_of("tiny", tmp_path) if step.command]
    assert len(commands) > 10
    assert [problem for one in commands for problem in wrong_commands(f"`{one}`")] == []
    assert wrong_commands("`pvc-export check X --gilded`")  # the test itself can fail


def test_the_files_hold_versions_and_what_the_steps_printed(without_gpu: tuple[Path, str]) -> None:
    folder, _ = without_gpu
    assert re.search(r"^torch \d", (folder / "versions.txt").read_text(), re.MULTILINE)
    log = (folder / "log.txt").read_text()
    assert [line for line in log.splitlines() if line.startswith("==")][0] == "== machine"


# -- systems -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "release", "words", "refusal"),
    [
        ("linux", "6.8.0-45-generic", "Linux 6.8.0-45-generic", ""),
        ("linux", "5.15.153.1-microsoft-standard-WSL2", "WSL2", ""),
        ("linux", "4.4.0-19041-Microsoft", "WSL1", "WSL1 has no GPU access"),
        ("win32", "11", "Windows", "native Windows is not supported, but WSL2 is"),
        ("darwin", "24.1.0", "darwin", "darwin has no NVIDIA GPUs"),
    ],
)
def test_a_system_is_supported_or_refused_in_a_sentence(name: str, release: str, words: str, refusal: str) -> None:
    found = system.system_of(name, release)
    assert words in found.words and (refusal in found.refusal if refusal else not found.refusal)


def test_windows_is_refused_before_anything_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system.sys, "platform", "win32")
    with pytest.raises(BackendUnavailable, match="wsl --install") as caught:
        CliRunner().invoke(app, ["gpu", "-o", str(tmp_path / "out")], catch_exceptions=False)
    assert caught.value.exit_code == 4 and not (tmp_path / "out").exists()


def test_what_json_lacks_becomes_null(tmp_path: Path) -> None:
    def launch(step: Step, model: str, folder: Path, limit_s: float, log: IO[str]) -> Section:
        return step.section(Found(state="failed", error="NaN", data={"share": float("inf")}))

    run_with(tmp_path, launch)
    text = (tmp_path / "out" / "results.json").read_text()
    assert "Infinity" not in text and json.loads(text)["sections"][0]["data"] == {"share": None}


def test_the_headline_counts_what_came_out(tmp_path: Path) -> None:
    run = GpuRun(
        folder=tmp_path, model="tiny", seconds=1.0, created_utc="2026-01-01T00:00:00+00:00",
        hardware=replace(hardware(), is_stand_in=False),
        sections=(STEP.section(Found()), STEP.section(Found(state="refused", error="x"))),
    )  # fmt: skip
    assert run.headline == "a card: 1 shown, 1 refused"
