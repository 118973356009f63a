from __future__ import annotations

import base64
from datetime import UTC, datetime

import pytest
from standardwebhooks import Webhook
from standardwebhooks.webhooks import WebhookVerificationError

from convo.standard_webhooks import new_secret, signed, signing_key

AT = datetime(2026, 11, 25, 4, 0, 0, tzinfo=UTC)
KEY = bytes(range(32))
SECRET = "whsec_" + base64.b64encode(KEY).decode()
BODY = b'{"type":"DEAD_LETTER"}'


def test_the_signature_is_good_for_the_public_library_and_for_this_body_only() -> None:
    headers = dict(signed("msg_1", int(datetime.now(UTC).timestamp()), BODY, [signing_key(SECRET)]))
    assert Webhook(SECRET).verify(BODY, headers)["type"] == "DEAD_LETTER"
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(BODY + b" ", headers)
    with pytest.raises(WebhookVerificationError):
        Webhook("whsec_" + base64.b64encode(b"x" * 32).decode()).verify(BODY, headers)


def test_the_signature_is_that_of_the_public_library() -> None:
    theirs = Webhook(SECRET).sign("msg_1", AT, BODY.decode())
    assert signed("msg_1", int(AT.timestamp()), BODY, [KEY])["webhook-signature"] == theirs


def test_a_body_that_is_signed_with_two_secrets_is_good_for_each_of_them() -> None:
    old, new = new_secret(), new_secret()
    headers = dict(signed("msg_1", int(datetime.now(UTC).timestamp()), BODY, [signing_key(new), signing_key(old)]))
    for secret in (old, new):
        Webhook(secret).verify(BODY, headers)


@pytest.mark.parametrize(
    "secret", ["", "whsec_", "sekrit", "whsec_sekrit", "whsec_" + base64.b64encode(b"x" * 23).decode()]
)
def test_what_is_no_secret_of_the_scheme_is_refused_and_not_shown(secret: str) -> None:
    with pytest.raises(ValueError, match="whsec_ and the base64") as caught:
        signing_key(secret)
    assert "sekrit" not in str(caught.value)
