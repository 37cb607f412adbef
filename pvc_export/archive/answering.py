"""Makes one video's row: streams the video from beginning to end, then asks the questions."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from engines import PVCStream, open_bundle
from engines.bundle import Bundle
from engines.errors import MediaError, PVCError, StreamError, StreamFull
from engines.video import VideoReader, probe_video

from .job import Job, Video
from .table import Row


class Answerer:
    """A bundle opened once, for one video after another. Raises the errors of open_bundle."""

    def __init__(self, job: Job, digest: str) -> None:
        self._job, self._digest = job, digest
        self._bundle = open_bundle(
            job.bundle, runtime=job.runtime, trust_engines=job.trust_engines, threads=job.threads
        )

    def row(self, video: Video) -> Row:
        """The row of a video, including its errors. Raises BackendUnavailable for a problem of this machine."""
        started = time.perf_counter()
        found: Row = {"answers": [], "frames": 0, "seconds": 0.0, "damage": None, "error": None}
        try:
            found |= self._look_and_ask(video)
        except (MediaError, StreamError) as error:
            found["error"] = error.to_json()
        found["seconds"] = round(time.perf_counter() - started, 3)
        return video.row(self._digest) | found

    def _look_and_ask(self, video: Video) -> Row:
        job, path = self._job, self._job.folder / video.name
        info = probe_video(path)
        times_s = info.sample_times(job.frames) if job.frames else None
        stream = open_stream(
            self._bundle, info.num_frames if times_s is None else len(times_s), job.questions,
            max_new_tokens=job.max_new_tokens, clock=job.clock,
        )  # fmt: skip
        num_frames = 0
        with VideoReader(path) as reader:
            for frame in reader.frames() if times_s is None else reader.shown_at(times_s):
                stream.push(frame.bgr)
                num_frames += 1
            damage = reader.damage
        answers = [self._answer(stream, question) for question in job.questions]
        return {"answers": answers, "frames": num_frames, "damage": None if damage is None else str(damage)}

    def _answer(self, stream: PVCStream, question: str) -> dict[str, Any]:
        answer = stream.ask(question, max_new_tokens=self._job.max_new_tokens)
        return {
            "question": question, "answer": answer.text, "margin": round(answer.margin, 4), "finished": answer.finished
        }  # fmt: skip


def open_stream(
    bundle: Bundle, num_frames: int, questions: Sequence[str], *, max_new_tokens: int, **options: Any
) -> PVCStream:
    """A stream with a context for every frame, the longest question and its answer. Raises StreamFull if it is too
    small. options: PVCStream's."""
    manifest = bundle.manifest
    total = max(num_frames, 1) if manifest.time_mode == "fixed" else None
    stream = PVCStream(bundle, total_frames=total, **options)
    rows = max(
        stream.rows_needed(num_frames, question=question, max_new_tokens=max_new_tokens) for question in questions
    )
    if rows > manifest.limits.context:
        bucket = manifest.limits.bucket
        raise StreamFull(
            f"{num_frames} frames, the question and {max_new_tokens} tokens of answer need {rows} context rows",
            expected=f"at most {manifest.limits.context} rows, the bundle's context",
            fix=f"sample fewer frames with --frames, or export with --context {-(-rows // bucket) * bucket}",
        )
    return stream


def died(video: Video, digest: str, how: str) -> Row:
    """The row of a video that ended its worker process twice."""
    error = PVCError(
        f"the process that read the video ended twice: {how}", expected="a video that can be read",
        cause="the file is damaged and crashes its decoder, or there is too little memory",
        fix="look at the video: pvc-export run; to try it again: --retry",
    )  # fmt: skip
    found = {"answers": [], "frames": 0, "seconds": 0.0, "damage": None, "error": error.to_json()}
    return video.row(digest) | found
