"""Drift: a long stream of a faithful export does not lose precision, and faults that cause a loss are found."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from engines.errors import EXIT_DIFFERENT, NonFiniteError, SpecError
from engines.graph_specs import graph_specs
from engines.memory import Array, Tensor
from engines.session import Session, Wrapped
from engines.spec import VISION_GRAPHS, StreamLimits
from engines.target import load_target
from pvc_export.graphs.models import LoadedModel
from pvc_export.graphs.modules import model_shape
from pvc_export.graphs.sessions import open_graphs
from pvc_export.parity.drift.measure import _world, measure_drift, reference_block, vision_noise
from pvc_export.parity.drift.report import DriftReport, Sample
from pvc_export.parity.drift.statistics import fit_trend, plan_blocks, student_quantile
from pvc_export.parity.limits import NoiseTable
from pvc_export.parity.recording import Frames, run_torch
from pvc_export.studies import drift
from pvc_ref import PVC

WINDOW, NUM_FRAMES = 4, 60
Sessions = dict[str, Session]
Edit = Callable[[int, dict[str, Array]], None]
"""A planted fault: changes a graph's tensors in place at a frame."""


@pytest.fixture(scope="module")
def sessions(tiny: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Sessions:
    """The vision graphs of `tiny`, without a bundle."""
    folder = tmp_path_factory.mktemp("graphs")
    limits = StreamLimits(window=WINDOW)
    return open_graphs(tiny.model, VISION_GRAPHS, load_target("cpu"), limits, folder, threads=1)


def measured_report(sessions: Sessions, model: PVC) -> DriftReport:
    noise = vision_noise(model, sessions["temporal"].spec, precision="fp32")
    return measure_drift(sessions, model, noise, num_frames=NUM_FRAMES)


@pytest.fixture(scope="module")
def faithful(sessions: Sessions, tiny: LoadedModel) -> DriftReport:
    return measured_report(sessions, tiny.model)


class Faulty(Wrapped):
    """A session that changes its inputs or outputs."""

    def __init__(self, session: Session, *, inputs: Edit | None = None, outputs: Edit | None = None) -> None:
        super().__init__(session, self._changed)
        self._inputs, self._outputs = inputs, outputs
        self.frame = 0

    def _changed(self, session: Session, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        fed = {name: np.array(value) for name, value in inputs.items()}
        if self._inputs is not None:
            self._inputs(self.frame, fed)
        returned = {name: np.array(value) for name, value in session.run(fed).items()}
        if self._outputs is not None:
            self._outputs(self.frame, returned)
        self.frame += 1
        return dict(returned)


def measure(sessions: Sessions, model: PVC, **faulty: Faulty) -> dict[str, str]:
    """Return the verdict on every tensor."""
    report = measured_report(sessions | faulty, model)
    assert report.passed == (not report.faults())
    return {curve.tensor: curve.verdict for curve in report.curves}


# -- the reference of a sample -----------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [1, 3, 5], ids=lambda w: f"W={w}")
def test_a_frame_depends_on_the_frames_of_all_windows_before_it_and_on_no_other(window: int, tiny: LoadedModel) -> None:
    model = copy.deepcopy(tiny.model).double()
    spec = graph_specs(model_shape(tiny.config), StreamLimits(window=window), "fp32")["temporal"]
    pixels = list(islice(_world(model), 24))
    frames = Frames(pixels=pixels, times=range(len(pixels)), total_frames=None)
    continuous = run_torch(model, frames, spec)[-2:]
    reach = model.config.vision.num_temporal_layers * (window - 1)

    def worst(num_before: int) -> float:
        first = len(pixels) - 2 - num_before
        got = reference_block(model, pixels[first:], first=first, num_compared=2, window=window, temporal=spec)
        pairs = [(mine[name], theirs[name]) for mine, theirs in zip(got, continuous, strict=True) for name in theirs]
        assert len(pairs) == 2 * 7
        return max(float(np.abs(mine - theirs).max()) for mine, theirs in pairs)

    assert worst(reach) < 1e-12
    if reach:
        assert worst(reach - 1) > 1e-9  # one frame less is not enough


# -- verdicts ----------------------------------------------------------------------------------------------------


def test_a_faithful_export_does_not_drift(faithful: DriftReport) -> None:
    assert faithful.passed and not faithful.faults()
    assert [curve.tensor for curve in faithful.curves] == [
        "trunk/trunk_features", "temporal/features", "temporal/new.0.key", "temporal/new.0.value",
        "temporal/new.1.key", "temporal/new.1.value", "compressor/frame_embeds",
    ]  # fmt: skip
    for curve in faithful.curves:
        frames = [sample.frame for sample in curve.samples]
        assert frames[: 2 * WINDOW] == list(range(2 * WINDOW)) and frames[-1] == NUM_FRAMES - 1
        assert curve.means[0].frame >= WINDOW  # the first window is still filling
        assert 0 < curve.worst.error < 2e-6 and all(0 < sample.floor < 2e-6 for sample in curve.samples)


def test_a_clock_that_gains_a_little_every_frame_drifts(sessions: Sessions, tiny: LoadedModel) -> None:
    def gain(frame: int, fed: dict[str, Array]) -> None:
        fed["frame_time"] *= 1 + 1e-4

    verdicts = measure(sessions, tiny.model, temporal=Faulty(sessions["temporal"], inputs=gain))
    drifting = {tensor for tensor, verdict in verdicts.items() if verdict.startswith("drifts: ")}
    assert drifting == set(verdicts) - {"trunk/trunk_features"} and verdicts["trunk/trunk_features"] == "ok"


def test_a_state_that_leaks_drifts_while_it_is_still_inside_its_limit(sessions: Sessions, tiny: LoadedModel) -> None:
    def leak(frame: int, returned: dict[str, Array]) -> None:
        value = returned["new.1.value"]
        signs = np.random.default_rng(0).choice([-1, 1], value.shape)
        value += (6e-8 * frame * value.std() * signs).astype(np.float32)  # 3.5e-6 at the end; the limit is 6.4e-6

    report = measured_report(sessions | {"temporal": Faulty(sessions["temporal"], outputs=leak)}, tiny.model)
    leaking = next(curve for curve in report.curves if curve.tensor == "temporal/new.1.value")
    assert leaking.verdict.startswith("drifts: ") and not report.passed
    assert leaking.block.passed and leaking.single.share() < 1


def test_what_is_wrong_from_the_start_is_above_its_limit_but_no_drift(sessions: Sessions, tiny: LoadedModel) -> None:
    def scale(frame: int, returned: dict[str, Array]) -> None:
        returned["features"] *= 1 + 1e-4

    verdicts = measure(sessions, tiny.model, temporal=Faulty(sessions["temporal"], outputs=scale))
    assert verdicts["temporal/features"].startswith("over its limit, but not drifting: ")
    assert not any(verdict.startswith("drifts") for verdict in verdicts.values())


def test_one_frame_that_forgets_its_past_is_not_lost_in_a_mean(sessions: Sessions, tiny: LoadedModel) -> None:
    def forget(frame: int, fed: dict[str, Array]) -> None:
        if frame == NUM_FRAMES - 1:
            fed["slot_mask"][:] = False

    verdicts = measure(sessions, tiny.model, temporal=Faulty(sessions["temporal"], inputs=forget))
    assert verdicts["temporal/features"].startswith("over its limit") and verdicts["trunk/trunk_features"] == "ok"


@pytest.mark.parametrize(("num_limits", "begins"), [(3.9, "ok"), (4.1, "a single frame over 4 times its limit: ")])
def test_a_rare_frame_may_be_off_by_a_few_limits_and_no_more(
    num_limits: float, begins: str, faithful: DriftReport
) -> None:
    curve = faithful.curves[1]
    worst = replace(curve.single.worst, worst_token=num_limits * curve.single.worst.limits["worst_token"])
    assert replace(curve, single=replace(curve.single, worst=worst)).verdict.startswith(begins)


def test_a_graph_that_returns_nan_is_an_error_that_names_the_frame(sessions: Sessions, tiny: LoadedModel) -> None:
    def spoil(frame: int, returned: dict[str, Array]) -> None:
        if frame == 17:
            returned["new.0.key"][0, 3] = np.nan

    with pytest.raises(NonFiniteError, match="'temporal' returned NaN.*frame 17 of a stream of 60"):
        measure(sessions, tiny.model, temporal=Faulty(sessions["temporal"], outputs=spoil))


def test_a_reference_that_is_nan_proves_nothing(sessions: Sessions, tiny: LoadedModel) -> None:
    model = copy.deepcopy(tiny.model)
    with torch.no_grad():
        next(model.compressor.parameters())[0, 0] = torch.nan
    verdicts = measure(sessions, model)
    assert verdicts.pop("compressor/frame_embeds").startswith("cannot be compared: ")
    assert set(verdicts.values()) == {"ok"}


def test_too_much_scatter_is_undecided_and_no_pass(faithful: DriftReport) -> None:
    curve = faithful.curves[1]
    sign = [1, -1, 1, -1, 1, -1, 1]
    means = tuple(replace(mean, gap=1e-5 + s * 8e-6) for mean, s in zip(curve.means, sign, strict=True))
    assert replace(curve, means=means).verdict.startswith("undecided: ")


def test_what_float32_loses_by_itself_is_reported_and_no_fault_of_the_bundle(faithful: DriftReport) -> None:
    def older(mean: Sample) -> Sample:
        more = 1e-6 * mean.frame
        return replace(mean, error=mean.error + more, floor=mean.floor + more)

    curve = faithful.curves[1]
    report = replace(faithful, curves=(replace(curve, means=tuple(map(older, curve.means))),))
    assert report.passed and report.curves[0].trend("error").lower > 9e-7
    assert "The float32 reference also drifts from float64, temporal/features by +6.0e-05" in report.table()[-1]
    assert not any("reference also drifts" in line for line in faithful.table())


# -- statistics --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("degrees", "value"), [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (9, 2.262), (10, 2.228), (120, 1.980)]
)
def test_the_quantile_is_that_of_the_tables(degrees: int, value: float) -> None:
    assert student_quantile(degrees) == pytest.approx(value, abs=6e-4)


def scattered(num_frames: int, num_streams: int, *, growth: float) -> np.ndarray:
    """(T, streams): noise of deviation 1 that keeps four fifths of the previous frame's, like the trunk's errors.

    It grows linearly to `growth` times its size."""
    rng = np.random.default_rng(11)
    shocks = rng.normal(0, np.sqrt(1 - 0.8**2), (num_frames, num_streams))
    noise = np.empty_like(shocks)
    noise[0] = rng.normal(0, 1, num_streams)
    for t in range(1, num_frames):
        noise[t] = 0.8 * noise[t - 1] + shocks[t]
    return noise * np.linspace(1, growth, num_frames)[:, None]


@pytest.mark.parametrize("growth", [1, 10], ids=["even", "growing"])
@pytest.mark.parametrize("num_frames", [80, 10_000], ids=lambda n: f"T={n}")
def test_the_interval_covers_a_known_slope_as_often_as_it_says(num_frames: int, growth: float) -> None:
    num_streams, slope = 400, 1e-4
    noise = scattered(num_frames, num_streams, growth=growth)
    by_block, by_frame = 0, 0
    for index in range(num_streams):
        values = slope * np.arange(num_frames) + noise[:, index]
        blocks = plan_blocks(num_frames, 8, num_blocks=40, seed=index)
        middles = [(block.start + block.stop - 1) / 2 for block in blocks]
        trend = fit_trend(middles, [float(values[b.start : b.stop].mean()) for b in blocks])
        by_block += trend.lower <= slope <= trend.upper
        frames = np.concatenate([np.arange(b.start, b.stop) for b in blocks])
        naive = fit_trend(frames.tolist(), values[frames].tolist())
        by_frame += naive.lower <= slope <= naive.upper
    assert 0.9 <= by_block / num_streams <= 0.99
    assert by_frame / num_streams < 0.75  # neighbouring frames are not independent measurements


def test_blocks_lie_apart_and_the_last_ends_the_stream() -> None:
    blocks = plan_blocks(10_000, 8, num_blocks=40)
    assert len(blocks) == 41 and blocks[0].start == 0 and blocks[0].stop == 16 and blocks[-1].stop == 10_000
    gaps = [after.start - before.stop for before, after in zip(blocks, blocks[1:], strict=False)]
    assert min(gaps) > 100  # far more than the 14 frames that a frame depends on
    assert len({block.start % 8 for block in blocks}) > 4  # blocks are not aligned with slots


def test_a_stream_too_short_for_a_slope_is_refused() -> None:
    with pytest.raises(SpecError, match="31 frames are too few.*\n.*at least 32"):
        plan_blocks(31, 4, num_blocks=40)


# -- command line ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_right", [True, False], ids=["right", "wrong"])
def test_the_command_reports_every_curve_and_fails_where_one_does(
    is_right: bool, faithful: DriftReport, sessions: Sessions, tiny: LoadedModel, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    drifting = replace(faithful.curves[0], means=tuple(replace(m, gap=m.frame) for m in faithful.curves[0].means))
    report = faithful if is_right else replace(faithful, curves=(drifting, *faithful.curves[1:]))

    @contextmanager
    def opened(bundle: Path | None) -> Iterator[tuple[str, Sessions, PVC, str, tuple[str, ...]]]:
        assert bundle == Path("somewhere")
        yield "a name", sessions, tiny.model, "fp32", ()

    def measured(*args: object, num_frames: int, precision: str, progress: Callable[[float], None]) -> DriftReport:
        assert (
            args[:2] == (sessions, tiny.model)
            and isinstance(args[2], NoiseTable)
            and (num_frames, precision) == (NUM_FRAMES, "fp32")
        )
        return report

    monkeypatch.setattr(drift, "_open", opened)
    monkeypatch.setattr(drift, "measure_drift", measured)
    path = tmp_path / "drift.json"
    monkeypatch.setattr(sys, "argv", ["drift", "somewhere", "--frames", str(NUM_FRAMES), "--json", str(path)])
    if is_right:
        drift.main()
    else:
        with pytest.raises(SystemExit) as info:
            drift.main()
        assert info.value.code == EXIT_DIFFERENT
    said, data = capsys.readouterr().out, json.loads(path.read_text())
    assert ("pass: 7 tensors over 60 frames" in said) == is_right == data["passed"]
    assert ("trunk/trunk_features drifts: " in said) == (not is_right)
    assert "(computed in float32)" in said and "a name" in said
    assert len(data["curves"]) == 7 and len(data["curves"][0]["samples"][0]) == len(data["curves"][0]["columns"])
