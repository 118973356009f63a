from __future__ import annotations

import pytest

from convo.analysis import local
from tests.support.saying import user_says


def emotion(*said: str) -> str:
    return local.emotion(user_says(*said)).emotion


@pytest.mark.parametrize(
    ("expected", "said"),
    [
        ("sad", "I am so sad today"),
        ("sad", "I am not happy"),
        ("sad", "My hamster died and I cried... I'm lonely"),
        ("sad", "😢😢"),
        ("sad", "mình buồn quá"),
        ("sad", "hôm nay mình không vui"),
        ("sad", "minh buon qua"),
        ("angry", "I hate you"),
        ("angry", "This is useless! You are stupid"),
        ("angry", "😡"),
        ("angry", "bực mình quá"),
        ("angry", "Tức quá! Đồ ngu"),
        ("angry", "buc minh qua"),
        ("boring", "this is so boring"),
        ("boring", "not interesting at all"),
        ("boring", "chán quá"),
        ("boring", "không thú vị gì cả"),
        ("boring", "chan qua"),
        ("happy", "I'm so happy today!"),
        ("happy", "No, I love it"),
        ("happy", "haha that was fun"),
        ("happy", "vui quá đi"),
        ("happy", "buồn cười quá haha"),
        ("happy", "😂😂"),
        ("interesting", "wow, that is interesting, tell me more"),
        ("interesting", "It was never boring, really cool"),
        ("interesting", "hay quá, kể tiếp đi"),
        ("interesting", "Thú vị thật! Tại sao lại thế?"),
        ("neutral", "I had rice for lunch"),
        ("neutral", "I am not sad"),
        ("neutral", "ok"),
        ("neutral", "mình ăn cơm rồi"),
        ("neutral", "vui lòng gửi cho tôi hóa đơn"),
        ("neutral", "tôi đọc tin tức mỗi ngày"),
        ("neutral", ""),
    ],
)
def test_an_emotion_is_read_from_what_is_said(expected: str, said: str) -> None:
    assert emotion(said) == expected


def test_a_run_of_short_answers_is_boredom() -> None:
    assert emotion("ok", "ok", "yes", "ok", "k") == "boring"
    assert emotion("ừ", "ừ", "ờ", "ok") == "boring"


def test_one_sad_remark_does_not_outweigh_a_user_who_takes_part() -> None:
    assert (
        emotion("Wow, how does that work?", "They lost, so sad.", "Amazing! Tell me more, what happened?")
        == "interesting"
    )


def test_the_bots_mood_is_not_the_users() -> None:
    assert local.emotion(user_says("I had rice.", bot=("I am so sad and lonely!",))).emotion == "neutral"


def test_a_conversation_in_which_the_user_says_nothing_is_neutral() -> None:
    assert emotion() == "neutral"
