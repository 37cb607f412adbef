"""Events to an MQTT broker, through paho-mqtt: QoS 1, each once more where an acknowledgement got lost.

Topics  TOPIC          every event, as JSON
        TOPIC/status   retained: online, and offline from the end, or from when the broker misses this client

paho's own thread keeps the connection and finds it again.
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
"""For an acknowledgement; with a connection that was never there, for it."""
RECONNECT_S = (1, 60)
"""Between two tries to connect: at first, and at most."""
KEEPALIVE_S = 30
EXPECTED = (
    "expected mqtt://USER@HOST:PORT/TOPIC, or mqtts:// for an encrypted connection; user and port may be left out"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Broker:
    """Where a broker is, and the topic of events."""

    host: str
    port: int
    topic: str
    user: str | None
    is_encrypted: bool


def parse_broker(url: str) -> Broker:
    """Raises ValueError for what is no address of a broker, or holds a password."""
    try:
        parts = urlsplit(url)
        default_port = PORTS[parts.scheme]
        port = parts.port or default_port
    except (ValueError, KeyError):  # of a port that is no number; of another scheme
        raise ValueError(f"--mqtt is no address of a broker; {EXPECTED}") from None
    if parts.password is not None:
        raise ValueError(f"--mqtt holds a password; expected the variable {PASSWORD} in its place")
    topic = unquote(parts.path).strip("/")
    if not parts.hostname or not topic or parts.query or re.search(r"[+#\x00-\x1f\x7f]", topic) or parts.fragment:
        raise ValueError(f"--mqtt names no host, or no topic that may be written to; {EXPECTED}")
    user = unquote(parts.username) if parts.username else None
    return Broker(host=parts.hostname, port=port, topic=topic, user=user, is_encrypted=parts.scheme == "mqtts")


class Mqtt:
    """A Sink. Connects in the background, and again whenever the connection is lost."""

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
        self._in_flight: tuple[Event, int] | None = None  # an event that was published and is not acknowledged yet
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
        """paho keeps what it was given until it is acknowledged, also over a lost connection. So an event that is tried
        again is not published again: its acknowledgement is waited for again."""
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
                why = "it did not acknowledge an event in time" if self._is_connected else self._why_not
                raise NotDelivered(why, is_final=False)
            self._acknowledged.clear()
        self._in_flight = None

    def close(self) -> None:
        """Say offline, as the broker does so only for a client that it misses. Waits for that a second at most."""
        if self._is_connected:
            mid = self._client.publish(self._status, "offline", qos=1, retain=True).mid
            with self._changed:
                self._changed.wait_for(lambda: mid in self._acknowledged or not self._is_connected, 1.0)
        self._client.disconnect()
        self._client.loop_stop()

    def _on_connect(self, client: Any, userdata: Any, flags: Any, reason: Any, properties: Any) -> None:
        if reason.is_failure:
            self._lost(f"it refuses the connection: {reason}")
            return
        client.publish(self._status, "online", qos=1, retain=True)
        with self._changed:
            self._is_connected = True
            self._changed.notify_all()

    def _on_disconnect(self, client: Any, userdata: Any, flags: Any, reason: Any, properties: Any) -> None:
        if self._is_connected:  # a refused connection has told why
            self._lost(f"the connection was lost: {reason}")

    def _on_connect_fail(self, client: Any, userdata: Any) -> None:
        self._lost("no connection: nothing answers there, or not as a broker does")

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
            f"the package paho-mqtt, which --mqtt needs, cannot be used here: {error}",
            expected="paho-mqtt 2.0 or later",
            fix="pip install -e '.[live]'",
        ) from error
