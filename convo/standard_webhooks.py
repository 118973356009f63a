"""The signatures of the Standard Webhooks scheme (standardwebhooks.com): how a receiver knows that a body is ours.

Alerts and events are signed with it. It is pure: the caller says what time it is.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
from collections.abc import Mapping, Sequence

_SECRET_PREFIX = "whsec_"  # noqa: S105  (what every secret of the scheme begins with)
_SECRET_BYTES = range(24, 65)


def signing_key(secret: str) -> bytes:
    """Read the key out of a ``whsec_`` secret.

    Raises:
        ValueError: it is none; the text does not show it.
    """
    try:
        key = base64.b64decode(secret.removeprefix(_SECRET_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not secret.startswith(_SECRET_PREFIX) or len(key) not in _SECRET_BYTES:
        raise ValueError("it is not whsec_ and the base64 of 24 to 64 bytes")
    return key


def new_secret() -> str:
    """Make a secret of 32 random bytes."""
    return _SECRET_PREFIX + base64.b64encode(secrets.token_bytes(32)).decode()


def signed(message_id: str, timestamp: int, body: bytes, keys: Sequence[bytes]) -> Mapping[str, str]:
    """Return the headers by which a receiver knows that ``body`` is ours and fresh; a signature for each key."""
    content = f"{message_id}.{timestamp}.".encode() + body
    signatures = [base64.b64encode(hmac.digest(key, content, hashlib.sha256)).decode() for key in keys]
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(f"v1,{signature}" for signature in signatures),
    }
