"""The comparison with an oracle can fail, and the oracles import nothing of ours."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from engines.errors import BackendUnavailable, BuildError, ParityError
from tests.test_rooms import MAY_IMPORT, imports

from . import compare as comparing
from .compare import LIMIT, Comparison, compare, require_agreement, table
from .exchange import Answer, Answers


def answers(positions: np.ndarray, logits: np.ndarray) -> Answers:
    answer = Answer(positions=positions, logits=logits, greedy=np.arange(8))
    return Answers(versions={"oracle": "1.0"}, by_prompt={"short": answer, "long": answer})


@pytest.fixture
def ours() -> Answers:
    """Two prompts of five tokens, with the logits after three of them."""
    return answers(np.array([0, 2, 4]), logits_of_five_tokens()[[0, 2, 4]])


@pytest.fixture
def theirs() -> Answers:
    return answers(np.arange(5), logits_of_five_tokens())


def logits_of_five_tokens() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((5, 11), dtype=np.float32)


def changed(theirs: Answers, **fields: np.ndarray) -> Answers:
    """`theirs` with another answer to the second prompt."""
    return replace(theirs, by_prompt=theirs.by_prompt | {"long": replace(theirs.by_prompt["long"], **fields)})


def with_logit(theirs: Answers, value: float, *, token: int) -> Answers:
    logits = theirs.by_prompt["long"].logits.copy()
    logits[token, 3] = value
    return changed(theirs, logits=logits)


def require_failure(found: Comparison, expected: str) -> None:
    assert len(found.problems) == 1 and expected in found.problems[0]
    with pytest.raises(ParityError, match="long"):
        require_agreement([replace(found, problems=()), found])


def test_equal_answers_agree(ours: Answers, theirs: Answers) -> None:
    found = compare(ours, theirs, way="in pieces")
    assert (found.oracle, found.num_positions, found.max_diff, found.num_greedy) == ("oracle 1.0", 6, 0.0, 16)
    require_agreement([found])


@pytest.mark.parametrize("token", [0, 2, 4])
def test_one_logit_beyond_the_limit_fails_and_within_it_does_not(ours: Answers, theirs: Answers, token: int) -> None:
    logit = float(theirs.by_prompt["long"].logits[token, 3])
    assert not compare(ours, with_logit(theirs, logit + 0.9 * LIMIT, token=token), way="in pieces").problems
    found = compare(ours, with_logit(theirs, logit + 1.1 * LIMIT, token=token), way="in pieces")
    require_failure(found, f"logits after token {token} differ by 1.10e-04")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
def test_a_logit_that_is_no_number_fails_on_either_side(ours: Answers, theirs: Answers, value: float) -> None:
    require_failure(compare(ours, with_logit(theirs, value, token=2), way="in pieces"), "after token 2")
    assert compare(with_logit(ours, value, token=1), theirs, way="in pieces").problems


def test_two_infinities_are_not_equal(ours: Answers, theirs: Answers) -> None:
    both = with_logit(ours, np.inf, token=1), with_logit(theirs, np.inf, token=2)
    require_failure(compare(*both, way="in pieces"), "differ by nan")


def test_an_oracle_that_answers_only_the_last_position_fails(ours: Answers, theirs: Answers) -> None:
    last = changed(theirs, positions=np.array([4]), logits=theirs.by_prompt["long"].logits[4:])
    require_failure(compare(ours, last, way="in pieces"), "after token 0 differ by nan")


@pytest.mark.parametrize(
    ("greedy", "expected"),
    [
        (np.array([0, 1, 2, 3, 4, 9, 6, 7]), "greedy token 5 is 5, but the oracle has 9"),
        (np.arange(7), "greedy token 7 is 7, but the oracle has None"),
    ],
    ids=["another token", "stopped early"],
)
def test_other_greedy_tokens_fail_where_all_logits_are_equal(
    ours: Answers, theirs: Answers, greedy: np.ndarray, expected: str
) -> None:
    found = compare(ours, changed(theirs, greedy=greedy), way="in pieces")
    require_failure(found, expected)
    assert "DIFFER" in "\n".join(table([found]))


def test_a_missing_prompt_is_not_agreement(ours: Answers, theirs: Answers) -> None:
    with pytest.raises(AssertionError):
        compare(ours, replace(theirs, by_prompt={"short": theirs.by_prompt["short"]}), way="in pieces")
    with pytest.raises(AssertionError):
        compare(replace(ours, by_prompt={}), replace(theirs, by_prompt={}), way="in pieces")


def test_answers_are_the_same_after_a_file(theirs: Answers, tmp_path: Path) -> None:
    theirs.save(tmp_path / "oracle.npz")
    loaded = Answers.load(tmp_path / "oracle.npz")
    assert loaded.versions == theirs.versions and list(loaded.by_prompt) == list(theirs.by_prompt)
    for name, answer in theirs.by_prompt.items():
        for field in ("positions", "logits", "greedy"):
            np.testing.assert_array_equal(getattr(loaded.by_prompt[name], field), getattr(answer, field), strict=True)


def test_a_missing_environment_and_a_failing_oracle_are_distinguished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparing, "HOME", tmp_path)
    with pytest.raises(BackendUnavailable, match="make oracles"):
        comparing.run_oracle("genai", tmp_path)
    python = tmp_path / "genai" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\necho no such operator\nexit 1\n")
    python.chmod(0o755)
    with pytest.raises(BuildError, match="no such operator"):
        comparing.run_oracle("genai", tmp_path)


@pytest.mark.parametrize("failing", ["compare_qwen2", "compare_smollm2"])
def test_both_comparisons_run_and_either_fails_the_command(
    failing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(name: str) -> None:
        print(f"ran {name}")
        if name == failing:
            raise ParityError("they differ")

    for name in ("compare_qwen2", "compare_smollm2"):
        monkeypatch.setattr(comparing, name, partial(run, name))
    assert comparing.main() == 3
    said = capsys.readouterr().out
    assert "ran compare_qwen2" in said and "ran compare_smollm2" in said and "they differ" in said
    monkeypatch.setattr(comparing, failing, lambda: None)
    assert comparing.main() == 0


def test_an_oracle_imports_nothing_of_ours() -> None:
    for name in ("run_optimum.py", "run_genai.py", "exchange.py"):
        assert not imports(Path(__file__).parent / name) & set(MAY_IMPORT), name
