"""Reads the names that clients call a server by: of the ``Host`` header, of an origin, and of the settings."""

from __future__ import annotations

import ipaddress
import re

_AUTHORITY = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[^\s:/?#@\[\]]+)(?::[0-9]*)?", re.IGNORECASE)
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(?P<host>[^\s/?#@]+)", re.IGNORECASE)


def host_name(authority: str) -> str:
    """Return the name in ``name:port``, without the port and in one spelling; empty where there is none."""
    found = _AUTHORITY.fullmatch(authority)
    return plain_name(found["name"].strip("[]")) if found else ""


def plain_name(name: str) -> str:
    """Return a name or an address in one spelling: in small letters, and without the dot of a full name."""
    name = name.lower().removesuffix(".")
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return name
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


def listed_name(text: str) -> str:
    """Return a name or an address of the settings in one spelling; empty where it is none, or has a port.

    An IPv6 address may be in brackets.
    """
    name = plain_name(text.strip("[]"))
    return name if host_name(f"[{name}]" if _is_ipv6(name) else name) == name else ""


def _is_ipv6(name: str) -> bool:
    try:
        return ipaddress.ip_address(name).version == 6
    except ValueError:
        return False


def is_loopback(name: str) -> bool:
    """Tell whether a name in one spelling means the machine itself, whatever a name server says of it."""
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def origin_host(origin: str) -> str:
    """Return host and port of an origin (``https://name:port``); empty where it has none, as ``null``."""
    found = _ORIGIN.fullmatch(origin)
    return found["host"].lower() if found else ""
