from __future__ import annotations

import tracemalloc

import pytest

from convo.conversation import voices


@pytest.mark.parametrize(
    "name",
    [
        *("user", "USER", "human", "END_USER", "end-user", "endUser", "Customer", "caller", "prompter", "HumanMessage"),
        *("MESSAGE_ROLE_USER", "user_message", "USER_RESPONSE_CONVERSATION", "user_2"),
    ],
)
def test_a_user_is_known_in_every_spelling(name: str) -> None:
    assert voices.voice_of(name) == "user"


@pytest.mark.parametrize(
    "name",
    [
        *("assistant", "BOT", "Agent", "ai", "AIMessageChunk", "model", "gpt", "chatgpt", "PIKA", "AUTOMATED_AGENT"),
        *("MESSAGE_ROLE_AGENT", "agent_message", "BOT_RESPONSE_CONVERSATION", "CHATBOT"),
    ],
)
def test_a_bot_is_known_in_every_spelling(name: str) -> None:
    assert voices.voice_of(name) == "bot"


@pytest.mark.parametrize("name", ["system", "developer", "tool", "tool_calls", "function", "observation", "handoff"])
def test_what_is_neither_is_known_as_such(name: str) -> None:
    assert voices.voice_of(name) == "none"


@pytest.mark.parametrize("name", ["", "narrator", "A", "agent_1", "message", "MESSAGE_ROLE_", 3, None, ["user"]])
def test_any_other_value_is_not_known(name: object) -> None:
    assert voices.voice_of(name) is None


def test_the_plain_spellings_mean_what_all_spellings_mean() -> None:
    assert all(voices.voice_of(name) == speaker for name, speaker in voices.PLAIN_SPEAKERS.items())


def test_a_field_that_holds_words_a_speaker_or_a_time_is_written_in_its_bare_form() -> None:
    names = (*voices.SPEAKER_FIELDS, *voices.WORD_FIELDS, *voices.NAME_FIELDS, *voices.TIME_FIELDS)
    assert all(voices.bare(name) == name for name in (*names, *voices.PART_WORD_FIELDS, *voices.SIDE_FIELDS))


def test_long_names_are_not_kept() -> None:
    tracemalloc.start()
    try:
        for number in range(100):
            long = f"{number:0100000d}"
            assert voices.bare(long) == long[:64]
            assert voices.voice_of(long) is None
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 1_000_000
