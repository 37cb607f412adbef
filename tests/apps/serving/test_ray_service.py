"""Calls to replicas that die: which are sent again, and which errors the others raise. Ray's handle is a fake."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from apps.serving.kept import Leaving
from apps.serving.ray_app import ClusterOptions, main, make_parser, options_of, serve_on_ray
from apps.serving.ray_replica import ReplicaOptions
from apps.serving.ray_service import RayService
from apps.serving.service import NoSession, Opened, Piece, Pushed, Wanted
from engines.errors import BackendUnavailable, PVCError, StreamError
from engines.many.handle import Busy


class Died(Exception):
    """Ray's exception for an actor that died."""


class Handle:
    """Return or raise the next of `outcomes` at each call, and record the calls."""

    def __init__(self, *outcomes: Any) -> None:
        self.outcomes, self.calls, self.num_cancelled = list(outcomes), list[tuple[str, str | None]](), 0

    def options(self, *, method_name: str, session_id: str | None = None, stream: bool = False) -> Any:
        handle = self

        class Pieces:
            def __init__(self) -> None:
                self._outcome = handle._next(method_name, session_id)

            async def __aiter__(self) -> AsyncIterator[Any]:
                for piece in self._outcome:
                    if isinstance(piece, Died):
                        raise piece
                    yield piece

            def cancel(self) -> None:
                handle.num_cancelled += 1

        class Call:
            @staticmethod
            def remote(*args: object) -> Any:
                return Pieces() if stream else outcome()

        async def outcome() -> Any:
            found = handle._next(method_name, session_id)
            if isinstance(found, Died):
                raise found
            return found

        return Call()

    def _next(self, method: str, session: str | None) -> Any:
        self.calls.append((method, session))
        return self.outcomes.pop(0)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("apps.serving.ray_service.PAUSE_S", 0.0)


def service(*outcomes: Any, patience_s: float = 60.0) -> tuple[RayService, Handle]:
    handle = Handle(*outcomes)
    return RayService(handle, model_id="m", patience_s=patience_s, lost=(Died,)), handle


def test_a_frame_with_an_index_is_sent_again_until_a_replica_has_it() -> None:
    serving, handle = service(Died(), Leaving(), Pushed(frame_index=3))
    assert asyncio.run(serving.push("door", b"", 3)) == Pushed(frame_index=3)
    assert handle.calls == [("push", "door")] * 3


def test_a_frame_without_an_index_is_not_for_it_might_be_there_twice() -> None:
    serving, handle = service(Died(), Pushed(frame_index=3))
    with pytest.raises(StreamError, match="it is unknown whether the request was carried out") as caught:
        asyncio.run(serving.push("door", b""))
    assert "frame_index" in caught.value.fix and len(handle.calls) == 1
    serving, handle = service(Leaving(), Pushed(frame_index=3))  # that frame was not accepted
    assert asyncio.run(serving.push("door", b"")).frame_index == 3


def test_what_a_replica_says_is_raised() -> None:
    for error in (NoSession("none"), Busy("full", retry_after_s=3.0)):
        serving, _ = service(error)
        with pytest.raises(type(error)) as caught:
            asyncio.run(serving.open("door"))
        assert caught.value is error


def test_patience_ends() -> None:
    for outcome in (Died(), Leaving()):
        serving, _ = service(outcome, outcome, patience_s=0.0)
        with pytest.raises(Busy):
            asyncio.run(serving.open("door"))


def test_a_session_without_an_id_gets_one_that_says_its_replica() -> None:
    serving, handle = service(Opened(id="x"), Opened(id="y"))
    asyncio.run(serving.open())
    asyncio.run(serving.open())
    (_, first), (_, second) = handle.calls
    assert first and second and first != second and len(first) == 32


async def pieces_of(pieces: AsyncIterator[Piece]) -> str:
    return "".join([piece.text async for piece in pieces])


A, B = Piece(text="a"), Piece(text="b", finish="stop")


@pytest.mark.parametrize(
    ("ask", "outcomes", "said"),
    [
        (lambda s: s.ask("door", Wanted(question="?")), [[Died()], [Leaving()], [A, B]], "ab"),
        (lambda s: s.complete((), Wanted(question="?")), [[Died()], [A, B]], "ab"),
        (lambda s: s.ask("door", Wanted(question="?")), [[A, Died()], [A, B]], Busy),  # the client has the first piece
        (lambda s: s.ask("door", Wanted(question="?", keep=True)), [[Died()], [A, B]], StreamError),
        (lambda s: s.ask("door", Wanted(question="?")), [[NoSession("none")]], NoSession),
    ],
)
def test_an_answer_is_asked_for_again_as_long_as_nothing_was_said(
    ask: Callable[[RayService], AsyncIterator[Piece]], outcomes: list[Any], said: str | type[PVCError]
) -> None:
    serving, handle = service(*outcomes)
    if isinstance(said, str):
        assert asyncio.run(pieces_of(ask(serving))) == said
    else:
        with pytest.raises(said):
            asyncio.run(pieces_of(ask(serving)))
    assert handle.num_cancelled == len(handle.calls)


def test_a_listener_that_leaves_ends_the_answer() -> None:
    serving, handle = service([A, B])

    async def work() -> None:
        pieces = serving.ask("door", Wanted(question="?"))
        assert await anext(pieces) == A
        await pieces.aclose()

    asyncio.run(work())
    assert handle.num_cancelled == 1


def test_without_ray_the_error_names_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    options = ClusterOptions(replica=ReplicaOptions(bundle=tmp_path, snapshots=str(tmp_path)))
    with pytest.raises(BackendUnavailable) as caught:
        serve_on_ray(options)
    assert "pip install 'ray[serve]>=2.60'" in caught.value.fix
    monkeypatch.setattr(sys, "argv", ["x", str(tmp_path), "--snapshots", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 4 and "pip install 'ray[serve]" in capsys.readouterr().err


def test_the_command_line_becomes_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    line = ["b", "--snapshots", "s", "--replicas", "3", "--gpus", "1", "--every", "8", "--sessions", "5"]
    options = options_of(make_parser("x").parse_args(line))
    assert options.replica.bundle == tmp_path / "b" and options.replica.snapshots == str(tmp_path / "s")
    assert (options.replicas, options.gpus, options.replica.every, options.replica.limits.sessions) == (3, 1.0, 8, 5)
    assert options.token is None
    address = options_of(make_parser("x").parse_args(["b", "--snapshots", "s3://bucket/x"]))
    assert address.replica.snapshots == "s3://bucket/x"
    for wrong in (["--replicas", "0"], ["--every", "0"], ["--cpus", "-1"]):
        with pytest.raises(ValueError):
            options_of(make_parser("x").parse_args(["b", "--snapshots", "s", *wrong]))
    monkeypatch.setenv("PVC_SERVE_TOKEN", "sixteen-letters-or-more")
    beyond = options_of(make_parser("x").parse_args(["b", "--snapshots", "s", "--host", "0.0.0.0"]))
    assert beyond.token == "sixteen-letters-or-more"
