"""Facts of a manifest: all are compared with the model, none can be missed, and a check continues with the model's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field, fields, make_dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from engines import open_bundle
from engines.bundle import Bundle
from engines.manifest import ImageSpec, Manifest, ModelSource
from engines.prompt import PromptSpec
from engines.spec import ModelShape
from pvc_export.controls import bundle_edits
from pvc_export.graphs.facts import model_facts
from pvc_export.graphs.models import LoadedModel
from pvc_export.parity import facts
from pvc_export.parity.facts import ELSEWHERE, hold_facts, wrong_facts
from pvc_export.parity.levels import Rule
from pvc_export.parity.weights import compare_weights


@pytest.fixture(scope="module")
def bundle(bundle_fp32: Path) -> Bundle:
    return open_bundle(bundle_fp32, runtime="cpu")


def broken(bundle: Bundle, loaded: LoadedModel) -> list[Rule]:
    return [rule for rule in hold_facts(bundle, loaded)[0].rules if not rule.passed]


def test_every_field_of_a_manifest_is_held_to_the_model_or_named_with_what_else_holds_it(
    bundle: Bundle, tiny: LoadedModel
) -> None:
    held = {*model_facts(tiny), "limits", "graphs"}
    assert {field.name for field in fields(Manifest)} == held | set(ELSEWHERE) and not held & set(ELSEWHERE)
    assert list(wrong_facts(bundle.manifest, tiny)) == [] and broken(bundle, tiny) == []


def test_a_new_field_that_is_not_checked_fails(
    bundle: Bundle, tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    longer = make_dataclass("Manifest", [("frame_rate", int, field(default=30))], bases=(Manifest,), frozen=True)
    manifest = longer(**{field.name: getattr(bundle.manifest, field.name) for field in fields(Manifest)})
    monkeypatch.setattr(facts, "Manifest", longer)
    (found,) = wrong_facts(manifest, tiny)
    assert found[1].startswith("the field frame_rate is not checked")


RECORDS = {"model": ModelSource, "shape": ModelShape, "prompt": PromptSpec, "images": ImageSpec}
LEAVES = [(name, part.name) for name, record in RECORDS.items() for part in fields(record)]
BY_THEMSELVES = ("name", "mapping", "config")
"""Facts of the model: two may differ in another copy, and one is compared value by value."""
FACTS = [("time_mode", ""), ("trained_frames", ""), *(leaf for leaf in LEAVES if leaf[1] not in BY_THEMSELVES)]


def test_every_fact_of_the_model_is_broken_below(tiny: LoadedModel) -> None:
    assert {name for name, _ in FACTS} == set(model_facts(tiny))


@pytest.mark.parametrize(("name", "field"), FACTS, ids=".".join)
def test_each_wrong_fact_is_found_and_named(name: str, field: str, bundle: Bundle, tiny: LoadedModel) -> None:
    def other(value: Any) -> Any:
        match value:
            case bool():
                return not value
            case int():
                return value + 1
            case tuple():
                return (*value, "</s>")
            case str():
                return f"{value} " if name == "prompt" else "other"
        raise AssertionError(value)

    value = getattr(bundle.manifest, name)
    changed = replace(value, **{field: other(getattr(value, field))}) if field else other(value)
    found = list(wrong_facts(replace(bundle.manifest, **{name: changed}), tiny))
    assert [where for where, _ in found] == [name]
    assert found[0][1].startswith(f"{name}.{field}" if field else name) and ", expected " in found[0][1]


def test_the_configuration_is_held_value_by_value(bundle: Bundle, tiny: LoadedModel) -> None:
    manifest, config = bundle.manifest, tiny.source.config
    deeper = {**config, "vision": {**config["vision"], "layer_norm_eps": 1e-5}}
    shorter = {key: value for key, value in config.items() if key != "template"}
    for changed, said in ((deeper, "model.config.vision.layer_norm_eps is 1e-05, expected 1e-06"),
                          (shorter, "model.config.template is 'missing', expected 'tiny'")):  # fmt: skip
        (found,) = wrong_facts(replace(manifest, model=replace(manifest.model, config=changed)), tiny)
        assert found == ("model", said)
    moved = replace(manifest, model=replace(manifest.model, name="elsewhere/tiny", mapping={"te.0": "te.w1"}))
    assert list(wrong_facts(moved, tiny)) == []  # the same model in another folder, under other names


def test_limits_are_held_where_the_model_leaves_no_choice(bundle: Bundle, tiny: LoadedModel) -> None:
    manifest, positions = bundle.manifest, tiny.config.llm.max_positions
    long = replace(manifest, limits=replace(manifest.limits, context=positions + 256))
    assert (
        "limits",
        f"limits.context is {positions + 256}, expected at most the model's {positions} positions",
    ) in list(wrong_facts(long, tiny))
    short = replace(manifest, limits=replace(manifest.limits, num_times=5))
    assert ("limits", "limits.num_times is 5, expected 96") in list(wrong_facts(short, tiny))


def test_the_check_continues_with_the_model_s_own_facts(
    bundle_fp32: Path, tiny: LoadedModel, copy_bundle: Callable[[Path], Path], tmp_path: Path
) -> None:
    """Otherwise a prompt of another length would end the check, and one fault would hide all others."""
    folder = copy_bundle(bundle_fp32)
    for edit in (bundle_edits.other_system_text, bundle_edits.fixed_time, bundle_edits.an_added_token_missing):
        edit(folder)
    opened = open_bundle(folder, runtime="cpu")
    evidence, mended = hold_facts(opened, tiny, scratch=tmp_path)
    assert [(rule.level, rule.name) for rule in evidence.rules if not rule.passed] == [
        ("A", "facts of the model"), ("K", "prompt and images"), ("K", "tokenizer file"),
        ("K", "text to tokens and back"),
    ]  # fmt: skip
    assert broken(replace(mended, folder=bundle_fp32), tiny) == [] and mended.sessions is opened.sessions
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_of_a_long_text_the_part_that_differs_is_told(bundle: Bundle, tiny: LoadedModel) -> None:
    manifest = bundle.manifest
    start = manifest.prompt.start.replace("a video", "a clip")
    (rule,) = broken(replace(bundle, manifest=replace(manifest, prompt=replace(manifest.prompt, start=start))), tiny)
    assert "m\\nYou watch a clip.<|im_end|>" in rule.detail and "m\\nYou watch a video.<|im_end|>" in rule.detail
    assert rule.detail.endswith("export the bundle again: pvc-export onnx, or trt for one with engines")


def test_islands_are_held_by_the_weights_as_it_is_written(
    bundle_fp16: Path, tiny: LoadedModel, copy_bundle: Callable[[Path], Path]
) -> None:
    folder = copy_bundle(bundle_fp16)
    assert not compare_weights(folder, Manifest.load(folder), tiny).wrong_weights
    claimed = replace(Manifest.load(folder), islands=("compressor",))
    assert "compressor" in compare_weights(folder, claimed, tiny).wrong_weights
