"""Parity in words: twenty prompts, divergences and near ties; and that each of its gates can fail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import engines.images
from engines import open_bundle
from engines.bundle import Bundle
from engines.language import LanguageModel
from engines.manifest import Manifest
from engines.prompt import PromptSpec
from engines.vision import VisionEncoder
from pvc_export.graphs.models import LoadedModel, load_model
from pvc_export.parity.answers import Conversation, Flip
from pvc_export.parity.check import check_bundle
from pvc_export.parity.evidence import Evidence
from pvc_export.parity.limits import kl_limit
from pvc_export.parity.report import ParityReport
from pvc_export.parity.words.conversations import common_prefix, converse, divergences, flips
from pvc_export.parity.words.prompts import KINDS, prompts, prompts_that_fit

from ...conftest import Run


@pytest.fixture(scope="module")
def bundle(bundle_fp32: Path) -> Bundle:
    return open_bundle(bundle_fp32)


def faults(conversations: list[Conversation]) -> dict[str, int]:
    """By kind, how many prompts went wrong."""
    return {kind: sum(c.fault(kl_limit("fp32")) is not None for c in conversations if c.kind == kind) for kind in KINDS}


def test_twenty_prompts_are_of_four_kinds_and_no_two_alike() -> None:
    asked = prompts()
    assert len(asked) == 20 and [sum(p.kind == kind for p in asked) for kind in KINDS] == [5, 5, 5, 5]
    assert [len(p.frames) for p in asked if p.kind == "video"] == [1, 2, 3, 4, 5]
    assert {len(p.images) for p in asked if p.kind == "images"} == {2, 3}
    assert sum("<image>" in p.question for p in asked) == 2
    contents = {(p.question, *(f.tobytes() for f in (*p.frames, *p.images))) for p in asked}
    assert len(contents) == 20


@pytest.mark.parametrize("bundle_name", ["bundle_fp32", "bundle_fp16"])
def test_a_faithful_bundle_answers_every_prompt_as_the_reference_does(
    bundle_name: str, tiny: LoadedModel, request: pytest.FixtureRequest
) -> None:
    """The 20 prompts of the check, in ONNX Runtime: greedy text equal, KL within the committed gate."""
    folder = request.getfixturevalue(bundle_name)
    precision = Manifest.load(folder).precision
    opened = open_bundle(folder, runtime="cpu")
    found = converse(opened, tiny, per_kind=5)
    fitting = prompts_that_fit(opened.manifest, tiny, per_kind=5, num_new_tokens=8)
    assert len(found) == len(fitting) >= 18  # two of the images need more than these bundles' 512 rows
    assert {c.kind for c in found} == set(KINDS)
    assert all(c.fault(kl_limit(precision)) is None for c in found)
    assert all(c.equal for c in found), "no near tie among these prompts"
    assert all(c.num_steps == c.num_tokens + 1 for c in found) and sum(c.num_tokens for c in found) > 100
    assert max(c.max_kl for c in found) > 0


def test_prompts_of_a_kind_get_different_answers(bundle: Bundle, tiny: LoadedModel) -> None:
    """Otherwise equal answers would prove nothing."""
    from pvc_export.parity.words.conversations import open_prompt

    for kind in KINDS:
        said = {
            open_prompt(bundle, p).ask(p.question, images=p.images, max_tiles=2, max_new_tokens=8).token_ids
            for p in prompts_that_fit(bundle.manifest, tiny, per_kind=5, num_new_tokens=8)
            if p.kind == kind
        }
        assert len(said) >= 4, kind


def loud_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits 1 % too large: every greedy token is still right."""
    logits = LanguageModel.logits
    monkeypatch.setattr(LanguageModel, "logits", lambda self, hidden: logits(self, hidden) * np.float32(1.01))


def one_repeat_less(monkeypatch: pytest.MonkeyPatch) -> None:
    encode = VisionEncoder.encode_static

    def shorter(self: VisionEncoder, frame: np.ndarray, *, num_repeats: int) -> np.ndarray:
        embeds = encode(self, frame, num_repeats=num_repeats)
        tokens = len(embeds) // num_repeats
        return np.concatenate([embeds[:-tokens], embeds[:tokens]])

    monkeypatch.setattr(VisionEncoder, "encode_static", shorter)


def thumbnail_first(monkeypatch: pytest.MonkeyPatch) -> None:
    to_tiles = engines.images.to_tiles
    monkeypatch.setattr(engines.images, "to_tiles", lambda image, **sizes: np.roll(to_tiles(image, **sizes), 1, axis=0))


def images_from_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    around = PromptSpec.around_images
    monkeypatch.setattr(
        PromptSpec,
        "around_images",
        lambda self, q, n: [piece.replace("Image-1", "Image-0") for piece in around(self, q, n)],
    )


def frames_from_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    before = PromptSpec.before_frame
    monkeypatch.setattr(PromptSpec, "before_frame", lambda self, index: before(self, index - 1))


def forgotten_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each image finds the frames of the one before it in its ring."""
    monkeypatch.setattr(VisionEncoder, "reset", lambda self: None)


@pytest.mark.parametrize(
    ("defect", "seen_in"),
    [
        (loud_head, {"video", "image", "images", "text"}),
        (one_repeat_less, {"image", "images"}),
        (thumbnail_first, {"image", "images"}),
        (images_from_zero, {"images"}),
        (frames_from_zero, {"video"}),
        (forgotten_reset, {"image", "images"}),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_defect_is_seen_in_the_prompts_that_it_touches_and_in_no_others(
    defect: Callable[[pytest.MonkeyPatch], None],
    seen_in: set[str],
    bundle: Bundle,
    tiny: LoadedModel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    defect(monkeypatch)
    found = faults(converse(bundle, tiny, per_kind=3, num_new_tokens=4))
    assert {kind for kind, count in found.items() if count} == seen_in


def test_a_bundle_that_fails_only_in_words_exits_3_and_says_which(
    bundle_fp32: Path, pvc_export: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pvc_export.parity.check.climb", lambda *_, **__: Evidence())
    images_from_zero(monkeypatch)
    result = pvc_export("check", bundle_fp32)
    result.says(3, "images prompt 'What moves?': KL", "(limit ")
    assert "FAIL images" in result.out and "ok   video" in result.out


@pytest.mark.usefixtures("shared_graphs")
def test_kinds_that_do_not_fit_are_named_as_not_executed(tmp_path: Path, small: LoadedModel) -> None:
    from engines.spec import StreamLimits
    from engines.target import load_target
    from pvc_export.bundles.export import ExportRequest, export

    out = tmp_path / "small"
    limits = StreamLimits(window=2, context=104, bucket=104, chunk=64)
    report = export(small, ExportRequest(out=out, target=load_target("cpu"), precision="fp32", limits=limits))
    assert report.passed and report.not_executed["prompts about images"] == "5 of 5 do not fit in this bundle's context"
    assert {c.kind for c in report.conversations} == {"video", "text"}


def test_a_report_holds_every_conversation_with_its_limit(bundle_fp32: Path, tiny: LoadedModel) -> None:
    report = check_bundle(bundle_fp32, tiny, ladder=False)
    data = report.to_json()["conversations"]
    assert len(data) == len(report.conversations) and all(c["kl_limit"] == kl_limit("fp32") for c in data)
    assert report.receipt()["max_kl"] == max(c.max_kl for c in report.conversations)
    assert f"{len(data)}/{len(data)} answers equal" in report.summary()
    assert not replace(report, conversations=(replace(report.conversations[0], scaled_kl=float("nan")),)).passed


def conversation(**changes: Any) -> Conversation:
    same = {"kind": "text", "question": "?", "num_tokens": 4, "num_said": 4, "prefix": 4, "num_steps": 5,
            "max_kl": 1e-9, "mean_kl": 1e-9, "scaled_kl": 1e-9, "flips": ()}  # fmt: skip
    return Conversation(**{**same, **changes})


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({}, None),
        ({"scaled_kl": 2e-3}, r"KL / mean square of the logits is 2.0e-03 \(limit 1.0e-03\)"),
        ({"max_kl": 2e-3}, None),
        ({"scaled_kl": float("nan")}, "KL / mean square of the logits is nan"),
        ({"prefix": 2, "flips": (Flip(step=2, k=1, margin=0.1, tie=0.2),)}, None),
        ({"prefix": 2, "flips": (Flip(step=2, k=1, margin=0.3, tie=0.2),)}, "at token 2 .* likeliest.* by 0.3 logits"),
        ({"flips": (Flip(step=1, k=5, margin=0.3, tie=0.2),)}, "among the 5 likeliest"),
        ({"prefix": 2}, "the answers differ from token 2 on, but not"),
        ({"prefix": 2, "flips": (Flip(step=3, k=1, margin=0.1, tie=0.2),)}, "the answers differ from token 2"),
        ({"num_said": 3, "prefix": 3}, "the answers differ from token 3"),
    ],
    ids=["equal", "KL", "loud logits", "NaN", "near tie", "flip", "top 5", "decode differs from scoring",
         "a tie elsewhere", "stopped early"],
)  # fmt: skip
def test_what_counts_as_a_fault(changes: dict[str, Any], fault: str | None) -> None:
    import re

    found = conversation(**changes).fault(1e-3)
    assert found is None if fault is None else re.search(fault, str(found))


def test_divergences_are_torch_s() -> None:
    rng = np.random.default_rng(0)
    want, got = rng.normal(size=(2, 7, 50)).astype(np.float32)
    p, q = (torch.distributions.Categorical(logits=torch.from_numpy(x).double()) for x in (want, got))
    np.testing.assert_allclose(divergences(want, got), torch.distributions.kl_divergence(p, q).numpy(), rtol=1e-9)
    assert divergences(want, want).max() == 0


def test_flips_are_measured_on_the_reference() -> None:
    want = np.array([[9.0, 8.0, 7.0, 6.0, 5.0, 4.5, 0.0], [1.0, 0.0, -1.0, -2.0, -3.0, -4.0, -5.0]], np.float32)
    got = want.copy()
    got[0, 5] = 5.5  # the sixth of the reference is among our five: by 0.5
    got[1, [0, 1]] = got[1, [1, 0]]  # the second is our first: by 1
    found = flips(want, got, "fp32")
    assert [(f.step, f.k, f.margin) for f in found] == [(0, 5, 0.5), (1, 1, 1.0)]
    assert all(f.tie < 0.01 for f in found) and flips(want, want, "fp32") == ()


@pytest.mark.parametrize(
    ("a", "b", "length"), [("", "", 0), ("abc", "abc", 3), ("abc", "abd", 2), ("ab", "abc", 2), ("x", "abc", 0)]
)
def test_common_prefix(a: str, b: str, length: int) -> None:
    assert common_prefix([ord(c) for c in a], [ord(c) for c in b]) == length


def test_a_large_model_is_asked_one_prompt_of_each_kind(
    bundle_fp32: Path, tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pvc_export.parity.check.is_small", lambda model: False)
    report: ParityReport = check_bundle(bundle_fp32, tiny, ladder=False)
    assert [c.kind for c in report.conversations] == list(KINDS)


def test_another_model_s_answers_are_not_ours(bundle: Bundle) -> None:
    """The whole chain, against a reference with other weights: nothing agrees."""
    found = converse(bundle, load_model("tiny", seed=1), per_kind=1, num_new_tokens=4)
    assert all(c.fault(kl_limit("fp32")) for c in found)


def test_louder_logits_are_no_larger_error() -> None:
    """KL grows with the square of the logits' scale while the relative error stays; what is gated does not."""
    rng = np.random.default_rng(0)
    plain, noise = rng.normal(size=(2, 200, 264)).astype(np.float32)
    kl, scaled = [], []
    for factor in (np.float32(1), np.float32(3)):
        found = divergences(plain * factor, plain * factor + noise * factor * np.float32(1e-3))
        kl.append(float(found.mean()))
        scaled.append(float((found / np.mean(np.square(plain * factor), axis=-1)).mean()))
    assert kl[1] > 5 * kl[0] and scaled[1] < 1.2 * scaled[0]
