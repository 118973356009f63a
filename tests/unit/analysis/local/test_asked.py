from __future__ import annotations

import pytest

from convo.analysis import local
from convo.analysis.local import asked
from tests.support.saying import user_says


def questions(*said: str) -> list[str]:
    return list(local.questions(user_says(*said)).questions)


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("What is your name?", ["What is your name?"]),
        ("  So,   do you like   jazz ?? ", ["do you like jazz?"]),
        ("Is it far? And how long does it take?", ["Is it far?", "how long does it take?"]),
        ("I live by the sea. What about you?", ["What about you?"]),
        ("I like tea, what about you?", ["I like tea, what about you?"]),
        ("Why?", ["Why?"]),
        ("Can penguins fly?I never saw one", ["Can penguins fly?"]),
        ("Is Dr. Strange a good film?", ["Is Dr. Strange a good film?"]),
        ("Was it 3.5 metres long?", ["Was it 3.5 metres long?"]),
        ("你好吗？", ["你好吗?"]),
        ("Bạn tên là gì?", ["Bạn tên là gì?"]),
        ("Dạ, tại sao trời lại mưa ạ?", ["tại sao trời lại mưa ạ?"]),
        ("see https://example.org/?q=1 for more", []),
    ],
)
def test_a_question_mark_makes_a_question_and_the_sentence_comes_out_clean(said: str, found: list[str]) -> None:
    assert questions(said) == found


@pytest.mark.parametrize(
    "said",
    [
        "do you like football",
        "Did you know that honey never spoils.",
        "how are you",
        "hi how are you today",
        "what is the tallest tree",
        "where does the river end",
        "who painted that one",
        "why is the sky blue",
        "how many moons does it have",
        "what color is it",
        "could you tell me more",
        "is there a way to win",
        "it is cold in there, isn't it",
        "they moved away, right",
        "that sounds good, what do you think",
        "I play chess a lot, and you",
        "yes I saw it too do you watch every season",
        "Bạn có thích ăn phở không",
        "bạn ăn cơm chưa",
        "Hôm nay trời nóng nhỉ",
        "tại sao lá cây màu xanh",
        "Bây giờ là mấy giờ rồi",
        "nhà bạn ở đâu",
        "Ai là người phát minh ra điện thoại",
        "Đây có phải là quả táo không ạ",
        "Pika ơi khủng long ăn gì",
        "bạn là người Việt Nam à",
        "còn bạn",
        "ban co thich bong da khong",
        "tai sao troi mua",
        "ban bao nhieu tuoi",
    ],
)
def test_a_question_is_known_by_its_form_without_a_mark(said: str) -> None:
    assert len(questions(said)) == 1


@pytest.mark.parametrize(
    "said",
    [
        "I do like football",
        "What a game!",
        "what I like most is the ending",
        "My dad, who is fifty, plays too",
        "When I was young we had snow",
        "so do you, I guess",
        "don't you dare",
        "have a nice day",
        "there is only one left",
        "yeah right",
        "I know how it works",
        "I wonder who won",
        "Tôi không thích",
        "không có gì",
        "Không sao đâu",
        "Ai cũng thích phim này",
        "lúc nào cũng vui",
        "Mình chưa bao giờ đi Huế",
        "tôi vẫn chưa",
        "Dạ không ạ",
        "Tôi thích AI",
        "ngôi sao sáng quá",
        "tôi biết bạn ở đâu",
        "toi khong thich",
        "",
        "???",
    ],
)
def test_a_statement_is_no_question(said: str) -> None:
    assert questions(said) == []


@pytest.mark.parametrize("said", ["Really?", "You know?", "I know, right?", "They do?", "Thật à?", "thế hả?", "Wow??"])
def test_a_back_channel_asks_for_nothing(said: str) -> None:
    assert questions(said) == []


def test_the_same_question_counts_once_whatever_its_spelling() -> None:
    assert questions("Do you like tea?", "do you like TEA??", "Bạn tên là gì?", "ban ten la gi") == [
        "Do you like tea?",
        "Bạn tên là gì?",
    ]


def test_what_the_bot_asks_is_not_the_users_question() -> None:
    assert local.questions(user_says("Fine.", bot=("How are you?",))).questions == ()


def test_questions_are_bounded_in_number_and_length() -> None:
    found = questions(" ".join(f"Is it {number}?" for number in range(150)))
    assert len(found) == asked.LOCAL_QUESTIONS_MAX
    assert all(len(question) <= asked.QUESTION_CHARACTERS_MAX + 1 for question in questions("why " + "x " * 900 + "?"))
