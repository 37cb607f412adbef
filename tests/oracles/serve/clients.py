"""`make serve-clients`: a real pvc-serve gets requests from OpenAI's client, requests as live-vlm-webui sends them,
10,000 malformed requests, and schemathesis' checks against its OpenAPI document.

python -m tests.oracles.serve.clients [--malformed 10000] [--examples 100]   exit 0 all well, 3 something differs

At the end nothing may be left over: no session, no request, no body; memory as before; SIGTERM gives exit code 0.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from hypothesis import HealthCheck, Phase, Verbosity, given, settings

from apps.serving.pictures import encode_frame
from apps.synthetic import SyntheticDevice
from engines.video import write_video
from tests.apps.serving.malformed import ALLOWED, SESSIONS, requests

HOME = Path("build/oracles/serve")
TOKEN, NUM_CLIPS = "a-token-of-the-oracle-0123456789", 6
OURS, THEIRS = "pvc-vision-fake", "pvc-vision-shapes"
"""The model's name in malformed.py, and the real one."""
CONFIG = Path(__file__).absolute().with_name("schemathesis.toml")
MOST_GROWTH_MB = 64.0
"""Largest growth of the server's memory over all malformed requests: as much as its allocator keeps."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--malformed", type=int, default=10_000)
    parser.add_argument("--examples", type=int, default=100)
    parser.add_argument("--bundle", type=Path, default=Path("build/browser"), help="Bundle of the model 'shapes'.")
    told = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, served(told.bundle, Path(folder)) as (url, process):
        problems = [
            *openai_client(url, Path(folder)),
            *malformed(url, told.malformed),
            *schemathesis(url, told.examples),
            *left_over(url),
        ]
        problems += ended(process)
    for problem in problems:
        print(f"WRONG  {problem}")
    print("all well" if not problems else f"{len(problems)} problems")
    raise SystemExit(3 if problems else 0)


@contextmanager
def served(bundle: Path, folder: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Run the command itself on a free port."""
    command = [sys.executable, "-m", "apps.serving.serve", bundle, "--port", "0", "--rate", "100000", "--sessions", "8"]
    environment = os.environ | {"PVC_SERVE_TOKEN": TOKEN}
    with (folder / "stderr.txt").open("w+") as errors:
        process = subprocess.Popen(
            [*map(str, command)], env=environment, stdout=subprocess.PIPE, stderr=errors, text=True
        )
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"http://\S+", line)
        assert found, f"pvc-serve did not start: {line} {(folder / 'stderr.txt').read_text()}"
        try:
            yield found.group(), process
        finally:
            process.kill()
            process.wait()
            errors.seek(0)
            if said := errors.read():
                print(f"log of pvc-serve:\n{said}")


def client_of(url: str) -> httpx.Client:
    return httpx.Client(base_url=url.removesuffix("/v1"), headers={"authorization": f"Bearer {TOKEN}"}, timeout=60)


# -- clients -----------------------------------------------------------------------------------------------------------


def clips_of_the_world(folder: Path) -> list[dict[str, Any]]:
    """Return scenes with a known question and answer."""
    device, clips = SyntheticDevice(seed=11), list[dict[str, Any]]()
    frames: list[Any] = []
    while len(clips) < NUM_CLIPS:
        shown = device.read()
        assert shown is not None and shown.scene is not None
        frames.append(shown.bgr)
        if not shown.scene.is_last:
            continue
        path = folder / f"{len(clips)}.mp4"
        write_video(path, iter(frames), fps=4.0)
        texts = [base64.b64encode(encode_frame(frame)).decode() for frame in frames]
        clips.append(
            {
                "session": f"oracle-{len(clips)}", "question": shown.scene.question, "truth": shown.scene.answer,
                "frames": [f"data:image/png;base64,{text}" for text in texts],
                "jpegs": "data:video/jpeg;base64," + ",".join(texts),
                "mp4": "data:video/mp4;base64," + base64.b64encode(path.read_bytes()).decode(),
            }
        )  # fmt: skip
        frames = []
    return clips


def openai_client(url: str, folder: Path) -> list[str]:
    """OpenAI's client gets the true answers, in every way of asking."""
    clips = clips_of_the_world(folder)
    case = folder / "case.json"
    case.write_text(json.dumps({"url": url, "token": TOKEN, "clips": clips}), encoding="utf-8")
    script = Path(__file__).with_name("run_openai.py")
    done = subprocess.run([HOME / "bin/python", script, case], capture_output=True, text=True)
    if done.returncode:
        return [f"openai's client: {done.stderr[-2000:]}"]
    told = json.loads(done.stdout)
    problems, right = [], Counter[str]()
    for clip, found in zip(clips, told["clips"], strict=True):
        for way in ("jpegs", "mp4", "streamed"):
            right[way] += found[way] == clip["truth"]
        right["session"] += found["session"]["last"] == clip["truth"]
        if found["streamed"] != found["jpegs"] or found["session"]["last"] != found["jpegs"]:
            problems.append(f"{clip['question']} has different answers: {found}")
        if found["session"]["frames"] != list(range(1, len(clip["frames"]) + 1)):
            problems.append(f"a session counted {found['session']['frames']}")
        if found["sampled"][0] != found["sampled"][1]:
            problems.append("the same seed gave two different answers")
    expected = {
        "n": "BadRequestError unsupported_parameter n", "model": "NotFoundError model_not_found model",
        "url": "BadRequestError invalid_url messages[0].content[0].image_url.url",
        "tokens": "BadRequestError None max_tokens", "token": "AuthenticationError invalid_api_key None",
    }  # fmt: skip
    if told["errors"] != expected:
        problems.append(f"errors: {told['errors']}")
    if told["webui"]["model"] != THEIRS or not all(told["webui"]["texts"]):
        problems.append(f"live-vlm-webui: {told['webui']}")
    if min(right.values()) < NUM_CLIPS - 1:
        problems.append(f"too few true answers: {right}")
    print(
        f"openai {told['openai']}: {NUM_CLIPS} clips, true answers: {dict(right)}; "
        f"live-vlm-webui: {told['webui']['texts']}"
    )
    return problems


# -- malformed requests ------------------------------------------------------------------------------------------------


def malformed(url: str, number: int) -> list[str]:
    """No 5xx, every refusal in the common form, and memory as before."""
    statuses, problems = Counter[int](), list[str]()
    client = client_of(url)

    @settings(
        max_examples=number, deadline=None, database=None, phases=[Phase.generate], verbosity=Verbosity.quiet,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(request=requests)
    def send(request: Any) -> None:
        method, path, headers, body = request
        if headers.get("authorization") == "":
            headers = {name: text for name, text in headers.items() if name != "authorization"}
        encoded = {name: text.encode("latin-1") for name, text in headers.items()}
        content = body.replace(OURS.encode(), THEIRS.encode())
        try:
            response = client.request(method, path, headers=encoded, content=content)
        except (httpx.InvalidURL, httpx.LocalProtocolError):
            statuses[0] += 1
            return
        statuses[response.status_code] += 1
        if response.status_code not in ALLOWED:
            problems.append(
                f"{response.status_code} for {method} {path} {headers} {content[:500]!r}: {response.text[:500]}"
            )
        elif response.status_code != 200 and "error" not in response.json():
            problems.append(f"{method} {path} is refused without an 'error' object: {response.text[:200]}")

    before, started = figure(url, "pvc_resident_memory_bytes"), time.monotonic()
    send()
    growth_mb = (figure(url, "pvc_resident_memory_bytes") - before) / 1e6
    took_s = time.monotonic() - started
    told = {status or "not sent": count for status, count in sorted(statuses.items())}
    print(f"{sum(statuses.values())} malformed requests in {took_s:.0f} s: {told}; memory {growth_mb:+.1f} MB")
    if growth_mb > MOST_GROWTH_MB:
        problems.append(f"memory grew by {growth_mb:.1f} MB")
    return problems[:20]


def schemathesis(url: str, examples: int) -> list[str]:
    """Test what the OpenAPI document allows and forbids, with a program that knows only that document."""
    base = url.removesuffix("/v1")
    command = [
        str(HOME.absolute() / "bin/schemathesis"), "--config-file", str(CONFIG), "run",
        f"{base}/openapi.json", "--url", base, "--header", f"Authorization: Bearer {TOKEN}",
        "--max-examples", str(examples), "--checks", "all", "--seed", "1", "--no-color",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=HOME, capture_output=True, text=True)  # it writes its findings there
    told = done.stdout[-6000:]
    print(told if done.returncode else "\n".join(told.splitlines()[-25:]))
    return [f"schemathesis failed with exit code {done.returncode}"] if done.returncode else []


# -- leftovers ---------------------------------------------------------------------------------------------------------


def figure(url: str, name: str) -> float:
    with client_of(url) as client:
        found = re.search(rf"^{name} (\S+)$", client.get("/metrics").text, re.MULTILINE)
    assert found, name
    return float(found.group(1))


def left_over(url: str) -> list[str]:
    """The sessions that requests opened can be closed, nothing runs or waits, and a question is answered."""
    with client_of(url) as client:
        for session_id in ("fuzz-1", "fuzz-2", "7"):
            client.delete(f"{SESSIONS}/{session_id}")
        text = client.get("/metrics").text
        time.sleep(1.0)
        body = {"model": THEIRS, "messages": [{"role": "user", "content": "What happens?"}], "max_tokens": 4}
        problems = []
        if client.post("/v1/chat/completions", json=body).status_code != 200:
            problems.append("a valid question is no longer answered")
    time.sleep(0.5)
    for name in ("pvc_requests_running", "pvc_body_bytes", "pvc_waiting"):
        if value := figure(url, name):
            problems.append(f"{name} is {value} at the end")
    print(f"left: {figure(url, 'pvc_sessions'):.0f} sessions, all unused; nothing runs or waits")
    if re.search(r'status="5\d\d"', text):
        problems.append("the server's metrics count a 5xx")
    return problems


def ended(process: subprocess.Popen[str]) -> list[str]:
    process.send_signal(signal.SIGTERM)
    try:
        code = process.wait(timeout=60)
    except subprocess.TimeoutExpired:
        return ["SIGTERM does not end pvc-serve"]
    return [] if code == 0 else [f"SIGTERM ends pvc-serve with exit code {code}"]


if __name__ == "__main__":
    main()
