"""Ports for what is started in a moment, and may be started there again later."""

from __future__ import annotations

import random
import socket
from typing import Final

# Below the range from which Linux takes the port of an outgoing connection (32768 to 60999): one of those would take
# the port before what is started listens on it, or while it is started anew.
_PORTS: Final = range(20_000, 30_000)
_given: Final[set[int]] = set()


def free_port() -> int:
    """Find a port of the loopback that nobody listens on; no port is given twice."""
    while True:
        port = random.choice(_PORTS)
        with socket.socket() as probe:
            if port in _given or not _bound(probe, port):
                continue
        _given.add(port)
        return port


def _bound(probe: socket.socket, port: int) -> bool:
    try:
        probe.bind(("127.0.0.1", port))
    except OSError:
        return False
    return True
