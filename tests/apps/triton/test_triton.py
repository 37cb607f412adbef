"""The model that pvc-export triton writes, on a stand-in for the server: each sequence has its own stream."""

from __future__ import annotations

import io
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engines import PVCStream, open_bundle
from engines.bundle import Bundle
from engines.synthetic import render_clip

from ...apps.test_kit import REFUSE_THE_REST
from .fake_triton import Ask, Server, TritonError, ask, serving

ROOT = Path(__file__).parents[3]
SLOTS, IDLE_S, QUESTION = 3, 30.0, "What moves?"
Frames = list[np.ndarray]


def made(bundle: Path, folder: Path, *options: str, idle_s: float = IDLE_S, slots: int = SLOTS) -> Path:
    """Write the model with the command line, because no test of the runtime may import pvc_export."""
    command = [sys.executable, "-m", "pvc_export.cli", "triton", str(bundle), "-o", str(folder), "--name", "watch"]
    command += ["--slots", str(slots), "--idle", str(idle_s), "--max-new-tokens", "6", *options]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return folder / "watch"


@pytest.fixture(scope="module")
def model(bundle_fp32: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(bundle_fp32, tmp_path_factory.mktemp("triton") / "repository")


@pytest.fixture
def server(model: Path) -> Iterator[Server]:
    with serving(model) as server:
        yield server


@pytest.fixture(scope="module")
def bundle(bundle_fp32: Path) -> Bundle:
    return open_bundle(bundle_fp32, runtime="cpu")


@pytest.fixture(scope="module")
def clips() -> tuple[Frames, Frames]:
    return list(render_clip(8, seed=5, width=64, height=48)), list(render_clip(8, seed=6, width=80, height=40))


def alone(bundle: Bundle, frames: Frames, question: str = QUESTION, max_new_tokens: int = 6) -> str:
    stream = PVCStream(bundle, clock="reanchor", reserve=6 + 128)
    for frame in frames:
        stream.push(frame)
    return stream.ask(question, max_new_tokens=max_new_tokens).text


def test_two_sequences_answer_as_two_streams_alone(
    server: Server, bundle: Bundle, clips: tuple[Frames, Frames]
) -> None:
    """Interleaved in batches of both or one, with null requests before the second sequence's slot."""
    first, second = clips
    for index in range(6):
        together = [ask(11, start=index == 0, frame=first[index]), ask(22, start=index == 0, frame=second[index])]
        said = server.infer(*together)
        assert [each.frames for each in said] == [index + 1] * 2 and all(each.answer == "" for each in said)
    (extra,) = server.infer(ask(22, frame=second[6]))
    assert extra.frames == 7
    both = server.infer(ask(11, question=QUESTION), ask(22, question=QUESTION, end=True))
    assert [each.answer for each in both] == [alone(bundle, first[:6]), alone(bundle, second[:7])]
    assert both[0].answer != both[1].answer and [each.frames for each in both] == [6, 7]
    (last,) = server.infer(ask(11, frame=first[6], question=QUESTION, max_new_tokens=3))
    assert (last.answer, last.frames) == (alone(bundle, first[:7], max_new_tokens=3), 7)


def test_a_sequence_takes_frames_for_ever(server: Server, bundle: Bundle, clips: tuple[Frames, Frames]) -> None:
    """It re-anchors, so its context never fills."""
    most, frames = 3 * bundle.manifest.trained_frames + 5, clips[0]
    for index in range(most):
        (said,) = server.infer(ask(1, start=index == 0, frame=frames[index % len(frames)]))
        assert (said.error, said.frames) == ("", index + 1)
    (said,) = server.infer(ask(1, question=QUESTION))
    assert said.answer == alone(bundle, [frames[index % len(frames)] for index in range(most)])


def encoded(frame_bgr: np.ndarray, kind: str) -> bytes:
    out = io.BytesIO()
    Image.fromarray(frame_bgr[..., ::-1]).save(out, kind)
    return out.getvalue()


def test_a_picture_is_a_frame(server: Server, bundle: Bundle, clips: tuple[Frames, Frames]) -> None:
    frames = clips[0][:3]
    for index, frame in enumerate(frames):
        (said,) = server.infer(ask(1, start=index == 0, picture=encoded(frame, "PNG")))
        assert said.frames == index + 1
    (said,) = server.infer(ask(1, question=QUESTION))
    assert said.answer == alone(bundle, frames)
    (said,) = server.infer(ask(1, picture=encoded(frames[0], "JPEG")))
    assert said.frames == 4 and said.error == ""


BAD: dict[str, Ask] = {
    "a frame of no pixels": ask(2, frame=np.zeros((0, 4, 3), np.uint8)),
    "no picture": ask(2, picture=b"hello"),
    "a picture that was cut short": ask(
        2, picture=encoded(next(iter(render_clip(1, seed=1, width=64, height=64))), "JPEG")[:300]
    ),
    "both": ask(2, picture=b"x", frame=np.zeros((4, 4, 3), np.uint8)),
    "nothing": ask(2),
    "a question of the conversation's own tokens": ask(2, question="<|im_start|>"),
    "no text": Ask(of=2, inputs={"QUESTION": np.array([b"\xff\xfe"], np.object_)}),
    "no tokens": ask(2, question="And?", max_new_tokens=0),
    "an answer that does not fit": ask(2, question="And?", max_new_tokens=100_000),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_request_is_its_own_error_and_spoils_no_other_of_its_batch(
    server: Server, bundle: Bundle, clips: tuple[Frames, Frames], name: str
) -> None:
    first, second = clips
    server.infer(ask(1, start=True, frame=first[0]), ask(2, start=True, frame=second[0]))
    good, bad = server.infer(ask(1, frame=first[1], question=QUESTION), BAD[name])
    assert (good.answer, good.frames) == (alone(bundle, first[:2]), 2)
    assert bad.code == TritonError.INVALID_ARG and bad.error and "Traceback" not in bad.error
    assert "BytesIO" not in bad.error
    (after,) = server.infer(ask(2, frame=second[1], question=QUESTION))
    assert (after.answer, after.frames) == (alone(bundle, second[:2]), 2), "a bad request leaves the stream unchanged"


def test_of_a_request_whose_frame_fails_the_question_is_not_asked(server: Server, clips: tuple[Frames, Frames]) -> None:
    server.infer(ask(1, start=True, frame=clips[0][0]))
    counts = server.model._instance._scheduler.counts
    for bad in ({"picture": b"no"}, {"frame": np.zeros((0, 4, 3), np.uint8)}):
        (said,) = server.infer(ask(1, question=QUESTION, **bad))
        assert said.code == TritonError.INVALID_ARG and said.answer == "" and counts.answers == 0
    (said,) = server.infer(ask(1, question=QUESTION))
    assert said.answer and counts.answers == 1


def test_an_error_that_no_input_would_mend_is_internal(
    server: Server, clips: tuple[Frames, Frames], monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(self: PVCStream, frame: object) -> None:
        raise RuntimeError("device lost")

    server.infer(ask(1, start=True, frame=clips[0][0]))
    with monkeypatch.context() as patch:
        patch.setattr(PVCStream, "push", lost)
        (said,) = server.infer(ask(1, frame=clips[0][1]))
    assert said.code == TritonError.INTERNAL and said.error == "RuntimeError: device lost"


def test_end_frees_the_stream_also_where_its_request_fails(server: Server, clips: tuple[Frames, Frames]) -> None:
    for number in range(1, 3 * SLOTS + 1):  # more sequences than slots, one after another
        (said,) = server.infer(ask(number, start=True, frame=clips[0][0]))
        assert said.frames == 1
        (said,) = server.infer(ask(number, end=True) if number % 2 else ask(number, end=True, picture=b"no"))
        assert bool(said.error) == (number % 2 == 0)
        assert len(server.model._instance.sequences) == 0


def test_a_sequence_that_starts_again_starts_over(server: Server, bundle: Bundle, clips: tuple[Frames, Frames]) -> None:
    server.infer(ask(1, start=True, frame=clips[0][0]))
    server.infer(ask(1, frame=clips[0][1]))
    (said,) = server.infer(ask(1, start=True, frame=clips[1][0], question=QUESTION))
    assert (said.answer, said.frames) == (alone(bundle, clips[1][:1]), 1)


def test_a_slot_that_was_used_remembers_nothing_of_it(
    server: Server, bundle: Bundle, clips: tuple[Frames, Frames]
) -> None:
    server.infer(ask(1, start=True, frame=clips[0][0]))
    server.infer(ask(1, frame=clips[0][1], question=QUESTION, end=True))
    (said,) = server.infer(ask(2, start=True, frame=clips[1][0], question=QUESTION))
    assert (said.answer, said.frames) == (alone(bundle, clips[1][:1]), 1)


def test_more_sequences_than_slots_are_refused_until_one_ends(model: Path, clips: tuple[Frames, Frames]) -> None:
    """The server drops an idle sequence before the model does, and sends a new one for which no stream is free yet."""
    with serving(model) as server:
        for number in range(1, SLOTS + 1):
            server.infer(ask(number, start=True, frame=clips[0][0]))
        server.forget(1)
        (said,) = server.infer(ask(9, start=True, frame=clips[0][0]))
        assert said.code == TritonError.UNAVAILABLE and f"{SLOTS} sequences are open" in said.error
        (said,) = server.infer(ask(2, end=True))
        assert said.frames == 1
        (said,) = server.infer(ask(9, start=True, frame=clips[0][0]))
        assert said.frames == 1


def test_a_request_that_continues_with_no_sequence_is_refused(model: Path, clips: tuple[Frames, Frames]) -> None:
    with serving(model, strict=False) as server:
        (said,) = server.infer(ask(5, frame=clips[0][0]))
        assert said.code == TritonError.INVALID_ARG and "sequence 5 does not exist" in said.error


def test_a_sequence_that_idles_out_is_freed_without_being_told(
    bundle_fp32: Path, tmp_path: Path, clips: tuple[Frames, Frames]
) -> None:
    with serving(made(bundle_fp32, tmp_path / "r", idle_s=0.2, slots=1), strict=False) as server:
        server.infer(ask(1, start=True, frame=clips[0][0]))
        sequences = server.model._instance.sequences
        deadline = time.monotonic() + 20.0
        while len(sequences) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert len(sequences) == 0
        (said,) = server.infer(ask(1, frame=clips[0][1]))
        assert said.code == TritonError.INVALID_ARG and "was unused for 0.2 s" in said.error
        server.forget(1)
        (said,) = server.infer(ask(2, start=True, frame=clips[0][0]))
        assert said.frames == 1


def test_a_configuration_that_is_not_ours_is_refused_as_the_model_loads(model: Path, tmp_path: Path) -> None:
    import shutil

    folder = shutil.copytree(model, tmp_path / "watch")
    config = folder / "config.pbtxt"
    config.write_text(config.read_text().replace('key: "bundle"', 'key: "bundel"'))
    with pytest.raises(Exception, match="lacks the bundle parameter"), serving(folder):
        pass


ALONE = """
import os, sys
from pathlib import Path
folder, tests = Path(sys.argv[1]), Path(sys.argv[2])
sys.path.insert(0, str(tests))
import numpy as np
import fake_triton
"""
SERVE = """
with fake_triton.serving(folder) as server:
    (said,) = server.infer(fake_triton.ask(1, start=True, frame=np.zeros((9, 9, 3), np.uint8), question="And?"))
    print(said.frames, said.error, {Path(sys.modules[name].__file__).parents[1].name for name in ("apps", "engines")})
"""


def test_it_runs_from_the_source_in_the_repository_with_what_a_container_has(model: Path, tmp_path: Path) -> None:
    refuse = REFUSE_THE_REST.replace(
        "if top not in", "if top not in ('fake_triton', 'pytest', '_pytest') and top not in"
    )
    code = ALONE.replace("import fake_triton", "import pytest, fake_triton") + refuse + SERVE
    command = [sys.executable, "-P", "-c", code, str(model), str(Path(__file__).parent)]
    result = subprocess.run(command, cwd=tmp_path, env={"PATH": ""}, capture_output=True, text=True)
    assert result.stdout.strip() == "1  {'runtime'}", result.stdout + result.stderr
