"""One table of the answers that models give, with a remainder that nobody can use."""

from __future__ import annotations

import pytest

from convo.analysis.llm_answers import QUESTION_CHARS_MAX, QUESTIONS_MAX, emotion_in, questions_in

A = '{"questions": ["a?"]}'

USABLE = [
    # plain, fenced, in prose
    A,
    f"\n\n  {A}\n",
    f"```json\n{A}\n```",
    f"```\n{A}\n```\n",
    f"```JSON {A}```",
    f"Here you are: {A} I hope this helps!",
    f"Here you are:\n```json\n{A}\n```\nNote: kept {{verbatim}}.",
    f"The schema was {{questions: [...]}}.\n{A}",
    # several objects
    f'{{"questions": ["draft?"]}}\n{A}',
    f'{{"analysis": "one"}}\n{A}\n{{"confidence": 0.9}}',
    f"{A}\n{A}",
    # thinking before
    f"<think>so {{this}} is it</think>{A}",
    f'<think>{{"questions": ["draft?"]}}</think>{A}',
    f"<think>\n</think>\n\n{A}",
    f"<THINKING>hm</THINKING>{A}",
    f"so {{this}} is it</think>{A}",
    f'maybe {{"questions": ["draft?"]}}</think>{A}',
    f"[THINK]hm {{[/THINK]{A}",
    f"◁think▷hm◁/think▷{A}",
    f'<think>a <think>b</think> {{"questions": ["draft?"]}}</think>{A}',
    f"<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>{A}",
    f"{A}<|im_end|>",
    # thinking after
    f'{A}<think>or {{"questions": ["late?"]}}</think>',
    f'{A}<think>or {{"questions": ["late?"]}}',
    f"{A}\nthat is {{all}}</think>",
    # thinking around an answer that never leaves it
    f"<think>so it is {A}",
    # wrappers, spellings, other shapes
    '{"questions": ["a?"], "notes": [1, {"x": null}]}',
    '{"Questions": ["a?"]}',
    '{"user_questions": ["a?"]}',
    '{"result": {"questions": ["a?"]}}',
    '[{"questions": ["a?"]}]',
    '{"questions": "a?"}',
    '["a?"]',
    '```json\n["a?"]\n```',
    'The list: ["a?"]',
    '{"questions": [{"question": "a?"}]}',
    '{"questions": [{"text": "a?", "turn": 1}]}',
    '{"questions": [{"id": 1, "asked": "a?"}]}',
    '[{"question": "a?"}]',
    '{"questions": [null, "a?", null]}',
    '{"questions": [1, "a?", {}]}',
    '{"questions": ["\\u0000a\\u0000?", "  ", "\\u0000"]}',
    '{"questions": ["a?\n"]}',
    # what a parser of JSON alone would refuse
    '{"questions": ["a?",],}',
    '"{\\"questions\\": [\\"a?\\"]}"',
    # the schema is no answer, and does not hide one
    f'{{"type": "object", "properties": {{"questions": {{"type": "array"}}}}}}\n{A}',
]


@pytest.mark.parametrize("text", USABLE)
def test_the_questions_are_found(text: str) -> None:
    assert questions_in([text]) == ("a?",)


@pytest.mark.parametrize(
    "text",
    [
        '{"questions": []}',
        "[]",
        "```\n[]\n```",
        '{"questions": null}',
        '{"questions": [null]}',
        '{"questions": "none"}',
    ],
)
def test_no_question_is_an_answer_too(text: str) -> None:
    assert questions_in([text]) == ()


UNUSABLE = [
    "",
    " ",
    "I would rather not.",
    "{}",
    "null",
    "7",
    '"a?"',
    "An empty list [] would be wrong.",
    '{"questions": [1]}',
    '{"questions": {"a": ["b"]}}',
    '{"questions": 7}',
    '{"questions": ["a?"',
    '{"questions": ["a?", "b',
    '{"type": "object", "properties": {"questions": {"type": "array", "items": {"type": "string"}}}}',
    '{"answers": ["a?"]}',
    "<think>hm</think>",
    "[" * 50_000,
    '{"a":' * 50_000,
]


@pytest.mark.parametrize("text", UNUSABLE)
def test_what_nobody_can_use_stays_a_failure(text: str) -> None:
    assert questions_in([text]) is None
    assert emotion_in([text]) is None


def test_a_tag_that_somebody_said_is_no_thought() -> None:
    said = "what does </think> mean?"
    assert questions_in([f'{{"questions": ["{said}"]}}']) == (said,)
    assert questions_in([f'Here: {{"questions": ["{said}"]}}']) == (said,)


def test_the_first_text_that_fits_counts() -> None:
    assert questions_in(["nothing", A, '{"questions": ["draft?"]}']) == ("a?",)


def test_half_a_surrogate_pair_does_not_reach_the_database() -> None:
    assert questions_in(['{"questions": ["a\\ud800?"]}']) == ("a??",)


def test_an_answer_without_end_is_bounded() -> None:
    found = questions_in(['{"questions": ["' + "x" * 3_000 + '"' + ', "y"' * 2_000 + "]}"]) or ()
    assert len(found) <= QUESTIONS_MAX
    assert max(map(len, found)) == QUESTION_CHARS_MAX


@pytest.mark.parametrize("piece", ["{", "[[", '{"', '{"a":', "<think>", "</think>", "<think>{", "[{", '["a",', "{}"])
async def test_what_is_made_to_take_long_does_not_hold_the_loop(piece: str) -> None:
    # A Trio test fails when it blocks its loop for a second.
    assert questions_in([piece * 100_000]) is None


EMOTIONS = [
    ('{"emotion": "angry"}', "angry"),
    ('{"emotion": " Angry "}', "angry"),
    ('{"Emotion": "ANGRY!"}', "angry"),
    ('{"emotion": "joyful"}', "happy"),
    ('{"emotion": "frustration"}', "angry"),
    ('{"emotion": "curious"}', "interesting"),
    ('{"emotion": "bored"}', "boring"),
    ('{"emotion": "disappointed"}', "sad"),
    ('{"emotion": "calm"}', "neutral"),
    ('{"emotion": "tức giận"}', "angry"),
    ('{"emotion": "rất buồn"}', "sad"),
    ('{"emotion": "buồn chán"}', "boring"),
    ('{"emotion": "very angry, frustrated"}', "angry"),
    ('{"emotion": null}', "neutral"),
    ('{"emotion": ["sad"]}', "sad"),
    ('{"emotion": {"name": "sad", "score": 0.9}}', "sad"),
    ('{"emotion": {"label": "Happiness"}}', "happy"),
    ('{"emotions": ["sad"]}', "sad"),
    ('{"mood": "sad"}', "sad"),
    ('{"result": {"emotion": "sad"}}', "sad"),
    ('[{"emotion": "sad"}]', "sad"),
    ('["sad"]', "sad"),
    ('"sad"', "sad"),
    ("sad", "sad"),
    ("**Sad**.", "sad"),
    ("Emotion: Sad", "sad"),
    ('<think>{"emotion": "happy"}</think>{"emotion": "sad"}', "sad"),
    ('{"emotion": "happy"}\n{"emotion": "sad"}', "sad"),
]


@pytest.mark.parametrize(("text", "emotion"), EMOTIONS)
def test_the_emotion_is_found_in_any_spelling(text: str, emotion: str) -> None:
    assert emotion_in([text]) == emotion


@pytest.mark.parametrize(
    "text",
    [
        '{"emotion": "odd"}',
        '{"emotion": ""}',
        '{"emotion": 1}',
        '{"emotion": ["sad", "happy"]}',
        '{"emotion": "happy or sad"}',
        '{"emotion": "not happy"}',
        '{"emotion": {"score": 1}}',
        "I am happy to help with this record.",
        "The user was sad, or so it seems.",
        '{"emotion": "sad"',
    ],
)
def test_what_names_no_one_emotion_stays_a_failure(text: str) -> None:
    assert emotion_in([text]) is None
