from __future__ import annotations

from typing import Any

import pytest
from msgspec import structs

from convo.analysis.llm_form import (
    FIRST_FORM,
    RECORD_CHARS_MIN,
    RELEARN_SECONDS,
    FormUse,
    LearntForm,
    RequestForm,
    Trait,
    next_down,
    request_fields,
    shorter,
    without,
)
from convo.analysis.prompt import QUESTIONS, asking
from convo.settings import LlmSettings

ASK = asking([QUESTIONS])


def fields_of(form: RequestForm = FIRST_FORM, **settings: Any) -> dict[str, Any]:
    return request_fields(form, LlmSettings(model="m", **settings), ASK, "the record")


def test_the_first_form_asks_for_a_schema_with_a_system_role() -> None:
    fields = fields_of()
    assert fields.keys() == {"model", "temperature", "messages", "response_format"}
    assert [said["role"] for said in fields["messages"]] == ["system", "user"]
    assert fields["response_format"]["json_schema"]["strict"] is True


def test_the_settings_stand_in_the_request() -> None:
    fields = fields_of(temperature=0.5, answer_tokens_max=100, reasoning_effort="low", extra={"seed": 1})
    assert (fields["temperature"], fields["max_tokens"], fields["reasoning_effort"], fields["seed"]) == (
        0.5,
        100,
        "low",
        1,
    )


def test_the_extra_fields_win_over_ours() -> None:
    assert fields_of(extra={"temperature": 1, "model": "other"})["temperature"] == 1


def test_what_is_not_taken_is_left_out_also_of_the_extra_fields() -> None:
    bare = RequestForm(response_format="none", temperature=False, tokens="none", reasoning=False, role="user")
    extra = {
        "temperature": 1,
        "max_tokens": 5,
        "reasoning": {"effort": "low"},
        "response_format": {"type": "x"},
        "seed": 1,
    }
    fields = fields_of(bare, reasoning_effort="low", extra=extra)
    assert fields.keys() == {"model", "messages", "seed"}
    (message,) = fields["messages"]
    assert message["role"] == "user"
    assert message["content"].startswith(ASK.system)
    assert message["content"].endswith(f"the record\n\n{ASK.tasks}")


def test_the_limit_of_tokens_moves_to_its_other_name() -> None:
    fields = fields_of(RequestForm(tokens="max_completion_tokens"), answer_tokens_max=7)
    assert fields["max_completion_tokens"] == 7
    assert "max_tokens" not in fields


@pytest.mark.parametrize(
    ("trait", "steps"),
    [
        ("response_format", [{"response_format": "json_object"}, {"response_format": "none"}]),
        ("temperature", [{"temperature": False}]),
        ("tokens", [{"tokens": "max_completion_tokens"}, {"tokens": "none"}]),
        ("role", [{"role": "developer"}, {"role": "user"}]),
        ("reasoning", [{"reasoning": False}]),
    ],
)
def test_each_trait_has_its_steps_down_and_an_end(trait: Trait, steps: list[dict[str, Any]]) -> None:
    form: RequestForm | None = FIRST_FORM
    for step in steps:
        assert form is not None
        form = without(form, trait, fields_of(form, answer_tokens_max=5, reasoning_effort="low"))
        assert form == structs.replace(FIRST_FORM, **step)
    assert form is not None
    assert without(form, trait, fields_of(form, answer_tokens_max=5, reasoning_effort="low")) is None


def test_what_was_not_sent_cannot_be_left_out() -> None:
    assert without(FIRST_FORM, "tokens", fields_of()) is None
    assert without(FIRST_FORM, "reasoning", fields_of()) is None


def test_a_refusal_that_says_nothing_is_followed_down_to_the_barest_form() -> None:
    form, seen = FIRST_FORM, [FIRST_FORM.label]
    while (down := next_down(form, fields_of(form))) is not None:
        form = down
        seen.append(form.label)
    assert len(set(seen)) == len(seen) == 5
    assert fields_of(form).keys() == {"model", "messages"}
    assert [said["role"] for said in fields_of(form)["messages"]] == ["user"]


def test_a_record_is_shortened_to_a_bound() -> None:
    assert shorter(FIRST_FORM, 60_000) == RequestForm(record_chars=30_000)
    assert shorter(FIRST_FORM, 60_000, 0.1) == RequestForm(record_chars=6_000)
    assert shorter(FIRST_FORM, 1_500) == RequestForm(record_chars=RECORD_CHARS_MIN)
    assert shorter(FIRST_FORM, RECORD_CHARS_MIN) is None


# --- what is remembered

PLAIN = RequestForm(response_format="json_object")


def learnt(form: RequestForm = PLAIN, now: float = 0.0) -> LearntForm:
    known = LearntForm()
    assert known.note_taken(known.use(now), form, now)
    return known


def test_what_worked_is_used_from_then_on() -> None:
    assert learnt().use(1.0) == FormUse(form=PLAIN)


def test_what_is_known_already_is_no_news() -> None:
    known = learnt()
    assert not known.note_taken(known.use(1.0), PLAIN, 1.0)


def test_one_call_tries_the_first_form_again_whatever_the_traffic() -> None:
    known = learnt()
    for second in range(int(RELEARN_SECONDS)):
        known.note_taken(known.use(float(second)), PLAIN, float(second))
    now = RELEARN_SECONDS
    assert known.use(now) == FormUse(form=FIRST_FORM, relearns=True)
    assert known.use(now) == FormUse(form=PLAIN)


def test_a_server_that_takes_the_first_form_again_gets_it() -> None:
    known = learnt()
    assert known.note_taken(known.use(RELEARN_SECONDS), FIRST_FORM, RELEARN_SECONDS)
    assert known.form == FIRST_FORM


def test_a_server_that_still_refuses_is_asked_again_after_as_long_and_it_is_no_news() -> None:
    known = learnt()
    assert not known.note_taken(known.use(RELEARN_SECONDS), PLAIN, RELEARN_SECONDS)
    assert known.use(2 * RELEARN_SECONDS - 1) == FormUse(form=PLAIN)
    assert known.use(2 * RELEARN_SECONDS).relearns


def test_a_try_that_ended_for_another_reason_is_made_again_soon() -> None:
    known = learnt()
    assert known.use(RELEARN_SECONDS).relearns
    assert known.use(RELEARN_SECONDS + 60).relearns


def test_what_two_calls_learn_side_by_side_is_put_together() -> None:
    known = LearntForm()
    one, other = known.use(0.0), known.use(0.0)
    known.note_taken(one, RequestForm(temperature=False, record_chars=500), 1.0)
    known.note_taken(other, RequestForm(response_format="none", record_chars=900), 2.0)
    assert known.form == RequestForm(temperature=False, response_format="none", record_chars=500)


def test_a_call_from_before_does_not_forget_what_was_learnt() -> None:
    known = LearntForm()
    early = known.use(0.0)
    known.note_taken(known.use(0.0), PLAIN, 1.0)
    assert not known.note_taken(early, FIRST_FORM, 2.0)
    assert known.form == PLAIN
