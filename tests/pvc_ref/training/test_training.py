"""Training: batches from a seed, the model's own arithmetic, runs that survive a kill, and correct grades."""

from __future__ import annotations

import json
import multiprocessing.dummy
from dataclasses import asdict, replace
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from pvc_ref import PVC, PVCConfig
from pvc_ref.bundled import SHAPES_FOLDER
from pvc_ref.checkpoint.folder import load
from pvc_ref.errors import InputError
from pvc_ref.prompt import IMAGE_CONTEXT, STOP_TOKEN, image_prompt, video_prompt
from pvc_ref.shapes import CONDITIONS, HELD_OUT, make_clip
from pvc_ref.shapes.draw import IGNORED
from pvc_ref.shapes.questions import vocabulary
from pvc_ref.training import batches, loop, study
from pvc_ref.training.base import take_over
from pvc_ref.training.batches import BatchMaker
from pvc_ref.training.held_out import card_cells, late_row, video_row
from pvc_ref.training.loop import Recipe, train
from pvc_ref.training.objective import LabelHeads, answer_logits, compute, context_token_id, encode
from pvc_ref.training.optimizer import PEAK_RATE, initialize, schedule
from pvc_ref.training.scoring import View, grade
from pvc_ref.training.tokenizer import shapes_tokenizer

RECIPE = Recipe(num_steps=4, num_workers=1)
CONFIG = RECIPE.config()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return shapes_tokenizer(CONFIG.llm.vocab_size)


@pytest.fixture(scope="module")
def model() -> PVC:
    """A model with random weights and every part active."""
    return PVC.random(CONFIG, seed=1)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use one clip per batch, so that a step is quick."""
    monkeypatch.setattr(batches, "CLIPS_OF_LENGTH", dict.fromkeys(batches.VIDEO_LENGTHS, 1))
    monkeypatch.setattr(loop, "SAVE_EVERY", 1)


# -- tokenizer ---------------------------------------------------------------------------------------------------------


def test_every_word_of_the_world_is_one_token_and_any_text_survives(tokenizer: Tokenizer) -> None:
    assert tokenizer.get_vocab_size() <= CONFIG.llm.vocab_size
    for line in vocabulary():
        for word in line.rstrip(".?").replace(",", "").split():
            if word.isalpha():
                text = word if line.startswith(word) or word[0].isupper() else f" {word}"
                assert len(tokenizer.encode(text, add_special_tokens=False).ids) == 1, word
    for text in ("Wo ist die Katze? 🐈", "The number is 4071.", "  two  spaces\n"):
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids) == text


def test_each_character_of_a_code_is_a_token_of_its_own(tokenizer: Tokenizer) -> None:
    for code in ("471", "AXF", "KTP"):
        tokens = tokenizer.encode(f"The number is {code}.", add_special_tokens=False).tokens
        assert tokens[-4:] == [*code, "."]


def test_the_tokenizer_is_the_same_every_time(tokenizer: Tokenizer) -> None:
    assert shapes_tokenizer(CONFIG.llm.vocab_size).to_str() == tokenizer.to_str()


# -- batches -----------------------------------------------------------------------------------------------------------


def test_a_batch_follows_from_seed_step_and_rank_alone(tokenizer: Tokenizer) -> None:
    first, again = (BatchMaker(CONFIG, tokenizer, seed=3).video(5, 0, "instructions") for _ in range(2))
    assert (first.frames == again.frames).all() and (first.questions == again.questions).all()
    maker = BatchMaker(CONFIG, tokenizer, seed=3)
    assert (maker.video(5, 1, "instructions").frames != first.frames).any(), "two workers got the same clips"
    assert maker.video(5, 1, "instructions").frames.shape == first.frames.shape, "the clips differ in shape"


def test_images_are_three_for_each_clip_once_captions_are_learned(tokenizer: Tokenizer) -> None:
    maker = BatchMaker(CONFIG, tokenizer, seed=0)
    for step in range(4):
        num_clips = len(maker.video(step, 0, "captions").frames)
        assert len(maker.images(step, 0, "captions").frames) == num_clips
        assert len(maker.images(step, 0, "instructions").frames) == 3 * num_clips
        assert {topic for row in maker.video(step, 0, "captions").topics for topic in row} <= {"describe", "absent"}


def test_frames_before_a_cut_have_no_labels(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "CUT_CHANCE", 1.0)
    monkeypatch.setattr(batches, "VIDEO_CHANCES", (0.0, 0.0, 1.0, 0.0, 0.0))
    batch = BatchMaker(CONFIG, tokenizer, seed=0).video(0, 0, "instructions")
    assert batch.frames.shape[1] == 8
    assert (batch.labels["color"][:, 0] == IGNORED).all() and (batch.labels["color"][:, -1] != IGNORED).any()


def test_the_training_prompt_is_the_conversation_that_a_user_has(tokenizer: Tokenizer) -> None:
    maker = BatchMaker(CONFIG, tokenizer, seed=0)
    stop = tokenizer.token_to_id(STOP_TOKEN)
    for step in range(6):
        for batch in (maker.video(step, 0, "instructions"), maker.images(step, 0, "instructions")):
            if batch.last_only:
                continue
            row, wanted = batch.questions[0, 0], batch.targets[0, 0]
            start = int((wanted != IGNORED).nonzero()[0]) + 1  # tokens of question and suffix
            question = tokenizer.decode(row[:start].tolist(), skip_special_tokens=False)
            question = question.split("<|im_end|>")[0]
            if batch.frames.shape[1] > 1:
                text = video_prompt(CONFIG, num_frames=batch.frames.shape[1], question=question)
            else:
                text = image_prompt(CONFIG, num_tiles=[1], question=question, num_repeats=batch.repeats)
            assert tokenizer.encode(text, add_special_tokens=False).ids == [
                *batch.prefix.tolist(),
                *row[:start].tolist(),
            ]
            answer = wanted[wanted != IGNORED].tolist()
            assert answer[-1] == stop and answer[:-1] == row[start : start + len(answer) - 1].tolist()


# -- the model's own arithmetic ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [None, 3])
@torch.no_grad()
def test_training_encodes_videos_as_the_reference_does(model: PVC, tokenizer: Tokenizer, window: int | None) -> None:
    batch = replace(BatchMaker(CONFIG, tokenizer, seed=0).video(0, 0, "instructions"), window=window)
    tokens = encode(model, batch)[1]
    torch.testing.assert_close(tokens, model.encode_clip(batch.frames, window=window), atol=2e-5, rtol=1e-5)


@torch.no_grad()
def test_training_encodes_images_as_the_reference_does(model: PVC, tokenizer: Tokenizer) -> None:
    batch = replace(BatchMaker(CONFIG, tokenizer, seed=0).images(0, 0, "instructions"), repeats=4)
    want = torch.stack(model.encode_images(list(batch.frames), num_repeats=4))
    torch.testing.assert_close(encode(model, batch)[1].flatten(1, 2), want, atol=2e-5, rtol=1e-5)


@torch.no_grad()
def test_questions_that_share_a_prefix_are_answered_as_if_each_were_asked_alone(
    model: PVC, tokenizer: Tokenizer
) -> None:
    batch = BatchMaker(CONFIG, tokenizer, seed=2).video(1, 0, "instructions")
    context_id = context_token_id(tokenizer)
    _, tokens = encode(model, batch)
    logits = answer_logits(model, batch, tokens, context_id)
    seen = tokens[1, -1:] if batch.last_only else tokens[1]
    for q in range(len(batch.topics[1])):
        ids = torch.cat([batch.prefix, batch.questions[1, q]])
        alone = model.embed_prompt(ids, seen.flatten(0, 1), context_id=context_id)
        hidden, _ = model.llm(alone, torch.arange(len(ids))[None])
        want = model.llm.logits(hidden[0, len(batch.prefix) :])
        wanted = batch.targets[1, q] != IGNORED
        torch.testing.assert_close(logits[1, q][wanted], want[wanted], atol=5e-4, rtol=1e-4)


@pytest.mark.parametrize("num_frames", [1, 8])
@torch.no_grad()
def test_a_graded_answer_is_right_exactly_if_greedy_decoding_says_it(num_frames: int) -> None:
    """The trained model: it answers most questions, and is then asked whether wrong answers are right."""
    model, tokenizer = load(SHAPES_FOLDER), Tokenizer.from_file(str(SHAPES_FOLDER / "tokenizer.json"))
    clip = make_clip(11, num_frames=num_frames)
    others = [replace(one, answer=clip.questions[index - 1].answer) for index, one in enumerate(clip.questions)]
    clip = replace(clip, questions=[*clip.questions, *others])
    if num_frames == 1:
        visual = model.encode_images([torch.from_numpy(clip.frames)], num_repeats=2)[0]
    else:
        visual = model.encode_clip(torch.from_numpy(clip.frames)[None])[0].flatten(0, 1)
    expected = []
    for one in clip.questions:
        if num_frames == 1:
            text = image_prompt(model.config, num_tiles=[1], question=one.text, num_repeats=2)
        else:
            text = video_prompt(model.config, num_frames=num_frames, question=one.text)
        ids = torch.tensor(tokenizer.encode(text, add_special_tokens=False).ids)
        embeds = model.embed_prompt(ids, visual, context_id=tokenizer.token_to_id(IMAGE_CONTEXT))
        said = model.generate(embeds, max_new_tokens=24, stop_ids=[tokenizer.token_to_id(STOP_TOKEN)])
        expected.append((one.text, one.answer, said == tokenizer.encode(one.answer, add_special_tokens=False).ids))
    graded = grade(model, tokenizer, [clip], view=View(num_repeats=2))
    assert [(one.question.text, one.question.answer, one.is_right) for one in graded] == expected
    assert {is_right for *_, is_right in expected} == {True, False}


def test_what_lies_beyond_the_windows_of_all_layers_changes_nothing(model: PVC, tokenizer: Tokenizer) -> None:
    """late_row omits these frames; here the whole stream is encoded."""
    window, reach = 3, CONFIG.vision.num_temporal_layers * 2
    frames = torch.from_numpy(make_clip(0, num_frames=16).frames)[None]
    batch = BatchMaker(CONFIG, tokenizer, seed=0).video(0, 0, "captions")
    with torch.no_grad():
        whole = encode(model, replace(batch, frames=frames, window=window), first_time=100)[1]
        last = encode(model, replace(batch, frames=frames[:, -4 - reach :], window=window), first_time=112 - reach)[1]
        less = encode(model, replace(batch, frames=frames[:, -3 - reach :], window=window), first_time=113 - reach)[1]
    torch.testing.assert_close(last[:, -4:], whole[:, -4:], atol=2e-5, rtol=1e-5)
    assert (less[:, -4:-3] - whole[:, -4:-3]).abs().max() > 1e-3, "the reach is one frame shorter"


# -- runs --------------------------------------------------------------------------------------------------------------


def test_a_run_that_was_killed_continues_and_ends_with_the_same_weights(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = load(train(RECIPE, tmp_path / "whole", quiet=True))
    learn = loop._Worker._learn
    monkeypatch.setattr(loop._Worker, "_learn", lambda self, b: _killed() if self.step == 2 else learn(self, b))
    with pytest.raises(KeyboardInterrupt):
        train(RECIPE, tmp_path / "killed", quiet=True)
    assert not (tmp_path / "killed/model").exists()
    monkeypatch.setattr(loop._Worker, "_learn", learn)
    again = load(train(RECIPE, tmp_path / "killed", quiet=True))
    start = PVC(CONFIG)
    initialize(start, seed=RECIPE.seed)
    moved = dict(start.named_parameters())
    for name, parameter in whole.named_parameters():
        assert torch.equal(parameter, again.get_parameter(name)), name
    assert not torch.equal(whole.llm.embed_tokens.weight, moved["llm.embed_tokens.weight"])
    assert whole.trained_on == "shapes" and whole.random_seed is None


def _killed() -> None:
    raise KeyboardInterrupt


def test_a_run_is_not_resumed_under_another_recipe(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learn = loop._Worker._learn
    monkeypatch.setattr(loop._Worker, "_learn", lambda self, b: _killed() if self.step == 1 else learn(self, b))
    with pytest.raises(KeyboardInterrupt):
        train(RECIPE, tmp_path, quiet=True)
    with pytest.raises(InputError, match="belongs to a run with another recipe"):
        train(replace(RECIPE, seed=1), tmp_path, quiet=True)


def test_two_workers_end_with_one_model_that_is_the_same_every_time_wherever_it_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Includes a relative folder, as in the documented command: two workers once waited there forever."""
    monkeypatch.chdir(tmp_path)
    recipe = Recipe(num_steps=1, num_workers=2, num_tokens=4, compressor="pixel_shuffle", temporal=False)
    first, again = (load(train(recipe, out, quiet=True)) for out in (Path("first"), tmp_path / "again"))
    assert all(torch.equal(p, again.get_parameter(name)) for name, p in first.named_parameters())


def test_the_loss_falls(small: None, tokenizer: Tokenizer) -> None:
    model, heads = PVC(CONFIG), LabelHeads(CONFIG)
    model.llm.lm_head.weight = model.llm.embed_tokens.weight
    for module in (model, heads):
        initialize(module, seed=0)
    optimizer = loop.Optimizer.of(model, heads)
    batch = BatchMaker(CONFIG, tokenizer, seed=0).images(0, 0, "instructions")
    losses = []
    for step in range(25):
        optimizer.zero_grad()
        outcome = compute(model, heads, batch, context_token_id(tokenizer))
        outcome.loss.backward()
        optimizer.step(step + 60, 1000)
        losses.append((outcome.answer_loss, outcome.patch_loss, outcome.token_loss))
    for name, first, last in zip(("answers", "patches", "tokens"), losses[0], losses[-1], strict=True):
        assert last < 0.6 * first, f"{name}: {first} -> {last}"


def test_the_rate_warms_up_stays_and_falls_to_nothing() -> None:
    rates = [schedule(step, 1000) for step in range(1000)]
    assert rates[0] < 0.05 and rates[100] == rates[499] == 1.0 and rates[750] == pytest.approx(0.5) and rates[-1] < 0.01
    assert 0 < PEAK_RATE < 0.1


# -- the study ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temporal", [True, False])
def test_what_a_run_of_the_study_starts_from_is_the_bundled_vit_and_llm_and_nothing_of_what_is_compared(
    temporal: bool,
) -> None:
    base = load(SHAPES_FOLDER)
    recipe = Recipe(compressor="pvc" if temporal else "conv", num_tokens=4, temporal=temporal, from_bundled=True)
    model = PVC(recipe.config())
    initialize(model, seed=0)
    before = {name: value.clone() for name, value in model.named_parameters()}
    count = take_over(model, base)
    taken = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    fresh = [name for name in before if name.startswith("compressor.") or "temporal_attn" in name or "adaln" in name]
    assert fresh and not taken & set(fresh)
    last = model.temporal.layers[1] if temporal else model.trunk.layers[3]
    assert torch.equal(last.mlp.fc1.weight, base.temporal.layers[1].mlp.fc1.weight)
    assert torch.equal(model.llm.layers[2].mlp.up_proj.weight, base.llm.layers[2].mlp.up_proj.weight)
    assert count == sum(value.numel() for name, value in model.named_parameters() if name in taken)


def test_a_base_of_other_sizes_is_refused(model: PVC) -> None:
    small = PVC(PVCConfig.preset("tiny"))
    with pytest.raises(InputError, match="the base model has other sizes"):
        take_over(small, load(SHAPES_FOLDER))


def test_a_result_is_made_again_only_when_its_recipe_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def run(job: tuple[str, Recipe, Path, Path]) -> str:
        name, recipe, _, path = job
        made.append(name)
        cell = {"direction": {"percent": 50.0, "count": 2}}
        facts = {"recipe": asdict(recipe), "seconds": 60.0, "machine": "here", "tables": {"video, 8 frames": cell}}
        path.write_text(json.dumps(facts), encoding="utf-8")
        return name

    monkeypatch.setattr(study, "_run", run)
    monkeypatch.setattr(study.multiprocessing, "get_context", lambda _: multiprocessing.dummy)
    monkeypatch.setattr(multiprocessing.dummy, "Pool", lambda count, maxtasksperchild: ThreadPool(count))
    found = study.study(tmp_path, tmp_path / "results")
    assert (
        sorted(made) == sorted(study.variants()) and found["pooling"].tables["video, 8 frames"]["direction"].count == 2
    )
    made.clear()
    study.study(tmp_path, tmp_path / "results")
    assert made == []
    monkeypatch.setattr(study, "NUM_STEPS", 7)
    study.study(tmp_path, tmp_path / "results")
    assert sorted(made) == sorted(study.variants())


# -- held-out tables ---------------------------------------------------------------------------------------------------


def test_tables_count_what_they_ask(model: PVC, tokenizer: Tokenizer) -> None:
    clean = CONDITIONS["clean"]
    row = video_row(model, tokenizer, num_clips=6, camera=clean)
    questions = [q for seed in range(6) for q in make_clip(seed, num_frames=8, split=HELD_OUT).questions]
    assert sum(cell.count for cell in row.values()) == len(questions)
    cards = card_cells(model, tokenizer, num_clips=4, camera=clean)
    assert set(cards) == {"number 1", "number 2", "number 4"}
    assert all(cell.count % int(name[-1]) == 0 for name, cell in cards.items())
    assert all(np.isfinite(cell.percent) for cell in row.values())


def test_the_clock_of_a_late_stream_matters(model: PVC, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[View] = []
    monkeypatch.setattr("pvc_ref.training.held_out.grade", lambda *args, view, **_: seen.append(view) or [])
    late_row(model, tokenizer, num_clips=8, frame=1000, clock="run-on", window=8)
    late_row(model, tokenizer, num_clips=8, frame=1000, clock="reanchor", window=8)
    run_on, reanchored = seen[:8], seen[8:]
    assert [view.num_seen for view in run_on] == [view.num_seen for view in reanchored] == list(range(9, 17))
    assert all(view.first_time == 0 for view in reanchored)
    assert [view.first_time + 14 + view.num_seen for view in run_on if view.num_seen] == [1000] * 8
