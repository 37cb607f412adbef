"""The simulation against closed formulas, the scheduler's order of steps, and a real run."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import mean

import pytest

from apps.scale import __main__ as program
from apps.scale import simulation
from apps.scale.fleet import MOST_CAMERAS, Sizes, fleet, most_cameras
from apps.scale.load import Load, Outcome
from apps.scale.simulation import Rules, ServiceTimes, cost, simulate
from engines import open_bundle
from engines.many.handle import QueueLimits, StreamHandle
from engines.many.scheduler import OneByOne, Scheduler

ENDLESS = QueueLimits(frames=10**9)


def waiting(times: ServiceTimes, rate: float, *, frames: int = 60_000, seed: int = 3) -> float:
    """Mean seconds a frame waits, for one camera with random arrivals and no dropped frame."""
    load = Load(cameras=1, fps=rate, seconds=frames / rate, seed=seed, is_random=True)
    outcome = simulate(times, load, Rules(limits=ENDLESS))
    assert outcome.dropped == 0 and len(outcome.latencies) == outcome.offered > 0.98 * frames
    assert outcome.utilisation == pytest.approx(rate * mean(times.frame), rel=0.02)
    return mean(outcome.latencies) - mean(times.frame)


@pytest.mark.parametrize("busy", [0.3, 0.6, 0.8])
def test_frames_at_random_wait_as_in_a_queue_of_equal_service_times(busy: float) -> None:
    """M/D/1: rho s / 2 (1 - rho)."""
    service = 0.02
    expected = busy * service / (2 * (1 - busy))
    assert waiting(ServiceTimes(frame=(service,)), busy / service) == pytest.approx(expected, rel=0.06)


@pytest.mark.parametrize("kind", ["two values", "exponential"])
def test_uneven_service_times_make_them_wait_longer_as_pollaczek_and_khinchine_say(kind: str) -> None:
    """M/G/1: lambda E[S^2] / 2 (1 - rho)."""
    chance, rate = random.Random(5), 30.0
    frame = (0.005, 0.035) if kind == "two values" else tuple(chance.expovariate(50.0) for _ in range(5_000))
    expected = rate * mean(each**2 for each in frame) / (2 * (1 - rate * mean(frame)))
    assert waiting(ServiceTimes(frame=frame), rate) == pytest.approx(expected, rel=0.08)


@pytest.mark.parametrize("cameras", [3, 8, 20])
def test_what_is_dropped_beyond_capacity_is_one_less_its_share(cameras: int) -> None:
    load = Load(cameras=cameras, fps=10.0, seconds=60.0)
    outcome = simulate(ServiceTimes(frame=(0.05,)), load)
    capacity, wanted = 1 / 0.05, cameras * 10.0
    assert outcome.dropped_share == pytest.approx(1 - capacity / wanted, abs=0.01)
    assert outcome.utilisation > 0.99 and outcome.offered == outcome.dropped + len(outcome.latencies)


def test_below_capacity_nothing_is_dropped_and_nothing_waits_long() -> None:
    outcome = simulate(ServiceTimes(frame=(0.05,)), Load(cameras=4, fps=4.0, seconds=30.0))
    assert outcome.dropped == 0 and outcome.utilisation == pytest.approx(4 * 4.0 * 0.05, rel=0.01)
    assert min(outcome.latencies) == pytest.approx(0.05) and max(outcome.latencies) <= 4 * 0.05 + 1e-9


def test_streams_share_a_full_process_evenly() -> None:
    outcome = simulate(ServiceTimes(frame=(0.03, 0.07)), Load(cameras=12, fps=10.0, seconds=60.0))
    assert outcome.dropped_share > 0.5
    assert max(outcome.by_camera) - min(outcome.by_camera) <= 2


def test_a_long_answer_holds_up_no_camera() -> None:
    """Frames and tokens take turns: a frame waits for one step of each stream, not for a 50 s answer."""
    times = ServiceTimes(frame=(0.02,), begin=(0.05,), token=(0.05,), tokens=(1000,))
    load = Load(cameras=4, fps=2.0, seconds=30.0, questions=2.0)
    outcome = simulate(times, load)
    assert outcome.dropped == 0 and outcome.asked >= 4
    assert max(outcome.latencies) <= 4 * 0.05 + 4 * 0.02 + 1e-9
    assert min(outcome.answers) > 50.0


def test_the_first_token_of_an_idle_process_comes_after_the_question_and_one_token() -> None:
    times = ServiceTimes(frame=(0.001,), begin=(0.3,), token=(0.1,), tokens=(4,))
    outcome = simulate(times, Load(cameras=1, fps=0.01, questions=6.0, seconds=40.0))
    assert outcome.first_token and outcome.first_token == pytest.approx([0.4] * len(outcome.first_token), abs=2e-3)
    assert outcome.answers == pytest.approx([0.7] * len(outcome.answers), abs=2e-3)


def test_frames_of_an_answer_are_taken_in_by_the_llm_after_it() -> None:
    """Their cost is not lost: it is paid later."""
    times = ServiceTimes(frame=(0.02,), ingest=0.01, begin=(0.01,), token=(0.02,), tokens=(100,))
    load = Load(cameras=1, fps=10.0, questions=3.0, seconds=60.0)
    outcome = simulate(times, load)
    assert outcome.dropped == 0 and len(outcome.answers) == 3
    assert outcome.busy == pytest.approx(cost(times, outcome), rel=0.01)


def test_frames_that_would_cut_an_answer_wait_and_the_oldest_of_them_are_dropped() -> None:
    """With 8 frames between anchors, at most 16 fit next to an answer. Here 2 arrive, or 40."""
    load = Load(cameras=1, fps=10.0, questions=6.0, seconds=60.0)
    times = ServiceTimes(frame=(0.01,), begin=(0.01,), token=(0.02,), tokens=(10,), anchor=8)
    short, long = simulate(times, load), simulate(replace(times, tokens=(200,)), load)
    assert (short.failed, len(short.answers)) == (0, short.asked)
    assert (long.failed, len(long.answers)) == (0, long.asked)
    assert short.dropped == 0 and long.dropped > 20 * (long.asked - 1)


def test_streams_that_share_a_pass_do_not_add_up() -> None:
    load = Load(cameras=8, fps=10.0, seconds=120.0)
    alone = simulate(ServiceTimes(frame=(0.05,)), load, Rules(most=8, is_batched=False))
    shared = simulate(ServiceTimes(frame=(0.05,), more=0.0), load, Rules(most=8, is_batched=True))
    assert alone.dropped_share == pytest.approx(0.75, abs=0.01) and shared.dropped == 0
    assert shared.utilisation < 1.0 and min(shared.latencies) >= 0.05


def test_a_round_waits_for_streams_that_are_not_ready_but_not_for_long() -> None:
    """One of two cameras is idle, so each frame waits the whole window and no other frame joins it."""
    load = Load(cameras=2, fps=1.0, seconds=20.0)
    gathered = simulate(ServiceTimes(frame=(0.01,), more=0.0), load, Rules(most=2, is_batched=True, gather=0.004))
    assert gathered.latencies == pytest.approx([0.014] * len(gathered.latencies))
    assert simulate(ServiceTimes(frame=(0.01,)), load).latencies == pytest.approx([0.01] * len(gathered.latencies))


def test_the_same_load_has_the_same_outcome_and_another_seed_another() -> None:
    times = ServiceTimes(frame=(0.02, 0.03), begin=(0.01,), token=(0.01, 0.02), tokens=(3, 5), save=(0.01,))
    load = Load(cameras=5, fps=7.0, questions=20.0, seconds=20.0, save_every=8)
    assert simulate(times, load) == simulate(times, load)
    assert simulate(times, load) != simulate(times, replace(load, seed=1))


@pytest.mark.parametrize("most", [1, 2, 3])
def test_its_rounds_are_those_of_the_scheduler(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All requests arrive at once. Compares the steps of the simulation's loop with the scheduler's."""
    steps: list[tuple[str, int]] = []
    seen: list[simulation._Stream] = []

    def logged(kind: str, call: Callable[..., object]) -> Callable[..., object]:
        def step(self: object, *args: object, **named: object) -> object:
            stream = self._stream if isinstance(self, simulation._Answering) else self
            if stream not in seen:
                seen.append(stream)  # type: ignore[arg-type]
            steps.append((kind, stream.index))  # type: ignore[attr-defined]
            return call(self, *args, **named)

        return step

    made = simulation._Stream.__init__

    def counted(self: simulation._Stream, *args: object) -> None:
        made(self, *args)  # type: ignore[arg-type]
        self.index = counted.number  # type: ignore[attr-defined]
        counted.number += 1  # type: ignore[attr-defined]

    counted.number = 0  # type: ignore[attr-defined]
    monkeypatch.setattr(simulation._Stream, "__init__", counted)
    for kind in ("push", "begin"):
        monkeypatch.setattr(simulation._Stream, kind, logged(kind, getattr(simulation._Stream, kind)))
    monkeypatch.setattr(simulation._Answering, "step", logged("token", simulation._Answering.step))
    load = Load(cameras=4, fps=3.0, questions=60.0, seconds=1.0, seed=2)
    times = ServiceTimes(frame=(9.0,), begin=(9.0,), token=(9.0,), tokens=(3,))
    arrivals = [replace(each, at_s=0.0) for each in load.arrivals()]
    monkeypatch.setattr(Load, "arrivals", lambda self: list(arrivals))
    simulate(times, load, Rules(most=most, gather=0.0))
    simulated = list(steps)

    handles: list[StreamHandle] = []
    monkeypatch.setattr(simulation, "next_step", lambda *_: None)
    monkeypatch.setattr(simulation, "is_ready", lambda handle: handles.append(handle) or False)
    steps.clear()
    counted.number = 0  # type: ignore[attr-defined]
    clock = simulation._Clock(is_batched=False, more=1.0)
    streams = [simulation._Stream(clock, times, random.Random(0)) for _ in range(4)]
    scheduler = Scheduler(OneByOne(bundle=None, most=most), max_streams=4)  # type: ignore[arg-type]
    scheduler.close()
    own = [
        StreamHandle(stream, options={}, limits=QueueLimits(), changed=scheduler._changed, is_spare=True)  # type: ignore[arg-type]
        for stream in streams
    ]
    outcome = Outcome(cameras=4)
    for each in arrivals:
        simulation.hand_over(own[each.camera], each, outcome, now=clock.read, at=0.0, frame=None, save=id)
    scheduler._handles = list(own)
    while taken := scheduler._next_steps():
        clock.run(taken)
    assert simulated == steps and len(steps) > 20


def test_what_a_process_takes_is_found_by_simulation() -> None:
    times, load = ServiceTimes(frame=(0.01,)), Load(cameras=1, fps=5.0, seconds=30.0)
    most = most_cameras(times, load)
    assert most == 20, "each camera uses 5 % of the process, and waits at most for all others: 0.2 s"
    assert most_cameras(ServiceTimes(frame=(1.0,)), load) == 0
    assert most_cameras(ServiceTimes(frame=(1e-9,)), replace(load, seconds=0.5)) == MOST_CAMERAS


def test_a_process_whose_frames_come_too_late_is_full_even_if_it_drops_none() -> None:
    """A snapshot of 0.5 s delays frames that come every 0.2 s: the queue fills to its limit, and no frame is lost."""
    times, load = ServiceTimes(frame=(0.01,), save=(0.5,)), Load(cameras=1, fps=5.0, seconds=30.0, save_every=4)
    assert simulate(times, load).dropped == 0
    assert most_cameras(times, load) == 0 and most_cameras(times, replace(load, save_every=0)) == 20


def test_a_fleet_adds_up() -> None:
    times = ServiceTimes(frame=(0.01,), save=(0.02,))
    load = Load(cameras=1, fps=4.0, save_every=8)
    sizes = Sizes(state=1000, snapshot=500, picture=100, open=0.03)
    many = fleet(10_000, times, load, sizes, per_process=16)
    assert (many.processes, many.state_bytes, many.picture_rate) == (625, 10_000_000, 4_000_000)
    assert many.snapshot_rate == 10_000 * 4 / 8 * 500 and many.handover == pytest.approx(16 * 0.05)
    assert fleet(1, times, load, sizes, per_process=16).handover == pytest.approx(0.05)


def test_a_true_run_takes_what_comes_and_is_told_as_a_simulation_is(bundle_fp32: Path) -> None:
    from apps.scale.measured import clip, measure, measure_snapshot, run

    bundle, frames = open_bundle(bundle_fp32, runtime="cpu"), clip(width=64, height=48)
    times = measure(bundle, frames)
    assert len(times.frame) == 64 and min(times.frame) > times.ingest > 0 and min(times.save) > 0
    load = Load(cameras=3, fps=3.0, questions=40.0, seconds=2.0, save_every=2)
    outcome = run(bundle, load, frames)
    assert outcome.failed == 0 and outcome.offered == sum(each.kind == "frame" for each in load.arrivals())
    assert len(outcome.latencies) + outcome.dropped == outcome.offered and sum(outcome.by_camera) == len(
        outcome.latencies
    )
    assert len(outcome.answers) == len(outcome.first_token) == outcome.asked > 0 < outcome.busy < outcome.elapsed
    assert measure_snapshot(bundle, frames).num_bytes > 1000


def in_this_process(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["simulate", *map(str, arguments)])
    return program.main()


def test_times_from_elsewhere_are_simulated_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "times.json"
    path.write_text(json.dumps({"frame": [0.02], "begin": [0.01], "token": [0.005], "tokens": [10], "more": 0.1}))
    assert in_this_process(monkeypatch, "--times", path, "--cameras", "1,30", "--save-every", 0) == 0
    out = capsys.readouterr().out
    assert "| 30 | 1.00 | 100% | " in out and "One process serves " in out
    assert in_this_process(monkeypatch, "--times", path, "--cameras", "30", "--most", 8, "--json") == 0
    data = json.loads(capsys.readouterr().out)
    assert data["rows"][0]["alone"]["dropped"] == 0 and data["per_process"] >= 30 and data["fleets"] == []
    sizes = ("--state-mib", 100, "--snapshot-mib", 10, "--open-s", 0.1)
    assert in_this_process(monkeypatch, "--times", path, "--cameras", "1", *sizes) == 0
    assert "| 10,000 | " in (out := capsys.readouterr().out) and "| 1.05 TB |" in out
    again = tmp_path / "again.json"
    again.write_text(json.dumps(data))
    assert in_this_process(monkeypatch, "--times", again, "--cameras", "2") == 0


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"frame": []}', '{"frame": [-1]}', '{"frames": [1]}', '{"times": {}}']
)
def test_a_file_without_times_is_refused(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "t.json").write_text(text)
    assert in_this_process(monkeypatch, "--times", tmp_path / "t.json", "--json") == 6
    assert "does not contain service times" in json.loads(capsys.readouterr().out)["what"]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["b", "--times", "t"],
        ["b", "--cameras", "0"],
        ["b", "--cameras", "x"],
        ["b", "--fps", "0"],
        ["b", "--fps", "nan"],
    ],
    ids=" ".join,
)
def test_a_wrong_call_is_an_error_of_usage(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit) as caught:
        in_this_process(monkeypatch, *arguments)
    assert caught.value.code == 2
