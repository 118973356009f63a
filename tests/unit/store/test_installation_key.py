from __future__ import annotations

import hashlib
import hmac

import pytest

from convo.store.installation_key import HMAC_BYTES, InstallationKey

KEY = InstallationKey(b"k" * 32)


def test_an_id_is_the_first_half_of_its_hmac_sha_256() -> None:
    whole = hmac.new(b"k" * 32, b"conversation\0talk-1", hashlib.sha256).digest()
    assert KEY.hmac_of("conversation", "talk-1") == whole[:HMAC_BYTES]
    assert HMAC_BYTES == 16


def test_another_kind_another_id_and_another_key_are_another_hmac() -> None:
    found = [
        KEY.hmac_of("conversation", "talk-1"),
        KEY.hmac_of("user", "talk-1"),
        KEY.hmac_of("user", "Nguyễn"),
        InstallationKey(b"o" * 32).hmac_of("user", "talk-1"),
    ]
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("shown", [repr, str, "{}".format, lambda key: repr([key])])
def test_no_text_of_it_shows_the_key(shown: object) -> None:
    assert callable(shown)
    assert "kk" not in shown(KEY)
