"""The shapes world: identical on every machine, true to its labels, and always with an answer."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from pvc_ref.errors import InputError
from pvc_ref.shapes import CLEAN, CONDITIONS, HELD_OUT, TRAINING, Clip, answer_to, make_clip, question_of, watch
from pvc_ref.shapes.backgrounds import NUM_TRAINING_TEXTURES, sample_background, texture
from pvc_ref.shapes.camera import photograph
from pvc_ref.shapes.draw import IGNORED, MOTIONS
from pvc_ref.shapes.questions import count, describe, event
from pvc_ref.shapes.truth import all_answers
from pvc_ref.shapes.world import CHARACTERS, COLORS, MIN_CONTRAST, SHAPES, STEPS, Scene, Thing, sample_scene

GRID = 8
LENGTHS = (1, 4, 8, 16)


def clips(num_seeds: int, *, kind: str | None = None, num_frames: int | None = None) -> list[Clip]:
    return [
        make_clip(seed, num_frames=num_frames or LENGTHS[seed % 4], kind=kind, grid=GRID) for seed in range(num_seeds)
    ]


def thing(
    *, color: str = "red", shape: str = "circle", action: str = "still", frames: int = 4, **facts: object
) -> Thing:
    known = {"first": 0, "last": frames, "centers": np.full((frames, 2), 0.5)} | facts
    return Thing(color=color, shape=shape, rgb=COLORS[color], radius=0.15, angle=0.0, action=action, **known)  # type: ignore[arg-type]


@pytest.mark.parametrize("num_frames", LENGTHS)
def test_a_seed_gives_the_same_pixels_questions_and_labels_every_time(num_frames: int) -> None:
    first, again = (make_clip(5, num_frames=num_frames, camera=None, grid=GRID) for _ in range(2))
    assert (first.frames == again.frames).all() and first.questions == again.questions
    assert first.labels is not None and again.labels is not None
    assert all((getattr(first.labels, n) == getattr(again.labels, n)).all() for n in ("color", "shape", "motion"))


def test_another_process_renders_the_same_pixels() -> None:
    code = "from pvc_ref.shapes import make_clip; print(make_clip(9, num_frames=4, camera=None).frames.sum())"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(printed) == make_clip(9, num_frames=4, camera=None).frames.sum()


def test_other_seeds_and_other_splits_give_other_clips() -> None:
    frames = [make_clip(seed, num_frames=4).frames for seed in range(20)]
    assert all((a != b).any() for a, b in itertools.combinations(frames, 2))
    assert (
        make_clip(3, num_frames=4, split=TRAINING).frames != make_clip(3, num_frames=4, split=HELD_OUT).frames
    ).any()


def test_held_out_clips_never_show_a_texture_of_the_training_set(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr("pvc_ref.shapes.backgrounds.texture", lambda index: asked.append(index) or texture(0))
    for seed in range(60):
        sample_background(np.random.default_rng(seed), 32, held_out=True)
    assert len(asked) > 20 and min(asked) >= NUM_TRAINING_TEXTURES
    asked.clear()
    for seed in range(60):
        sample_background(np.random.default_rng(seed), 32, held_out=False)
    assert max(asked) < NUM_TRAINING_TEXTURES


def test_frames_are_uint8_rgb_of_the_size_asked_for() -> None:
    for size in (56, 112, 300):
        clip = make_clip(1, num_frames=4, size=size, camera=None)
        assert clip.frames.shape == (4, size, size, 3) and clip.frames.dtype == np.uint8


# -- pixels and labels -------------------------------------------------------------------------------------------------


def test_every_patch_that_is_labelled_with_a_colour_shows_it() -> None:
    """Oracle: in a clean frame, at least an eighth of the patch's pixels have the colour of its label."""
    names = list(COLORS)
    num_right = num_seen = 0
    for clip in clips(40, kind="things"):
        assert clip.labels is not None
        side = clip.frames.shape[1] // GRID
        for t, patch in zip(*np.nonzero(clip.labels.color > 0), strict=True):
            row, column = divmod(int(patch), GRID)
            pixels = clip.frames[t, row * side : row * side + side, column * side : column * side + side].reshape(-1, 3)
            want = np.array(COLORS[names[clip.labels.color[t, patch] - 1]])
            near = np.abs(pixels.astype(int) - want).max(1) <= 20
            num_right += near.mean() > 0.12
            num_seen += 1
    assert num_seen > 500 and num_right / num_seen > 0.99


def test_every_label_belongs_to_something_in_the_scene() -> None:
    for clip in clips(60):
        assert clip.labels is not None
        colors = {1 + list(COLORS).index(t.color) for t in clip.scene.things}
        shapes = {1 + SHAPES.index(t.shape) for t in clip.scene.things}
        assert set(np.unique(clip.labels.color)) <= {0, IGNORED} | colors
        assert set(np.unique(clip.labels.shape)) <= {0, IGNORED} | shapes
        codes = "".join(clip.scene.card.codes) if clip.scene.card else ""
        assert set(np.unique(clip.labels.character)) <= {0, IGNORED} | {1 + CHARACTERS.index(c) for c in codes}


def test_a_thing_that_moves_left_moves_left_in_the_pixels() -> None:
    """Oracle: the centre of all pixels of its colour, in the first and in the last frame."""
    seen: Counter[str] = Counter()
    for clip in clips(150, kind="things", num_frames=8):
        for t in clip.scene.things:
            others = [o for o in clip.scene.things if o is not t]
            if t.action not in STEPS or others:
                continue
            masks = [
                np.abs(frame.astype(int) - np.array(t.rgb)).max(-1) <= 6 for frame in (clip.frames[0], clip.frames[-1])
            ]
            (y0, x0), (y1, x1) = (np.argwhere(mask).mean(0) for mask in masks)
            dx, dy = STEPS[t.action]
            along, across = (x1 - x0) * dx + (y1 - y0) * dy, abs((x1 - x0) * dy) + abs((y1 - y0) * dx)
            seen[t.action] += along > 12 and along > 3 * across
    assert all(seen[action] >= 2 for action in STEPS), seen


def test_a_motion_is_not_asked_of_the_frame_in_which_a_thing_is_first_seen() -> None:
    for clip in clips(40, kind="things", num_frames=8):
        assert clip.labels is not None
        first = {t.first for t in clip.scene.things}
        assert 0 not in first or not (clip.labels.motion[0] > 0).any()
        assert (clip.labels.motion[1:] > 0).any() or not clip.scene.visible(7)
        assert clip.labels.motion.max() < len(MOTIONS)


def test_every_thing_stands_out_and_stays_in_the_frame() -> None:
    for seed in range(200):
        background = tuple(np.random.default_rng(seed).uniform(0, 255, 3))
        scene = sample_scene(np.random.default_rng(seed), num_frames=8, background=background, kind="things")
        assert 1 <= len(scene.things) <= 3
        for t in scene.things:
            assert np.linalg.norm(np.array(COLORS[t.color]) - background) >= MIN_CONTRAST
            assert (t.centers >= t.radius - 1e-9).all() and (t.centers <= 1 - t.radius + 1e-9).all()
        assert len({t.color for t in scene.things}) == len(scene.things), "two things have the same colour"


def test_a_cut_puts_frames_of_another_scene_in_front_and_asks_nothing_of_them() -> None:
    plain, cut = make_clip(4, num_frames=4, num_before=3, grid=GRID), make_clip(4, num_frames=4, grid=GRID)
    assert len(plain.frames) == 7 and plain.num_before == 3
    assert plain.labels is not None and plain.labels.color.shape == (4, GRID * GRID)
    assert cut.scene.num_frames == plain.scene.num_frames == 4


# -- camera ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in CONDITIONS if name != "clean"])
def test_every_condition_changes_the_picture_but_leaves_it_recognisable(name: str) -> None:
    clip = make_clip(2, num_frames=4)
    seen = photograph(list(clip.frames), CONDITIONS[name], np.random.default_rng(0))
    for before, after in zip(clip.frames, seen, strict=True):
        assert after.shape == before.shape and after.dtype == np.uint8
        assert (after != before).any()
        assert np.corrcoef(after.ravel(), before.ravel())[0, 1] > 0.8


def test_the_clean_condition_changes_nothing() -> None:
    clip = make_clip(2, num_frames=4)
    assert all(
        (a == b).all()
        for a, b in zip(clip.frames, photograph(list(clip.frames), CLEAN, np.random.default_rng(0)), strict=True)
    )


def test_brightness_and_white_balance_do_what_their_names_say() -> None:
    frame = np.full((32, 32, 3), 100, dtype=np.uint8)
    dark = photograph([frame], CONDITIONS["dark"], np.random.default_rng(0))[0]
    warm = photograph([frame], CONDITIONS["warm"], np.random.default_rng(0))[0]
    assert (dark == 50).all() and (warm[0, 0] == [115, 100, 80]).all()


# -- questions ---------------------------------------------------------------------------------------------------------


def test_every_question_of_a_clip_has_the_answer_that_the_truth_has() -> None:
    for clip in clips(400):
        for question in clip.questions:
            assert answer_to(clip.scene, question.text) == question.answer


def test_a_typed_question_is_graded_whatever_its_case_and_mark() -> None:
    scene = Scene(num_frames=4, things=(thing(),))
    for text in ("What colour is the circle?", "what colour is the circle", "  What colour  is the CIRCLE ?"):
        assert answer_to(scene, text) == "The circle is red."
    assert answer_to(scene, "Wo ist die Katze?") is None


def test_sentences_say_what_happens() -> None:
    left = thing(action="left")
    gone = thing(color="blue", shape="star", action="leave", last=2)
    new = thing(color="white", shape="square", action="appear", first=3)
    scene = Scene(num_frames=4, things=(left, gone, new))
    assert describe(scene) == "A red circle moves left, a blue star leaves and a white square appears."
    assert event(scene) == "The red circle moved left, the blue star left and the white square appeared."
    assert count(scene) == "There are 2 shapes."
    crossing = Scene(num_frames=4, things=(left, thing(color="blue", shape="star", action="right")), crossing=True)
    assert event(crossing) == "The red circle and the blue star crossed."
    assert describe(Scene(num_frames=1, things=(left,))) == "A red circle."
    assert describe(Scene(num_frames=4)) == "Nothing is there." and event(Scene(num_frames=4)) == "Nothing happened."


def test_what_is_not_there_is_said_not_to_be_there() -> None:
    answers = all_answers(Scene(num_frames=4, things=(thing(),)))
    assert answers["what colour is the star"] == "There is no star."
    assert answers["which shape is green"] == "There is no green shape."
    assert answers["which way does the red star move"] == "There is no red star."
    assert answers["which number is shown"] == "There is no number."


def test_of_two_things_alike_and_of_what_has_left_no_colour_is_asked() -> None:
    two = Scene(num_frames=4, things=(thing(), thing(color="blue")))
    gone = Scene(num_frames=4, things=(thing(action="leave", last=2),))
    for scene in (two, gone):
        assert "what colour is the circle" not in all_answers(scene)


def test_every_kind_of_scene_and_topic_comes_up() -> None:
    topics = Counter(question.topic for clip in clips(300) for question in clip.questions)
    assert min(topics.values()) > 50 and len(topics) == 8, topics
    assert Counter(len(clip.scene.things) for clip in clips(300)).keys() == {0, 1, 2, 3}
    with pytest.raises(InputError, match="'card'"):
        make_clip(0, num_frames=1, kind="cards")


# -- endless streams ---------------------------------------------------------------------------------------------------


def test_the_endless_world_repeats_exactly_and_ends_every_scene() -> None:
    first, again = (list(itertools.islice(watch(3, size=56), 30)) for _ in range(2))
    assert all((a.frame == b.frame).all() for a, b in zip(first, again, strict=True))
    for before, after in itertools.pairwise(first):
        assert after.frame_index == (0 if before.is_last else before.frame_index + 1)
    assert any((a.frame != b.frame).any() for a, b in zip(first, itertools.islice(watch(4, size=56), 30), strict=True))


def test_questions_of_a_scene_are_drawn_by_topic() -> None:
    clip = make_clip(0, num_frames=8, kind="things")
    drawn = Counter(question_of(clip, seed).topic for seed in range(300))
    assert set(drawn) == {question.topic for question in clip.questions}
    assert max(drawn.values()) < 3 * min(drawn.values())
    assert question_of(clip, 7) == question_of(replace(clip), 7)
