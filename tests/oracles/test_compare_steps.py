"""The comparison with SmolLM2 can fail at every step, and accepts no difference but a near tie."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engines.bundle import TOKENIZER_NAME
from engines.errors import ParityError
from engines.prompt import PromptTokenizer
from pvc_export.graphs.models import prompt_spec
from pvc_ref import PVCConfig
from pvc_ref.prompt import byte_tokenizer
from tests.test_rooms import MAY_IMPORT, imports

from .compare_steps import LIMIT, NEAR_TIE, Steps, compare_steps, require_agreement, table, text_problems
from .exchange import Answer, Answers

RANGE = 20.0
LIKELIEST = [3, 1, 4, 1, 5]


def logits_of_five_steps() -> np.ndarray:
    """In float64, so that ties are exact: the likeliest token at RANGE, the least likely at 0, others in between."""
    logits = np.random.default_rng(0).uniform(1, RANGE / 2, (5, 11))
    logits[:, 0] = 0
    logits[range(5), LIKELIEST] = RANGE
    return logits


def answers(logits: np.ndarray | None = None) -> Answers:
    logits = logits_of_five_steps() if logits is None else logits
    answer = Answer(positions=np.arange(5) + 7, logits=logits, greedy=logits.argmax(axis=1))
    sound = logits_of_five_steps()
    other = Answer(positions=np.arange(5) + 2, logits=sound, greedy=sound.argmax(axis=1))
    return Answers(versions={"oracle": "1.0"}, by_prompt={"short": other, "long": answer})


def with_logit(value: float, *, step: int, token: int) -> Answers:
    logits = logits_of_five_steps()
    logits[step, token] = value
    return answers(logits)


def require_failure(found: Steps, *expected: str) -> None:
    assert len(found.problems) == len(expected)
    assert all(text in problem and "'long'" in problem for text, problem in zip(expected, found.problems, strict=True))
    with pytest.raises(ParityError, match="long"):
        require_agreement([replace(found, problems=()), found], [], [])


def test_equal_answers_agree() -> None:
    found = compare_steps(answers(), answers(), what="ours")
    assert (found.num_prompts, found.num_steps, found.max_diff, found.num_near_ties) == (2, 10, 0.0, 0)
    require_agreement([found], [], [])


@pytest.mark.parametrize("step", [0, 2, 4])
def test_one_logit_beyond_the_limit_fails_and_within_it_does_not(step: int) -> None:
    logit = logits_of_five_steps()[step, 7]
    within = with_logit(logit + 0.9 * LIMIT * RANGE, step=step, token=7)
    assert not compare_steps(within, answers(), what="ours").problems
    beyond = with_logit(logit + 1.1 * LIMIT * RANGE, step=step, token=7)
    require_failure(compare_steps(beyond, answers(), what="ours"), f"step {step} differ by 1.10e-04")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
def test_a_logit_that_is_no_number_fails_on_either_side(value: float) -> None:
    assert compare_steps(with_logit(value, step=2, token=7), answers(), what="ours").problems
    assert compare_steps(answers(), with_logit(value, step=2, token=7), what="ours").problems


def test_two_infinities_are_not_equal() -> None:
    both = with_logit(-np.inf, step=2, token=7), with_logit(-np.inf, step=2, token=7)
    require_failure(compare_steps(*both, what="ours"), "step 2 differ by nan")


@pytest.mark.parametrize(("short", "is_tie"), [(0.9 * NEAR_TIE, True), (1.1 * NEAR_TIE, False)])
def test_another_token_passes_only_where_the_oracle_nearly_ties(short: float, is_tie: bool) -> None:
    theirs = with_logit(RANGE * (1 - short), step=2, token=7)
    ours = with_logit(RANGE * (1 - short / 2) + 1e-9, step=2, token=7).by_prompt["long"]
    ours.logits[2, LIKELIEST[2]] = RANGE * (1 - short / 2)
    ours = replace(ours, greedy=ours.logits.argmax(axis=1))
    assert ours.greedy[2] == 7 != theirs.by_prompt["long"].greedy[2]
    both = replace(theirs, by_prompt=theirs.by_prompt | {"long": ours})
    found = compare_steps(both, theirs, what="ours")
    assert found.num_near_ties == is_tie and found.num_other_tokens == (not is_tie)
    assert any("token 2 is 7, but the oracle has 4" in problem for problem in found.problems) == (not is_tie)
    assert ("near ties: 1" if is_tie else "1 DIFFER") in "\n".join(table([found]))


@pytest.mark.parametrize("token", [0, 11], ids=["the least likely", "one that the oracle does not have"])
def test_another_token_fails_where_all_logits_are_equal(token: int) -> None:
    ours = answers()
    ours.by_prompt["long"].greedy[4] = token
    require_failure(compare_steps(ours, answers(), what="ours"), f"token 4 is {token}, but the oracle has 5")


def test_a_missing_prompt_or_step_is_not_agreement() -> None:
    short = answers().by_prompt["short"]
    with pytest.raises(AssertionError):
        compare_steps(replace(answers(), by_prompt={"short": short}), answers(), what="ours")
    with pytest.raises(AssertionError):
        compare_steps(replace(answers(), by_prompt={}), replace(answers(), by_prompt={}), what="ours")
    fewer = replace(short, positions=short.positions[1:], logits=short.logits[1:], greedy=short.greedy[1:])
    with pytest.raises(AssertionError):
        compare_steps(replace(answers(), by_prompt=answers().by_prompt | {"short": fewer}), answers(), what="ours")


def test_a_planted_defect_that_nothing_notices_is_a_failure() -> None:
    found = compare_steps(answers(), answers(), what="ours")
    noticed = compare_steps(with_logit(5, step=2, token=0), answers(), what="planted: theta")
    require_agreement([found], [noticed], [])
    with pytest.raises(ParityError, match="'planted: theta' was not noticed"):
        require_agreement([found], [replace(noticed, problems=())], [])


@pytest.fixture
def tokenizer(tmp_path: Path) -> PromptTokenizer:
    byte_tokenizer().save(str(tmp_path / TOKENIZER_NAME))
    return PromptTokenizer(tmp_path / TOKENIZER_NAME, prompt_spec(PVCConfig.preset("tiny")))


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, None),
        ({"prompt": "Who are they?"}, "our tokenizer makes other token ids"),
        ({"answer": "A bear."}, "our tokenizer decodes its answer as 'A bird.', not 'A bear.'"),
    ],
    ids=["equal", "another prompt", "another answer"],
)
def test_other_ids_or_another_text_are_a_failure(
    tokenizer: PromptTokenizer, changed: dict[str, str], expected: str | None
) -> None:
    ids = np.array(tokenizer.encode("Who is it?"))
    said = replace(answers().by_prompt["long"], greedy=np.array(tokenizer.encode("A bird.<|im_end|>")))
    theirs = Answers(versions={}, by_prompt={"long": said})
    texts = {"long": {"prompt": "Who is it?", "answer": "A bird."} | changed}
    problems = text_problems(tokenizer, texts, {"long": ids}, theirs)
    assert len(problems) == (expected is not None)
    if expected is not None:
        assert expected in problems[0]
        with pytest.raises(ParityError, match="our tokenizer"):
            require_agreement([compare_steps(answers(), answers(), what="ours")], [], problems)


def test_what_asks_smollm2_imports_nothing_of_ours() -> None:
    for name in ("run_smollm2.py", "questions.py"):
        assert not imports(Path(__file__).parent / name) & set(MAY_IMPORT), name
