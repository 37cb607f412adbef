"""Devices that a bundle fits, and remedies that really make it fit."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from engines.spec import Precision, Quantization, StreamLimits
from engines.target import load_target, target_names
from pvc_export.bundles.export import ExportRequest
from pvc_export.plan.bundle import plan_bundle
from pvc_export.plan.devices import DEVICES, GIB
from pvc_export.plan.fit import Fit, Setting, fits
from pvc_export.plan.model import planned_model


def setting_of(name: str, precision: Precision = "fp16", target: str = "rtx", **limits: int) -> Setting:
    model = planned_model(name).model
    request = ExportRequest(out=Path(), target=load_target(target), precision=precision, limits=StreamLimits(**limits))
    return Setting(model=model, request=request, bundle=plan_bundle(model, request, tokenizer_bytes=0))


def changed(setting: Setting, remedy: str) -> Setting:
    """Return the setting with the options that a remedy names."""
    request, words = setting.request, iter(shlex.split(remedy))
    for word in words:
        if word == "--fp16":
            request = replace(request, precision="fp16")
        elif word == "--int4":
            how = Quantization(block=32, zero_points=False, method="search")
            assert next(words) == "llm"
            request = replace(request, quantization={"llm": how})
        elif word == "--clock":
            assert next(words) == "reanchor"
            request = replace(request, clock="reanchor")
        else:
            limits = replace(request.limits, **{word.removeprefix("--"): int(next(words))})
            request = replace(request, limits=limits)
    return Setting(model=setting.model, request=request, bundle=plan_bundle(setting.model, request, tokenizer_bytes=0))


DEMANDING = {
    "fp32": ("pvc-internvl2-2b", "fp32", {"window": 32, "context": 8192, "streams": 4}),
    "long": ("internvl2-1b", "fp16", {"context": 32768, "streams": 8}),
    "8b": ("pvc-internvl2-8b", "fp16", {}),
}


@pytest.fixture(scope="module", params=DEMANDING)
def demanding(request: pytest.FixtureRequest) -> tuple[Setting, list[Fit]]:
    name, precision, limits = DEMANDING[request.param]
    setting = setting_of(name, precision, **limits)
    return setting, fits(setting)


def test_a_remedy_makes_it_fit_and_where_there_is_none_nothing_smaller_does(
    demanding: tuple[Setting, list[Fit]],
) -> None:
    setting, seen = demanding
    assert any(fit.remedy for fit in seen) and any(fit.left >= 0 for fit in seen)
    for fit in seen:
        if fit.remedy.startswith("no setting"):
            least = changed(setting, "--streams 1 --window 2 --context 256")
            if setting.request.precision == "fp32":
                least = changed(least, "--fp16")
            if load_target(fit.target).int4_blocks:
                least = changed(least, "--int4 llm")
            assert not least.fits(fit.device), fit.device.name
        for remedy in filter(None, fit.remedy.split(", or ")):
            if not remedy.startswith("no setting"):
                assert changed(setting, remedy).fits(fit.device), (fit.device.name, remedy)
        assert bool(fit.remedy) == (fit.left < 0)


def test_four_bits_are_a_remedy_where_the_target_takes_them_and_nothing_else_helps() -> None:
    found = {target: fits(setting_of("pvc-internvl2-8b", target=target)) for target in ("rtx", "jetson-orin-jp62")}
    assert any("--int4 llm" in fit.remedy for fit in found["rtx"])
    for fit in found["jetson-orin-jp62"]:
        assert "--int4" not in fit.remedy or load_target(fit.target).int4_blocks
    assert any(fit.target == "jetson-orin-jp62" and fit.left < 0 for fit in found["jetson-orin-jp62"])


def test_the_largest_context_fits_and_a_bucket_more_does_not(demanding: tuple[Setting, list[Fit]]) -> None:
    setting, seen = demanding
    limits, most = setting.request.limits, setting.model.config.llm.max_positions
    for fit in seen:
        if fit.largest_context:
            assert setting.fits(fit.device, context=fit.largest_context)
        if fit.largest_context < most:
            assert not setting.fits(fit.device, context=fit.largest_context + limits.bucket)


def test_eight_billion_parameters_need_more_than_16_gb() -> None:
    by_name = {fit.device.name: fit for fit in fits(setting_of("internvl2-8b"))}
    assert by_name["RTX card, 12 GB"].left < 0 < by_name["RTX card, 24 GB"].left
    assert by_name["Jetson Orin NX 16 GB"].left < 0 < by_name["Jetson AGX Orin 64 GB"].left
    assert "no setting: the weights alone are 5.7 GiB" in by_name["Jetson Orin Nano 8 GB"].remedy, "with int4 weights"
    assert by_name["RTX card, 12 GB"].remedy.endswith("--int4 llm")


@pytest.mark.parametrize("change", [{"streams": 2}, {"context": 4096}, {"window": 16}], ids=lambda c: [*c][0])
def test_what_is_larger_takes_more(change: dict[str, int]) -> None:
    setting = setting_of("pvc-internvl2-1b")
    for device in DEVICES:
        assert setting.takes(device, replace(setting.request.limits, **change)) >= setting.takes(device)
    card = DEVICES[-1]
    assert setting.takes(card, replace(setting.request.limits, **change)) > setting.takes(card)


def test_every_device_has_targets_that_exist_and_leaves_less_than_its_name_says() -> None:
    for device in DEVICES:
        assert set(device.targets) <= set(target_names())
        size = int(device.name.removesuffix(" GB").rpartition(" ")[2]) * GIB
        assert 0.7 * size < device.usable < device.memory < size


def test_a_device_is_told_its_own_target() -> None:
    def targets(name: str) -> set[str]:
        return {fit.target for fit in fits(setting_of("tiny", target=name)) if not fit.device.unified}

    assert targets("tensorrt") == {"tensorrt"} and targets("jetson-orin-jp62") == {"rtx"}
