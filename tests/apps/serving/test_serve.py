"""The pvc-serve command: its command line, its messages and how it ends. Plus a few answers of the bundled model."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from apps.serving import serve
from apps.serving.load import Tally, load, percentiles_ms
from apps.serving.options import make_parser, options_of
from apps.synthetic import SyntheticDevice
from engines.errors import BackendUnavailable

from .conftest import TOKEN
from .fakes import image, jpegs, picture_of, text, user
from .test_chat import events_of

ROOT = Path(__file__).parents[3]
Pvc = Callable[..., SimpleNamespace]


@pytest.fixture
def pvc_serve(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Pvc:
    """Run the command line in this process. The result has code, out and err."""

    def run(*args: object) -> SimpleNamespace:
        monkeypatch.setattr(sys, "argv", ["pvc-serve", *map(str, args)])
        with pytest.raises(SystemExit) as caught:
            serve.main()
        out, err = capsys.readouterr()
        return SimpleNamespace(code=caught.value.code, out=out, err=err)

    return run


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--port", 70000), "--port is 70000"), (("--sessions", 0), "--sessions is 0"),
        (("--answers", -1), "--answers is -1"),
        (("--rate", 0), "--rate is 0"), (("--max-body", 0), "--max-body is 0"), (("--queue", 0), "--queue is 0"),
        (("--host", ""), "--host is empty"), (("--served-as", "a/b"), "--served-as"), (("--drain", -1), "--drain"),
        (("--when-full", "wait"), "--when-full"), (("--sesions", 3), "Did you mean '--sessions'?"),
        (("--connections", 0), "--connections is 0"), (("--idle", 0), "--idle is 0"), (("--threads", 0), "--threads"),
        (("--memory", 0), "--memory is 0"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)  # fmt: skip
def test_an_option_that_cannot_be_is_named(pvc_serve: Pvc, args: tuple[object, ...], says: str) -> None:
    result = pvc_serve("bundle", *args)
    assert result.code == 2 and says in result.err


def test_a_token_that_can_be_guessed_is_a_wrong_use(pvc_serve: Pvc, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PVC_SERVE_TOKEN", "short")
    result = pvc_serve("bundle")
    assert result.code == 2 and "PVC_SERVE_TOKEN is too short or not printable ASCII; expected 16" in result.err


def test_a_bundle_that_is_none_and_a_port_that_is_taken_are_errors_with_a_next_step(
    pvc_serve: Pvc, tmp_path: Path
) -> None:
    assert pvc_serve(tmp_path, "--port", 0).code == 6
    from apps.web.server import bind

    with bind("127.0.0.1", 0) as taken:
        result = pvc_serve(tmp_path, "--port", taken.getsockname()[1])
    assert result.code == 4 and "is in use" in result.err and "fix:" in result.err


def test_limits_of_the_command_line_reach_the_server() -> None:
    told = make_parser().parse_args(
        ["b", "--rate", "5", "--max-body", "0.5", "--max-pixels", "100", "--max-frames", "9", "--max-tokens", "7",
         "--sessions", "3", "--answers", "2", "--idle", "9", "--queue", "2", "--when-full", "refuse", "--waiting", "1"]
    )  # fmt: skip
    options = options_of(told)
    limits, local = options.limits, options.local
    assert (limits.rate, limits.burst, limits.body_bytes) == (5.0, 10, 512 * 1024)
    assert (limits.picture_pixels, limits.video_frames, limits.answer_tokens) == (100, 9, 7)
    assert (local.sessions, local.answers, local.idle_s, local.waiting, local.streams) == (3, 2, 9.0, 1, 5)
    assert (local.queue.frames, local.queue.when_full) == (2, "refuse")


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    options = options_of(make_parser().parse_args(["b"]))
    with pytest.raises(BackendUnavailable, match="pvc-serve needs the package uvicorn"), serve.open_server(options):
        pass


WITHOUT = """
import importlib, pkgutil, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("starlette", "uvicorn", "websockets", "prometheus_client", "anyio", "av"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Refuse())
import apps.serving
for module in pkgutil.walk_packages(apps.serving.__path__, "apps.serving."):
    importlib.import_module(module.name)
from apps.serving.serve import main
sys.argv = ["pvc-serve", "--help"] if len(sys.argv) > 1 else ["pvc-serve", "."]
main()
"""


def test_every_module_imports_without_the_packages_and_the_help_is_shown() -> None:
    found = subprocess.run([sys.executable, "-c", WITHOUT, "help"], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0 and found.stderr == "" and "--when-full" in found.stdout
    assert max(map(len, found.stdout.splitlines())) <= 80
    found = subprocess.run([sys.executable, "-c", WITHOUT], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 4 and "pvc-serve needs the package starlette" in found.stderr


# -- the trained model -------------------------------------------------------------------------------------------------


@contextmanager
def running(bundle: Path, *args: object, **environment: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Run the command in its own process; yields its URL and the process."""
    command = [sys.executable, "-m", "apps.serving.serve", bundle, "--port", 0, "--threads", 1, *args]
    process = subprocess.Popen(
        [*map(str, command)], cwd=ROOT, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    assert process.stdout is not None and process.stderr is not None
    try:
        line = process.stdout.readline()
        found = re.fullmatch(r"Serving pvc-vision-shapes at (http://127\.0\.0\.1:\d+)/v1\n", line)
        assert found, line + process.stderr.read()
        yield found.group(1), process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def url(bundle_shapes: Path) -> Iterator[str]:
    with running(bundle_shapes) as (url, _):
        yield url


def scenes(number: int, *, seed: int) -> Iterator[tuple[list[Any], str, str]]:
    """Frames of synthetic scenes, as the model was trained on, a question about them, and the true answer."""
    device, frames = SyntheticDevice(seed=seed), list[Any]()
    while number:
        shown = device.read()
        assert shown is not None and shown.scene is not None
        frames.append(shown.bgr)
        if shown.scene.is_last:
            yield frames, shown.scene.question, shown.scene.answer or ""
            frames, number = [], number - 1


def test_the_model_says_what_is_true_of_a_clip_and_of_a_session(url: str) -> None:
    model, right = {"model": "pvc-vision-shapes"}, 0
    with httpx.Client(base_url=url, timeout=60) as client:
        for number, (frames, question, truth) in enumerate(scenes(4, seed=5)):
            pictures = [picture_of(frame) for frame in frames]
            asked = model | {"messages": [user(text(question), jpegs(*pictures))]}
            whole = client.post("/v1/chat/completions", json=asked).json()["choices"][0]["message"]["content"]
            *chunks, _ = events_of(client.post("/v1/chat/completions", json=asked | {"stream": True}).text)
            assert whole == "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
            header = {"X-Session-Id": f"cam-{number}"}
            for frame in pictures:
                told = model | {"messages": [user(text(question), image(frame))]}
                answer = client.post("/v1/chat/completions", json=told, headers=header)
            assert answer.headers["pvc-frames"] == str(len(frames))
            assert answer.json()["choices"][0]["message"]["content"] == whole
            client.delete(f"/v1/streaming/sessions/cam-{number}")
            right += whole == truth
    assert right >= 3


def test_several_clients_at_once_lose_nothing(url: str) -> None:
    import asyncio

    tally = asyncio.run(load(url, clients=6, seconds=2.0, token=None))
    assert tally.num_failures == 0, tally.to_json()
    assert set(tally.statuses) == {"image", "clip", "open", "frame"} | ({"ask"} & set(tally.statuses))
    assert all(200 in found for found in tally.statuses.values()) and tally.memory_mb and tally.first_s


def test_sigterm_finishes_what_runs_and_refuses_what_comes(bundle_shapes: Path) -> None:
    headers = {"authorization": f"Bearer {TOKEN}"}
    with (
        running(bundle_shapes, PVC_SERVE_TOKEN=TOKEN) as (url, process),
        httpx.Client(base_url=url, headers=headers, timeout=60) as client,
    ):
        chat = {"model": "pvc-vision-shapes", "max_tokens": 1500, "temperature": 2.0, "seed": 1}
        chat["messages"] = [{"role": "user", "content": "Tell me."}]
        statuses, beginnings = list[int](), list[str]()

        def ask() -> None:
            with client.stream("POST", "/v1/chat/completions", json=chat | {"stream": True}) as response:
                statuses.append(response.status_code)
                beginnings.extend(response.iter_lines())

        asking = threading.Thread(target=ask)
        asking.start()
        while not statuses:
            time.sleep(0.005)
        process.send_signal(signal.SIGTERM)
        refused = set()
        while asking.is_alive():
            try:
                refused.add(client.get("/v1/models").status_code)
            except httpx.HTTPError:
                break
        asking.join()
        assert beginnings[-2] == "data: [DONE]" and refused <= {200, 503}
        assert process.wait(timeout=30) == 0


def test_ctrl_c_as_soon_as_the_address_is_printed_ends_it_with_0(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def opened(options: object) -> Iterator[SimpleNamespace]:
        work = SimpleNamespace(num_running=0)
        yield SimpleNamespace(model_id="m", url="u", token=None, work=work, drain=lambda timeout_s: True)

    def printed(text: str, **options: object) -> None:
        if text.startswith("Serving"):
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(serve, "open_server", opened)
    monkeypatch.setattr(serve, "print", printed, raising=False)
    before = {number: signal.getsignal(number) for number in serve.SIGNALS}
    try:
        assert serve.serve(options_of(make_parser("pvc-serve").parse_args(["bundle"]))) == 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_beyond_this_machine_it_needs_the_token_that_it_says(bundle_shapes: Path) -> None:
    command = [sys.executable, "-m", "apps.serving.serve", str(bundle_shapes), "--port", "0", "--host", "0.0.0.0"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        address, token = process.stdout.readline(), process.stdout.readline().rpartition(" ")[2].strip()
        port = int(address.rpartition(":")[2].partition("/")[0])
        url = f"http://127.0.0.1:{port}/v1/models"
        assert httpx.get(url).status_code == 401
        assert len(token) > 30 and httpx.get(url, headers={"authorization": f"Bearer {token}"}).status_code == 200
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
        process.stdout.close()


# -- figures of the load test ------------------------------------------------------------------------------------------


def test_percentiles_are_of_nearest_rank() -> None:
    assert percentiles_ms([n / 1000 for n in range(1, 101)]) == {
        "count": 100,
        "p50": 51,
        "p90": 91,
        "p99": 100,
        "most": 100,
    }
    assert percentiles_ms([]) == {"count": 0}


def test_a_refusal_that_says_when_is_no_failure_and_the_rest_is() -> None:
    tally = Tally()
    tally.statuses["image"].update([200, 200, 429, 503])
    assert tally.num_failures == 0
    tally.statuses["image"].update([500, 0])
    tally.problems["clip: ReadError"] += 1
    assert tally.num_failures == 3 and tally.to_json()["problems"] == {"clip: ReadError": 1}
