"""Messages between the controller and its nodes: one JSON object per line over TCP."""

from __future__ import annotations

import json
import queue
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

Message = dict[str, Any]

BEATS = 6
"""Heartbeats that a process sends within the heartbeat time."""


CONTROLLER_GONE = 3
"""Exit status of a process whose controller is gone."""


def address_of(text: str) -> tuple[str, int]:
    """(host, port) of HOST:PORT. Raises: ValueError for any other text, or a port above 65535"""
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"an address must be HOST:PORT with a port up to 65535, got {text!r}")
    return host, int(port)


def pack(message: Message) -> bytes:
    """The line of a message."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


class Connection:
    """A node's end of the connection. One thread reads and another sends heartbeats while the process works.

    welcome:    the controller's answer to `hello`
    inbox:      messages to work on, in order; None once the controller is gone
    lost:       set once the controller is gone: it closed the connection, or was silent for 3 times its heartbeat
    on_message: called at once by the reading thread
    """

    def __init__(
        self,
        address: tuple[str, int],
        hello: Message,
        *,
        on_message: Callable[[Message], None] = lambda message: None,
        wait_s: float = 30.0,
    ) -> None:
        self.inbox: queue.Queue[Message | None] = queue.Queue()
        self.lost = threading.Event()
        self._socket = _connect(address, wait_s)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._lock = threading.Lock()
        self._on_message = on_message
        self._heard = time.monotonic()
        self._lines = self._socket.makefile("rb")
        self.send(hello)
        line = self._lines.readline()
        if not line:
            raise ConnectionError(f"the controller at {address[0]}:{address[1]} has closed the connection")
        self.welcome: Message = json.loads(line)
        self.host: str = self._socket.getsockname()[0]

    def start(self) -> None:
        """Begin to read and to send heartbeats."""
        threading.Thread(target=self._read, daemon=True).start()
        threading.Thread(target=self._beat, args=(self.welcome["heartbeat_s"],), daemon=True).start()

    def send(self, message: Message) -> None:
        """Send a message. Does nothing once the controller is gone, which `inbox` and `lost` show."""
        with self._lock, suppress(OSError):
            self._socket.sendall(pack(message))

    def close(self) -> None:
        """Close the connection; the controller then finds this node gone."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def _read(self) -> None:
        with suppress(OSError, ValueError):
            for line in self._lines:
                self._heard = time.monotonic()
                message = json.loads(line)
                if message["type"] != "beat":
                    self._on_message(message)
                    self.inbox.put(message)
        self.lost.set()
        self.inbox.put(None)

    def _beat(self, heartbeat_s: float) -> None:
        while not self.lost.wait(heartbeat_s / BEATS):
            self.send({"type": "beat"})
            if time.monotonic() - self._heard > 3 * heartbeat_s:
                self.close()
                return


def _connect(address: tuple[str, int], wait_s: float) -> socket.socket:
    """Connect, also to a controller that is still starting. Raises: ConnectionError after `wait_s`"""
    until = time.monotonic() + wait_s
    while True:
        try:
            connection = socket.create_connection(address, timeout=5)
            connection.settimeout(None)
            return connection
        except OSError as error:
            if time.monotonic() > until:
                place = f"{address[0]}:{address[1]}"
                raise ConnectionError(f"no controller answers at {place} within {wait_s:g} s: {error}") from None
            time.sleep(0.1)
