"""Parity in words: twenty prompts, divergences and near ties. Each of its gates can fail."""

from __future__ import annotations

import re
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
from pvc_export.controls.runtime_patches import text_in_lower_case
from pvc_export.graphs.models import LoadedModel, load_model
from pvc_export.parity.answers import Conversation, Flip, Parting
from pvc_export.parity.check import check_bundle
from pvc_export.parity.evidence import Evidence
from pvc_export.parity.limits import kl_limit
from pvc_export.parity.report import ParityReport
from pvc_export.parity.words.conversations import (
    common_prefix,
    converse,
    divergences,
    flips,
    parting,
    reference_answer,
    text_rule,
)
from pvc_export.parity.words.prompts import KINDS, prompts, prompts_that_fit
from pvc_ref.prompt import STOP_TOKEN

from ...conftest import Run


@pytest.fixture(scope="module")
def bundle(bundle_fp32: Path) -> Bundle:
    return open_bundle(bundle_fp32)


def faults(conversations: list[Conversation]) -> dict[str, int]:
    """Return the number of wrong prompts per kind."""
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
    """The check's 20 prompts in ONNX Runtime: equal greedy text, and KL within the committed limit."""
    folder = request.getfixturevalue(bundle_name)
    precision = Manifest.load(folder).precision
    opened = open_bundle(folder, runtime="cpu")
    found = converse(opened, tiny, per_kind=5)
    fitting = prompts_that_fit(opened.manifest, tiny, per_kind=5, num_new_tokens=8)
    assert len(found) == len(fitting) >= 18  # two of the images need more than these bundles' 512 rows
    assert {c.kind for c in found} == set(KINDS)
    assert all(c.fault(kl_limit(precision)) is None for c in found)
    assert all(c.equal for c in found), "these prompts have no near tie"
    assert all(c.num_steps == c.num_tokens + 1 for c in found) and sum(c.num_tokens for c in found) > 100
    assert max(c.max_kl for c in found) > 0


def test_prompts_of_a_kind_get_different_answers(bundle: Bundle, tiny: LoadedModel) -> None:
    """If they did not, equal answers would prove nothing."""
    from pvc_export.parity.words.conversations import open_prompt

    for kind in KINDS:
        said = {
            open_prompt(bundle, p).ask(p.question, images=p.images, max_tiles=2, max_new_tokens=8).token_ids
            for p in prompts_that_fit(bundle.manifest, tiny, per_kind=5, num_new_tokens=8)
            if p.kind == kind
        }
        assert len(said) >= 4, kind


def loud_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make logits 1 % too large, which leaves every greedy token correct."""
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
    """Skip the reset, so that each image finds the previous image's frames in its ring."""
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
    assert report.passed, report.failure_text()
    assert report.not_executed["prompts about images"] == "5 of 5 do not fit in this bundle's context"
    assert {c.kind for c in report.conversations} == {"video", "text"}


@torch.no_grad()
def test_whatever_a_bundle_said_the_reference_s_answer_is_its_own(tiny: LoadedModel) -> None:
    ids = tiny.prompt_ids(num_frames=0, question="Where?")
    embeds = tiny.model.llm.embed_tokens(ids[None])
    own = tiny.model.generate(embeds, max_new_tokens=6, stop_ids=[tiny.token_id(STOP_TOKEN)])
    assert len(own) == 6
    for said in (own, own[:4], [], [*own[:3], own[3] + 1, *own[4:]], [7, *own[1:]]):
        tokens, logits = reference_answer(tiny, embeds, said, limit=6)
        assert tokens == own and logits[:6].argmax(-1).tolist() == own


def test_a_report_holds_every_conversation_with_its_limit(bundle_fp32: Path, tiny: LoadedModel) -> None:
    report = check_bundle(bundle_fp32, tiny, ladder=False)
    data = report.to_json()["conversations"]
    assert len(data) == len(report.conversations) and all(c["kl_limit"] == kl_limit("fp32") for c in data)
    assert report.receipt()["max_kl"] == max(c.max_kl for c in report.conversations)
    assert f"{len(data)}/{len(data)} answers equal" in report.summary()
    assert not replace(report, conversations=(replace(report.conversations[0], scaled_kl=float("nan")),)).passed


def conversation(**changes: Any) -> Conversation:
    same = {"kind": "text", "question": "?", "num_tokens": 4, "num_said": 4, "prefix": 4, "parting": None,
            "text": "four", "reference_text": "four", "num_steps": 5, "max_kl": 1e-9, "mean_kl": 1e-9,
            "scaled_kl": 1e-9, "flips": ()}  # fmt: skip
    return Conversation(**{**same, **changes})


def parts(margin: float) -> Parting:
    """The bundle answers 'red' where the reference answers 'blue'."""
    return Parting(said="red", expected="blue", margin=margin, tie=0.2)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({}, None),
        ({"scaled_kl": 2e-3}, r"KL / mean square of the logits is 2.0e-03 \(limit 1.0e-03\)"),
        ({"max_kl": 2e-3}, None),
        ({"scaled_kl": float("nan")}, "KL / mean square of the logits is nan"),
        ({"flips": (Flip(step=2, k=1, margin=0.1, tie=0.2),)}, None),
        ({"flips": (Flip(step=2, k=1, margin=0.3, tie=0.2),)}, "at token 2 .* likeliest.* by 0.3 logits"),
        ({"flips": (Flip(step=1, k=5, margin=0.3, tie=0.2),)}, "among the 5 likeliest"),
        ({"prefix": 2, "parting": parts(0.1)}, None),
        ({"prefix": 2, "parting": parts(0.0)}, None),
        (
            {"prefix": 2, "parting": parts(0.3)},
            "at token 2 the bundle has 'red', the reference 'blue'; .* by 0.3 logits .* at most 2.0e-01",
        ),
        ({"prefix": 2, "parting": parts(float("nan"))}, "at token 2 the bundle has"),
        ({"prefix": 2, "parting": parts(0.3), "flips": (Flip(step=3, k=1, margin=0.1, tie=0.2),)}, "at token 2"),
    ],
    ids=["equal", "KL", "loud logits", "NaN", "near tie", "flip", "top 5", "parts at a near tie",
         "the reference chooses otherwise without its cache", "decode differs from scoring", "parting that is NaN",
         "a tie elsewhere"],
)  # fmt: skip
def test_what_counts_as_a_fault(changes: dict[str, Any], fault: str | None) -> None:
    found = conversation(**changes).fault(1e-3)
    assert found is None if fault is None else re.search(fault, str(found))


def test_answers_part_where_the_reference_nearly_ties_and_nowhere_else(tiny: LoadedModel) -> None:
    """A case seen with a real LLM: two tokens tie without a cache, and decoding with a cache chose one of them."""
    want = np.zeros((4, 264), np.float32)
    want[:, 0], want[1, 7], want[1, 8], want[1, 9] = 5, 6, 6 - 1e-6, 4
    stop = tiny.token_id("<|im_end|>")
    a, b, far = (parting(said, [0, 8, 0], want, tiny, "fp32", limit=3) for said in ([0, 7], [0, 8, 0, 0], [0, 9, 0]))
    assert a is not None and not a.is_fault and a.margin == 0 and a.said == tiny.tokenizer.decode([7])
    assert b is not None and b.is_fault and b.margin == np.inf and b.expected == "nothing more"
    assert far is not None and far.is_fault and far.margin == 2
    assert parting([0, 8, 0], [0, 8, 0], want, tiny, "fp32", limit=3) is None
    want[2, stop] = want[2].max() - 1
    early, late = (parting(*both, want, tiny, "fp32", limit=3) for both in (([0, 8], [0, 8, 0]), ([0, 8, 0], [0, 8])))
    assert early is not None and (early.said, early.margin) == ("<|im_end|>", 1)
    assert late is not None and late.expected == "<|im_end|>"


def test_an_answer_whose_text_is_not_that_of_its_tokens_fails_as_text(bundle: Bundle, tiny: LoadedModel) -> None:
    same = converse(bundle, tiny, per_kind=1, num_new_tokens=4)
    assert text_rule(same).passed
    with text_in_lower_case():
        wrong = text_rule(converse(bundle, tiny, per_kind=1, num_new_tokens=4))
    assert wrong.level == "K" and wrong.passed is False
    assert re.search(
        "the answer to the video prompt 'What moves.' reads .*, expected .* from the same tokens", wrong.detail
    )


def test_divergences_are_torch_s() -> None:
    rng = np.random.default_rng(0)
    want, got = rng.normal(size=(2, 7, 50)).astype(np.float32)
    p, q = (torch.distributions.Categorical(logits=torch.from_numpy(x).double()) for x in (want, got))
    np.testing.assert_allclose(divergences(want, got), torch.distributions.kl_divergence(p, q).numpy(), rtol=1e-9)
    assert divergences(want, want).max() == 0


def test_flips_are_measured_on_the_reference() -> None:
    want = np.array([[9.0, 8.0, 7.0, 6.0, 5.0, 4.5, 0.0], [1.0, 0.0, -1.0, -2.0, -3.0, -4.0, -5.0]], np.float32)
    got = want.copy()
    got[0, 5] = 5.5  # the reference's sixth token is among our five, by 0.5
    got[1, [0, 1]] = got[1, [1, 0]]  # the second token is our first, by 1
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
    for module in ("check", "words.further"):
        monkeypatch.setattr(f"pvc_export.parity.{module}.is_small", lambda model: False)
    report: ParityReport = check_bundle(bundle_fp32, tiny, ladder=False)
    assert [c.kind for c in report.conversations] == [*KINDS, "reanchor", "reanchor", "reanchor"]


def test_another_model_s_answers_are_not_ours(bundle: Bundle) -> None:
    """The whole chain against a reference with other weights: no answer agrees."""
    found = converse(bundle, load_model("tiny", seed=1), per_kind=1, num_new_tokens=4)
    assert all(c.fault(kl_limit("fp32")) for c in found)


def test_louder_logits_are_no_larger_error() -> None:
    """At constant relative error, KL grows with the square of the logits' scale. The gated, scaled KL does not."""
    rng = np.random.default_rng(0)
    plain, noise = rng.normal(size=(2, 200, 264)).astype(np.float32)
    kl, scaled = [], []
    for factor in (np.float32(1), np.float32(3)):
        found = divergences(plain * factor, plain * factor + noise * factor * np.float32(1e-3))
        kl.append(float(found.mean()))
        scaled.append(float((found / np.mean(np.square(plain * factor), axis=-1)).mean()))
    assert kl[1] > 5 * kl[0] and scaled[1] < 1.2 * scaled[0]
