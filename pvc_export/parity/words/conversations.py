"""Parity in words: a bundle's answers to twenty prompts, and its probability of every token, against the reference.

Each prompt goes through PVCStream as a user's would: resize, tiles, tokenizer, vision graphs, cached decode. The
reference encodes the whole clip in one pass, and scores its answer in one pass without any cache.
    greedy   the bundle's answer, and how far it equals the reference's
    forced   both sides are fed the reference's answer, token by token: KL(reference || bundle) of every step, and
             whether the likeliest token, and the five likeliest, are the same
A token may differ only where the reference itself nearly ties (limits.near_tie). Equal tokens must give equal text.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

import numpy as np
import torch
import torch.nn.functional as F

from engines import PVCStream
from engines.answer import Answer
from engines.bundle import Bundle
from engines.memory import Array
from engines.spec import Rounding
from pvc_ref.prompt import STOP_TOKEN

from ...graphs.models import LoadedModel
from ..answers import Conversation, Flip, Parting
from ..levels import Rule
from ..limits import near_tie
from ..recording import Progress
from .prompts import MAX_TILES, Prompt, prompts_that_fit, reference_embeds

NUM_NEW_TOKENS = 8


def converse(
    bundle: Bundle,
    loaded: LoadedModel,
    *,
    per_kind: int,
    num_new_tokens: int = NUM_NEW_TOKENS,
    progress: Progress = lambda _: None,
) -> list[Conversation]:
    """Ask every prompt that fits. Raises NonFiniteError if the bundle returns NaN."""
    chosen = prompts_that_fit(bundle.manifest, loaded, per_kind=per_kind, num_new_tokens=num_new_tokens)
    found = []
    for index, prompt in enumerate(chosen, start=1):
        found.append(converse_about(bundle, loaded, prompt, num_new_tokens))
        progress(index / len(chosen))
    return found


def converse_about(
    bundle: Bundle,
    loaded: LoadedModel,
    prompt: Prompt,
    num_new_tokens: int = NUM_NEW_TOKENS,
    max_tiles: int | None = MAX_TILES,
) -> Conversation:
    """Ask one prompt, with images in at most max_tiles tiles; None: bundle and reference each use their own maximum."""
    manifest, most = bundle.manifest, max_tiles or loaded.config.max_image_tiles
    embeds = reference_embeds(loaded, prompt, window=manifest.limits.window, max_tiles=most)
    stream = open_prompt(bundle, prompt)
    images = [stream.encode_image(image, max_tiles=max_tiles) for image in prompt.images]
    answer = stream.ask(prompt.question, images=images, max_new_tokens=num_new_tokens)
    expected, want = reference_answer(loaded, embeds, answer.token_ids, limit=num_new_tokens)
    got = stream.score(prompt.question, expected, images=images)
    return compared(
        answer, expected, want, got, loaded, manifest.rounding, limit=num_new_tokens, kind=prompt.kind,
        question=prompt.question,
    )  # fmt: skip


def reference_answer(
    loaded: LoadedModel, embeds: torch.Tensor, said: Sequence[int], *, limit: int
) -> tuple[list[int], Array]:
    """The reference's answer of at most `limit` tokens to a prompt (1, L, E), and its logits (tokens + 1, V).

    The bundle's answer `said` is scored first. If each of its tokens is the reference's likeliest, that is the
    reference's answer, and it need not be decoded again.
    """
    stop, tokens = loaded.token_id(STOP_TOKEN), list(said)
    logits = reference_logits(loaded, embeds, tokens)
    likeliest = logits.argmax(-1).tolist()
    if likeliest[: len(tokens)] == tokens and (len(tokens) == limit or likeliest[-1] == stop):
        return tokens, logits
    tokens = loaded.model.generate(embeds, max_new_tokens=limit, stop_ids=[stop])
    return tokens, reference_logits(loaded, embeds, tokens)


def open_prompt(bundle: Bundle, prompt: Prompt) -> PVCStream:
    """Open a stream and push the prompt's frames."""
    fixed = bundle.manifest.time_mode == "fixed"
    stream = PVCStream(bundle, total_frames=max(len(prompt.frames), 1) if fixed else None)
    for frame in prompt.frames:
        stream.push(frame)
    return stream


@torch.no_grad()
def reference_logits(loaded: LoadedModel, embeds: torch.Tensor, tokens: Sequence[int]) -> Array:
    """The reference's logits (len(tokens) + 1, V) after a prompt (1, L, E) and each token: one pass, no cache."""
    llm = loaded.model.llm
    answer = llm.embed_tokens(torch.tensor([list(tokens)], dtype=torch.long))
    whole = torch.cat([embeds, answer], dim=1)
    hidden, _ = llm(whole, torch.arange(whole.shape[1])[None])
    logits: Array = llm.logits(hidden[0, embeds.shape[1] - 1 :]).numpy()
    return logits


def compared(
    answer: Answer,
    expected: Sequence[int],
    want: Array,
    got: Array,
    loaded: LoadedModel,
    rounding: Rounding,
    *,
    limit: int,
    kind: str,
    question: str,
) -> Conversation:
    """Compare an answer of at most `limit` tokens with the reference's, and the logits (steps, V) of both sides, which
    were fed the same tokens."""
    kl, said = divergences(want, got), answer.token_ids
    return Conversation(
        kind=kind,
        question=question,
        num_tokens=len(expected),
        num_said=len(said),
        prefix=common_prefix(said, expected),
        parting=parting(said, expected, want, loaded, rounding, limit=limit),
        text=answer.text,
        reference_text=loaded.tokenizer.decode(list(said), skip_special_tokens=True),
        num_steps=len(want),
        max_kl=float(kl.max()),
        mean_kl=float(kl.mean()),
        scaled_kl=float((kl / np.mean(np.square(want, dtype=np.float64), axis=-1)).max()),
        flips=flips(want, got, rounding),
    )


def parting(
    said: Sequence[int],
    expected: Sequence[int],
    want: Array,
    loaded: LoadedModel,
    rounding: Rounding,
    *,
    limit: int,
) -> Parting | None:
    """The first difference of two answers of at most `limit` tokens; None if they are equal. An answer's end counts as
    a token.

    `want` (steps, V) are the reference's logits, fed the tokens that both have in common.
    """
    if list(said) == list(expected):
        return None
    step, stop = common_prefix(said, expected), loaded.token_id(STOP_TOKEN)
    own = said[step] if step < len(said) else stop
    right = expected[step] if step < len(expected) else stop
    reference, is_too_long = want[step], step >= limit
    return Parting(
        said=_token(own, loaded),
        expected="nothing more" if is_too_long else _token(right, loaded),
        margin=inf if is_too_long else float(reference.max() - reference[own]),
        tie=near_tie(reference, rounding),
    )


def _token(token: int, loaded: LoadedModel) -> str:
    text: str = loaded.tokenizer.decode([token], skip_special_tokens=False)
    return text or str(token)


def text_rule(conversations: Sequence[Conversation]) -> Rule:
    """Compare answers as text too, which is what a user reads."""
    for one in conversations:
        if one.text != one.reference_text:
            detail = (
                f"the answer to the {one.kind} prompt {one.question!r} reads {one.text!r}, expected "
                f"{one.reference_text!r} from the same tokens. Check how the runtime decodes (engines/prompt.py)"
            )
            return Rule(level="K", name="answers as text", passed=False, detail=detail)
    detail = f"{len(conversations)} answers decoded as by the reference's tokenizer"
    return Rule(level="K", name="answers as text", passed=True, detail=detail)


def divergences(want: Array, got: Array) -> Array:
    """KL(want || got) of each row of logits, in nats, computed in float64."""
    p, q = (F.log_softmax(torch.from_numpy(x).double(), dim=-1) for x in (want, got))
    kl: Array = F.kl_div(q, p, log_target=True, reduction="none").sum(-1).numpy()
    return kl


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """The number of equal tokens at the beginning of two answers."""
    parted = [index for index, pair in enumerate(zip(a, b, strict=False)) if pair[0] != pair[1]]
    return parted[0] if parted else min(len(a), len(b))


def flips(want: Array, got: Array, rounding: Rounding) -> tuple[Flip, ...]:
    """Tokens that are among the bundle's one or five likeliest, and not among the reference's."""
    found = []
    for step, (reference, own) in enumerate(zip(want, got, strict=True)):
        order, own_order = np.argsort(-reference, kind="stable"), np.argsort(-own, kind="stable")
        for k in (1, 5):
            strangers = sorted(set(own_order[:k]) - set(order[:k]))
            margin = max((float(reference[order[k - 1]] - reference[token]) for token in strangers), default=None)
            if margin is not None:
                found.append(Flip(step=step, k=k, margin=margin, tie=near_tie(reference, rounding)))
    return tuple(found)
