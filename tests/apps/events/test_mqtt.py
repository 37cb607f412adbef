"""An MQTT broker that disappears and returns, refuses, or does not acknowledge; and broker addresses."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator

import pytest

from apps.events.delivery import Delivery, NotDelivered
from apps.events.mqtt import Mqtt, parse_broker
from engines.errors import BackendUnavailable

from .fakes import Broker, event, wait_until

Connect = Callable[..., Mqtt]


@pytest.fixture
def broker() -> Iterator[Broker]:
    broker = Broker()
    yield broker
    broker.close()


@pytest.fixture
def connect(broker: Broker) -> Iterator[Connect]:
    """Connect clients that retry quickly."""
    clients: list[Mqtt] = []

    def start(user: str = "", *, password: str | None = None, timeout_s: float = 5.0) -> Mqtt:
        address = parse_broker(f"mqtt://{user}127.0.0.1:{broker.port}/home/door")
        clients.append(Mqtt(address, password=password, timeout_s=timeout_s, reconnect_s=(0.01, 0.02)))
        return clients[-1]

    yield start
    for client in clients:
        client.close()


def test_an_event_is_published_and_acknowledged(broker: Broker, connect: Connect) -> None:
    sent = event("fire", kind="alert", alert="fire")
    connect().send(sent)
    assert [json.loads(payload) for payload in broker.payloads("home/door")] == [sent.to_json()]


def test_the_client_is_online_while_it_lives_and_offline_from_its_end(broker: Broker, connect: Connect) -> None:
    client = connect()
    client.send(event())
    assert ("home/door/status", b"online", True) in broker.published
    client.close()
    assert broker.published[-1] == ("home/door/status", b"offline", True)


def test_a_client_that_is_lost_is_said_to_be_offline_by_its_will(broker: Broker, connect: Connect) -> None:
    connect().send(event())
    broker.go_away()
    wait_until(lambda: ("home/door/status", b"offline", True) in broker.published)


def test_a_broker_that_goes_away_and_comes_back_gets_every_event_once(broker: Broker, connect: Connect) -> None:
    said: list[str] = []
    delivery = Delivery(connect(timeout_s=0.05), trouble=said.append, pauses_s=(0.01,))
    delivery.offer(event("one"))
    wait_until(lambda: delivery.num_delivered == 1)
    broker.go_away()
    wait_until(lambda: len(broker.payloads("home/door/status")) == 2)  # the will: the broker lost the client
    for text in ("two", "three"):
        delivery.offer(event(text))
    wait_until(lambda: said)
    broker.is_away = False
    wait_until(lambda: delivery.num_delivered == 3)
    assert delivery.close() == 0
    assert [json.loads(payload)["text"] for payload in broker.payloads("home/door")] == ["one", "two", "three"]
    assert said[0].startswith(f"MQTT broker 127.0.0.1:{broker.port}: ") and "working again" in said[-1]
    assert broker.payloads("home/door/status") == [b"online", b"offline", b"online", b"offline"]


def test_an_event_without_an_acknowledgement_is_not_published_twice_over_one_connection(
    broker: Broker, connect: Connect
) -> None:
    client, sent = connect(timeout_s=0.1), event("fire")
    broker.is_deaf = True
    for _ in range(3):
        with pytest.raises(NotDelivered, match="was not acknowledged") as caught:
            client.send(sent)
        assert not caught.value.is_final
    assert len(broker.payloads("home/door")) == 1
    broker.go_away()
    broker.is_away = broker.is_deaf = False
    client.send(sent)  # over the next connection it is sent again, marked as a duplicate
    assert len(broker.payloads("home/door")) == 2 and broker.duplicates.count("home/door") == 1


def test_user_and_password_reach_the_broker(broker: Broker, connect: Connect) -> None:
    connect("cam%40home@", password="hunter2").send(event())
    assert broker.users == [("cam@home", "hunter2")]


def test_a_refused_password_is_reported(broker: Broker, connect: Connect) -> None:
    broker.code = 5
    client = connect("me@", password="hunter2", timeout_s=0.3)
    with pytest.raises(NotDelivered, match="the connection was refused: Not authorized") as caught:
        client.send(event())
    assert "hunter2" not in str(caught.value) and not caught.value.is_final


def test_a_broker_that_is_not_there_is_reported_and_waited_for(broker: Broker, connect: Connect) -> None:
    broker.is_away = True
    client = connect(timeout_s=0.05)
    with pytest.raises(NotDelivered):
        client.send(event())
    broker.is_away = False
    wait_until(lambda: broker.published)
    client.send(event("fire"))
    assert len(broker.payloads("home/door")) == 1


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("mqtt://host/a/b", ("host", 1883, "a/b", None, False)),
        ("mqtts://me@host/a", ("host", 8883, "a", "me", True)),
        ("mqtt://me%40x@[::1]:99/a%20b/", ("::1", 99, "a b", "me@x", False)),
    ],
)
def test_an_address_names_host_port_topic_and_user(url: str, expected: tuple[object, ...]) -> None:
    broker = parse_broker(url)
    assert (broker.host, broker.port, broker.topic, broker.user, broker.is_encrypted) == expected


@pytest.mark.parametrize(
    "url",
    ["http://host/a", "x://host:1/a", "mqtt://host", "mqtt://host/", "mqtt:///a", "mqtt://host/#", "mqtt://h:x/a",
     "mqtt://h/a%2Bb", "mqtt://h/a?b", "host/a"],
)  # fmt: skip
def test_what_is_no_address_of_a_broker_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="--mqtt .*expected mqtt://"):
        parse_broker(url)


def test_a_password_in_the_address_is_refused_without_showing_it() -> None:
    with pytest.raises(ValueError, match="PVC_MQTT_PASSWORD") as caught:
        parse_broker("mqtt://me:hunter2@host/a")
    assert "hunter2" not in str(caught.value)


def test_without_paho_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "paho.mqtt.client", None)
    with pytest.raises(BackendUnavailable, match="the package paho-mqtt") as caught:
        Mqtt(parse_broker("mqtt://host/a"))
    assert "[live]" in caught.value.fix
