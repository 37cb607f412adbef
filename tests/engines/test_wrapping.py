"""Lines on a narrow terminal."""

from __future__ import annotations

import io

from hypothesis import given
from hypothesis import strategies as st

from engines.wrapping import fitted, fitted_to

ROW = (
    "--  target tensorrt           TensorRT 10.15 to 11.x: data-centre and RTX cards, built on the machine with the GPU"
)


def test_the_rest_of_a_tables_line_stays_in_its_column() -> None:
    assert fitted(ROW, 80).splitlines() == [
        "--  target tensorrt           TensorRT 10.15 to 11.x: data-centre and RTX cards,",
        "                              built on the machine with the GPU",
    ]
    assert fitted("limits      window 8 frames, context 2048 rows", 30).splitlines() == [
        "limits      window 8 frames,",
        "            context 2048 rows",
    ]


def test_a_line_with_a_command_stays_whole() -> None:
    line = "fix: export it again, and keep other files elsewhere: pvc-export onnx -m shapes -o build/shapes"
    assert fitted(line, 40) == line


def test_a_file_or_a_pipe_gets_lines_as_they_are() -> None:
    assert fitted_to(io.StringIO(), ROW) == ROW


@given(st.lists(st.text("ab  ", max_size=30), max_size=8), st.integers(20, 60))
def test_no_word_is_lost_and_no_line_too_long_that_could_be_shorter(parts: list[str], width: int) -> None:
    text = " ".join(parts)
    lines = fitted(text, width).split("\n")
    assert " ".join(lines).split() == text.split()
    assert all(len(line) <= width or len(line.split()) <= 1 for line in lines)
