"""Access to the page."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from apps.web.access import Access
from apps.web.options import WebOptions

from .conftest import SOCKET, TOKEN


def access(*, host: str = "127.0.0.1", served_as: tuple[str, ...] = (), token: str | None = None) -> Access:
    return Access.of(WebOptions(host=host, served_as=served_as), token=token, port=8080)


@pytest.mark.parametrize(
    ("host", "serves"),
    [
        ("localhost:8080", True), ("LOCALHOST", True), ("127.0.0.1:9000", True), ("[::1]:8080", True),
        ("127.8.8.8", True), ("evil.example", False), ("localhost.evil.example:8080", False), ("", False),
        ("192.168.1.5:8080", False), ("[::1", False), ("user@localhost", True), ("localhost/..", True),
    ],
)  # fmt: skip
def test_on_this_machine_only_its_own_names_are_served(host: str, *, serves: bool) -> None:
    assert access().serves(host) == serves


def test_a_proxys_name_is_served_where_it_is_given() -> None:
    assert access(served_as=("Cam.example.org",)).serves("cam.example.org")
    assert not access(served_as=("cam.example.org",)).serves("example.org")


@pytest.mark.parametrize(("host", "serves"), [("10.0.0.7:8080", True), ("[fe80::1]:80", True), ("evil.example", False)])
def test_on_a_network_addresses_in_numbers_are_served_and_strange_names_are_not(host: str, *, serves: bool) -> None:
    assert access(host="0.0.0.0").serves(host) == serves


@pytest.mark.parametrize(
    ("origin", "is_own"),
    [
        (None, True), ("http://localhost:8080", True), ("https://localhost:8080", True),
        ("http://localhost:3000", False), ("http://localhost", False), ("https://evil.example", False),
        ("null", False), ("", False), ("http://[", False), ("file://localhost:8080", False),
    ],
)  # fmt: skip
def test_a_socket_is_opened_by_pages_of_the_same_host_and_port(origin: str | None, *, is_own: bool) -> None:
    assert access().is_own(origin, "localhost:8080") == is_own


def test_the_usual_port_may_be_left_out() -> None:
    assert access().is_own("https://cam.example.org", "cam.example.org:443")
    assert not access().is_own("https://cam.example.org", "cam.example.org:8443")


@pytest.mark.parametrize(
    ("given", "knows"),
    [
        ({"query_token": TOKEN}, True), ({"query_token": TOKEN[:-1]}, False), ({"query_token": ""}, False),
        ({"authorization": f"Bearer {TOKEN}"}, True), ({"authorization": f"bearer {TOKEN}"}, True),
        ({"authorization": f"Basic {TOKEN}"}, False), ({"authorization": TOKEN}, False),
        ({"cookies": {"pvc_live_8080": TOKEN}}, True), ({"cookies": {"pvc_live_9090": TOKEN}}, False),
        ({"query_token": "\u00e9\udce9"}, False),
    ],
)  # fmt: skip
def test_the_token_is_known_in_each_of_its_places(given: dict[str, object], *, knows: bool) -> None:
    assert access(token=TOKEN).knows(**{"cookies": {}, **given}) == knows  # type: ignore[arg-type]


# -- over HTTP

Make = Callable[..., TestClient]


def test_without_a_token_this_machine_sees_all(client: TestClient) -> None:
    for path in ("/", "/static/app.js", "/metrics"):
        assert client.get(path).status_code == 200
    assert "set-cookie" not in client.get("/").headers


def test_a_wrong_host_is_refused_everywhere(client: TestClient) -> None:
    for path in ("/", "/static/app.js", "/metrics", "/healthz", "/none"):
        assert client.get(path, headers={"host": "evil.example"}).status_code == 403
    with (
        pytest.raises(WebSocketDisconnect),
        client.websocket_connect(SOCKET, headers={"host": "evil.example", "origin": "http://evil.example"}),
    ):
        pass


def test_a_socket_of_another_sites_page_is_refused_and_one_of_ours_is_not(client: TestClient) -> None:
    with (
        pytest.raises(WebSocketDisconnect),
        client.websocket_connect(SOCKET, headers={"origin": "https://evil.example"}),
    ):
        pass
    headers = {"origin": "http://localhost:8080", "host": "localhost:8080"}
    with client.websocket_connect(SOCKET, headers=headers) as socket:
        assert socket.receive_json()["type"] == "state"


def test_with_a_token_nothing_is_told_without_it(client_of: Make) -> None:
    client = client_of(token=TOKEN)
    page = client.get("/")
    assert page.status_code == 401 and "needs a token" in page.text
    assert client.get("/metrics").status_code == 401
    assert client.get("/?token=wrong").status_code == 401
    assert client.get("/healthz").json() == {"ok": False}
    with client.websocket_connect(SOCKET) as socket, pytest.raises(WebSocketDisconnect) as caught:
        socket.receive_json()
    assert caught.value.code == 4401


def test_the_token_once_in_the_address_is_a_cookie_that_no_script_and_no_other_site_gets(client_of: Make) -> None:
    client = client_of(token=TOKEN)
    page = client.get(f"/?token={TOKEN}")
    cookie = page.headers["set-cookie"].lower()
    assert page.status_code == 200 and "httponly" in cookie and "samesite=strict" in cookie and "secure" not in cookie
    assert client.get("/").status_code == 200
    with client.websocket_connect(SOCKET, headers={"host": "localhost:8080"}) as socket:
        assert socket.receive_json()["type"] == "state"


def test_the_cookie_is_kept_to_https_where_the_page_is(client_of: Make) -> None:
    client = client_of(token=TOKEN)
    client.base_url = client.base_url.copy_with(scheme="https")
    assert "secure" in client.get(f"/?token={TOKEN}").headers["set-cookie"].lower()


def test_a_program_brings_the_token_in_a_header(client_of: Make) -> None:
    client, headers = client_of(token=TOKEN), {"authorization": f"Bearer {TOKEN}"}
    assert client.get("/metrics", headers=headers).status_code == 200
    assert "reason" in client.get("/healthz", headers=headers).json()


def test_every_answer_forbids_what_is_not_from_here(client: TestClient) -> None:
    for path in ("/", "/static/app.js", "/none", "/healthz"):
        headers = client.get(path).headers
        policy = headers["content-security-policy"]
        assert policy.startswith("default-src 'none'") and "http:" not in policy and "*" not in policy
        assert "unsafe" not in policy and "frame-ancestors 'none'" in policy
        assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize("path", ["/static/../app.py", "/static/%2e%2e/app.py", "/static/..%2fserver.py", "/static/"])
def test_nothing_but_the_pages_files_is_served(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404
