"""The events each listener gets, their order, and the listeners that the options open."""

from __future__ import annotations

import json
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

from apps.events.alerts import Alerts, parse_rule
from apps.events.announcer import Announcer
from apps.events.opening import make_trigger, open_announcer, open_recorder
from apps.events.options import EventOptions
from apps.events.snapshots import Snapshots
from apps.triggers import OnChange, OnTrigger, Schedule
from engines.errors import BackendUnavailable

from .fakes import STATUS, Follower, captured, event


def announcer(*followers: Follower, rules: tuple[str, ...] = (), **parts: object) -> Announcer:
    known: dict[str, object] = {"snapshots": None, "troubles": SimpleQueue(), "say": pytest.fail} | parts
    return Announcer(followers, alerts=Alerts(map(parse_rule, rules)), **known)  # type: ignore[arg-type]


def test_everybody_hears_everything_and_an_alert_after_its_answer() -> None:
    first, second = Follower(), Follower()
    desk = announcer(first, second, rules=("fire",))
    desk.saw(captured(4), STATUS)
    desk.said("What?", "Fi")
    desk.happened(event("Fire!", frame=4), captured(4))
    desk.happened(event("Nothing.", frame=5), captured(5))
    desk.close()
    for follower in (first, second):
        assert follower.seen == [4] and follower.texts == ["Fi"] and follower.is_closed
        assert [found.kind for found in follower.events] == ["answer", "alert", "answer", "alert-end"]


def test_an_answer_to_a_question_in_between_neither_begins_nor_ends_an_alert() -> None:
    follower = Follower()
    desk = announcer(follower, rules=("fire",), standing_question=lambda: "What is there?")
    desk.happened(event("Fire!"), captured())
    desk.happened(event("Red.", question="Which colour is the car?"), captured())
    desk.happened(event("No fire.", question="Is there a fire?"), captured())
    assert [found.kind for found in follower.events] == ["answer", "alert", "answer", "answer"]


def test_the_event_of_an_alert_and_of_a_snapshot_names_the_picture_and_others_do_not(tmp_path: Path) -> None:
    follower, frame = Follower(), captured(3)
    snapshots = Snapshots(tmp_path, trouble=pytest.fail)
    desk = announcer(follower, rules=("fire",), snapshots=snapshots)
    desk.happened(event("Fire!", frame=3), frame)
    desk.happened(event("by hand", kind="snapshot", frame=3), frame)
    desk.happened(event("No.", frame=3), frame)
    desk.close()
    named = {found.kind: found.snapshot for found in follower.events}
    (path,) = tmp_path.iterdir()
    assert named == {"answer": None, "alert": str(path), "snapshot": str(path), "alert-end": None}


def test_trouble_of_another_thread_is_reported_and_becomes_an_event_with_the_next_frame() -> None:
    follower, troubles, said = Follower(), SimpleQueue[str](), list[str]()
    desk = announcer(follower, troubles=troubles, say=said.append)
    troubles.put("webhook example.org: no answer")
    assert follower.events == []
    desk.saw(captured(7), STATUS)
    (found,) = follower.events
    assert (found.kind, found.text, found.frame) == ("trouble", "webhook example.org: no answer", 7)
    assert said == ["webhook example.org: no answer"]


def test_trouble_that_trouble_makes_waits_for_the_next_frame() -> None:
    troubles, said = SimpleQueue[str](), list[str]()

    class Troubled(Follower):
        def happened(self, event: object, captured: object) -> None:
            troubles.put("the log cannot be written")

    desk = announcer(Troubled(), troubles=troubles, say=said.append)
    troubles.put("webhook")
    for index in range(3):
        desk.saw(captured(index), STATUS)
    assert said == ["webhook", "the log cannot be written", "the log cannot be written"]


def test_trouble_at_the_end_reaches_those_who_are_closed_later() -> None:
    troubles, said, log = SimpleQueue[str](), list[str](), Follower()

    class Delivering(Follower):
        def close(self) -> None:
            troubles.put("3 events were not delivered")
            super().close()

    desk = announcer(Delivering(), log, troubles=troubles, say=said.append)
    desk.saw(captured(), STATUS)
    desk.close()
    assert [found.text for found in log.events] == ["3 events were not delivered"] == said


def test_what_the_options_ask_for_is_opened(tmp_path: Path) -> None:
    follower = Follower()
    options = EventOptions(
        alerts=(parse_rule("fire"),), log=tmp_path / "log.jsonl", snapshots=tmp_path / "shots",
        record_folder=tmp_path / "recording",
    )  # fmt: skip
    troubles: SimpleQueue[str] = SimpleQueue()
    recorder = open_recorder(options, source_fps=10.0, trouble=troubles.put)
    assert recorder is not None
    desk = open_announcer(options, others=[follower], say=pytest.fail, recorder=recorder, troubles=troubles)
    frame = captured(3)
    desk.saw(frame, STATUS)
    desk.happened(event("Fire!", frame=3), frame)
    recorder.add(frame.bgr, frame.time_s)
    recorder.close()
    desk.close()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["answer", "alert"] == [found.kind for found in follower.events]
    assert Path(lines[1]["snapshot"]).exists()
    (segment,) = [json.loads(line) for line in (tmp_path / "recording" / "index.jsonl").read_text().splitlines()]
    assert [found["kind"] for found in segment["events"]] == ["answer", "alert"] and segment["first_frame"] == 3


def test_nothing_is_opened_that_is_not_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    open_announcer(EventOptions(), others=[], say=pytest.fail).close()
    assert open_recorder(EventOptions(), source_fps=None, trouble=pytest.fail) is None
    assert list(tmp_path.iterdir()) == []


def test_of_two_places_the_second_cannot_be_opened_and_the_first_is_closed(tmp_path: Path) -> None:
    (tmp_path / "shots").write_bytes(b"")
    options = EventOptions(log=tmp_path / "log.jsonl", snapshots=tmp_path / "shots")
    with pytest.raises(BackendUnavailable, match="shots"):
        open_announcer(options, others=[], say=pytest.fail)


@pytest.mark.parametrize(
    ("options", "kind"),
    [({}, Schedule), ({"ask_when": "change"}, OnChange), ({"ask_when": "trigger"}, OnTrigger)],
)
def test_the_trigger_is_the_one_that_is_asked_for(options: dict[str, Any], kind: type) -> None:
    assert isinstance(make_trigger(EventOptions(**options), ask_every_s=1.0), kind)
