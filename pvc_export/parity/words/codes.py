"""Cost of quantised weights: the unquantised model against the one with the bundle's codes, on the same prompts.

A bundle is compared with its codes' values tensor by tensor, which does not show the loss by quantisation. Here the
unquantised model answers the prompts of every check, and both models score its answers token by token.
"""

from __future__ import annotations

import numpy as np
import torch

from engines.manifest import Manifest
from pvc_ref.prompt import STOP_TOKEN

from ...graphs.calibration import observed
from ...graphs.machine import is_small
from ...graphs.models import LoadedModel
from ...terminal.quantization import calibration_text
from ..levels import Rule
from ..recording import SAMPLED_FRAMES, check_frames, run_torch
from .conversations import NUM_NEW_TOKENS, divergences, reference_logits
from .prompts import prompts_that_fit, reference_embeds

MOST = 2.0
"""Limit of the mean KL(model || codes) per token, in nats; above it, the codes are another model."""


MOST_OF_INPUTS = 0.25
"""Limit of the rounding error, as a fraction of the root mean square of a matmul's input; above it, the int8 scales
are another model's."""


@torch.no_grad()
def cost_of_codes(source: LoadedModel, held: LoadedModel, manifest: Manifest, *, per_kind: int) -> Rule:
    """Compare a bundle's codes with the model they were made from. The limit is loose: the rule reports the figures,
    and how much is too much is the user's choice."""
    name = "what codes cost"
    kl, same, surprise = list[float](), list[bool](), list[tuple[float, float]]()
    stop = source.token_id(STOP_TOKEN)
    chosen = prompts_that_fit(manifest, source, per_kind=per_kind, num_new_tokens=NUM_NEW_TOKENS)
    if not chosen:
        return Rule(level="J", name=name, passed=None, detail="no prompt fits in this bundle's context")
    for prompt in chosen:
        embeds = reference_embeds(source, prompt, window=manifest.limits.window)
        answer = source.model.generate(embeds, max_new_tokens=NUM_NEW_TOKENS, stop_ids=[stop])
        want, got = (reference_logits(one, embeds, answer) for one in (source, held))
        kl += divergences(want, got).tolist()
        same += (want.argmax(-1) == got.argmax(-1)).tolist()
        said = [*answer, *([stop] if len(answer) < NUM_NEW_TOKENS else [])]
        both = [_surprise(logits, said) for logits in (want, got)]
        surprise += list(zip(*both, strict=True))
    mean = float(np.mean(kl))
    before, after = (float(np.exp(np.mean(values))) for values in zip(*surprise, strict=True))
    detail = (
        f"against the unquantised model, {len(kl)} tokens of {len(chosen)} answers: mean KL {mean:.2g} nats per token "
        f"(limit {MOST:g}), {np.mean(same):.1%} the same likeliest token, perplexity {before:.4g} -> {after:.4g}"
    )
    return Rule(level="J", name=name, passed=bool(mean <= MOST), detail=detail)


def cost_of_scales(source: LoadedModel, manifest: Manifest) -> Rule:
    """Check that the calibrated scales fit the inputs of the matmuls on the clip of a check, which is not the
    calibration data. The limit is as loose as that of codes."""
    assert manifest.calibration is not None
    frames, scales = check_frames(manifest), manifest.calibration.scales
    if not is_small(source.model):
        frames = frames.first(SAMPLED_FRAMES)
    with observed(source.model, scales) as sizes:
        run_torch(source.model, frames, manifest.graphs["temporal"])
    cost, worst = max((sizes[name].cost(scale), name.removesuffix(".weight")) for name, scale in scales.items())
    detail = (
        f"rounding the inputs of {len(scales)} matmuls, by scales of {calibration_text(manifest.calibration)}, costs "
        f"at most {cost:.1%} on the clip of this check (limit {MOST_OF_INPUTS:.0%}): '{worst}'"
    )
    return Rule(level="J", name="scales of inputs", passed=bool(cost <= MOST_OF_INPUTS), detail=detail)


def _surprise(logits: np.ndarray, tokens: list[int]) -> list[float]:
    """-log p of each token in nats, by the preceding logits."""
    log_p = torch.log_softmax(torch.from_numpy(logits[: len(tokens)]).double(), dim=-1)
    return [-float(row[token]) for row, token in zip(log_p, tokens, strict=True)]
