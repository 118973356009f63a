from __future__ import annotations

import pytest

from convo.setting_values import wanted


@pytest.mark.parametrize(
    ("section", "key", "words"),
    [
        ("web", "request_seconds", "a number of seconds above 0, up to 31536000, e.g. 8.0"),
        ("server", "port", "a whole number from 0 to 65535, e.g. 30020"),
        ("web", "body_bytes_max", "a whole number of bytes from 1 to 17179869184, e.g. 2097152"),
        ("clients", "bytes_per_second", "a number of bytes a second from 0 to 1000000000000, e.g. 0.0"),
        ("auth", "keys", "true or false"),
        ("fairness", "key", "one of bot, none, user"),
        ("server", "host", "text"),
        ("server", "nothing", "no known setting"),
        ("nothing", "host", "no known setting"),
    ],
)
def test_what_a_setting_may_be_is_said_with_its_unit_and_an_example(section: str, key: str, words: str) -> None:
    assert wanted(section, key) == words
