"""Delivery of events to an MQTT broker through paho-mqtt: QoS 1, sent again if an acknowledgement was lost.

Topics  TOPIC          every event, as JSON
        TOPIC/status   retained: online; offline after the end, or when the broker loses this client

paho's thread keeps the connection and reconnects.
"""

from __future__ import annotations

import importlib
import re
import time
from dataclasses import dataclass
from threading import Condition
from typing import Any
from urllib.parse import unquote, urlsplit

from apps.lines import to_line
from apps.listeners import Event
from engines.errors import BackendUnavailable

from .delivery import NotDelivered

PASSWORD = "PVC_MQTT_PASSWORD"
"""The environment variable that holds the broker's password."""
PORTS = {"mqtt": 1883, "mqtts": 8883}
TIMEOUT_S = 10.0
"""For an acknowledgement, or for the first connection."""
RECONNECT_S = (1, 60)
"""Wait between attempts to connect: first and longest."""
KEEPALIVE_S = 30
EXPECTED = "expected mqtt://USER@HOST:PORT/TOPIC, or mqtts:// for an encrypted connection; user and port are optional"


@dataclass(frozen=True, kw_only=True, slots=True)
class Broker:
    """A broker's address, and the topic for events."""

    host: str
    port: int
    topic: str
    user: str | None
    is_encrypted: bool


def parse_broker(url: str) -> Broker:
    """Parse --mqtt. Raises ValueError if it is not a broker's address or contains a password."""
    try:
        parts = urlsplit(url)
        default_port = PORTS[parts.scheme]
        port = parts.port or default_port
    except (ValueError, KeyError):  # ValueError: the port is not a number; KeyError: another scheme
        raise ValueError(f"--mqtt is not a broker's address; {EXPECTED}") from None
    if parts.password is not None:
        raise ValueError(f"--mqtt contains a password; put it in the environment variable {PASSWORD} instead")
    topic = unquote(parts.path).strip("/")
    if not parts.hostname or not topic or parts.query or re.search(r"[+#\x00-\x1f\x7f]", topic) or parts.fragment:
        raise ValueError(f"--mqtt has no host, or no topic that can be published to; {EXPECTED}")
    user = unquote(parts.username) if parts.username else None
    return Broker(host=parts.hostname, port=port, topic=topic, user=user, is_encrypted=parts.scheme == "mqtts")


class Mqtt:
    """A Sink. Connects in the background, and reconnects whenever the connection is lost."""

    def __init__(
        self,
        broker: Broker,
        *,
        password: str | None = None,
        timeout_s: float = TIMEOUT_S,
        reconnect_s: tuple[float, float] = RECONNECT_S,
    ) -> None:
        """Raises BackendUnavailable without paho-mqtt 2."""
        self._broker, self._timeout_s = broker, timeout_s
        self.name = f"MQTT broker {broker.host}:{broker.port}"
        self._changed = Condition()
        self._is_connected = False
        self._why_not = "no connection yet"
        self._acknowledged: set[int] = set()  # ids of messages
        self._in_flight: tuple[Event, int] | None = None  # an event published but not acknowledged yet
        self._client = client = _client()
        self._status = f"{broker.topic}/status"
        client.on_connect, client.on_disconnect = self._on_connect, self._on_disconnect
        client.on_connect_fail, client.on_publish = self._on_connect_fail, self._on_publish
        client.will_set(self._status, "offline", qos=1, retain=True)
        client.reconnect_delay_set(*reconnect_s)
        if broker.user is not None:
            client.username_pw_set(broker.user, password)
        if broker.is_encrypted:
            client.tls_set()
        client.connect_async(broker.host, broker.port, keepalive=KEEPALIVE_S)
        client.loop_start()

    def send(self, event: Event) -> None:
        """Publish the event and wait for its acknowledgement. paho keeps a message until it is acknowledged, even if
        the connection is lost; so a retry does not publish again, it only waits again."""
        until = time.monotonic() + self._timeout_s
        with self._changed:
            if not self._changed.wait_for(lambda: self._is_connected, self._timeout_s):
                raise NotDelivered(self._why_not, is_final=False)
        if self._in_flight is None or self._in_flight[0] is not event:
            message = self._client.publish(self._broker.topic, to_line(event.to_json()).rstrip(), qos=1)
            self._in_flight = event, message.mid
        mid = self._in_flight[1]
        with self._changed:
            if not self._changed.wait_for(lambda: mid in self._acknowledged, until - time.monotonic()):
                why = "an event was not acknowledged in time" if self._is_connected else self._why_not
                raise NotDelivered(why, is_final=False)
            self._acknowledged.clear()
        self._in_flight = None

    def close(self) -> None:
        """Publish offline, which the broker does only for a lost client. Waits at most one second for it."""
        if self._is_connected:
            mid = self._client.publish(self._status, "offline", qos=1, retain=True).mid
            with self._changed:
                self._changed.wait_for(lambda: mid in self._acknowledged or not self._is_connected, 1.0)
        self._client.disconnect()
        self._client.loop_stop()

    def _on_connect(self, client: Any, userdata: Any, flags: Any, reason: Any, properties: Any) -> None:
        if reason.is_failure:
            self._lost(f"the connection was refused: {reason}")
            return
        client.publish(self._status, "online", qos=1, retain=True)
        with self._changed:
            self._is_connected = True
            self._changed.notify_all()

    def _on_disconnect(self, client: Any, userdata: Any, flags: Any, reason: Any, properties: Any) -> None:
        if self._is_connected:  # a refused connection was reported already
            self._lost(f"the connection was lost: {reason}")

    def _on_connect_fail(self, client: Any, userdata: Any) -> None:
        self._lost("no connection: nothing responds at this address, or it is not an MQTT broker")

    def _on_publish(self, client: Any, userdata: Any, mid: int, reason: Any, properties: Any) -> None:
        with self._changed:
            self._acknowledged.add(mid)
            self._changed.notify_all()

    def _lost(self, why: str) -> None:
        with self._changed:
            self._is_connected, self._why_not = False, why
            self._changed.notify_all()


def _client() -> Any:
    try:
        paho = importlib.import_module("paho.mqtt.client")
        return paho.Client(paho.CallbackAPIVersion.VERSION2)
    except (ImportError, AttributeError) as error:  # paho-mqtt 1 has no CallbackAPIVersion
        raise BackendUnavailable(
            f"--mqtt needs the package paho-mqtt, which cannot be used here: {error}",
            expected="paho-mqtt 2.0 or later",
            fix="pip install -e '.[live]'",
        ) from error
