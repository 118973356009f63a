"""Finds the address of a client behind trusted proxies, from the header that they write."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from itertools import islice

from convo.http.addresses import plain_address, trusted_network
from convo.settings import ServerSettings, proxies

# Proxies between the client and us. What stands further left was invented, and each address costs microseconds.
_HOPS_MAX = 32
_FOR = re.compile(r'(?:^|;)\s*for\s*=\s*("(?:[^"\\]|\\.)*"|[^;]*)', re.IGNORECASE)


class Proxies:
    """The trusted proxies' networks, and the header that they write."""

    def __init__(self, settings: ServerSettings) -> None:
        self._networks = [trusted_network(one) for one in proxies(settings)]
        self._header = settings.forwarded_header.encode()

    def trusts(self, address: str) -> bool:
        """Tell whether an address belongs to a trusted proxy."""
        if not self._networks:
            return False
        try:
            known = ipaddress.ip_address(address)
        except ValueError:
            return False
        return any(known in network for network in self._networks)

    def client(self, fields: dict[bytes, bytes], peer: str) -> str:
        """Return the client's address: the last one that a trusted proxy wrote, or ``peer``, which is a proxy itself.

        Each proxy appends the address that it was called from. Read from the right, the first address that is no
        trusted proxy is the client. Everything left of it was sent by the client and may be false.
        """
        client = peer
        for claimed in islice(self._claims(fields), _HOPS_MAX):
            address = _address(claimed)
            if address is None:
                break
            client = address
            if not self.trusts(address):
                break
        return client

    def _claims(self, fields: dict[bytes, bytes]) -> Iterator[str]:
        entries = reversed(fields.get(self._header, b"").decode("latin-1").split(","))
        if self._header != b"forwarded":
            return (entry.strip() for entry in entries)
        return (_for(entry) for entry in entries)


def _for(entry: str) -> str:
    found = _FOR.search(entry)
    return found[1].strip().strip('"') if found else ""


def _address(text: str) -> str | None:
    """Read an address that may have a port; an IPv6 address with a port is in brackets."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    return plain_address(text.strip())
