"""Load test of a server with many concurrent clients: statuses, latencies, and the server's memory.

    python -m apps.serving.load http://127.0.0.1:8000 --clients 32 --seconds 600

There are three kinds of client, in equal shares: one asks about a picture, one asks about a clip and streams the
answer, one is a camera with its own session that pushes frames and asks now and then. A client that gets 429 or 503
waits for the time the server names. The pictures are rendered, so a trained model's answers mean little.
Exit codes: 0 no failure (429 does not count), 3 failures, 4 the server cannot be reached.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import re
import secrets
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

from engines.synthetic import render_clip

from .options import TOKEN_VARIABLE
from .pictures import encode_frame

KINDS = ("image", "clip", "camera")
NUM_FRAMES, ASK_EVERY = 8, 5
COME_AGAIN = (429, 503)
SESSIONS = "/v1/streaming/sessions"


@dataclass(kw_only=True, slots=True)
class Tally:
    """Results. statuses: by kind of request, 0 without a response; took_s: of responses with 200; memory_mb: the
    server's, over time."""

    statuses: defaultdict[str, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))
    took_s: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    first_s: list[float] = field(default_factory=list)
    memory_mb: list[float] = field(default_factory=list)
    problems: Counter[str] = field(default_factory=Counter)

    @property
    def num_failures(self) -> int:
        answered = (200, *COME_AGAIN)
        failed = sum(n for found in self.statuses.values() for status, n in found.items() if status not in answered)
        return failed + self.problems.total()

    def to_json(self) -> dict[str, Any]:
        """All figures. Latencies in ms."""
        return {
            "statuses": {what: dict(sorted(found.items())) for what, found in self.statuses.items()},
            "latency_ms": {what: percentiles_ms(took) for what, took in self.took_s.items()},
            "first_token_ms": percentiles_ms(self.first_s),
            "memory_mb": self._memory(),
            "problems": dict(self.problems),
            "num_failures": self.num_failures,
        }  # fmt: skip

    def _memory(self) -> dict[str, float]:
        """The server's memory; half: after half of the time, since a leak also grows in the second half."""
        seen = self.memory_mb
        return {"first": seen[0], "half": seen[len(seen) // 2], "last": seen[-1], "most": max(seen)} if seen else {}


def percentiles_ms(took_s: list[float]) -> dict[str, float]:
    """Percentiles by nearest rank."""
    ordered = sorted(took_s)
    if not ordered:
        return {"count": 0}
    at = {f"p{percent}": ordered[min(len(ordered) * percent // 100, len(ordered) - 1)] for percent in (50, 90, 99)}
    return {
        "count": len(ordered),
        **{name: round(1e3 * value, 1) for name, value in {**at, "most": ordered[-1]}.items()},
    }


class Client:
    """One client. `number` selects its kind."""

    def __init__(self, http: Any, model: str, number: int, tally: Tally, frames: list[bytes]) -> None:
        self._http, self._model, self._tally, self._frames = http, model, tally, frames
        self._kind, self._session = KINDS[number % len(KINDS)], f"load-{secrets.token_hex(4)}-{number}"
        self._num_pushed = 0

    async def run(self, ends: float) -> None:
        """Send one request after another until `ends`."""
        if self._kind == "camera":
            while time.monotonic() < ends and await self._request("open", SESSIONS, json={"id": self._session}) != 200:
                await asyncio.sleep(0.1)
        while time.monotonic() < ends:
            match self._kind:
                case "image":
                    await self._request("image", "/v1/chat/completions", json=self._chat(self._image()))
                case "clip":
                    await self._streamed()
                case _:
                    await self._watch()
        if self._kind == "camera":
            await self._http.delete(f"{SESSIONS}/{self._session}")

    async def _watch(self) -> None:
        frame = self._frames[self._num_pushed % len(self._frames)]
        path = f"{SESSIONS}/{self._session}/frame?frame_index={self._num_pushed}"
        status = await self._request("frame", path, content=frame, headers={"content-type": "image/png"})
        if status == 200:
            self._num_pushed += 1
            if self._num_pushed % ASK_EVERY == 0:
                asked = {"question": "What happens?", "max_tokens": 32}
                await self._request("ask", f"{SESSIONS}/{self._session}/ask", json=asked)

    async def _request(self, what: str, path: str, **request: Any) -> int:
        """Send a request. Returns the status; 0 without a response."""
        import httpx

        started = time.monotonic()
        try:
            response = await self._http.post(path, **request)
        except httpx.HTTPError as error:
            self._tally.problems[f"{what}: {type(error).__name__}"] += 1
            self._tally.statuses[what][0] += 1
            return 0
        status = int(response.status_code)
        self._tally.statuses[what][status] += 1
        if status == 200:
            self._tally.took_s[what].append(time.monotonic() - started)
            told = response.json()
            if what == "frame" and told["num_frames"] != self._num_pushed + 1:
                self._tally.problems["frame: the session lost frames"] += 1
        elif status in COME_AGAIN:
            await asyncio.sleep(min(float(response.headers.get("retry-after-ms", "1000")) / 1e3, 10.0))
        return status

    async def _streamed(self) -> None:
        import httpx

        started, is_first, last = time.monotonic(), True, ""
        try:
            async with self._http.stream(
                "POST", "/v1/chat/completions", json=self._chat(self._clip(), stream=True)
            ) as answer:
                self._tally.statuses["clip"][int(answer.status_code)] += 1
                async for line in answer.aiter_lines():
                    if is_first and answer.status_code == 200:
                        self._tally.first_s.append(time.monotonic() - started)
                    is_first, last = False, line or last
                waits_s = float(answer.headers.get("retry-after-ms", "0")) / 1e3
        except httpx.HTTPError as error:
            self._tally.problems[f"clip: {type(error).__name__}"] += 1
            return
        if answer.status_code == 200:
            self._tally.took_s["clip"].append(time.monotonic() - started)
            if last != "data: [DONE]":
                self._tally.problems["clip: the event stream is incomplete"] += 1
        await asyncio.sleep(min(waits_s, 10.0))

    def _chat(self, part: dict[str, Any], **fields: Any) -> dict[str, Any]:
        content = [{"type": "text", "text": "What happens?"}, part]
        return {"model": self._model, "messages": [{"role": "user", "content": content}], "max_tokens": 32, **fields}

    def _image(self) -> dict[str, Any]:
        return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{_base64(self._frames[0])}"}}

    def _clip(self) -> dict[str, Any]:
        return {
            "type": "video_url",
            "video_url": {"url": "data:video/jpeg;base64," + ",".join(map(_base64, self._frames))},
        }


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


async def load(url: str, *, clients: int, seconds: float, token: str | None) -> Tally:
    """Run the load test. Needs httpx. Raises httpx.HTTPError if the server cannot be reached at all."""
    import httpx

    headers = {} if token is None else {"authorization": f"Bearer {token}"}
    frames = [encode_frame(frame) for frame in render_clip(NUM_FRAMES, seed=1)]
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=120.0, limits=limits) as http:
        listed = await http.get("/v1/models")
        listed.raise_for_status()
        model, tally = listed.json()["data"][0]["id"], Tally()
        ends = time.monotonic() + seconds
        running = [Client(http, model, number, tally, frames).run(ends) for number in range(clients)]
        await asyncio.gather(_look(http, tally, ends), *running)
        await _look(http, tally, 0.0)
    return tally


async def _look(http: Any, tally: Tally, ends: float) -> None:
    """Record the server's memory every few seconds."""
    import httpx

    while True:
        try:
            text = (await http.get("/metrics")).text
        except httpx.HTTPError:
            text = ""
        if found := re.search(r"^pvc_resident_memory_bytes (\S+)$", text, re.MULTILINE):
            tally.memory_mb.append(round(float(found.group(1)) / 1e6, 1))
        if time.monotonic() >= ends:
            return
        await asyncio.sleep(max(min(5.0, ends - time.monotonic()), 0.0))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m apps.serving.load", allow_abbrev=False)
    parser.add_argument("url", metavar="URL", help="The server's address, such as http://127.0.0.1:8000")
    parser.add_argument("--clients", metavar="N", type=int, default=32, help="Concurrent clients. [default: 32]")
    parser.add_argument(
        "--seconds", metavar="SECONDS", type=float, default=60.0, help="Length of the test. [default: 60]"
    )
    told = parser.parse_args()
    try:
        import httpx
    except ImportError:
        print("error: the package httpx is missing\nfix: pip install httpx")
        raise SystemExit(4) from None
    url = told.url.rstrip("/").removesuffix("/v1")
    try:
        running = load(url, clients=told.clients, seconds=told.seconds, token=os.environ.get(TOKEN_VARIABLE))
        tally = asyncio.run(running)
    except httpx.HTTPError as error:
        print(f"error: no pvc-serve responds at {url}: {error}")
        raise SystemExit(4) from None
    print(json.dumps(tally.to_json(), indent=1))
    raise SystemExit(3 if tally.num_failures else 0)


if __name__ == "__main__":
    main()
