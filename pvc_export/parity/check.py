"""The parity check: a bundle, run the way users run it, against the reference model and every step in between.

PVCStream runs a stream of rendered and real frames that wraps the ring twice. Every output of every graph and every
cache row is recorded and compared with the PyTorch reference in float32:
    vision    frame by frame against the reference's streaming form, and frame_embeds against the whole clip;
              then the clock jumps past the last trained frame, and past frame 4096
    ladder    the steps between reference and bundle, each against its neighbour (ladder.py)
    language  every cached pass against one pass over the whole conversation without a cache; then one pass at the
              far end of the context
    batch     if the bundle serves several streams: each row of a batch against the same stream alone; streams of
              different lengths, at the edges of the cache's buckets, against one pass without a cache
    facts     every field of the manifest and every part of the tokenizer, against the model (facts.py)
    codes     the cost of quantised weights (words/codes.py); everything else compares the bundle with the codes' values
    words     twenty prompts, answered and scored (words/conversations.py); second questions, pending frames, a
              re-anchor, an image of as many tiles as the model takes (words/further.py)
    answers   a thousand questions with known answers, on every rung, if the model was trained on them
              (words/held_out.py)
    tokens    each is the likeliest of its logits, and the reference's choice except for near ties
    engines   each was built by this machine from the graph next to it (engines.py)
    weights   every parameter of the reference, cast to the bundle's precision, bit for bit where its operation reads it
    structure every node, attribute and constant of the graphs, compared with a fresh export
    drift     with the ladder, for a small model: ten windows without a break, against float64 (drift/measure.py)
    rules     properties of a stream's state that must hold bit for bit (state/rules.py)
Each of them returns its Evidence, and `judge` turns it all into the report. The reference does its own resize, builds
its own prompt and keeps its own past, so a fault of the runtime (a mask, a slot, a resize, a prompt) fails like a fault
of a graph. An output that was never compared fails too. A graph that returns NaN ends its stream and fails the report;
the steps after it are not executed.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from engines.bundle import Bundle
from engines.errors import NonFiniteError
from engines.manifest import Manifest
from engines.spec import GRAPH_NAMES

from ..graphs.hollow import in_memory
from ..graphs.machine import fitting_threads, is_small
from ..graphs.models import LoadedModel, require_same_weights
from ..graphs.quantize import as_held, as_written
from ..terminal.console import Console
from .against_reference import VisionRuns, compare_language, compare_pixels, compare_vision
from .answers import WORLD, Conversation
from .bfloat16_on_cpu import open_on_cpu
from .by_layer.check import ASKED, LEFT_OUT, check_by_layer, why_by_layer
from .clip import check_clip
from .clock import probe_clock
from .culprit.find import find_culprit
from .drift.measure import drift_rule
from .edge_cases import probe_batch, probe_context, probe_lengths
from .engines import check_engines, wrong_engines
from .evidence import Evidence, never_seen
from .facts import hold_facts
from .fresh import FreshGraphs
from .ladder import climb
from .levels import Rule
from .limits import NoiseTable
from .recorded_stream import RecordedStream, frames_that_fit, stream_clip
from .recording import Progress
from .report import ParityReport, judge
from .rounding import Reference
from .state.rules import check_rules
from .structure import compare_graphs
from .value_states import with_values
from .words.codes import cost_of_codes, cost_of_scales
from .words.conversations import converse
from .words.further import ask_further
from .words.prompts import KINDS

NUM_QUESTIONS = 1000
PER_KIND = 5
"""Prompts per kind: 20 in all. A large model gets one of each."""


def check_bundle(
    folder: Path,
    loaded: LoadedModel,
    *,
    ladder: bool = True,
    num_questions: int = NUM_QUESTIONS,
    scratch: Path | None = None,
    fresh: FreshGraphs | None = None,
    by_layer: bool | None = None,
    progress: Progress = lambda _: None,
) -> ParityReport:
    """Run the bundle and its reference on a clip of 2 W + 2 frames, in ONNX Runtime on the CPU.

    A model whose weights are in files is loaded into memory first. If it does not fit, it is checked layer by layer
    (by_layer/check.py); `by_layer` decides that in advance.
    Without `ladder` only the bundle itself is compared: no rungs in between and no ten windows in a row.
    num_questions: how many questions with known answers to ask a model that was trained on them (words/held_out.py).
    scratch: where to put the temporary folder for the graphs that a rung needs; default the system's.
    fresh: fresh exports of this reference, kept for later checks.
    A difference, NaN or an output of another shape is not an error here: it goes into the report. Raises ModelError if
    `loaded` is not the model the bundle was made from, and whatever open_bundle raises.
    """
    manifest = Manifest.load(folder)
    why = why_by_layer(loaded) if by_layer is None else ASKED if by_layer else None
    loaded = loaded if why else _in_memory(loaded)
    source, loaded = loaded, as_held(loaded, manifest)
    keeping = FreshGraphs.of(source.model, scratch) if fresh is None else nullcontext(fresh)
    with fitting_threads(loaded.model), keeping as exports, exports.ahead(manifest):
        if why:
            return check_by_layer(folder, loaded, exports, why=why, scratch=scratch, progress=progress)
        run = _run_bundle(folder, loaded, scratch, progress, far=ladder)
        manifest, recorded = run.bundle.manifest, run.recorded  # with the model's own facts, where any were wrong
        evidence = run.evidence + compare_graphs(folder, manifest, loaded, exports)
        if manifest.has_codes:
            evidence += Evidence(rules=(cost_of_codes(source, loaded, manifest, per_kind=_per_kind(loaded)),))
        if manifest.calibration is not None and manifest.calibration.scales:
            evidence += Evidence(rules=(cost_of_scales(source, manifest),))
        if manifest.rounding == "int8":
            evidence += _operations(folder, as_written(source, manifest), scratch)
        progress(0.5)
        if recorded.stop is not None:
            reason = f"the stream ended at {recorded.stop.differences[0].where}"
            evidence += Evidence(not_executed={"the rest of this check": reason})
        else:
            with tempfile.TemporaryDirectory(prefix="pvc-fp32-", dir=scratch) as name:
                twins = Path(name)
                evidence = _climb(run, twins, progress, ladder=ladder) + evidence  # the ladder's rows first
                evidence += _prompts_left_out(evidence.conversations, loaded)
                if num_questions and loaded.model.trained_on == WORLD:
                    from .words.held_out import answer_all  # needs OpenCV, which other models do not

                    evidence += answer_all(
                        folder, loaded, num_questions=num_questions, twins=twins, ladder=ladder, scratch=scratch,
                        source=source if manifest.has_codes else None,
                        progress=lambda x: progress(0.8 + 0.2 * x),
                    )  # fmt: skip
    progress(1.0)
    return judge(evidence, manifest, num_frames=recorded.num_frames, computed_in=run.computed_in)


def explain(
    report: ParityReport, folder: Path, loaded: LoadedModel, console: Console, *, scratch: Path | None = None
) -> ParityReport:
    """Add the culprit to the report of a failed check.

    Only the first failed graph is searched, or all graphs if none failed. If every operation of that graph is right,
    later graphs are not searched.
    """
    if LEFT_OUT in report.not_executed:
        return report  # its rows name the layer; more detail would need the whole model in memory
    graphs = (report.first_failed_graph,) if report.first_failed_graph else GRAPH_NAMES
    with console.stage("look for the operation at fault") as (stage, _):
        held = as_written(_in_memory(loaded), Manifest.load(folder))
        culprit = find_culprit(folder, held, graphs=graphs, scratch=scratch)
        stage.note = f"'{culprit.operation}' of {culprit.layer}" if culprit else "none: every operation is right"
    return replace(report, looked=True, culprit=culprit)


def _operations(folder: Path, loaded: LoadedModel, scratch: Path | None) -> Evidence:
    """Check every operation on the reference's inputs.

    With inputs rounded to int8, one differing last bit grows within a few layers to the size of the rounding error, so
    a whole stream cannot show smaller faults.
    """
    culprit = find_culprit(folder, loaded, scratch=scratch)
    detail = "every operation is right on the reference's own inputs" if culprit is None else culprit.text()
    return Evidence(rules=(Rule(level="B", name="operations", passed=culprit is None, detail=detail),))


def _in_memory(loaded: LoadedModel) -> LoadedModel:
    return loaded if loaded.model.stored is None else replace(loaded, model=in_memory(loaded.model))


@dataclass(frozen=True, kw_only=True, slots=True)
class BundleRun:
    """Results of running a bundle: numbers and no sessions, because at 8B the other rungs need the memory."""

    bundle: Bundle
    computed_in: str
    recorded: RecordedStream
    reference: Reference
    vision: VisionRuns
    evidence: Evidence


def _run_bundle(folder: Path, loaded: LoadedModel, scratch: Path | None, progress: Progress, *, far: bool) -> BundleRun:
    with open_on_cpu(folder) as opened:
        require_same_weights(opened.manifest, loaded)
        facts, bundle = hold_facts(opened, loaded, scratch=scratch)
        manifest = bundle.manifest
        clip = check_clip(2 * manifest.limits.window + 2)
        num_frames = frames_that_fit(manifest, loaded, len(clip))
        recorded = stream_clip(bundle, clip, num_frames=num_frames, progress=lambda x: progress(0.1 * x))
        evidence = facts + check_engines(folder, manifest) + compare_pixels(recorded.fed, recorded.pixels)
        reference = Reference.of(loaded.model, manifest.precision, manifest.islands)
        found, vision = compare_vision(bundle, reference, recorded, lambda x: progress(0.1 + 0.2 * x))
        evidence += found + Evidence(num_tokens=len(recorded.tokens))
        if recorded.stop is not None:
            evidence += recorded.stop
        else:
            evidence += compare_language(bundle, loaded, reference, recorded, vision)
            evidence += never_seen(evidence, manifest)
            # State is compared with itself, also in a new process, which opens the folder unchanged.
            evidence += _unless_nan("G", "state", lambda: Evidence(rules=check_rules(opened, scratch=scratch)))
            values = with_values(bundle)
            evidence += probe_clock(values, reference, vision.own) + probe_batch(values, reference)
            evidence += probe_context(values, reference) + probe_lengths(values, reference)
            noise = NoiseTable(evidence.differences, manifest.rounding)
            evidence += _look_further(bundle, loaded, noise, lambda x: progress(0.3 + 0.2 * x), far=far)
        return BundleRun(
            bundle=replace(bundle, sessions={}),
            computed_in=bundle.sessions["trunk"].computes_in,
            recorded=recorded,
            reference=reference,
            vision=vision,
            evidence=evidence,
        )


def _look_further(bundle: Bundle, loaded: LoadedModel, noise: NoiseTable, progress: Progress, *, far: bool) -> Evidence:
    """Run what the clip's stream cannot show: a long stream, and conversations."""
    evidence = Evidence()
    if far:
        evidence += _unless_nan("E", "ten windows", lambda: Evidence(rules=(_ten_windows(bundle, loaded, noise),)))
    progress(0.4)

    def ask() -> Evidence:
        said = converse(bundle, loaded, per_kind=_per_kind(loaded), progress=lambda x: progress(0.4 + 0.4 * x))
        return Evidence(conversations=tuple(said)) + ask_further(bundle, loaded, said)

    return evidence + _unless_nan("J", "conversations", ask)


def _unless_nan(level: str, name: str, step: Callable[[], Evidence]) -> Evidence:
    """Run a step and return its evidence; if NaN ends it, return a failed rule called `name`."""
    try:
        return step()
    except NonFiniteError as error:
        return Evidence(rules=(Rule(level=level, name=name, passed=False, detail=error.what),))


def _climb(run: BundleRun, twins: Path, progress: Progress, *, ladder: bool) -> Evidence:
    """Run the rungs between bundle and reference."""
    if not ladder:
        skipped = {"engine": "this check ran without the ladder"} if run.bundle.manifest.engines else {}
        return Evidence(not_executed=skipped)
    bundle, left_out = run.bundle, Evidence()
    if wrong_engines(bundle.manifest):
        bundle = replace(bundle, manifest=replace(bundle.manifest, engines={}))
        left_out = Evidence(not_executed={"engine": "an engine was not built from its graph, so none was run"})
    return left_out + climb(
        bundle,
        run.reference,
        run.recorded.frames,
        fp32=run.vision.own,
        twin=run.vision.twin,
        onnx=run.recorded.vision,
        twins=twins,
        progress=lambda x: progress(0.5 + 0.3 * x),
    )


def _per_kind(loaded: LoadedModel) -> int:
    return PER_KIND if is_small(loaded.model) else 1


def _prompts_left_out(conversations: tuple[Conversation, ...], loaded: LoadedModel) -> Evidence:
    """Record the kinds of prompts of which some did not fit in the context."""
    per_kind = _per_kind(loaded)
    asked = Counter(conversation.kind for conversation in conversations)
    return Evidence(
        not_executed={
            f"prompts about {kind}": f"{per_kind - asked[kind]} of {per_kind} do not fit in this bundle's context"
            for kind in KINDS
            if asked[kind] < per_kind
        }
    )


def _ten_windows(bundle: Bundle, loaded: LoadedModel, noise: NoiseTable) -> Rule:
    if not is_small(loaded.model):
        reason = (
            "it needs a float64 copy of a large model; to run it anyway: "
            f"python -m pvc_export.studies.drift {bundle.folder}"
        )
        return Rule(level="E", name="ten windows", passed=None, detail=reason)
    num_frames = 10 * bundle.manifest.limits.window
    precision = bundle.manifest.precision
    return drift_rule(bundle.sessions, loaded.model, noise, num_frames=num_frames, precision=precision)
