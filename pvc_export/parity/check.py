"""Parity: a bundle, run as users run it, against the reference model, and every step of the way there.

A stream of rendered and real frames that wraps the ring twice goes through PVCStream; every output of every graph is
recorded, every cache row too, and compared with the PyTorch reference in float32:
    vision    frame by frame against the reference's own streaming form, and frame_embeds against the whole clip;
              then the clock jumps past the last trained frame, and past frame 4096
    ladder    the steps between reference and bundle, each against its neighbour (ladder.py)
    language  every pass, cached, against one pass over the whole conversation without any cache; then one pass at the
              far end of the context
    batch     where a bundle serves several streams, each row of a batch against its own run; streams of different
              lengths, at the edges of the cache's buckets, against one pass without a cache
    words     twenty prompts, answered and scored (words/conversations.py)
    answers   a thousand questions with known answers, on every rung, if it was taught them (words/held_out.py)
    tokens    each is the likeliest of its logits, and the reference's choice but for near ties
    weights   every parameter of the reference, cast to the bundle's precision, bit for bit in its graph's file
    drift     with the ladder, of a small model: ten windows without a gap against float64 (drift/measure.py)
    rules     what a stream's state must keep bit for bit (state/rules.py)
Unusual: the reference makes its own resize, its own prompt and its own past, so a fault of the runtime (a mask, a slot,
a resize, a prompt) fails like a fault of a graph. What is not compared fails as well: each output must have been seen.
A graph that returns NaN ends its stream and fails the report; what lies behind it is not executed.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from engines.bundle import Bundle, is_stale
from engines.errors import NonFiniteError
from engines.manifest import Manifest

from ..graphs.models import LoadedModel, require_same_weights
from .against_reference import Comparison
from .bfloat16_on_cpu import open_on_cpu
from .clip import check_clip
from .culprit.inputs import pixels_rule
from .drift.measure import drift_rule
from .edge_cases import probe_batch, probe_context, probe_lengths
from .ladder import Progress, Recording, climb, fitting_threads, is_small
from .levels import Rule
from .metrics import Conversation, worst_rows
from .recorded_stream import RecordedStream, frames_that_fit, stream_clip
from .report import ParityReport
from .state.rules import check_rules
from .weights import compare_weights
from .words.conversations import converse
from .words.prompts import KINDS
from .words.results import WORLD, RungAnswers

NUM_QUESTIONS = 1000
PER_KIND = 5
"""Prompts of each kind: 20 in all. A large model is asked one of each."""


def check_bundle(
    folder: Path,
    loaded: LoadedModel,
    *,
    ladder: bool = True,
    num_questions: int = NUM_QUESTIONS,
    scratch: Path | None = None,
    progress: Progress = lambda _: None,
) -> ParityReport:
    """Run the bundle beside its reference on a clip of 2 W + 2 frames, in ONNX Runtime on the CPU.

    Without `ladder` only the bundle itself is compared, not the steps between, nor ten windows in a row. num_questions
    are asked of a model whose world is known (words/held_out.py); 0 asks none. Graphs that a rung needs are written to
    a temporary folder in `scratch`, by default the system's. Raises ModelError if `loaded` is not
    the model the bundle was made from, and ParityError where nothing can be compared: other shapes. A
    difference is not an error here, nor is NaN: it is in the report.
    """
    with fitting_threads(loaded.model):
        outcome = _check_bundle_itself(folder, loaded, scratch, progress, far=ladder)
        comparison, manifest = outcome.comparison, outcome.comparison.bundle.manifest
        num_weights, wrong_weights = compare_weights(comparison.bundle, loaded)
        progress(0.5)
        answers: tuple[RungAnswers, ...] = ()
        if outcome.recorded.stop is not None:
            not_executed = {"the rest of this check": f"the stream ended at {outcome.recorded.stop.where}"}
        else:
            with tempfile.TemporaryDirectory(prefix="pvc-fp32-", dir=scratch) as twins:
                not_executed = _climbed(outcome, loaded, Path(twins), progress) if ladder else _left_ladder(manifest)
                not_executed |= _left_out(outcome.conversations, loaded)
                if num_questions and loaded.model.trained_on == WORLD:
                    from .words.held_out import answer_all  # needs OpenCV, which other models do not

                    answers = answer_all(
                        folder, loaded, num_questions=num_questions, twins=Path(twins), ladder=ladder, scratch=scratch,
                        progress=lambda x: progress(0.8 + 0.2 * x),
                    )  # fmt: skip
    progress(1.0)
    return _report(outcome, num_weights, wrong_weights, not_executed, answers)


def _climbed(outcome: Outcome, loaded: LoadedModel, twins: Path, progress: Progress) -> dict[str, str]:
    """Add what the steps between bundle and reference show. Returns those that were not executed, and why."""
    comparison = outcome.comparison
    found, not_executed = climb(
        comparison.bundle,
        loaded.model,
        outcome.recorded.frames,
        fp32=outcome.reference,
        onnx=outcome.recorded.vision,
        twins=twins,
        progress=lambda x: progress(0.5 + 0.3 * x),
    )
    comparison.found = found + comparison.found
    return not_executed


def _left_ladder(manifest: Manifest) -> dict[str, str]:
    return {"engine": "this check left out the ladder"} if manifest.engines else {}


def _report(
    outcome: Outcome,
    num_weights: int,
    wrong_weights: dict[str, list[str]],
    not_executed: dict[str, str],
    answers: tuple[RungAnswers, ...],
) -> ParityReport:
    comparison, manifest = outcome.comparison, outcome.comparison.bundle.manifest
    stop = outcome.recorded.stop
    outputs = {f"{spec.name}/{tensor.name}" for spec in manifest.graphs.values() for tensor in spec.outputs}
    return ParityReport(
        precision=manifest.precision,
        computed_in=outcome.computed_in,
        num_frames=outcome.recorded.num_frames,
        window=manifest.limits.window,
        rows=worst_rows(comparison.found),
        found=tuple(comparison.found),
        missing=tuple(sorted(outputs - comparison.seen)) if stop is None else (),
        stopped=None if stop is None else stop.error,
        num_weights=num_weights,
        wrong_weights=wrong_weights,
        num_tokens=len(outcome.recorded.tokens),
        num_equal_tokens=comparison.num_equal_tokens,
        wrong_tokens=tuple(comparison.wrong_tokens),
        not_executed=not_executed,
        conversations=tuple(outcome.conversations),
        answers=answers,
        rules=tuple(outcome.rules),
        heat=comparison.heat,
    )


def _per_kind(loaded: LoadedModel) -> int:
    return PER_KIND if is_small(loaded.model) else 1


def _left_out(conversations: list[Conversation], loaded: LoadedModel) -> dict[str, str]:
    """Kinds of prompts of which some did not fit in the context."""
    per_kind = _per_kind(loaded)
    asked = Counter(conversation.kind for conversation in conversations)
    return {
        f"prompts about {kind}": f"{per_kind - asked[kind]} of {per_kind} do not fit in this bundle's context"
        for kind in KINDS
        if asked[kind] < per_kind
    }


@dataclass(kw_only=True, slots=True)
class Outcome:
    """What is left of a bundle that was run: numbers, and no session. At 8B the other rungs need the memory."""

    comparison: Comparison
    recorded: RecordedStream
    reference: Recording
    computed_in: str
    rules: list[Rule]
    conversations: list[Conversation] = field(default_factory=list)


def _check_bundle_itself(
    folder: Path, loaded: LoadedModel, scratch: Path | None, progress: Progress, *, far: bool
) -> Outcome:
    with open_on_cpu(folder, scratch=scratch) as bundle:
        require_same_weights(bundle.manifest, loaded)
        clip = check_clip(2 * bundle.manifest.limits.window + 2)
        comparison = Comparison(bundle=bundle, loaded=loaded)
        num_frames = frames_that_fit(bundle, loaded, len(clip))
        recorded = stream_clip(bundle, clip, num_frames=num_frames, progress=lambda x: progress(0.1 * x))
        reference = comparison.vision(recorded, progress=lambda x: progress(0.1 + 0.2 * x))
        outcome = Outcome(
            comparison=comparison,
            recorded=recorded,
            reference=reference,
            computed_in=bundle.sessions["trunk"].computes_in,
            rules=[*_engines_rule(bundle.manifest), pixels_rule(recorded.fed, recorded.pixels)],
        )
        if recorded.stop is not None:
            comparison.found += recorded.stop.found
        else:
            comparison.language(recorded, reference)
        comparison.seen = {f"{found.graph}/{found.tensor}" for found in comparison.found}
        outcome.rules += comparison.rules
        if recorded.stop is None:
            _look_further(outcome, bundle, loaded, scratch, lambda x: progress(0.3 + 0.2 * x), far=far)
        comparison.bundle = replace(bundle, sessions={})
    return outcome


def _look_further(
    outcome: Outcome, bundle: Bundle, loaded: LoadedModel, scratch: Path | None, progress: Progress, *, far: bool
) -> None:
    """Whatever one stream does not show."""
    found = outcome.comparison.found
    found += probe_batch(bundle)
    found += probe_context(bundle, loaded)
    found += probe_lengths(bundle, loaded)
    with _broken_by_nan(outcome.rules, "G", "state"):
        outcome.rules += check_rules(bundle, scratch=scratch)
    progress(0.4)
    if far:
        with _broken_by_nan(outcome.rules, "E", "ten windows"):
            outcome.rules.append(_ten_windows(bundle, loaded))
    progress(0.5)
    with _broken_by_nan(outcome.rules, "J", "conversations"):
        outcome.conversations += converse(
            bundle, loaded, per_kind=_per_kind(loaded), progress=lambda x: progress(0.5 + 0.5 * x)
        )


def _engines_rule(manifest: Manifest) -> Iterator[Rule]:
    """Each engine must have been built from the graph beside it, whether one can be run here or not."""
    stale = [entry.path for name, entry in manifest.engines.items() if is_stale(manifest, name)]
    if manifest.engines:
        detail = f"{', '.join(stale)}: of another graph" if stale else f"{len(manifest.engines)} of these graphs"
        yield Rule(level="A", name="engines", passed=not stale, detail=detail)


@contextmanager
def _broken_by_nan(rules: list[Rule], level: str, name: str) -> Iterator[None]:
    """NaN ends the block, and breaks a rule of its own."""
    try:
        yield
    except NonFiniteError as error:
        rules.append(Rule(level=level, name=name, passed=False, detail=str(error)))


def _ten_windows(bundle: Bundle, loaded: LoadedModel) -> Rule:
    if not is_small(loaded.model):
        reason = f"float64 beside a large model; by hand: python -m pvc_export.parity.drift.measure {bundle.folder}"
        return Rule(level="E", name="ten windows", passed=None, detail=f"not executed: {reason}")
    num_frames = 10 * bundle.manifest.limits.window
    return drift_rule(bundle.sessions, loaded.model, num_frames=num_frames, precision=bundle.manifest.precision)
