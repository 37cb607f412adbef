"""`python -m pvc_ref.evaluate`: every table, and two models compared on the same questions."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

import pvc_ref.evaluate as command
from pvc_ref.bundled import SHAPES_FOLDER
from pvc_ref.checkpoint.files import TOKENIZER_FILE
from pvc_ref.checkpoint.folder import load
from pvc_ref.errors import InputError
from pvc_ref.shapes import CONDITIONS
from pvc_ref.training.held_out import Cell, Row, beside, from_json, pooled, to_json
from pvc_ref.training.threads import fast_products

Tables = dict[str, dict[str, Row]]


def cell(percent: float, count: int) -> Cell:
    return Cell(percent=percent, count=count)


MINE: Tables = {
    "Conditions": {"clean": {"colour": cell(100.0, 10), "shape": cell(50.0, 30)}, "noise": {"colour": cell(80.0, 30)}},
    "Frames of a video": {"4 frames": {"shape": cell(100.0, 30)}},
}
OTHER: Tables = {
    "Conditions": {"clean": {"colour": cell(90.0, 10), "shape": cell(60.0, 30)}, "noise": {"colour": cell(80.0, 30)}},
    "Frames of a video": {"4 frames": {"shape": cell(100.0, 30)}},
}


def run(monkeypatch: pytest.MonkeyPatch, *args: object) -> int | str | None:
    monkeypatch.setattr(sys, "argv", ["evaluate", *map(str, args)])
    try:
        command.main()
    except SystemExit as error:
        return error.code
    return 0


def test_every_table_has_its_rows_and_the_model_is_left_as_it_was() -> None:
    model, tokenizer = load(SHAPES_FOLDER), Tokenizer.from_file(str(SHAPES_FOLDER / TOKENIZER_FILE))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with fast_products():
        tables = command.evaluate(model, tokenizer, num_clips=1)
    assert {title: len(rows) for title, rows in tables.items()} == {
        "Conditions": 2 * len(CONDITIONS) - 1, "An empty scene": 3, "Frames of a video": 4, "Window of 8 frames": 2,
        "Repeats of a still image": 3, "What attention over time does": 3, "Time beyond training": 6,
    }  # fmt: skip
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    everything = pooled(tables)["all"]
    assert everything.count > 200 and everything.percent > 80


def test_accuracies_are_pooled_by_the_number_of_their_questions() -> None:
    found = pooled(MINE)
    assert found["colour"] == cell(pytest.approx(85.0), 40) and found["shape"] == cell(pytest.approx(75.0), 60)
    assert found["all"] == cell(pytest.approx(79.0), 100)


def test_two_models_stand_beside_each_other_with_their_difference() -> None:
    assert beside(MINE, OTHER).splitlines() == [
        "| | all | colour | shape |",
        "|---|---|---|---|",
        "| this model | 79.00 | 85.00 | 75.00 |",
        "| the other | 81.00 | 82.50 | 80.00 |",
        "| difference | -2.00 | +2.50 | -5.00 |",
        "| questions | 100 | 40 | 60 |",
    ]


def test_models_that_were_asked_other_questions_are_not_compared() -> None:
    fewer = {"Conditions": MINE["Conditions"]}
    with pytest.raises(InputError) as info:
        beside(MINE, fewer)
    assert "asked 30 questions of 'shape', this one 60" in info.value.what


def test_numbers_written_by_one_run_are_read_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written = tmp_path / "other.json"
    monkeypatch.setattr(command, "evaluate", lambda *_, **__: OTHER)
    assert run(monkeypatch, "--json", written) == 0
    read = json.loads(written.read_text("utf-8"))
    assert {title: from_json(rows) for title, rows in read.items()} == OTHER
    monkeypatch.setattr(command, "evaluate", lambda *_, **__: MINE)
    assert run(monkeypatch, "--against", written) == 0
    out = capsys.readouterr().out
    assert "## Compared with" in out and "| difference | -2.00 | +2.50 | -5.00 |" in out


@pytest.mark.parametrize("text", [None, "not json", "[1]", '{"Conditions": {"clean": {"colour": 1}}}'])
def test_a_file_that_is_no_evaluation_is_refused_before_any_work(
    text: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "other.json"
    if text is not None:
        path.write_text(text, encoding="utf-8")

    def never(*_: object, **__: object) -> None:
        raise AssertionError("a model was evaluated")

    monkeypatch.setattr(command, "evaluate", never)
    assert run(monkeypatch, "--against", path) == 2
    assert "expected: the file that --json FILE wrote" in capsys.readouterr().err


def test_a_file_of_other_clips_is_told_after_the_numbers_are_safe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other, mine = tmp_path / "other.json", tmp_path / "mine.json"
    few = {"Conditions": OTHER["Conditions"]}
    other.write_text(json.dumps({title: to_json(rows) for title, rows in few.items()}), encoding="utf-8")
    monkeypatch.setattr(command, "evaluate", lambda *_, **__: MINE)
    assert run(monkeypatch, "--against", other, "--json", mine) == 2
    assert "fix: evaluate both with the same --clips" in capsys.readouterr().err and mine.is_file()
