from __future__ import annotations

from datetime import UTC, datetime

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convo.analysis import local
from convo.analysis.local import asked, mood, stated, words
from convo.conversation.model import Conversation, Turn

AT = datetime(2026, 3, 2, tzinfo=UTC)


def conversation(*said: str, bot: tuple[str, ...] = ()) -> Conversation:
    users = tuple(Turn(speaker="user", text=text, at=AT) for text in said)
    bots = tuple(Turn(speaker="bot", text=text, at=AT) for text in bot)
    return Conversation(conversation_id="c-1", user_id="u-1", bot_id="b-1", digest="1:0", turns=(*bots, *users))


def questions(*said: str) -> list[str]:
    return list(local.questions(conversation(*said)).questions)


def emotion(*said: str) -> str:
    return local.emotion(conversation(*said)).emotion


def texts(*said: str) -> list[str]:
    return [fact.text for fact in local.memories(conversation(*said)).facts]


def keys(*said: str) -> list[str]:
    return [fact.key for fact in local.memories(conversation(*said)).facts]


# --- questions


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
    assert local.questions(conversation("Fine.", bot=("How are you?",))).questions == ()


def test_questions_are_bounded_in_number_and_length() -> None:
    found = questions(" ".join(f"Is it {number}?" for number in range(150)))
    assert len(found) == asked.QUESTIONS_MAX
    assert all(len(question) <= asked.QUESTION_CHARACTERS_MAX + 1 for question in questions("why " + "x " * 900 + "?"))


# --- emotion


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
    assert mood.of_turn(said) == expected


def test_a_run_of_short_answers_is_boredom() -> None:
    assert emotion("ok", "ok", "yes", "ok", "k") == "boring"
    assert emotion("ừ", "ừ", "ờ", "ok") == "boring"


def test_one_sad_remark_does_not_outweigh_a_user_who_takes_part() -> None:
    assert (
        emotion("Wow, how does that work?", "They lost, so sad.", "Amazing! Tell me more, what happened?")
        == "interesting"
    )


def test_the_bots_mood_is_not_the_users() -> None:
    assert local.emotion(conversation("I had rice.", bot=("I am so sad and lonely!",))).emotion == "neutral"


def test_a_conversation_in_which_the_user_says_nothing_is_neutral() -> None:
    assert emotion() == "neutral"


# --- memories


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
    assert local.memories(conversation("Fine.", bot=("My name is Pika",))).facts == ()


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
    many = local.memories(conversation(". ".join(f"I like tea{number}" for number in range(150)))).facts
    long = local.memories(conversation("I like " + "a" * 5_000)).facts
    assert len(many) == stated.FACTS_MAX
    assert all(len(fact.text) <= stated.TEXT_CHARACTERS_MAX for fact in long)


# --- any text


PIECES = st.sampled_from(
    ["I like ", "my name is ", "I'm ", "mình thích ", "tên tôi là ", "do you ", "không ", "? ", ". ", ", ", "\x00",
     "\ud800", '"', "’", "İ", "ﬃ", "é", "e\u0301", "😀", "\u200d", "１２", " tuổi", " and i ", "pizza", "Lan", "\n",
     "the "]
)  # fmt: skip
HOSTILE = st.one_of(
    st.text(st.characters(exclude_categories=())),
    st.lists(PIECES, max_size=30).map("".join),
)


@settings(deadline=None)
@given(st.lists(HOSTILE, max_size=6))
def test_any_text_is_analysed_within_bounds_and_can_be_stored(said: list[str]) -> None:
    whole = conversation(*said)
    found, facts = local.questions(whole).questions, local.memories(whole).facts
    assert local.emotion(whole) == local.emotion(whole)
    assert (found, facts) == (local.questions(whole).questions, local.memories(whole).facts)
    for text in (*found, *(fact.text for fact in facts), *(fact.key for fact in facts)):
        assert text.strip()
        assert "\x00" not in text
        assert len(text.encode()) <= 4 * (asked.QUESTION_CHARACTERS_MAX + 1)
    assert len({fact.key for fact in facts}) == len(facts)
    assert all(len(fact.text) <= stated.TEXT_CHARACTERS_MAX for fact in facts)


@settings(deadline=None)
@given(HOSTILE)
def test_lowering_and_folding_keep_every_place(text: str) -> None:
    assert len(words.lower(text)) == len(words.fold(text)) == len(text)


@pytest.mark.parametrize(
    "unit",
    ["a?", "?", ".", "a\n", "i like ", "my name is ", " and i ", "do you ", "what a a ", "isnt you ", "không ",
     "là gì ", '"', "(", "İ", "😀", "i am really ", "mr. ", "haha ", " - ", "\u0301"],
)  # fmt: skip
def test_a_megabyte_of_hostile_text_is_read_to_its_bound_and_no_further(unit: str) -> None:
    # The reach is asserted, not the clock: what stands behind the bound changes nothing.
    whole = unit * (1_000_000 // len(unit))
    short = whole[: words.TURN_CHARACTERS_MAX]
    for analyse in (local.questions, local.emotion, local.memories):
        assert analyse(conversation(whole)) == analyse(conversation(short))


def test_a_conversation_is_read_up_to_its_bound() -> None:
    full = "x " * (words.TURN_CHARACTERS_MAX // 2)
    turns = words.CONVERSATION_CHARACTERS_MAX // words.TURN_CHARACTERS_MAX + 1
    assert questions(*[full] * (turns // 2), "Who are you?") == ["Who are you?"]
    assert questions(*[full] * turns, "Who are you?") == []


def test_letters_that_grow_when_composed_do_not_move_the_bound() -> None:
    # U+0958 becomes two letters, so the last turn overshoots the bound; what follows stays unread.
    growing = "\u0958" * words.TURN_CHARACTERS_MAX
    plain = "x " * (words.TURN_CHARACTERS_MAX // 2)
    assert questions(growing, growing, growing, plain, growing, "Who are you? " + "x " * 20_000) == []


def test_decomposed_letters_are_read_as_composed_ones() -> None:
    assert texts("Mi\u0300nh thi\u0301ch phở") == ["thích phở"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("My name is Nguyễn", "english"),
        ("Tên mình là Lan", "vietnamese"),
        ("bạn ổn chứ", "vietnamese"),
        ("toi rat thich bong da", "bare vietnamese"),
        ("The ban was lifted", "english"),
        ("12345", "english"),
    ],
)
def test_the_language_of_a_turn_is_guessed(text: str, expected: str) -> None:
    assert words.language(text) == expected


def test_the_analyst_names_itself_and_its_rules_version() -> None:
    assert local.BY == "local/1"
    assert msgspec.json.encode(local.emotion(conversation("ok"))) == b'{"emotion":"neutral"}'
