"""Cameras with synthetic scenes that push frames over HTTP and ask questions, whatever happens to the servers."""

from __future__ import annotations

import asyncio
import io
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
from PIL import Image

from apps.serving.local import session_options
from apps.serving.pictures import decode_frame
from engines import Bundle, PVCStream
from pvc_ref.shapes import question_of, watch

PERIOD_S, PATIENCE_S, TOKENS, SIZE = 0.8, 120.0, 24, 112
LOST = re.compile(r"frames? (\d+)(?: to (\d+))? (?:was|were) lost with (?:its|their) replica")


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """A question with its answer, and the frames the stream had by then, according to the replies."""

    frames: tuple[int, ...]
    question: str
    truth: str
    said: str


@dataclass(eq=False, kw_only=True, slots=True)
class Camera:
    """One stream.

    have       indices of the frames in the stream, according to the replies
    lost       indices of the frames that replies reported as lost
    answered   (time, milliseconds) of each reply to a frame: when it came, and how long after the first attempt
    wrong      replies that cannot be right
    retries    number of retries by their reason
    """

    name: str
    seed: int
    pictures: list[bytes] = field(default_factory=list)
    have: list[int] = field(default_factory=list)
    lost: list[int] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)
    answered: list[tuple[float, float]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    num_repeated: int = 0
    retries: Counter[str] = field(default_factory=Counter)

    async def run(self, client: httpx.AsyncClient, ended: threading.Event) -> None:
        """Push and ask until the first end of a scene after `ended`."""
        opened = await self._send(client, "", json={"id": self.name})
        assert opened["lost"] == "" and opened["num_frames"] == 0
        scenes, due = 0, time.monotonic()
        for index, (picture, question, truth) in enumerate(shown(self.seed)):
            self.pictures.append(picture)
            await self._push(client, index)
            if question:
                await self._ask(client, question, truth)
                scenes += 1
                if ended.is_set():
                    return
            due = max(due + PERIOD_S, time.monotonic())
            await asyncio.sleep(due - time.monotonic())

    async def _push(self, client: httpx.AsyncClient, index: int) -> None:
        headers = {"content-type": "image/jpeg"}
        path, started = f"/{self.name}/frame?frame_index={index}", time.monotonic()
        reply = await self._send(client, path, content=self.pictures[index], headers=headers)
        self.answered.append((time.monotonic(), 1e3 * (time.monotonic() - started)))
        self.num_repeated += reply["is_repeated"]
        if reply["is_dropped"] or "anew" in reply["lost"]:
            self.wrong.append(f"{self.name}, frame {index}: {reply}")
        if match := LOST.search(reply["lost"]):
            gone = set(range(int(match[1]), int(match[2] or match[1]) + 1))
            self.lost += sorted(gone & set(self.have))
            self.have = [each for each in self.have if each not in gone]
        self.have.append(index)
        if reply["num_frames"] != len(self.have):  # a duplicate, or an unreported loss
            self.wrong.append(f"{self.name}, frame {index}: {len(self.have)} by the replies, {reply}")

    async def _ask(self, client: httpx.AsyncClient, question: str, truth: str) -> None:
        reply = await self._send(
            client, f"/{self.name}/ask", json={"question": question, "max_tokens": TOKENS, "temperature": 0}
        )
        # An answer may be the first call after a loss, which only the next frame's reply reports.
        frames = tuple(self.have[: reply["usage"]["num_frames"]])
        self.asked.append(Asked(frames=frames, question=question, truth=truth, said=reply["text"]))

    async def _send(self, client: httpx.AsyncClient, path: str, **what: Any) -> Any:
        """Send as a camera that must not give up: retry the same request, with the same index, until it succeeds."""
        until = time.monotonic() + PATIENCE_S
        while True:
            try:
                response = await client.post(f"/v1/streaming/sessions{path}", **what)
            except httpx.TransportError as error:
                told = why = repr(error)
            else:
                if response.status_code == 200:
                    return response.json()
                told, why = f"{response.status_code} {response.text}", f"{response.status_code} {response.text[:90]}"
                assert response.status_code in (429, 500, 502, 503, 504), told
            assert time.monotonic() < until, f"{self.name}{path}: {told}"
            self.retries[why] += 1
            await asyncio.sleep(0.2)

    def longest_gap_s(self, since: float, until: float) -> float:
        """Return the longest gap between two replies to frames in this time."""
        times = [at for at, _ in self.answered if since <= at <= until]
        return max((b - a for a, b in zip(times, times[1:], strict=False)), default=until - since)

    def differing(self, bundle: Bundle) -> list[str]:
        """Return the answers that differ from those of a stream with the same frames that never moved."""
        differing, seen, size = [], [], bundle.manifest.shape.image_size
        stream = PVCStream(bundle, **session_options(bundle))
        for asked in self.asked:
            if tuple(seen) != asked.frames[: len(seen)]:  # some were lost in between
                stream, seen = PVCStream(bundle, **session_options(bundle)), []
            for index in asked.frames[len(seen) :]:
                stream.push(decode_frame(self.pictures[index], size=size))
                seen.append(index)
            said = stream.ask(asked.question, max_new_tokens=TOKENS).text
            if said.strip() != asked.said.strip():
                differing.append(f"{self.name}, frame {seen[-1]}: {asked.question} {asked.said!r}, alone {said!r}")
        return differing


def shown(seed: int) -> Iterator[tuple[bytes, str, str]]:
    """Frames as JPEG; with the last one of a scene its question and true answer, else empty texts."""
    for number, frame in enumerate(watch(seed, size=SIZE)):
        out = io.BytesIO()
        Image.fromarray(frame.frame).save(out, "JPEG", quality=90)
        question = question_of(frame.clip, seed + number) if frame.is_last else None
        yield out.getvalue(), question.text if question else "", question.answer if question else ""
