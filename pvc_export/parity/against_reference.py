"""Comparison of a recorded stream with the reference: every frame, every LLM pass, every token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from engines.bundle import Bundle
from engines.memory import Array
from engines.spec import GraphSpec, Precision, Rounding
from pvc_ref import PVC
from pvc_ref.prompt import IMAGE_CONTEXT

from ..graphs.models import LoadedModel
from ..graphs.precision import TORCH_DTYPE
from .answers import ROUNDING_EXPLAINS
from .clip import QUESTION
from .decoder_runs import NEIGHBOURS, Decoded, DecoderRuns, Span, run_both
from .evidence import Evidence
from .float16_on_cpu import Float16Products
from .heat import worst_heat_maps
from .levels import Rule
from .limits import near_tie
from .metrics import Difference, compare_arrays
from .places import WHOLE_TEXT, Place, Rung
from .recorded_stream import RecordedStream
from .recording import EMBEDS, Progress, Recording, compare, noise_of, run_torch, run_twin, to_numpy, twin_embeds
from .rounding import Reference


def compare_pixels(fed: Sequence[Array], pixels: Sequence[Array]) -> Evidence:
    """Compare the runtime's model frames with the reference's resize of the RGB frames, every pixel."""
    detail, passed = f"{len(fed)} frames resized, bit for bit", True
    for index, (got, want) in enumerate(zip(fed, pixels, strict=False)):  # a short context holds fewer frames
        if got.shape != want.shape:
            detail, passed = f"frame {index} of the clip is {got.shape}, expected {want.shape}", False
            break
        off = np.abs(got.astype(int) - want)
        if off.any():
            differ = f"{np.count_nonzero(off)} of {off.size} values differ, by at most {off.max()}"
            detail, passed = f"frame {index} of the clip: {differ}. Likely another resize, or BGR instead of RGB", False
            break
    return Evidence(rules=(Rule(level="K", name="pixels", passed=passed, detail=detail),))


@dataclass(frozen=True, kw_only=True, slots=True)
class VisionRuns:
    """Outputs of the reference and of its rounding twin for every frame."""

    own: Recording
    twin: Recording


@torch.no_grad()
def compare_vision(
    bundle: Bundle,
    reference: Reference,
    recorded: RecordedStream,
    progress: Progress = lambda _: None,
) -> tuple[Evidence, VisionRuns]:
    """Compare every frame; the clip's embeddings are compared with encoding the whole clip in one pass.

    Also returns the outputs of the reference and its twin.
    """
    frames, manifest, model = recorded.frames, bundle.manifest, reference.model
    window = manifest.limits.window
    if not frames.times:  # the first one ended the stream
        return Evidence(), VisionRuns(own=[], twin=[])
    temporal = manifest.graphs["temporal"]
    own = run_torch(model, frames, temporal, lambda x: progress(0.5 * x))
    twin = run_twin(reference, frames, temporal, lambda x: progress(0.5 + 0.5 * x))
    num_frames = frames.num_consecutive
    expected = list(own)
    pixels = torch.from_numpy(np.stack(frames.pixels[:num_frames]))[None]
    whole = model.encode_clip(pixels, window=window, total_frames=frames.total_frames)[0]
    for index in range(num_frames):
        expected[index] = expected[index] | {EMBEDS: whole[index : index + 1].numpy()}
    rung = Rung("bundle", manifest.precision)
    heat = worst_heat_maps(
        rung, recorded.vision, expected, pixels=frames.pixels, times=frames.times, config=model.config
    )
    evidence = noise_of(reference, own, twin, frames.times) + compare(rung, recorded.vision, expected, frames.times)
    return evidence + Evidence(heat=heat), VisionRuns(own=own, twin=twin)


@dataclass(frozen=True, kw_only=True, slots=True)
class Dialogue:
    """A prompt about frames and an answer, int64 (L,), and frame_embeds (T, M, E) for each side's compute dtype."""

    prompt: torch.Tensor
    answer: torch.Tensor
    frame_embeds: Mapping[torch.dtype, Array]


def run_dialogue(reference: Reference, loaded: LoadedModel, llm: GraphSpec, dialogue: Dialogue) -> DecoderRuns:
    """Run the whole dialogue in one pass without a cache, on both sides."""

    def whole(model: PVC, dtype: torch.dtype) -> Decoded:
        frame_embeds = torch.from_numpy(dialogue.frame_embeds[dtype]).flatten(0, 1).to(dtype)
        embeds = model.embed_prompt(dialogue.prompt, frame_embeds, context_id=loaded.token_id(IMAGE_CONTEXT))
        embeds = torch.cat([embeds, model.llm.embed_tokens(dialogue.answer)[None]], dim=1)
        return model.llm(embeds, torch.arange(embeds.shape[1])[None])  # type: ignore[no-any-return]

    return run_both(reference, llm, whole)


@torch.no_grad()
def compare_language(
    bundle: Bundle, loaded: LoadedModel, reference: Reference, recorded: RecordedStream, vision: VisionRuns
) -> Evidence:
    """Compare every LLM pass with one uncached pass, and every token with the logits of both sides."""
    manifest, tokens, num_frames = bundle.manifest, recorded.tokens, recorded.num_streamed
    prompt = loaded.prompt_ids(num_frames=num_frames, question=QUESTION)
    # The answer is embedded separately: a random model may generate <IMG_CONTEXT>.
    answer = torch.tensor([*tokens, *recorded.forced], dtype=torch.long)
    text = torch.cat([prompt[prompt != loaded.token_id(IMAGE_CONTEXT)], answer])
    fed = np.concatenate([call["inputs_embeds"] for call in recorded.language_calls["embed"]], axis=1)
    rule = _prompt_rule(fed.shape[1], len(text))
    # A lookup rounds only the table.
    text_embeds = reference.model.llm.embed_tokens(text).to(TORCH_DTYPE[manifest.precision])[None]
    seen = {
        torch.float32: np.concatenate([frame[EMBEDS] for frame in vision.own[:num_frames]]),
        reference.dtype: twin_embeds(vision.own, vision.twin, num_frames),
    }
    dialogue = Dialogue(prompt=prompt, answer=answer, frame_embeds=seen)
    runs = run_dialogue(reference, loaded, manifest.graphs["llm"], dialogue)
    num_rows = len(prompt) + len(answer)
    logits, found = logits_of(runs, first=len(prompt) - 1)
    found += [text_noise(reference, text)]
    found += runs.noise_of_rows(Place("row"), range(max(num_rows - 2 * NEIGHBOURS, 0), num_rows))
    if not rule.passed:  # the rows of the passes do not correspond
        return Evidence(rules=(rule,), differences=tuple(found))
    found += [compare_text(manifest.precision, fed, text_embeds)]
    spans = _spans(recorded, manifest.graphs["llm"].states[0].output)
    for call, span in zip(recorded.language_calls["llm"], spans, strict=True):
        found += runs.compare(call, span)
    found += runs.noise(span for span in spans if span.where.kind == "pass")
    heads = [call["logits"] for call in recorded.language_calls["head"]]
    found += [
        compare_arrays(got, logits[i : i + 1], rung=Rung("bundle", manifest.precision), graph="head", tensor="logits",
                       where=Place("token", i))
        for i, got in enumerate(heads)
    ]  # fmt: skip
    said = compare_tokens(tokens, heads, logits, manifest.rounding)
    return Evidence(rules=(rule,), differences=tuple(found)) + said


def _spans(recorded: RecordedStream, cache: str) -> list[Span]:
    """The rows of every LLM pass."""
    spans, start = list[Span](), 0
    for index, call in enumerate(recorded.language_calls["llm"]):
        stop = start + call[cache].shape[1]
        where = Place("pass", index) if stop - start > 1 else Place("row", start)
        spans.append(Span(where, start, stop))
        start = stop
    return spans


def compare_text(precision: Precision, fed: Array, want: torch.Tensor) -> Difference:
    rung = Rung("bundle", precision)
    return compare_arrays(fed, to_numpy(want), rung=rung, graph="embed", tensor="inputs_embeds", where=WHOLE_TEXT)


def text_noise(reference: Reference, text: torch.Tensor) -> Difference:
    """Zero noise: the table's values are compared in their dtype."""
    table = to_numpy(reference.twin.llm.embed_tokens(text)[None])
    return reference.noise(table, table, graph="embed", tensor="inputs_embeds", where=WHOLE_TEXT)


def logits_of(runs: DecoderRuns, *, first: int) -> tuple[Array, list[Difference]]:
    """The reference's logits from row `first` on, and the noise of these and of a few earlier rows."""
    reference, begin = runs.reference, max(first - NEIGHBOURS, 0)
    both = []
    for model, run, dtype in (
        (reference.model, runs.own, torch.float32), (reference.twin, runs.twin, reference.dtype),
    ):  # fmt: skip
        with Float16Products():
            hidden = torch.from_numpy(run.tensors["hidden"][0, begin:]).to(dtype)
            both.append(to_numpy(model.llm.logits(hidden)))
    own, twin = both
    noise = [
        reference.noise(own[i : i + 1], twin[i : i + 1], graph="head", tensor="logits", where=Place("token"))
        for i in range(len(own))
    ]
    return own[first - begin :], noise


def _prompt_rule(num_fed: int, num_expected: int) -> Rule:
    """The runtime must feed exactly as many text tokens as the reference's prompt and answer have."""
    alike = num_fed == num_expected
    detail = f"{num_fed} text tokens" + ("" if alike else f", the reference's prompt and answer have {num_expected}")
    return Rule(level="K", name="prompt", passed=alike, detail=detail)


def compare_tokens(tokens: Sequence[int], heads: Sequence[Array], logits: Array, rounding: Rounding) -> Evidence:
    """A greedy token must be the likeliest by the bundle's logits, and by the reference's unless those nearly tie."""
    num_equal, wrong = 0, list[str]()
    for index, (token, (own,), reference) in enumerate(zip(tokens, heads, logits, strict=False)):
        if own.shape != reference.shape:  # already reported as a difference
            continue
        margin = float(reference.max() - reference[token])
        num_equal += margin == 0
        if token != int(own.argmax()):
            wrong.append(f"token {index} is {token}, but the bundle's own logits prefer {int(own.argmax())}")
        elif margin > (tie := near_tie(reference, rounding)):
            prefers = f"the reference prefers another token by {margin:.2g} logits"
            wrong.append(f"token {index} is {token}, but {prefers} ({ROUNDING_EXPLAINS} {tie:.1e})")
    return Evidence(num_equal_tokens=num_equal, wrong_tokens=tuple(wrong))
