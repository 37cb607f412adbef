"""The score: right answers are counted, ungraded ones are not, and no share is rounded up."""

from __future__ import annotations

import pytest

from apps.score import Grade, Score, share


def test_right_and_wrong_answers_are_counted_by_topic() -> None:
    score = Score()
    for is_right, topic in ((True, "count"), (False, "count"), (True, "event"), (True, None), (None, "count")):
        score.add(Grade(is_right=is_right, topic=topic))
    assert score.text() == "right 3 of 4, 75 %"
    assert score.summary() == {
        "num_right": 3,
        "num_graded": 4,
        "accuracy": 0.75,
        "by_topic": {"count": {"num_right": 1, "num_graded": 2}, "event": {"num_right": 1, "num_graded": 1}},
    }


def test_without_a_grade_there_is_no_share() -> None:
    score = Score()
    score.add(Grade(is_right=None, topic="count"))
    assert score.text() == ""
    assert score.summary() == {"num_right": 0, "num_graded": 0, "accuracy": None, "by_topic": {}}


@pytest.mark.parametrize(
    ("num_right", "num_graded", "text"), [(17, 20, "85 %"), (999, 1000, "99 %"), (0, 3, "0 %"), (7, 7, "100 %")]
)
def test_all_is_only_said_of_all(num_right: int, num_graded: int, text: str) -> None:
    assert share(num_right, num_graded) == f"{num_right} of {num_graded}, {text}"
