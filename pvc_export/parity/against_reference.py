"""A recorded stream against the reference: every frame, every LLM pass, every token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from engines.bundle import Bundle
from engines.memory import Array
from engines.spec import Precision
from pvc_ref.prompt import IMAGE_CONTEXT

from ..graphs.models import LoadedModel
from ..graphs.precision import TORCH_DTYPE
from .answers import ROUNDING_EXPLAINS
from .clip import QUESTION
from .evidence import Evidence
from .heat import worst_heat_maps
from .levels import Rule
from .limits import near_tie
from .metrics import compare_arrays
from .places import WHOLE_TEXT, Place, Rung
from .recorded_stream import RecordedStream
from .recording import Progress, Recording, compare, run_torch


def compare_pixels(fed: Sequence[Array], pixels: Sequence[Array]) -> Evidence:
    """What the runtime made of the frames, against the reference's resize of their RGB: every pixel."""
    detail, passed = f"{len(fed)} frames resized, bit for bit", True
    for index, (got, want) in enumerate(zip(fed, pixels, strict=False)):  # the context may hold fewer than the clip has
        if got.shape != want.shape:
            detail, passed = f"frame {index} of the clip is {got.shape}, expected {want.shape}", False
            break
        off = np.abs(got.astype(int) - want)
        if off.any():
            differ = f"{np.count_nonzero(off)} of {off.size} values differ, by {off.max()} at most"
            detail, passed = f"frame {index} of the clip: {differ}. Another resize, or BGR for RGB", False
            break
    return Evidence(rules=(Rule(level="K", name="pixels", passed=passed, detail=detail),))


@torch.no_grad()
def compare_vision(
    bundle: Bundle, loaded: LoadedModel, recorded: RecordedStream, progress: Progress = lambda _: None
) -> tuple[Evidence, Recording]:
    """Compare every frame; embeddings of the clip, with the whole clip's. Also returns what the reference said."""
    frames, window = recorded.frames, bundle.manifest.limits.window
    if not frames.times:  # the first one ended the stream
        return Evidence(), []
    reference = run_torch(loaded.model, frames, bundle.manifest, progress)
    num_frames = frames.num_consecutive
    pixels = torch.from_numpy(np.stack(frames.pixels[:num_frames]))[None]
    whole = loaded.model.encode_clip(pixels, window=window, total_frames=frames.total_frames)[0]
    expected = list(reference)
    for index in range(num_frames):
        expected[index] = expected[index] | {"compressor/frame_embeds": whole[index : index + 1].numpy()}
    rung = Rung("bundle", bundle.manifest.precision)
    heat = worst_heat_maps(
        rung, recorded.vision, expected, pixels=frames.pixels, times=frames.times, config=loaded.config
    )
    return compare(rung, recorded.vision, expected, frames.times) + Evidence(heat=heat), reference


@torch.no_grad()
def compare_language(bundle: Bundle, loaded: LoadedModel, recorded: RecordedStream, reference: Recording) -> Evidence:
    """Compare every LLM pass with one uncached pass, and every token with what both sides' logits say.

    reference  what compare_vision returned
    """
    manifest, model, tokens = bundle.manifest, loaded.model, recorded.tokens
    embeds_of_frames = [frame["compressor/frame_embeds"] for frame in reference[: recorded.num_streamed]]
    frame_embeds = torch.from_numpy(np.concatenate(embeds_of_frames))
    prompt = loaded.prompt_ids(num_frames=len(frame_embeds), question=QUESTION)
    # The answer is embedded on its own: a random model may well say <IMG_CONTEXT> itself.
    answer = torch.tensor([*tokens, *recorded.forced], dtype=torch.long)
    text = torch.cat([prompt[prompt != loaded.token_id(IMAGE_CONTEXT)], answer])
    fed = np.concatenate([call["inputs_embeds"] for call in recorded.language_calls["embed"]], axis=1)
    rule = _prompt_rule(fed.shape[1], len(text))
    if not rule.passed:  # then every pass has other rows
        return Evidence(rules=(rule,))
    # A table lookup rounds nothing but the table.
    text_embeds = model.llm.embed_tokens(text).to(TORCH_DTYPE[manifest.precision])[None]
    embeds = torch.cat([loaded.prompt_embeds(prompt, frame_embeds), model.llm.embed_tokens(answer)[None]], dim=1)
    hidden, new = model.llm(embeds, torch.arange(embeds.shape[1])[None])
    logits = model.llm.logits(hidden[0, len(prompt) - 1 :])
    pairs = [("embed", "inputs_embeds", WHOLE_TEXT, fed, text_embeds)]
    pairs += _passes(bundle, recorded, hidden, [row for pair in new for row in pair])
    heads = [call["logits"] for call in recorded.language_calls["head"]]
    pairs += [("head", "logits", Place("token", i), got, logits[i : i + 1]) for i, got in enumerate(heads)]
    rung = Rung("bundle", manifest.precision)
    differences = tuple(
        compare_arrays(got, want.double().numpy(), rung=rung, graph=graph, tensor=tensor, where=where)
        for graph, tensor, where, got, want in pairs
    )
    said = _compare_tokens(tokens, heads, logits.numpy(), manifest.precision)
    return Evidence(rules=(rule,), differences=differences) + said


Pair = tuple[str, str, Place, Array, torch.Tensor]
"""Graph, tensor, place, and what either side has there."""


def _passes(
    bundle: Bundle, recorded: RecordedStream, hidden: torch.Tensor, rows: Sequence[torch.Tensor]
) -> Iterator[Pair]:
    """What the LLM returned pass by pass, and the same rows of one pass over everything."""
    states = bundle.manifest.graphs["llm"].states
    start = 0
    for index, call in enumerate(recorded.language_calls["llm"]):
        where, stop = Place("pass", index), start + call[states[0].output].shape[1]
        yield "llm", "hidden", where, call["hidden"], hidden[:, stop - 1 : stop]
        for state, row in zip(states, rows, strict=True):
            yield "llm", state.output, where, call[state.output], row[:, start:stop]
        start = stop


def _prompt_rule(num_fed: int, num_expected: int) -> Rule:
    """The runtime must feed as many tokens of text as the reference's prompt and answer have."""
    alike = num_fed == num_expected
    detail = f"{num_fed} tokens of text" + ("" if alike else f", the reference's prompt and answer have {num_expected}")
    return Rule(level="K", name="prompt", passed=alike, detail=detail)


def _compare_tokens(tokens: Sequence[int], heads: Sequence[Array], logits: Array, precision: Precision) -> Evidence:
    """A greedy token must be the likeliest of its own logits, and of the reference's unless those nearly tie."""
    num_equal, wrong = 0, list[str]()
    for index, (token, (own,), reference) in enumerate(zip(tokens, heads, logits, strict=False)):
        if own.shape != reference.shape:  # that is a difference already
            continue
        margin = float(reference.max() - reference[token])
        num_equal += margin == 0
        if token != int(own.argmax()):
            wrong.append(f"token {index} is {token}, but the bundle's own logits prefer {int(own.argmax())}")
        elif margin > (tie := near_tie(reference, precision)):
            prefers = f"the reference prefers another by {margin:.2g} logits"
            wrong.append(f"token {index} is {token}, but {prefers} ({ROUNDING_EXPLAINS} {tie:.1e})")
    return Evidence(num_equal_tokens=num_equal, wrong_tokens=tuple(wrong))
