"""The limits that `--memory` chooses fit, no larger ones would, and its report is correct."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from engines.clock import Clock
from engines.errors import ModelError
from engines.sizes import parse_size
from engines.spec import StreamLimits
from engines.target import load_target, target_names
from pvc_export.bundles.export import ExportRequest
from pvc_export.commands import export as export_commands
from pvc_export.plan.budget import Chosen, choose_limits
from pvc_export.plan.bundle import plan_bundle
from pvc_export.plan.devices import MIB, share_of_device
from pvc_export.plan.fit import Setting
from pvc_export.plan.memory import state_bytes
from pvc_export.plan.model import planned_model
from pvc_export.terminal.limits import AskedLimits
from pvc_ref import PVC, PVCConfig
from pvc_ref.config import LLMConfig

from ..conftest import Run

CASES = {
    "a context that is cut": ("pvc-internvl2-2b", "rtx", "8.2GiB", 1),
    "a window that is cut": ("pvc-internvl2-2b", "rtx", "11GiB", 1),
    "room for all of use": ("pvc-internvl2-1b", "rtx", "80GiB", 1),
    "several streams": ("pvc-internvl2-1b", "rtx", "6600MB", 4),
    "a Jetson": ("pvc-internvl2-1b", "jetson-orin-jp72", "10GB", 2),
    "a Jetson, and opening": ("pvc-internvl2-1b", "jetson-orin-jp72", "8.75GiB", 1),
    "a CPU": ("tiny", "cpu", "138MiB", 1),
    "a CPU with room": ("shapes", "cpu", "1G", 3),
    "no time in vision": ("internvl2-1b", "cuda", "2.6GiB", 1),
}


def request_of(target: str, streams: int = 1, clock: Clock = "run-on") -> ExportRequest:
    precision = "fp32" if target == "cpu" else "fp16"
    return ExportRequest(
        out=Path(), target=load_target(target), precision=precision, limits=StreamLimits(streams=streams), clock=clock
    )


def asked(memory: int | str, *, window: int | None = None, context: int | None = None, streams: int = 1) -> AskedLimits:
    return AskedLimits(window=window, context=context, streams=streams, memory=str(memory))


def setting_of(model: PVC, request: ExportRequest) -> Setting:
    bundle = plan_bundle(model, request, tokenizer_bytes=0)
    return Setting(model=model, request=request, bundle=bundle, reanchors=True)


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[Setting, Chosen]:
    return chosen_of(request.param)


@cache
def chosen_of(case: str) -> tuple[Setting, Chosen]:
    name, target, memory, streams = CASES[case]
    model, wanted = planned_model(name).model, request_of(target, streams)
    chosen = choose_limits(model, wanted, asked(memory, streams=streams))
    return setting_of(model, replace(wanted, limits=chosen.limits)), chosen


def test_what_is_chosen_fits_and_the_next_larger_does_not_or_is_of_no_use(case: tuple[Setting, Chosen]) -> None:
    setting, chosen = case
    limits, config = chosen.limits, setting.model.config
    device = share_of_device(setting.request.target, chosen.memory)
    assert setting.takes(device) == chosen.taken.total <= chosen.memory
    useful = config.trained_frames * (config.compressor.num_tokens + 16) + 512
    if limits.context < useful:
        assert not setting.fits(device, context=limits.context + limits.bucket)
    else:
        assert limits.context - limits.bucket < useful
        assert limits.window == config.trained_frames or not setting.fits(device, window=limits.window + 1)


def test_rings_take_a_quarter_of_what_is_left_for_states_while_the_context_wants_more(
    case: tuple[Setting, Chosen],
) -> None:
    setting, chosen = case
    limits, config = chosen.limits, setting.model.config
    has_all = limits.context >= config.trained_frames * (config.compressor.num_tokens + 16) + 512
    if has_all or limits.window == 2 or not config.vision.num_temporal_layers:
        return
    least = setting.taken(share_of_device(setting.request.target, chosen.memory), replace(limits, context=768))
    left = chosen.memory - least.weights - least.runtime - least.activations

    def rings(window: int) -> int:
        return limits.streams * setting.state(replace(limits, window=window)).ring

    assert 4 * rings(limits.window) <= left < 4 * rings(limits.window + 1)


def test_cases_of_both_kinds_were_looked_at() -> None:
    found = [chosen_of(case)[1].limits for case in CASES]
    assert {limits.context < 4096 for limits in found} == {True, False}
    assert sum(2 < limits.window < 96 for limits in found) >= 5


def test_what_a_window_or_a_context_leaves_is_the_others() -> None:
    model, wanted = planned_model("pvc-internvl2-1b").model, request_of("rtx")
    device = share_of_device(wanted.target, 5_900_000_000)
    by_window = choose_limits(model, wanted, asked("5.9GB", window=3)).limits
    by_context = choose_limits(model, wanted, asked("5.9GB", context=1024)).limits
    assert by_window.window == 3 and by_context.context == 1024
    setting = setting_of(model, wanted)
    for limits, larger in ((by_window, {"context": by_window.context + 256}), (by_context, {"window": 1})):
        if "window" in larger:
            larger = {"window": limits.window + 1}
        assert setting.takes(device, limits) <= device.usable < setting.takes(device, replace(limits, **larger))


@pytest.mark.parametrize(("given", "most"), [({"window": 8}, "context"), ({"context": 1024}, "window")])
def test_no_more_than_the_model_can_use_is_chosen_however_much_there_is(given: dict[str, int], most: str) -> None:
    chosen = choose_limits(planned_model("shapes").model, request_of("cpu"), asked("64GiB", **given)).limits
    assert getattr(chosen, most) == {"context": 1024, "window": 16}[most], "the model was trained on 16 frames"


@pytest.mark.parametrize("config", [PVCConfig(time_mode="fixed"), PVCConfig(trained_frames=1)], ids=["fixed", "one"])
def test_a_model_that_cannot_reanchor_has_one_of_each_cache_and_all_the_context_that_it_knows(
    config: PVCConfig,
) -> None:
    config = replace(PVCConfig.preset("tiny"), time_mode=config.time_mode, trained_frames=config.trained_frames)
    request = request_of("cpu")
    chosen = choose_limits(PVC.empty(config), request, asked("64GiB"))
    assert chosen.limits.context == config.llm.max_positions and chosen.num_retained == 0
    specs = replace(request, limits=chosen.limits).graph_specs(config)
    assert chosen.taken.states == state_bytes(config, specs, chosen.limits, "run-on").total
    assert "re-anchor" not in str(chosen) and "replayed" not in str(chosen)


def test_a_context_is_of_whole_buckets_of_what_a_model_knows() -> None:
    tiny = PVCConfig.preset("tiny")
    config = replace(
        tiny, llm=LLMConfig(vocab_size=264, hidden_size=64, num_heads=4, num_kv_heads=2, max_positions=700)
    )
    assert choose_limits(PVC.empty(config), request_of("cpu"), asked("64GiB")).limits.context == 512


@pytest.mark.parametrize("clock", ["run-on", "reanchor"])
def test_streams_count_as_reanchoring_with_either_clock(clock: Clock) -> None:
    """As in engines/episodes.py: two rings, two LLM caches, and the features of the replayed frames and one more."""
    model, request = planned_model("tiny").model, request_of("cpu", streams=3, clock=clock)
    chosen = choose_limits(model, request, asked("300MiB", streams=3))
    limits, vision = chosen.limits, model.config.vision
    specs = replace(request, limits=limits).graph_specs(model.config)
    caches = specs["temporal"].state_bytes(limits) + specs["llm"].state_bytes(limits)
    features = (chosen.num_retained + 1) * vision.num_positions * vision.hidden_size * 4
    assert chosen.num_retained == 8 and chosen.taken.states == 3 * (2 * caches + features)


def test_no_more_frames_are_said_to_be_replayed_than_window_and_context_hold() -> None:
    model, request = planned_model("tiny").model, request_of("cpu")
    assert choose_limits(model, request, asked("1G", window=3)).num_retained == 3
    assert choose_limits(model, request, asked("1G", context=512)).num_retained == 1
    assert choose_limits(model, request, asked("1G", context=512 + 256)).num_retained == 8


def test_on_a_jetson_the_largest_engine_is_there_twice_while_it_is_opened() -> None:
    setting, chosen = chosen_of("a Jetson, and opening")
    device = share_of_device(setting.request.target, chosen.memory)
    least = setting.taken(device, replace(chosen.limits, window=2, context=768))
    largest = max(graph.engine for graph in setting.bundle.graphs.values())
    assert least.states + least.activations < largest == least.total - least.weights - least.runtime
    assert "opening" in str(least)


def test_memory_is_that_of_what_runs_the_target() -> None:
    found = {name: share_of_device(load_target(name), 1000) for name in target_names()}
    assert {name for name, device in found.items() if device.is_cpu} == {"cpu", "cpu-vnni"}
    assert {name for name, device in found.items() if not device.unified} == {"rtx", "tensorrt", "tensorrt-10", "cuda"}
    assert {device.usable for device in found.values()} == {1000}


@pytest.mark.parametrize("target", target_names())
def test_the_least_that_an_error_names_does_and_a_byte_less_does_not(target: str) -> None:
    model, request = planned_model("tiny").model, request_of(target)
    with pytest.raises(ModelError, match=r"but at least \d+ .* are needed, for") as info:
        choose_limits(model, request, asked(1000))
    least = int(re.findall(r"but at least (\d+)", str(info.value))[0])
    assert choose_limits(model, request, asked(least)).taken.total == least
    with pytest.raises(ModelError, match=str(least)):
        choose_limits(model, request, asked(least - 1))


@pytest.mark.parametrize(
    ("args", "remedy"),
    [
        (["--memory", "540MiB", "--streams", "4"], "--streams 2"),
        (["--memory", "548MiB", "--context", "8192"], "--context 7936"),
        (["--memory", "538MiB", "--window", "90"], "--window"),
        (["--memory", "550MiB", "--fp32"], "--fp16"),
        (["--memory", "534MiB"], "--clock reanchor"),
        (["--memory", "4.5GB", "-m", "pvc-internvl2-1b"], "--clock reanchor --int4 llm"),
        (["--memory", "535MiB", "--streams", "4"], "--clock reanchor --streams 2"),
        (["--memory", "135MB", "--streams", "2", "--target", "cpu"], "--clock reanchor --streams 1"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_an_error_says_to_give_makes_it_fit(args: list[str], remedy: str, pvc_export: Run) -> None:
    args = ["-m", "tiny", *args]
    result = pvc_export("plan", *args)
    result.says(6, "bytes, but at least ", f"fix: give {remedy}")
    ways = result.message.partition("fix: give ")[2].strip().split(", or ")
    for way in ways:
        words = shlex.split(way)
        kept = [arg for arg in args if arg != "--fp32" or "--fp16" not in words]
        assert pvc_export("plan", *kept, *words).exit_code == 0, way


def test_where_no_option_helps_the_error_says_what_all_of_them_come_to(pvc_export: Run) -> None:
    args = ["plan", "-m", "tiny", "--streams", "2", "--memory"]
    result = pvc_export(*args, "500MiB")
    result.says(6, "fix: allow more memory; with --clock reanchor --int4 llm --streams 1 at least")
    least = int(re.findall(r"--streams 1 at least (\d+)", result.message)[0])
    options = ("--clock", "reanchor", "--int4", "llm", "--streams", "1")
    assert pvc_export(*args, least, *options).exit_code == 0
    assert pvc_export(*args, least - 1, *options).exit_code == 6


def test_a_plan_says_what_was_chosen_in_one_line_and_plans_that(pvc_export: Run) -> None:
    args = ("plan", "-m", "tiny", "--target", "cpu", "--memory", "140MiB")
    line, data = pvc_export(*args).out.splitlines()[0], json.loads(pvc_export(*args, "--json").out)
    memory: dict[str, Any] = data["memory"]
    assert line.startswith(
        f"memory 140.0 MiB: window {memory['window']}, context {memory['context']}, 8 frames replayed;"
    )
    for part in ("weights", "states", "activations", "runtime"):
        assert f"{part} {memory[part] / MIB:.1f} MiB" in line
    assert "with re-anchoring, as live streams do" in line
    assert {name: data["limits"][name] for name in ("window", "context")} == {
        name: memory[name] for name in ("window", "context")
    }
    assert memory["takes"] == sum(memory[part] for part in ("weights", "states", "activations", "runtime"))


class Stopped(ModelError):
    """Raised instead of exporting."""


@pytest.mark.parametrize("command", ["onnx", "trt", "kit"])
def test_every_export_is_of_what_a_plan_chooses(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pvc_export: Run
) -> None:
    requests: list[ExportRequest] = []

    def stop(_: object, request: ExportRequest, **__: object) -> None:
        requests.append(request)
        raise Stopped("as far as here")

    monkeypatch.setattr(export_commands, "make_kit" if command == "kit" else "export", stop)
    target = {"onnx": "cpu", "trt": "rtx", "kit": "jetson-orin-jp62"}[command]
    args = ("-m", "tiny", "--fp32", "--memory", "760MiB" if command != "onnx" else "140MiB", "--window", "4")
    result = pvc_export(command, *args, "-o", tmp_path / "b")
    assert "as far as here" in result.message and "memory " in result.out
    data = json.loads(pvc_export("plan", *args, "--target", target, "--json").out)
    limits = requests[0].limits
    assert (limits.window, limits.context) == (4, data["memory"]["context"])
    assert f"window 4, context {limits.context}, streams 1" in result.out


@pytest.mark.parametrize("command", ["plan", "onnx", "trt", "kit"])
def test_with_window_and_context_given_there_is_nothing_to_choose(command: str, pvc_export: Run) -> None:
    result = pvc_export(command, "--memory", "2G", "--window", "8", "--context", "2048")
    result.says(2, "--memory chooses the window and the context, but both are given")


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("2GiB", 2 << 30), ("2G", 2 << 30), ("2g", 2 << 30), ("900MiB", 900 << 20), ("1.5G", 3 << 29), ("4k", 4096),
        ("2GB", 2_000_000_000), ("0.5 TB", 500_000_000_000), ("1000000", 1_000_000), ("1000000B", 1_000_000),
    ],
)  # fmt: skip
def test_a_size_is_read_in_1024s_and_with_a_b_alone_in_1000s(text: str, num_bytes: int) -> None:
    assert parse_size(text, option="--memory") == num_bytes


@pytest.mark.parametrize(
    "text", ["", "G", "2X", "-2G", "0", "0.1", "2GiBs", "1,5G", "2G 3M", "2Gi", "nan", "1e9", "٢G"]
)
def test_what_is_no_size_is_refused_with_examples(text: str, pvc_export: Run) -> None:
    pvc_export("plan", "--memory", text).says(2, f"--memory is '{text}', expected a size such as 2GiB")
