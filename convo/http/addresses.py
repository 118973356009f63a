"""Reads addresses, and decides which addresses count as one client for a limit.

Whoever has one IPv6 address has the 2^64 addresses of its network, and one IPv4 address has several IPv6 forms. A limit
that counted each of them alone would be no limit. Trust is another matter: it is given to an address as it is, never
because of an IPv4 address that an IPv6 one carries for a translator.
"""

from __future__ import annotations

import ipaddress
from functools import lru_cache

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_CLIENT_BITS = 64
# What usually belongs to one owner: where there are too many clients to tell apart, these share (web/buckets.py).
_OWNER_BITS = {4: 24, 6: 48}
# RFC 6052: the IPv4 internet behind a NAT64.
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
# RFC 8215: NAT64 inside one network. Where in them the IPv4 address stands is that network's own choice, and only its
# translator can send from them: each address is a client.
_LOCAL_NAT64 = ipaddress.IPv6Network("64:ff9b:1::/48")
_MAPPED_BITS = 96
_KNOWN_MAX = 4096


def plain_address(text: str) -> str | None:
    """Return an address in its usual form; None where ``text`` is none.

    An IPv4 address that came through an IPv6 socket is an IPv4 one. The zone of a link-local address is left out: it
    is the name of an interface, and in a header it can be any text.
    """
    address = _read(text)
    return None if address is None else str(address)


@lru_cache(_KNOWN_MAX)
def client_network(address: str) -> str:
    """Return what a limit counts as one client: an IPv4 address, or the /64 of an IPv6 one.

    Of an address that carries an IPv4 one (IPv4-mapped, NAT64, 6to4, Teredo) it is that. What is no address is itself.
    """
    read = _read(address)
    if read is None:
        return address
    if isinstance(read, ipaddress.IPv6Address):
        carried = _carried(read)
        if carried is None:
            return str(read) if read in _LOCAL_NAT64 else _network(read, _CLIENT_BITS)
        read = carried
    return str(read)


def owner_network(client: str) -> str:
    """Return the wider network of what ``client_network`` returned: the /24 or the /48, or itself without one."""
    read = _read(client.partition("/")[0])
    return client if read is None else _network(read, _OWNER_BITS[read.version])


def trusted_network(text: str) -> Network:
    """Read a network or an address; IPv4-mapped ones are IPv4 networks, as the addresses that they are compared with.

    Raises:
        ValueError: ``text`` is none.
    """
    network = ipaddress.ip_network(text, strict=False)
    mapped = getattr(network.network_address, "ipv4_mapped", None)
    if mapped is None or network.prefixlen < _MAPPED_BITS:
        return network
    return ipaddress.IPv4Network((int(mapped), network.prefixlen - _MAPPED_BITS))


def _read(text: str) -> _Address | None:
    try:
        address = ipaddress.ip_address(text.partition("%")[0] if ":" in text else text)
    except ValueError:
        return None
    mapped: ipaddress.IPv4Address | None = getattr(address, "ipv4_mapped", None)
    return address if mapped is None else mapped


def _carried(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    teredo = address.teredo
    return address.sixtofour if teredo is None else teredo[1]


def _network(address: _Address, bits: int) -> str:
    return str(ipaddress.ip_network(f"{address}/{bits}", strict=False))
