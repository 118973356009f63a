from __future__ import annotations

import pytest

from convo.analysis import local
from convo.analysis.local import stated
from convo.analysis.local.words import Language
from tests.support.saying import user_says


def texts(*said: str) -> list[str]:
    return [fact.text for fact in local.memories(user_says(*said)).facts]


def keys(*said: str) -> list[str]:
    return [fact.key for fact in local.memories(user_says(*said)).facts]


@pytest.mark.parametrize(
    ("said", "found"),
    [
        (
            "My name is Lan and I am 12 years old and I like pizza.",
            ["is called Lan", "is 12 years old", "likes pizza"],
        ),
        ("Hi, I'm Lan", ["is called Lan"]),
        ("Hello! I am Nguyễn Văn An, I live in Hanoi.", ["is called Nguyễn Văn An", "lives in Hanoi"]),
        ("I'm 12", ["is 12 years old"]),
        ("I really love watching football on TV!", ["likes watching football on TV"]),
        ("I like the 49ers, how about you?", ["likes the 49ers"]),
        ("I don't like broccoli", ["dislikes broccoli"]),
        ("I hate spiders because they are creepy", ["dislikes spiders"]),
        ("My favorite team is the Dallas Cowboys. What about you?", ["favourite team: the Dallas Cowboys"]),
        ("I'm a big Steelers fan", ["likes Steelers"]),
        ("I have two cats", ["has a cat"]),
        ("I have a dog named Rex", ["has a dog called Rex"]),
        ("My dog's name is Rex", ["has a dog called Rex"]),
        ("I have a younger brother", ["has a brother"]),
        ("Well my wife loves Tom Brady", ["has a wife"]),
        ("My mom is a teacher", ["mom is a teacher"]),
        ("I'm from New England so the Patriots,", ["is from New England"]),
        ("I was born in Da Nang", ["is from Da Nang"]),
        ("i live in hanoi", ["lives in hanoi"]),
        ("I work as a nurse at the hospital", ["is a nurse"]),
        ("I'm a software engineer", ["is a software engineer"]),
        ("I am in 5th grade", ["is in 5th grade"]),
        ("I play soccer", ["plays soccer"]),
        ("I'm vegan", ["is vegan"]),
        ("I like tea....hate mornings", ["likes tea"]),
        ("I like basketball yeah", ["likes basketball"]),
        ("I like tea 😀", ["likes tea"]),
        ("I like the NFL., it is fun", ["likes the NFL"]),
        ("Tên mình là Lan, mình 10 tuổi", ["tên là Lan", "10 tuổi"]),
        ("Chào bạn, mình là Lan", ["tên là Lan"]),
        ("mình thích ăn phở lắm", ["thích ăn phở"]),
        ("mình không thích rau", ["không thích rau"]),
        ("nhà mình nuôi một con mèo tên là Miu", ["nuôi mèo tên Miu"]),
        ("Mình sống ở Hà Nội", ["sống ở Hà Nội"]),
        ("Quê em ở Nghệ An ạ", ["quê ở Nghệ An"]),
        ("Em học lớp 5", ["học lớp 5"]),
        ("mẹ mình là giáo viên", ["mẹ là giáo viên"]),
        ("Tôi là kỹ sư", ["là kỹ sư"]),
        ("Em trai mình tên là Nam", ["có em trai tên Nam"]),
        ("Môn học yêu thích của mình là Toán", ["Môn học yêu thích: Toán"]),
        ("Con thích khủng long, còn bạn thì sao?", ["thích khủng long"]),
        ("toi ten la Lan", ["ten la Lan"]),
        ("minh thich bong da", ["thich bong da"]),
        ("minh song o ha noi", ["song o ha noi"]),
        ("toi co mot con meo", ["nuoi meo"]),
    ],
)
def test_what_a_user_states_of_themselves_is_remembered(said: str, found: list[str]) -> None:
    assert texts(said) == found


@pytest.mark.parametrize(
    "said",
    [
        "I like that",
        "I like how you think",
        "I love you",
        "I love the idea",
        "I am sorry",
        "I'm from time to time sad",
        "I'm 12 minutes late",
        "I'm 900",
        "I live in a small town",
        "I don't have a dog",
        "I do not live in Paris",
        "My name is not Bob",
        "My name is hard to spell",
        "Call me later",
        "If I had a dog I would be happy",
        "If it rains, I like tea",
        "I'd like a pizza",
        "I would like pizza",
        "I wish I was a teacher",
        "I like pizza?",
        "Do I like pizza?",
        "I like pizza, right?",
        'He said "I like pizza"',
        "“I have a dog” is the first line",
        'The poster read: "We won. I have a dog."',
        "I'm Lan",
        "He told me I like pizza",
        "My friend has a dog",
        "She is 12 years old",
        "Tôi không sống ở Hà Nội",
        "Nếu mình có con chó thì vui",
        "mình thích bạn",
        "Mình thích nó",
        "Mình ở nhà",
        "còn thích nữa",
        "Mình thích gì",
        "Bạn ấy bảo mình thích phở",
        "Lan thích phở",
        "",
    ],
)
def test_what_is_no_statement_of_fact_is_not_remembered(said: str) -> None:
    assert texts(said) == []


def test_what_the_bot_says_of_itself_is_not_the_users_fact() -> None:
    assert local.memories(user_says("Fine.", bot=("My name is Pika",))).facts == ()


@pytest.mark.parametrize(
    ("said", "again"),
    [
        ("I like pizza", "Yes, I really love Pizza!"),
        ("I like pizza", "I enjoy pizza a lot"),
        ("I love the Beatles", "I like Beatles a lot"),
        ("My dog's name is Rex", "I have a dog called rex"),
        ("mình thích bóng đá", "minh thich bong da"),
        ("Tên mình là Lan", "toi ten la lan"),
        ("My name is Lan.", "Chào bạn, mình là Lan"),
        ("Mình sống ở Hà Nội", "nhà mình ở Hà Nội ạ"),
    ],
)
def test_the_same_fact_has_the_same_key_in_another_conversation(said: str, again: str) -> None:
    assert keys(said) == keys(again)
    assert len(keys(said, again)) == 1


def test_a_like_and_a_dislike_of_one_thing_are_two_facts() -> None:
    assert keys("I like tea", "I don't like tea") == ["like:tea", "dislike:tea"]


def test_facts_are_bounded_in_number_and_length() -> None:
    many = local.memories(user_says(". ".join(f"I like tea{number}" for number in range(150)))).facts
    long = local.memories(user_says("I like " + "a" * 5_000)).facts
    assert len(many) == stated.LOCAL_FACTS_MAX
    assert all(len(fact.text) <= stated.FACT_CHARACTERS_MAX for fact in long)


@pytest.mark.parametrize("language", stated._TONGUES)
def test_the_forms_of_a_language_are_the_groups_of_the_pattern_of_all(language: Language) -> None:
    tongue = stated._TONGUES[language]
    assert tongue.any_form.groups == len(tongue.forms)
