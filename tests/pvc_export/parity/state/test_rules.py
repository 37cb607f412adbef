"""Rules of state, batch and determinism: a faithful bundle satisfies all, a defect of each kind breaks one."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pvc_export.parity.state.rules
from engines import PVCStream, open_bundle
from engines.bundle import Bundle
from engines.cache import LinearCache, RingCache
from engines.errors import StreamError
from engines.saved import Snapshot
from engines.session import OrtSession
from pvc_export.parity.levels import Rule
from pvc_export.parity.state.rules import RULES, check_rules
from pvc_export.parity.state.trial import Broken, require_same

Patch = pytest.MonkeyPatch
RESET, INTERLEAVED, FORK, SAVED, FAILED, INPUTS, ALIKE, PERMUTED, TWICE, NEW_SESSION, NEW_PROCESS = (
    name for _, name, _ in RULES
)


@pytest.fixture(scope="module")
def bundle(bundle_fp32: Path) -> Bundle:
    """A bundle with two streams and the LLM's cache updated in place."""
    return open_bundle(bundle_fp32, runtime="cpu")


def judged(bundle: Bundle, name: str, monkeypatch: Patch) -> Rule:
    """Return the verdict on a single rule."""
    monkeypatch.setattr(pvc_export.parity.state.rules, "RULES", [rule for rule in RULES if rule[1] == name])
    (rule,) = check_rules(bundle, num_frames=5)
    return rule


@pytest.mark.parametrize("name", ["bundle_fp32", "bundle_rows", "bundle_fp16"])
def test_a_faithful_bundle_keeps_every_rule(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    opened = open_bundle(request.getfixturevalue(name), runtime="cpu")
    rules = check_rules(opened, scratch=tmp_path)
    assert [(rule.level, rule.name) for rule in rules] == [(level, name) for level, name, _ in RULES]
    assert "".join(rule.level for rule in rules) == "GGGGGGHHIII"
    several = opened.manifest.limits.streams > 1
    for rule in rules:
        assert rule.passed is (True if several or rule.level != "H" else None), rule
    details = {rule.name: rule.detail for rule in rules}
    num_tensors = 2 + 2 * 2 + 2 * 2 + 2  # counts, two layers of each cache, embeddings, logits
    assert details[RESET] == f"5 frames after a reset, {num_tensors} tensors"
    assert details[NEW_PROCESS] == f"5 frames, {num_tensors} tensors, without torch"
    assert details[FORK] == "forked after 3 of 5 frames" and details[FAILED] == "6 ways to fail"
    assert details[ALIKE] == ("2 equal rows, 12 runs" if several else ONE_STREAM)
    assert list(tmp_path.iterdir()) == []


ONE_STREAM = "this bundle serves one stream at a time; export with --streams 2 for a batch"


def reset_forgets_the_count(monkeypatch: Patch) -> None:
    def reset(self: RingCache) -> None:
        for state in self._states:
            self._memory.clear(self._rings[state.input], state, 0, self.window)

    monkeypatch.setattr(RingCache, "reset", reset)


def all_streams_share_a_ring(monkeypatch: Patch) -> None:
    made, rings = RingCache.__init__, dict[str, Any]()

    def init(self: RingCache, *args: Any) -> None:
        made(self, *args)
        self._rings = rings or rings.update(self._rings) or rings

    monkeypatch.setattr(RingCache, "__init__", init)


def fork_shares_a_cache(monkeypatch: Patch) -> None:
    copy = RingCache.copy_from

    def shared(self: RingCache, other: RingCache) -> None:
        copy(self, other)
        self._rings["past.1.key"] = other._rings["past.1.key"]

    monkeypatch.setattr(RingCache, "copy_from", shared)


def fork_takes_too_little(monkeypatch: Patch) -> None:
    copy = LinearCache.copy_from

    def short(self: LinearCache, other: LinearCache) -> None:
        copy(self, other)
        self.truncate(self.length - 1)

    monkeypatch.setattr(LinearCache, "copy_from", short)


def opened_without_its_text(monkeypatch: Patch) -> None:
    stand_at = PVCStream._stand_at

    def silent(self: PVCStream, snapshot: Snapshot) -> None:
        stand_at(self, replace(snapshot, pending=""))

    monkeypatch.setattr(PVCStream, "_stand_at", silent)


def failed_frame_counts(monkeypatch: Patch) -> None:
    push = PVCStream.push

    def counted(self: PVCStream, frame: Any) -> Any:
        try:
            return push(self, frame)
        except BaseException:
            self.vision.ring.num_frames += 1
            raise

    monkeypatch.setattr(PVCStream, "push", counted)


def failed_frame_is_passed_over(monkeypatch: Patch) -> None:
    push = PVCStream.push

    def silent(self: PVCStream, frame: Any) -> Any:
        try:
            return push(self, frame)
        except Exception:
            return None

    monkeypatch.setattr(PVCStream, "push", silent)


def fork_is_refused(monkeypatch: Patch) -> None:
    def refused(self: PVCStream) -> PVCStream:
        raise StreamError("no fork today")

    monkeypatch.setattr(PVCStream, "fork", refused)


def run_as(monkeypatch: Patch, change: Callable[[OrtSession, dict[str, Any], Callable[[], Any]], Any]) -> None:
    """Route every session run through `change`, with the inputs and a function that runs the session on them."""
    run = OrtSession.run

    def changed(self: OrtSession, inputs: Mapping[str, Any]) -> Any:
        fed = dict(inputs)
        return change(self, fed, lambda: dict(run(self, fed)))

    monkeypatch.setattr(OrtSession, "run", changed)


def mask_is_overwritten(monkeypatch: Patch) -> None:
    def change(session: OrtSession, fed: dict[str, Any], run: Callable[[], Any]) -> Any:
        outputs = run()
        if session.spec.name == "temporal":
            fed["slot_mask"][0, 0] ^= True
        return outputs

    run_as(monkeypatch, change)


def one_row_too_many_is_written(monkeypatch: Patch) -> None:
    def change(session: OrtSession, fed: dict[str, Any], run: Callable[[], Any]) -> Any:
        outputs = run()
        if session.spec.name == "llm":
            fed["past.1.value"][:, :, int(fed["write_index"][0]) + fed["inputs_embeds"].shape[1]] = 1
        return outputs

    run_as(monkeypatch, change)


def second_row_is_worse(monkeypatch: Patch) -> None:
    def change(session: OrtSession, fed: dict[str, Any], run: Callable[[], Any]) -> Any:
        outputs = run()
        if session.spec.name == "compressor":
            outputs["frame_embeds"][1:] += np.float32(1e-3)
        return outputs

    run_as(monkeypatch, change)


def first_mask_for_all(monkeypatch: Patch) -> None:
    def change(session: OrtSession, fed: dict[str, Any], run: Callable[[], Any]) -> Any:
        if session.spec.name == "temporal":
            fed["slot_mask"] = np.repeat(fed["slot_mask"][:1], len(fed["slot_mask"]), axis=0)
        return run()

    run_as(monkeypatch, change)


def no_run_is_like_another(monkeypatch: Patch) -> None:
    rng = np.random.default_rng(0)

    def change(session: OrtSession, fed: dict[str, Any], run: Callable[[], Any]) -> Any:
        outputs = run()
        if session.spec.name == "head":
            outputs["logits"] = outputs["logits"] + rng.normal(size=outputs["logits"].shape).astype(np.float32)
        return outputs

    run_as(monkeypatch, change)


def new_sessions_are_off(monkeypatch: Patch) -> None:
    made = OrtSession.__init__

    def init(self: OrtSession, *args: Any, **options: Any) -> None:
        made(self, *args, **options)
        self.is_new = True  # type: ignore[attr-defined]

    def change(session: OrtSession, fed: dict[str, Any], run: Callable[[], Any]) -> Any:
        outputs = run()
        if session.spec.name == "trunk" and hasattr(session, "is_new"):
            outputs["trunk_features"] = outputs["trunk_features"] + np.float32(1e-6)
        return outputs

    monkeypatch.setattr(OrtSession, "__init__", init)
    run_as(monkeypatch, change)


def this_process_is_off(monkeypatch: Patch) -> None:
    def change(session: OrtSession, fed: dict[str, Any], run: Callable[[], Any]) -> Any:
        outputs = run()
        if session.spec.name == "head":
            outputs["logits"] = outputs["logits"] + np.float32(0.5)
        return outputs

    run_as(monkeypatch, change)


DEFECTS: list[tuple[str, Callable[[Patch], None], str]] = [
    (RESET, reset_forgets_the_count, "num_frames is 10, expected 5"),
    (INTERLEAVED, all_streams_share_a_ring, "the first stream: temporal/past.0.key: "),
    (FORK, fork_shares_a_cache, "the parent of a continued fork: temporal/past.1.key: "),
    (FORK, fork_takes_too_little, "a new fork: context_rows is "),
    (FORK, fork_is_refused, "no fork today"),
    (SAVED, opened_without_its_text, "an opened stream: logits: "),
    (FAILED, failed_frame_counts, "after a frame that failed in 'preprocess': num_frames is 4, expected 3"),
    (FAILED, failed_frame_is_passed_over, "a frame failed in 'preprocess', but no error was raised"),
    (INPUTS, mask_is_overwritten, "input of 'temporal' after a run: slot_mask: 1 of 4 values differ, by at most 1"),
    (INPUTS, one_row_too_many_is_written, "input of 'llm' after a run: past.1.value: "),
    (ALIKE, second_row_is_worse, "'compressor', row 1 of equal ones: frame_embeds: "),
    (PERMUTED, first_mask_for_all, "'temporal', stream 1 in row 0 and in row 1: features: "),
    (TWICE, no_run_is_like_another, "'head', run again: logits: 264 of 264 values differ, by at most "),
    (NEW_SESSION, new_sessions_are_off, "temporal/past.0.key: "),
    (NEW_PROCESS, this_process_is_off, "logits: 792 of 792 values differ, by at most 0.5"),
]


@pytest.mark.parametrize(
    ("name", "defect", "message"), DEFECTS, ids=[defect.__name__.replace("_", " ") for _, defect, _ in DEFECTS]
)
def test_a_defect_breaks_its_rule_which_names_the_tensor(
    name: str, defect: Callable[[Patch], None], message: str, bundle: Bundle, monkeypatch: Patch
) -> None:
    defect(monkeypatch)
    rule = judged(bundle, name, monkeypatch)
    assert rule.passed is False and rule.detail.startswith(message), rule.detail


@pytest.mark.parametrize("name", [TWICE, NEW_SESSION])
def test_what_only_a_new_process_shows_is_not_seen_in_this_one(name: str, bundle: Bundle, monkeypatch: Patch) -> None:
    this_process_is_off(monkeypatch)
    assert judged(bundle, name, monkeypatch).passed is True


def with_one_stream(bundle: Bundle, monkeypatch: Patch) -> Bundle:
    limits = replace(bundle.manifest.limits, streams=1)
    return replace(bundle, manifest=replace(bundle.manifest, limits=limits))


def without_a_python(bundle: Bundle, monkeypatch: Patch) -> Bundle:
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    return bundle


def ended_by_the_system(bundle: Bundle, monkeypatch: Patch) -> Bundle:
    ended = subprocess.CompletedProcess([], returncode=-9, stdout="", stderr="")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: ended)
    return bundle


def too_large(bundle: Bundle, monkeypatch: Patch) -> Bundle:
    monkeypatch.setattr(pvc_export.parity.state.rules, "LARGEST_TWICE", 1000)
    return bundle


def in_bfloat16(bundle: Bundle, monkeypatch: Patch) -> Bundle:
    return replace(bundle, manifest=replace(bundle.manifest, precision="bf16"))


CIRCUMSTANCES: list[tuple[str, Callable[[Bundle, Patch], Bundle], str]] = [
    (ALIKE, with_one_stream, ONE_STREAM),
    (PERMUTED, with_one_stream, ONE_STREAM),
    (NEW_PROCESS, without_a_python, "a second process could not be started: "),
    (NEW_PROCESS, ended_by_the_system, "the second process was killed by signal 9, likely out of memory"),
    (NEW_PROCESS, in_bfloat16, "a CPU runs bfloat16 through widened graphs"),
    (NEW_PROCESS, too_large, "the graphs take 0.0 GiB, too much to open them twice"),
    (NEW_SESSION, too_large, "the graphs take 0.0 GiB, too much to open them twice"),
]


@pytest.mark.parametrize(
    ("name", "circumstance", "reason"),
    CIRCUMSTANCES,
    ids=[case.__name__.replace("_", " ") for _, case, _ in CIRCUMSTANCES],
)
def test_what_cannot_be_shown_is_never_a_pass(
    name: str, circumstance: Callable[[Bundle, Patch], Bundle], reason: str, bundle: Bundle, monkeypatch: Patch
) -> None:
    rule = judged(circumstance(bundle, monkeypatch), name, monkeypatch)
    assert rule.passed is None and rule.detail.startswith(reason), rule.detail


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("raise ValueError('of another mind')", "the second process exited with 1: ValueError: of another mind"),
        (
            "import sys; sys.modules['torch'] = sys" + pvc_export.parity.state.rules.NEW_PROCESS,
            "the second process exited with 1: RuntimeError: torch was imported by the runtime",
        ),
    ],
    ids=["fails", "torch"],
)
def test_a_second_process_that_fails_breaks_the_rule(
    code: str, message: str, bundle: Bundle, monkeypatch: Patch
) -> None:
    monkeypatch.setattr(pvc_export.parity.state.rules, "NEW_PROCESS", code)
    rule = judged(bundle, NEW_PROCESS, monkeypatch)
    assert rule.passed is False and rule.detail == message


def test_a_short_context_is_tried_with_as_many_frames_as_fit(bundle: Bundle, monkeypatch: Patch) -> None:
    limits = replace(bundle.manifest.limits, context=160, bucket=32)
    short = replace(bundle, manifest=replace(bundle.manifest, limits=limits))
    assert judged(short, RESET, monkeypatch).detail == "3 frames after a reset, 12 tensors"


ONE = np.ones(3, np.float32)


@pytest.mark.parametrize(
    ("got", "message"),
    [
        ({"a": ONE}, r"the tensors are a, expected a, b"),
        ({"a": ONE, "b": ONE[:2]}, r"b is float32 \(2,\), expected float32 \(3,\)"),
        ({"a": ONE.astype(np.float64), "b": ONE}, r"a is float64 \(3,\), expected float32"),
        ({"a": ONE, "b": ONE + np.float32([0, 1e-7, 0])}, "b: 1 of 3 values differ, by at most 1.2e-07"),
        ({"a": ONE * np.float32([1, np.nan, 1]), "b": ONE * 2}, "a: 1 of 3 values differ, by at most nan"),
    ],
    ids=["missing", "shape", "dtype", "one bit", "the first of two"],
)
def test_the_first_tensor_that_is_off_is_named(got: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(Broken, match=f"^here: {message}"):
        require_same(got, {"a": ONE, "b": ONE}, "here: ")


def test_zeros_of_two_signs_are_not_the_same_bits() -> None:
    with pytest.raises(Broken, match="a: 0 of 1 values differ, by at most 0"):
        require_same({"a": np.array([-0.0])}, {"a": np.array([0.0])})
