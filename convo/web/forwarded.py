"""Who a client is, behind proxies that are trusted to say so; it believes nobody else."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator

from convo.config import ServerSettings, proxies

_FOR = re.compile(r'(?:^|;)\s*for\s*=\s*("(?:[^"\\]|\\.)*"|[^;]*)', re.IGNORECASE)


class Proxies:
    """The networks of the proxies, and the header that they write."""

    def __init__(self, settings: ServerSettings) -> None:
        self._networks = [ipaddress.ip_network(one, strict=False) for one in proxies(settings)]
        self._header = settings.forwarded_header.encode()

    def trusts(self, address: str) -> bool:
        """Tell whether the address is one of theirs."""
        if not self._networks:
            return False
        try:
            known = ipaddress.ip_address(address)
        except ValueError:
            return False
        return any(known in network for network in self._networks)

    def client(self, fields: dict[bytes, bytes], peer: str) -> str:
        """Return the client's address: ``peer``, which is a proxy, or the last one that the proxies vouch for.

        Each proxy adds at the right whom it was called by. From there on to the left, the first address that is no
        proxy of ours is the client; what stands further left is its own invention.
        """
        client = peer
        for claimed in self._claims(fields):
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
    """Read an address that may have a port, an IPv6 one then in brackets."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        return plain_address(str(ipaddress.ip_address(text)))
    except ValueError:
        return None


def plain_address(address: str) -> str:
    """Write an IPv4 address that came through an IPv6 socket as what it is."""
    if not address.startswith("::ffff:"):
        return address
    return str(ipaddress.IPv6Address(address).ipv4_mapped or address)
