from __future__ import annotations

from convo.analysis.differing import differing_fields, shown_result
from convo.conversation.model import Answered, Mood, Questions
from tests.support.making import remembering


def test_what_agrees_is_decided_by_fields() -> None:
    one = Answered(answer={"tier": "gold", "why": "a"})
    assert differing_fields(one, Answered(answer={"tier": "gold", "why": "b"})) == ("why",)
    assert differing_fields(one, Answered(refused="no")) == ("refused", "tier", "why")
    assert differing_fields(Questions(questions=("Why  ?",)), Questions(questions=("why ?",))) == ()
    assert differing_fields(Questions(questions=("Why?",)), Questions(questions=("Why?", "Why?"))) == ("questions",)
    assert differing_fields(Mood(emotion="sad"), Mood(emotion="happy")) == ("emotion",)
    assert differing_fields(remembering("a", "b"), remembering("b", "a")) == ()
    assert differing_fields(remembering("a"), remembering("a", operation="DELETE")) == ("memories",)


def test_a_result_is_shown_as_it_is_answered() -> None:
    assert shown_result(Answered(answer={"tier": "gold"})) == {"tier": "gold"}
    assert shown_result(Answered(refused="no")) == {"refused": "no"}
    assert shown_result(Mood(emotion="sad")) == {"emotion": "sad"}
