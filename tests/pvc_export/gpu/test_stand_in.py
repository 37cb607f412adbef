"""The whole run on a stand-in for a GPU: every section is filled, and none can be mistaken for a measurement."""

from __future__ import annotations

import ctypes
import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.bundle import verify_files
from engines.gpu import TrtSession
from engines.manifest import Manifest
from engines.memory import Tensor
from pvc_export.gpu.run import SENT, ZIP, GpuRun
from pvc_export.gpu.section import STAND_IN, Section
from pvc_export.gpu.steps import bundle_path, execute, steps_of

from .conftest import Patched


def section(run: GpuRun, name: str) -> Section:
    return next(one for one in run.sections if one.name == name)


def test_every_section_is_filled_and_called_a_stand_in(whole_run: GpuRun) -> None:
    wrong = {one.name: (one.state, one.error) for one in whole_run.sections if one.state != "stand-in"}
    assert wrong == {}
    assert all(one.facts for one in whole_run.sections)
    kinds = {one.name.partition(":")[0] for one in whole_run.sections}
    assert kinds == {"machine", "runtime", "peaks", "bundle", "ladder", "golden", "time", "torch-ladder", "torch-time"}


def test_no_number_can_be_taken_for_a_measurement_of_a_gpu(whole_run: GpuRun) -> None:
    numbers = [number for one in whole_run.sections for number in one.numbers]
    assert len(numbers) > 20 and {number.measured_on for number in numbers} == {STAND_IN}
    page = (whole_run.folder / "index.html").read_text(encoding="utf-8")
    assert page.index(STAND_IN) < page.index("<h1>")
    for cell in re.findall(r'<td class="n[^"]*">([^<]*(?:ms|GB/s|TFLOP/s)[^<]*)</td>', page):
        assert cell.endswith(", stand-in"), cell
    assert "✓ shown" not in page and "✓ SHOWN" not in page
    data = json.loads((whole_run.folder / "results.json").read_text(encoding="utf-8"))
    assert data["stand_in"] is True and data["has_gpu"] is False and data["headline"] == STAND_IN


def test_the_ladder_has_rungs_of_the_card_and_the_self_test_its_rules(whole_run: GpuRun) -> None:
    for name, precision in (("rtx-fp16", "fp16"), ("tensorrt-fp16", "fp16"), ("cuda-fp16", "fp32")):
        rungs = section(whole_run, f"ladder:{name}").data
        engine = {f"engine {precision}"} - ({"engine fp32"} if name.startswith("cuda") else set())
        assert {f"onnx {precision}", f"gpu {precision}"} | engine <= set(rungs)
        assert all(row["passed"] for rows in rungs.values() for row in rows)
        golden = section(whole_run, f"golden:{name}").data
        assert golden["passed"] and {rule["name"] for rule in golden["rules"]} >= {"tokens", "repeated"}
    assert "gpu fp16" in section(whole_run, "torch-ladder:fp16").data


def test_times_are_shares_of_the_measured_peaks(whole_run: GpuRun) -> None:
    peaks = {number.name: number.value for number in section(whole_run, "peaks").numbers}
    assert {"copy bandwidth", "GEMM fp32", "GEMM fp16"} == set(peaks)
    for name in ("time:rtx-fp16", "torch-time:fp16"):
        numbers = {number.name: number for number in section(whole_run, name).numbers}
        assert len(numbers) == 9
        read = numbers["a token, LLM and head: read"]
        assert read.share == pytest.approx(read.value / peaks["copy bandwidth"])
        products = numbers["a frame, vision: products"]
        assert products.share == pytest.approx(products.value / peaks["GEMM fp16"])
        times = [number.value for number in numbers.values() if number.unit == "ms"]
        assert len(times) == 3 and min(times) > 0


def test_kernels_are_kept_beside_the_bundle_which_stays_as_its_manifest_says(whole_run: GpuRun) -> None:
    bundle = bundle_path(whole_run.folder, "rtx-fp16")
    assert (bundle.parent / "rtx-fp16.runtime-cache").is_dir()
    facts = dict(section(whole_run, "ladder:rtx-fp16").facts)
    assert facts["kernels compiled here"].endswith("kept for later starts in rtx-fp16.runtime-cache")
    assert not (bundle.parent / "tensorrt-fp16.runtime-cache").exists()
    verify_files(bundle, Manifest.load(bundle))


def test_what_is_sent_is_four_files_and_no_bundle(whole_run: GpuRun) -> None:
    with zipfile.ZipFile(whole_run.folder / ZIP) as archive:
        assert sorted(archive.namelist()) == sorted(SENT)
        assert archive.read("index.html") == (whole_run.folder / "index.html").read_bytes()
    page = (whole_run.folder / "index.html").read_text(encoding="utf-8")
    assert "http-equiv" in page and not re.search(r'(?:src|href)="(?!#)', page)  # the page fetches nothing


def test_a_card_that_computes_wrong_fails_ladder_and_self_test(
    plugged_in: Callable[[], Patched], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The largest value in the compressor's output is off by a tenth, which both checks must detect."""
    run_engine = TrtSession.run

    def run(session: TrtSession, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        outputs = run_engine(session, inputs)
        if session.spec.name == "compressor":
            array: Any = outputs["frame_embeds"]
            values = np.frombuffer((ctypes.c_uint8 * array.num_bytes).from_address(array.address), np.float16)
            values[np.abs(values).argmax()] *= 1.1
        return outputs

    steps = {step.name: step for step in steps_of("tiny", tmp_path)}
    monkeypatch.setattr(TrtSession, "run", run)
    with plugged_in() as found:
        made, climbed, played = (
            execute(steps[f"{kind}:rtx-fp16"], found.hardware, "tiny", tmp_path, None)
            for kind in ("bundle", "ladder", "golden")
        )
    assert made.is_good
    assert climbed.state == "failed" and "compressor/frame_embeds" in climbed.error
    assert played.state == "failed" and "frame_embeds" in played.error


KEYS = {
    "": [
        "format",
        "created_utc",
        "model",
        "stand_in",
        "has_gpu",
        "headline",
        "seconds",
        "counts",
        "missing",
        "sections",
    ],
    "section": ["name", "title", "state", "does", "command", "facts", "numbers", "data", "seconds", "error", "fix"],
    "number": ["name", "value", "unit", "share", "share_of", "measured_on"],
}
"""Format 1. When you change it, change FORMAT in gpu/run.py: people mail us results of other versions."""


def test_the_json_is_of_format_1(whole_run: GpuRun) -> None:
    data = json.loads((whole_run.folder / "results.json").read_text(encoding="utf-8"))
    assert data["format"] == 1 and list(data) == KEYS[""]
    assert all(list(one) == KEYS["section"] for one in data["sections"])
    assert all(list(number) == KEYS["number"] for one in data["sections"] for number in one["numbers"])
    assert [Section.from_json(one) for one in data["sections"]] == [
        Section.from_json(json.loads(json.dumps(one.to_json()))) for one in whole_run.sections
    ]
