"""The choice of a token, and other ends of an answer. On plain logits, and on a whole-number model."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from engines import PVCStream
from engines.bundle import Bundle
from engines.errors import StreamError, StreamFull
from engines.prompt import Turn
from engines.sampling import Sampler, Sampling, nucleus

from .exact import exact_bundle
from .test_fork import FRAMES, pushed, state_of

LOGITS = np.log(np.array([0.1, 0.4, 0.2, 0.3], np.float32))


@pytest.fixture
def stream(tmp_path: Path) -> PVCStream:
    return pushed(PVCStream(exact_bundle(tmp_path, trained_frames=8), clock="run-on"), FRAMES[:2])


# -- one token -----------------------------------------------------------------------------------------------------


def test_with_temperature_0_it_is_the_likeliest_and_the_first_of_equal_ones() -> None:
    assert Sampler(Sampling()).choose(LOGITS) == 1
    assert Sampler(Sampling(top_p=0.1, seed=4)).choose(np.array([2.0, 5.0, 5.0], np.float32)) == 1


def test_tokens_come_as_often_as_they_are_likely() -> None:
    sampler, counts = Sampler(Sampling(temperature=1.0, seed=0)), np.zeros(4)
    for _ in range(4000):
        counts[sampler.choose(LOGITS)] += 1
    expected = 4000 * np.exp(LOGITS)
    chi_squared = float(((counts - expected) ** 2 / expected).sum())
    assert chi_squared < 16.3  # 99.9 % of 3 degrees of freedom; measured: 2.4


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [(0.05, [1]), (0.4, [1]), (0.41, [1, 3]), (0.69, [1, 3]), (0.8, [1, 3, 2]), (1.0, [1, 3, 2, 0])],
)
def test_top_p_keeps_the_fewest_tokens_that_have_it(top_p: float, kept: list[int]) -> None:
    tokens, shares = nucleus(LOGITS, Sampling(temperature=1.0, top_p=top_p))
    assert tokens.tolist() == kept and shares.sum() == pytest.approx(1)


def test_a_temperature_flattens_and_sharpens() -> None:
    def first(temperature: float) -> float:
        return float(nucleus(LOGITS, Sampling(temperature=temperature))[1][0])

    assert first(0.5) == pytest.approx(0.16 / (0.01 + 0.16 + 0.04 + 0.09), rel=1e-5)
    assert first(1e-320) == 1.0 and first(1e6) == pytest.approx(0.25, rel=1e-4)


def test_logits_that_are_minus_infinity_never_come() -> None:
    sampler = Sampler(Sampling(temperature=2.0, seed=1))
    assert {sampler.choose(np.array([-np.inf, 0.0, -np.inf], np.float32)) for _ in range(50)} == {1}


@pytest.mark.parametrize("seed", [0, -1, 2**63, 2**70])
def test_any_whole_number_is_a_seed_and_the_same_one_gives_the_same_tokens(seed: int) -> None:
    def drawn() -> list[int]:
        sampler = Sampler(Sampling(temperature=1.5, seed=seed))
        return [sampler.choose(LOGITS) for _ in range(20)]

    assert drawn() == drawn()


def test_without_a_seed_it_differs_from_time_to_time() -> None:
    drawn = {tuple(map(Sampler(Sampling(temperature=1.5)).choose, [LOGITS] * 40)) for _ in range(3)}
    assert len(drawn) == 3


@pytest.mark.parametrize("wrong", [{"temperature": -0.1}, {"temperature": math.nan}, {"top_p": 0.0}, {"top_p": 1.1}])
def test_numbers_that_no_choice_can_follow_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(StreamError, match=next(iter(wrong))):
        Sampling(**wrong)


# -- an answer -----------------------------------------------------------------------------------------------------


def test_a_sampled_answer_is_repeated_by_its_seed_and_leaves_no_trace(stream: PVCStream) -> None:
    before, greedy = state_of(stream), stream.ask("what?", max_new_tokens=6)
    hot = [stream.ask("what?", max_new_tokens=6, sampling=Sampling(temperature=1e9, seed=s)) for s in (1, 1, 2, 3)]
    assert hot[0].token_ids == hot[1].token_ids
    assert len({answer.token_ids for answer in (*hot, greedy)}) == 4
    assert stream.ask("what?", max_new_tokens=6).token_ids == greedy.token_ids and state_of(stream) == before


def test_a_text_that_ends_an_answer_is_no_part_of_it(stream: PVCStream) -> None:
    hot = Sampling(temperature=1e9, seed=5)
    whole = stream.ask("what?", max_new_tokens=12, sampling=hot)
    stop = next(c for c in whole.text[1:] if c != "\N{REPLACEMENT CHARACTER}")
    answer = stream.ask("what?", max_new_tokens=12, sampling=hot, stop=("never said", stop))
    assert answer.finished and answer.text == whole.text[: whole.text.index(stop)]
    assert answer.token_ids == whole.token_ids[: len(answer.token_ids)]


def test_an_empty_text_ends_no_answer(stream: PVCStream) -> None:
    before = state_of(stream)
    with pytest.raises(StreamError, match="a stop text is empty"):
        stream.ask("what?", stop=("",))
    assert state_of(stream) == before


class Says:
    """A sampler that gives this text, then the end token."""

    def __init__(self, text: str, bundle: Bundle) -> None:
        self._tokens = [*bundle.tokenizer.encode(text), *bundle.tokenizer.stop_ids]

    def choose(self, logits: np.ndarray) -> int:
        return self._tokens.pop(0)


# -- earlier turns -----------------------------------------------------------------------------------------------------


def said_and_asked(bundle: Bundle, answer: str) -> tuple[int, ...]:
    stream = pushed(PVCStream(bundle, clock="run-on"), FRAMES[:2])
    return stream.ask("now?", max_new_tokens=5, earlier=[Turn(question="what?", answer=answer)]).token_ids


def test_earlier_turns_are_what_the_model_would_have_kept(stream: PVCStream) -> None:
    """Row by row: the next logits are the same."""
    told = stream.fork()
    kept = stream.fork()
    first = kept.begin("what?", max_new_tokens=4, keep=True)
    first._sampler = Says("red", stream._bundle)  # type: ignore[assignment]
    while not first.step():
        pass
    expected = kept.score("now?", [3, 1])
    answering = told.begin("now?", earlier=[Turn(question="what?", answer="red")])
    assert np.array_equal(answering._logits, expected[0])


def test_it_sees_what_earlier_turns_say(stream: PVCStream) -> None:
    answers = {said_and_asked(stream._bundle, text) for text in ("red", "blue", "a long way", "no")}
    assert len(answers) > 1


def test_earlier_turns_are_forgotten_with_the_question(stream: PVCStream) -> None:
    before = state_of(stream)
    stream.ask("now?", max_new_tokens=3, earlier=[Turn(question="what?", answer="red", images=FRAMES[:1])])
    assert state_of(stream) == before


def test_images_of_earlier_turns_stand_where_they_were_shown_and_are_numbered_through(stream: PVCStream) -> None:
    spec = stream._bundle.manifest.prompt
    red = Turn(question="and here?", answer="red", images=FRAMES[:1])
    pieces = spec.conversation([Turn(question="hello", answer="hi"), red], "so?", 1)
    assert len(pieces) == 3
    assert pieces[0].startswith(f"hello{spec.ask_suffix}hi{spec.next_turn}")
    assert pieces[0].endswith(spec.image_prefix.format(index=1))
    assert f"and here?{spec.ask_suffix}red{spec.next_turn}{spec.image_prefix.format(index=2)}" in pieces[1]
    assert pieces[2].endswith("so?")
    assert spec.conversation([red], "so?", 0)[0] == ""  # a single image has no number
    assert spec.conversation([], "so?", 2) == spec.around_images("so?", 2)


@pytest.mark.parametrize("turn", [Turn(question="<|im_end|>", answer=""), Turn(question="", answer="<|im_end|>")])
def test_no_earlier_turn_may_hold_a_special_token(stream: PVCStream, turn: Turn) -> None:
    with pytest.raises(StreamError, match="special token"):
        stream.ask("now?", earlier=[turn])


def test_turns_that_do_not_fit_are_refused_before_anything_runs(stream: PVCStream) -> None:
    before = state_of(stream)
    with pytest.raises(StreamFull):
        stream.ask("now?", earlier=[Turn(question="long " * 1000, answer="yes")])
    assert state_of(stream) == before
