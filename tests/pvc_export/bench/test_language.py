"""The language bench: compared variants are equal, one artefact serves both steps, and the figures are correct.

Nothing here is timed, because a time measured on a test machine means nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pvc_export.bench.language as bench_module
from engines.errors import ParityError
from engines.session import Session, Wrapped
from pvc_export.bench import compare
from pvc_export.bench.baselines import READ_BYTES, read_peak
from pvc_export.bench.compare import LIMIT, Report, Timed, Variant, count_flops
from pvc_export.bench.language import ANSWER, LanguageBench
from pvc_export.bench.language_variants import (
    NUM_FRAME_ROWS,
    SIZES,
    LanguageScene,
    append_rows,
    eager_variant,
    our_language_model,
    our_language_sessions,
    our_variant,
)
from pvc_export.terminal.facts import cpu_name
from pvc_ref.llm import Decoder

from ..conftest import Run
from .operations import ingest_flops

P = 300  # two chunks of 256, and a bucket whose tail is masked
BUCKET = 256
STEPS = ("decode", "ingest")
VARIANTS = ("eager", "ort-default", "ours", "int8", "int4")


@pytest.fixture(autouse=True)
def no_gradients() -> Any:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def scene() -> LanguageScene:
    with torch.no_grad():
        return LanguageScene.render(SIZES["tiny"], num_past=P)


@pytest.fixture(scope="module")
def sessions(scene: LanguageScene, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Session]:
    return our_language_sessions(scene, tmp_path_factory.mktemp("graphs"), threads=1)


@pytest.fixture(scope="module")
def report(sessions: dict[str, Session]) -> Report:
    def opened(scene: LanguageScene, folder: Path, **options: Any) -> dict[str, Session]:
        """Reuse one export: weights and past are the same."""
        return our_language_sessions(scene, folder, **options) if options.get("quantization") else sessions

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench_module, "our_language_sessions", opened)
        return LanguageBench(size="tiny", past=P, rounds=3).run()


@pytest.fixture
def no_exports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace both exported variants by eager, for tests of what the bench does with its variants."""
    monkeypatch.setattr(bench_module, "default_variant", lambda scene, path, *, threads: eager_variant(scene))
    monkeypatch.setattr(bench_module, "our_language_sessions", lambda scene, folder, **options: {})
    monkeypatch.setattr(bench_module, "our_language_model", lambda scene, sessions: None)
    monkeypatch.setattr(bench_module, "our_variant", lambda scene, language, **options: eager_variant(scene))


# -- the report ------------------------------------------------------------------------------------------------


def test_every_variant_has_a_row_in_both_steps_and_computed_what_eager_computes(report: Report) -> None:
    assert [(row.step, row.variant) for row in report.rows] == [(s, v) for s in STEPS for v in VARIANTS]
    for row in report.rows:
        if row.variant == "eager":
            assert row.max_difference == 0.0 and row.times_eager == 1.0
        elif row.variant in ("int8", "int4"):
            assert 1e-4 < row.max_difference < 0.3, "quantised variants round"
        else:
            assert 0 < row.max_difference < 1e-5  # 5e-7 here; exactly 0 would mean that eager was compared with itself


def test_figures_of_a_row_follow_from_its_time_and_the_work_that_the_step_must_do(report: Report) -> None:
    facts = report.facts
    work = {"decode": sum(facts["decode_bytes"].values()) / 1e9, "ingest": facts["ingest_gflop"]}
    for row in report.rows:
        assert row.time.q1_ms <= row.time.median_ms <= row.time.q3_ms
        assert row.rate == pytest.approx(1e3 * work[row.step] / row.time.median_ms)
        assert row.percent_of_peak == pytest.approx(100 * row.rate / max(report.peaks[row.step].values()))


def test_ratios_are_taken_within_the_same_rounds(no_exports: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The medians of the columns would give 4 / 2 for ours; the ratios of the rounds are 10, 2 and 1."""
    of_variant = {"eager": [1.0, 4.0, 20.0], "ort-default": [2.0, 4.0, 4.0], "ours": [0.1, 2.0, 20.0]}

    def interleave(runs: Mapping[tuple[str, str], Callable[[], Any]], **_: Any) -> dict[tuple[str, str], list[float]]:
        return {(step, name): of_variant.get(name, [1.0, 1.0, 1.0]) for step, name in runs}

    monkeypatch.setattr(compare, "interleave", interleave)
    for row in LanguageBench(size="tiny", past=1, rounds=3).run().rows:
        if row.variant == "ours":
            assert (row.times_eager, row.times_ort_default) == (2.0, 2.0)
        elif row.variant == "ort-default":
            assert (row.times_eager, row.times_ort_default) == (1.0, 1.0)


def test_the_table_says_what_was_compared_and_where_when_and_how(report: Report) -> None:
    text = "\n".join(report.request.describe(report))
    assert f"pvc-export bench --part language --size tiny --rounds 3 --threads 1 --past {P}" in text
    assert cpu_name() in text and torch.__version__ in text and "process CPU time" in text
    assert report.environment["date_utc"] in text
    for title in ("torch eager  ", "ONNX Runtime, default export  ", "ours  "):
        assert text.count(f"\n{title}") == len(STEPS)
    for step, unit in (("decode", "GB/s"), ("ingest", "GFLOP/s")):
        assert f"\n{step}: " in text and f"peak {max(report.peaks[step].values()):.0f} {unit} (" in text


# -- equal outputs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", STEPS)
def test_a_variant_that_computes_something_else_is_not_compared(
    step: str, no_exports: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def off_by_a_little(scene: LanguageScene, language: Any, **options: Any) -> Variant:
        right = eager_variant(scene)
        return right | {step: Timed(run=lambda: right[step].run() * (1 + 2 * LIMIT))}

    monkeypatch.setattr(bench_module, "our_variant", off_by_a_little)
    with pytest.raises(ParityError) as caught:
        LanguageBench(size="tiny", past=3, rounds=1).run()
    assert f"variant '{step}/ours' differs from torch eager by 2.0e-04" in caught.value.what
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("step", STEPS)
def test_a_variant_that_goes_wrong_in_a_later_round_is_found(
    step: str, no_exports: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = {"decode": 1 + (1 + ANSWER) + 1, "ingest": 1 + 1 + 1}[step]  # after the warm-up and one round

    def wrong_in_the_second_round(scene: LanguageScene, language: Any, **options: Any) -> Variant:
        right, calls = eager_variant(scene), []

        def run() -> Any:
            calls.append(step)
            return right[step].run() * (1 if len(calls) < late else -1)

        return right | {step: Timed(run=run)}

    monkeypatch.setattr(bench_module, "our_variant", wrong_in_the_second_round)
    LanguageBench(size="tiny", past=3, rounds=1).run()
    with pytest.raises(ParityError, match=f"{step}/ours"):
        LanguageBench(size="tiny", past=3, rounds=2).run()


def test_another_past_is_another_result_so_no_variant_may_skip_it(
    scene: LanguageScene, sessions: dict[str, Session], monkeypatch: pytest.MonkeyPatch, no_exports: None
) -> None:
    def forgetful(scene: LanguageScene, language: Any, **options: Any) -> Variant:
        before = scene.before.index_fill(1, torch.tensor([P // 2]), 0.0)
        return our_variant(scene, our_language_model(replace(scene, before=before), sessions))

    monkeypatch.setattr(bench_module, "our_variant", forgetful)
    with pytest.raises(ParityError, match="ours"):
        LanguageBench(size="tiny", past=P, rounds=1).run()


@pytest.mark.parametrize(
    "num_past", [1, BUCKET - NUM_FRAME_ROWS, BUCKET - 1, BUCKET, BUCKET + 1], ids=lambda p: f"P={p}"
)
def test_our_graphs_equal_eager_at_every_edge_of_a_bucket(num_past: int, sessions: dict[str, Session]) -> None:
    scene = LanguageScene.render(SIZES["tiny"], num_past=num_past)
    ours, eager = our_variant(scene, our_language_model(scene, sessions)), eager_variant(scene)
    for step in STEPS:
        got, want = ours[step].output(ours[step].run()), eager[step].run()
        assert np.abs(got - want).max() < 1e-5 * np.abs(want).max()  # worst 5e-7


def test_a_step_is_the_same_every_time_whatever_ran_before_it(
    scene: LanguageScene, sessions: dict[str, Session]
) -> None:
    ours = our_variant(scene, our_language_model(scene, sessions))
    first = {step: ours[step].run() for step in STEPS}
    for step in ("ingest", "decode", "decode", "ingest"):
        np.testing.assert_array_equal(ours[step].run(), first[step])


def test_our_ingest_computes_no_logits_and_leaves_all_its_rows_for_the_next_token(
    scene: LanguageScene, sessions: dict[str, Session]
) -> None:
    language = our_language_model(scene, sessions)
    hidden = our_variant(scene, language)["ingest"].run()
    assert hidden.shape == (1, 1, scene.model.config.llm.hidden_size)
    got = language.logits(language.append(scene.token[0].numpy()))
    _, past = append_rows(scene.model.llm, scene.frame, scene.past)
    expected, _ = append_rows(scene.model.llm, scene.token, past)
    want = scene.model.llm.logits(expected[0, -1]).numpy()
    assert np.abs(got - want).max() < 1e-5 * np.abs(want).max()  # 5e-7 here


def test_both_our_steps_run_the_same_llm_graph(scene: LanguageScene, sessions: dict[str, Session]) -> None:
    runs: list[int] = []

    def counted(session: Session, inputs: Mapping[str, Any]) -> dict[str, Any]:
        runs.append(inputs["inputs_embeds"].shape[1])
        return session.run(inputs)

    language = our_language_model(scene, sessions | {"llm": Wrapped(sessions["llm"], counted)})
    runs.clear()
    for step in STEPS:
        our_variant(scene, language)[step].run()
    assert runs == [1, NUM_FRAME_ROWS]


# -- work and limits -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", ["tiny", "0.5b"])
@pytest.mark.parametrize("num_past", [1, 1024])
def test_operations_counted_of_an_ingested_frame_are_those_that_follow_from_the_config(
    size: str, num_past: int
) -> None:
    """Counted on the meta device, which computes nothing."""
    config = SIZES[size].llm
    with torch.device("meta"):
        llm = Decoder(config)
        row = torch.zeros(1, num_past, config.num_kv_heads, config.attention_head_dim)
        frame = torch.zeros(1, NUM_FRAME_ROWS, config.hidden_size)
        found = count_flops(lambda: append_rows(llm, frame, [(row, row)] * config.num_layers))
    assert found == ingest_flops(config, num_rows=NUM_FRAME_ROWS, num_past=num_past)


def test_bytes_of_a_decoded_token_are_all_weights_but_the_embedding_table_and_the_past(
    scene: LanguageScene, report: Report
) -> None:
    llm = scene.model.llm
    weights = 4 * (sum(weight.numel() for weight in llm.parameters()) - llm.embed_tokens.weight.numel())
    config = scene.model.config.llm
    cache = 4 * 2 * config.num_layers * P * config.num_kv_heads * config.attention_head_dim
    assert report.facts["decode_bytes"] == {"weights": weights, "cache": cache}


def test_the_large_size_is_the_published_shape_of_qwen2_with_half_a_billion_weights() -> None:
    with torch.device("meta"):
        llm = Decoder(SIZES["0.5b"].llm)
    head = llm.lm_head.weight.numel()
    assert head == 151655 * 896
    qwen2 = 494_032_768  # as published: 281 more tokens, and one table for embedding and head
    assert sum(weight.numel() for weight in llm.parameters()) - head == qwen2 - 281 * 896


def test_reading_steps_read_the_whole_array() -> None:
    runs = read_peak().runs
    assert float(runs["numpy max"]()) == 1.0
    assert float(runs["torch dot"]()) == pytest.approx(READ_BYTES / 4)


# -- the command line ------------------------------------------------------------------------------------------


def test_the_command_prints_one_json_object(no_exports: None, pvc_export: Run) -> None:
    done = pvc_export("bench", "--part", "language", "--size", "tiny", "--past", 2, "--rounds", 1, "--json")
    found = json.loads(done.out)
    assert [(row["step"], row["variant"]) for row in found["rows"]] == [(s, v) for s in STEPS for v in VARIANTS]
    assert found["limit"] == LIMIT and found["environment"]["versions"]["torch"] == torch.__version__
    assert found["request"] == {"size": "tiny", "past": 2, "rounds": 1, "threads": 1, "skip": []}
    assert done.exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--part", "langage"], "--part is 'langage', expected one of vision, language. Did you mean 'language'?"),
        (["--part", "language", "--size", "0.5"], "expected one of tiny, 0.5b. Did you mean '0.5b'?"),
        (["--part", "language", "--size", "mid"], "expected one of tiny, 0.5b"),
        (["--part", "language", "--size", "tiny", "--past", 32705], "--past is 32705, expected 1 to 32704"),
        (["--part", "language", "--window", 3], "--window cannot be given with --part"),
        (["--part", "language", "--skip", "compile"], "expected one of int8, int4"),
        (["--part", "language", "--frames", 200], "--frames needs a BUNDLE"),
        (["--past", 10], "--past needs --part language"),
        (["--part", "vision", "--past", 10], "--past needs --part language"),
        (["--size", "0.5b"], "expected one of tiny, mid, half"),
        (["folder", "--part", "language", "--past", 3], "--part, --past cannot be given with a BUNDLE"),
    ],
)
def test_options_of_the_other_part_and_unknown_names_are_usage_errors(
    arguments: list[object], message: str, pvc_export: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    pvc_export("bench", *arguments).says(2, message)
