"""Compare our answers with SmolLM2's per step: logits relative to their range, tokens except near ties, text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from engines.errors import ParityError
from engines.prompt import PromptTokenizer

from .exchange import Answer, Answers

LIMIT = 1e-4  # worst 2.6e-6 on an x86-64 CPU, for ranges from 29 to 59
"""Relative to the range of a step's logits, from the least likely to the likeliest token."""
NEAR_TIE = 2 * LIMIT
"""Largest margin, relative to that range, that errors of LIMIT in both logits can reverse."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Steps:
    """One of our models against the oracle. `problems` is empty if they agree; max_diff is divided by the range."""

    what: str
    num_prompts: int
    num_steps: int
    max_diff: float
    num_near_ties: int
    num_other_tokens: int
    problems: tuple[str, ...]


def compare_steps(ours: Answers, theirs: Answers, *, what: str) -> Steps:
    """Compare the logits of every step, and each step's likeliest token, with the oracle's."""
    assert ours.by_prompt and ours.by_prompt.keys() == theirs.by_prompt.keys(), "both must answer the same prompts"
    diffs, problems, num_near_ties, num_other_tokens = [], [], 0, 0
    for name, answer in ours.by_prompt.items():
        oracle = theirs.by_prompt[name]
        assert np.array_equal(answer.positions, oracle.positions), "both must have the same steps"
        where = f"{what}, prompt '{name}'"
        diff = relative_diff(answer, oracle)
        diffs.append(diff)
        if not diff.max() <= LIMIT:  # true for NaN too
            step = int(diff.argmax())  # the first NaN, if any
            problems.append(f"{where}: logits of step {step} differ by {diff[step]:.2e} of their range")
        for step in np.flatnonzero(answer.greedy != oracle.greedy).tolist():
            token, expected = int(answer.greedy[step]), int(oracle.greedy[step])
            if (short := margin(oracle.logits[step], token)) <= NEAR_TIE:
                num_near_ties += 1
            else:
                num_other_tokens += 1
                says = f"but the oracle has {expected}, ahead by {short:.2e} of the range"
                problems.append(f"{where}: token {step} is {token}, {says}")
    every = np.concatenate(diffs)
    return Steps(
        what=what,
        num_prompts=len(diffs),
        num_steps=len(every),
        max_diff=float(every.max()),
        num_near_ties=num_near_ties,
        num_other_tokens=num_other_tokens,
        problems=tuple(problems),
    )


def relative_diff(ours: Answer, theirs: Answer) -> np.ndarray:
    """Largest absolute difference of each step's logits, divided by the range of the oracle's (R,); NaN for any NaN."""
    with np.errstate(invalid="ignore"):  # infinity minus infinity is NaN, as intended
        diff = np.abs(ours.logits.astype(np.float64) - theirs.logits).max(axis=1)
        return diff / np.ptp(theirs.logits, axis=1)


def margin(logits: np.ndarray, token: int) -> float:
    """Margin of the likeliest logit over that of `token`, relative to their range; infinity without such a token."""
    if token >= len(logits):
        return np.inf
    with np.errstate(invalid="ignore"):
        return float((logits.max() - logits[token]) / np.ptp(logits))


def text_problems(
    tokenizer: PromptTokenizer,
    conversations: Mapping[str, Mapping[str, str]],
    prompts: Mapping[str, np.ndarray],
    theirs: Answers,
) -> list[str]:
    """Return where our tokenizer encodes a prompt to other ids than the oracle's, or decodes its answer differently.

    With equal tokens and none of these problems, the text of an answer is equal too.
    """
    problems = []
    for name, texts in conversations.items():
        if tokenizer.encode(texts["prompt"]) != prompts[name].tolist():
            problems.append(f"prompt '{name}': our tokenizer makes other token ids of its text")
        if (text := tokenizer.decode(theirs.by_prompt[name].greedy.tolist())) != texts["answer"]:
            problems.append(f"prompt '{name}': our tokenizer decodes its answer as {text!r}, not {texts['answer']!r}")
    return problems


def table(found: list[Steps]) -> Iterator[str]:
    yield f"{'against SmolLM2':42}{'prompts':>8}{'steps':>7}{'max |diff| / range':>20}   greedy tokens"
    for steps in found:
        ties = f", near ties: {steps.num_near_ties}" if steps.num_near_ties else ""
        greedy = f"{steps.num_other_tokens} DIFFER" if steps.num_other_tokens else f"equal{ties}"
        yield f"{steps.what:42}{steps.num_prompts:8}{steps.num_steps:7}{steps.max_diff:20.1e}   {greedy}"


def require_agreement(found: list[Steps], planted: list[Steps], texts: list[str]) -> None:
    """Raise ParityError with all differences, and with every planted defect that made no difference."""
    problems = [problem for steps in found for problem in steps.problems] + texts
    problems += [f"the planted defect '{steps.what}' was not noticed" for steps in planted if not steps.problems]
    if problems:
        raise ParityError(
            "\n".join(problems),
            expected=f"logits within {LIMIT:g} of their range at every step, the same tokens except where the oracle's "
            f"margin is below {NEAR_TIE:g} of that range, the same text, and a failure for each planted defect",
            cause="if the reference differs too, its decoder or the conversion of the weights "
            "(tests/oracles/smollm2.py); otherwise the exporter or the runtime's cache",
            fix="find out which: .venv/bin/python -m pytest tests/oracles tests/pvc_ref tests/engines",
        )
