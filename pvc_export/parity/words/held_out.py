"""Parity in answers: a thousand questions with known answers about held-out clips, on every rung that can run.

Only for a model trained on the shapes world, according to config.json. The reference answers greedily. Every other rung
is fed that answer token by token, and has the same answer if each token is also its own likeliest.
    torch fp16, bf16   every operation rounded to the dtype, the language side included
    onnx fp32          all graphs, exported again in float32
    bundle             PVCStream, as users run it; also on the target's own runtime if this machine has it
A changed answer is a fault unless the reference nearly ties at that token (limits.near_tie). A rung that changes more
than one answer in two hundred is a fault too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from engines import PVCStream
from engines.bundle import Bundle
from engines.memory import Array
from engines.spec import GRAPH_NAMES, Rounding
from pvc_ref import PVC
from pvc_ref.layers import upcast
from pvc_ref.prompt import IMAGE_CONTEXT, STOP_TOKEN
from pvc_ref.shapes import CLEAN, Clip, Question, make_clip
from pvc_ref.training.objective import shared_prefix_logits

from ...graphs.models import LoadedModel
from ...graphs.precision import cast_model
from ..answers import MIN_AGREEMENT, MIN_AGREEMENT_INT8, Changed, RungAnswers
from ..bfloat16_on_cpu import open_on_cpu
from ..evidence import Evidence
from ..facts import hold_facts
from ..float16_on_cpu import Float16Products
from ..ladder import is_for_gpu, open_on_target, open_twins, why_not_executed
from ..levels import Rule
from ..limits import near_tie
from ..places import Rung
from ..recording import Progress

FIRST_SEED = 5_000_000
VIDEO_FRAMES = 8
STILL_EVERY = 4  # every fourth clip is an image, which each of its questions encodes again
LONGEST_ANSWER = 48
LEAST_SAME = 0.9
"""For quantised weights: the fraction of answers that must equal those of the unquantised model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReferenceAnswer:
    """The reference's answer to one question: its greedy tokens, and the logits (tokens + 1, V) of every step."""

    tokens: tuple[int, ...]
    text: str
    logits: Array


@dataclass(frozen=True, kw_only=True, slots=True)
class AskedClip:
    """A clip, the questions to ask about it, and the reference's answers once it has been asked."""

    clip: Clip
    questions: tuple[Question, ...]
    answers: tuple[ReferenceAnswer, ...] = ()

    @property
    def is_image(self) -> bool:
        return len(self.clip.frames) == 1


def cases(num_questions: int) -> list[AskedClip]:
    """The fixed held-out set: the first num_questions questions of clips from FIRST_SEED on."""
    found: list[AskedClip] = []
    left, seed = num_questions, FIRST_SEED
    while left > 0:
        num_frames = 1 if seed % STILL_EVERY == 0 else VIDEO_FRAMES
        clip = make_clip(seed, num_frames=num_frames, camera=CLEAN)
        found.append(AskedClip(clip=clip, questions=clip.questions[:left]))
        left -= len(found[-1].questions)
        seed += 1
    return found


def answer_all(
    folder: Path,
    loaded: LoadedModel,
    *,
    num_questions: int,
    twins: Path,
    source: LoadedModel | None = None,
    ladder: bool = True,
    scratch: Path | None = None,
    progress: Progress = lambda _: None,
) -> Evidence:
    """Every rung's answers to the same questions, the reference's first. `ladder` as in check_bundle, `twins` as in
    climb; `source` is the unquantised model, if the reference is quantised."""
    with open_on_cpu(folder) as opened:
        bundle = hold_facts(opened, loaded, scratch=scratch)[1]
        manifest = bundle.manifest
        window, rounding, precision = manifest.limits.window, manifest.rounding, manifest.precision
        asked = [replace(case, answers=_ask_reference(loaded, case, window)) for case in cases(num_questions)]
        progress(0.2)
        found = [_grade(Rung("torch", "fp32"), asked, [[a.logits for a in case.answers] for case in asked], rounding)]
        if ladder:
            rungs = _ladder(bundle, loaded, asked, twins)
            found += [_grade(rung, asked, logits, rounding) for rung, logits in rungs]
        progress(0.6)
        own = _through_stream(bundle, asked, lambda x: progress(0.6 + 0.4 * x))
        found.append(_grade(Rung("bundle", precision), asked, own, rounding))
        if ladder and is_for_gpu(bundle) and why_not_executed(bundle) is None:
            gpu = _through_stream(open_on_target(bundle), asked)
            found.append(_grade(Rung("gpu", precision), asked, gpu, rounding))
    cost = () if source is None else (_cost_in_answers(source, asked, window),)
    progress(1.0)
    return Evidence(answers=tuple(found), rules=cost)


def _cost_in_answers(source: LoadedModel, asked: Sequence[AskedClip], window: int) -> Rule:
    """Count the answers that quantised weights change. The limit is loose: how much is acceptable is up to the user."""
    pairs = [
        (question.answer, before.text, after.text)
        for case in asked
        for question, before, after in zip(
            case.questions, _ask_reference(source, case, window), case.answers, strict=True
        )
    ]
    same = sum(before == after for _, before, after in pairs) / len(pairs)
    right = [sum(texts[0] == texts[side] for texts in pairs) / len(pairs) for side in (1, 2)]
    detail = (
        f"{same:.1%} of {len(pairs)} answers equal the unquantised model's (at least {LEAST_SAME:.0%}); right: "
        f"{right[0]:.1%} -> {right[1]:.1%}"
    )
    return Rule(level="K", name="what codes cost in answers", passed=same >= LEAST_SAME, detail=detail)


def _ladder(
    bundle: Bundle, loaded: LoadedModel, asked: Sequence[AskedClip], twins: Path
) -> Iterator[tuple[Rung, list[list[Array]]]]:
    """Each rung between reference and bundle, with its logits for every question."""
    manifest = bundle.manifest
    if manifest.precision == "fp32":
        return
    narrow, window = cast_model(loaded.model, manifest.precision, manifest.islands), manifest.limits.window
    logits = [_force(narrow, loaded, case, window, [answer.tokens for answer in case.answers]) for case in asked]
    yield Rung("torch", manifest.precision), logits
    sessions = open_twins(bundle, loaded.model, GRAPH_NAMES, twins)
    yield Rung("onnx", "fp32"), _through_stream(replace(bundle, sessions=sessions), asked)


# -- the reference -----------------------------------------------------------------------------------------------


def _ask_reference(loaded: LoadedModel, case: AskedClip, window: int) -> tuple[ReferenceAnswer, ...]:
    """Greedy answers. The true answer is tried first: if each of its tokens is the likeliest, it is the greedy one."""
    stop = loaded.token_id(STOP_TOKEN)
    encode = loaded.tokenizer.encode
    truths = [tuple(encode(question.answer, add_special_tokens=False).ids) for question in case.questions]
    found = []
    for index, logits in enumerate(_force(loaded.model, loaded, case, window, truths)):
        tokens = truths[index]
        while len(tokens) < LONGEST_ANSWER and (kept := _num_greedy(logits, tokens, stop)) <= len(tokens):
            # Keep the greedy tokens, add the likeliest next one, and score again.
            best = int(logits[kept].argmax())
            tokens = tokens[:kept] if best == stop else (*tokens[:kept], best)
            case_of_one = replace(case, questions=(case.questions[index],))
            logits = _force(loaded.model, loaded, case_of_one, window, [tokens])[0]
        found.append(ReferenceAnswer(tokens=tokens, text=loaded.tokenizer.decode(list(tokens)), logits=logits))
    return tuple(found)


def _num_greedy(logits: Array, tokens: Sequence[int], stop: int) -> int:
    """How many of the tokens and the final stop token are the likeliest, up to the first that is not."""
    return int(np.logical_and.accumulate(logits.argmax(-1) == np.array([*tokens, stop])).sum())


@torch.no_grad()
def _force(
    model: PVC, loaded: LoadedModel, case: AskedClip, window: int, answers: Sequence[Sequence[int]]
) -> list[Array]:
    """Logits (tokens + 1, V) for every question with its answer fed, in the model's dtype."""
    half = next(model.parameters()).dtype == torch.float16
    with Float16Products() if half else nullcontext():
        pixels = torch.from_numpy(case.clip.frames)
        if case.is_image:
            visual = torch.cat(model.encode_images([pixels], window=window))
        else:
            visual = model.encode_clip(pixels[None], window=window)[0].flatten(0, 1)
        prompts = [_prompt_ids(loaded, case, question) for question in case.questions]
        split = int((prompts[0] == loaded.token_id(IMAGE_CONTEXT)).nonzero()[-1]) + 1
        prefix = model.embed_prompt(prompts[0][:split], visual, context_id=loaded.token_id(IMAGE_CONTEXT))
        tails = [prompt[split:].tolist() for prompt in prompts]
        rows = [[*tail, *answer] for tail, answer in zip(tails, answers, strict=True)]
        length = max(map(len, rows))
        ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
        logits = upcast(shared_prefix_logits(model, prefix, ids[None])[0]).numpy()
    return [
        logits[index, len(tail) - 1 : len(tail) + len(answer)]
        for index, (tail, answer) in enumerate(zip(tails, answers, strict=True))
    ]


def _prompt_ids(loaded: LoadedModel, case: AskedClip, question: Question) -> torch.Tensor:
    if case.is_image:
        return loaded.image_prompt_ids(num_tiles=[1], question=question.text)
    return loaded.prompt_ids(num_frames=len(case.clip.frames), question=question.text)


# -- everything else ---------------------------------------------------------------------------------------------


def _through_stream(
    bundle: Bundle, asked: Sequence[AskedClip], progress: Progress = lambda _: None
) -> list[list[Array]]:
    """Logits for every question through PVCStream, with the reference's answer fed."""
    found = []
    for index, case in enumerate(asked):
        stream = PVCStream(bundle)
        frames = case.clip.bgr()
        images = frames if case.is_image else []
        for frame in [] if case.is_image else frames:
            stream.push(frame)
        found.append(
            [
                stream.score(question.text, answer.tokens, images=images, max_tiles=1)
                for question, answer in zip(case.questions, case.answers, strict=True)
            ]
        )
        progress((index + 1) / len(asked))
    return found


def _grade(
    rung: Rung, asked: Sequence[AskedClip], logits: Sequence[Sequence[Array]], rounding: Rounding
) -> RungAnswers:
    """Compare a rung's logits with the reference's answers and with the truth."""
    right, count, changed = Counter[str](), Counter[str](), []
    for case, logits_of_clip in zip(asked, logits, strict=True):
        for question, answer, own in zip(case.questions, case.answers, logits_of_clip, strict=True):
            change = _change(question, answer, own, rounding)
            if change is not None:
                changed.append(change)
            # A changed answer may happen to be true; it counts as wrong, which is the stricter choice.
            count[question.topic] += 1
            right[question.topic] += change is None and answer.text == question.answer
    least = MIN_AGREEMENT_INT8 if rounding == "int8" else MIN_AGREEMENT
    return RungAnswers(rung=rung, right=dict(right), count=dict(count), changed=tuple(changed), least_agreement=least)


def _change(question: Question, answer: ReferenceAnswer, own: Array, rounding: Rounding) -> Changed | None:
    parted = np.flatnonzero(own.argmax(-1) != answer.logits.argmax(-1))
    if not len(parted):
        return None
    step = int(parted[0])
    reference = answer.logits[step]
    return Changed(
        topic=question.topic,
        question=question.text,
        expected=answer.text,
        step=step,
        margin=float(reference.max() - reference[own[step].argmax()]),
        tie=near_tie(reference, rounding),
    )
