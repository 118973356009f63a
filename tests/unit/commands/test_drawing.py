from __future__ import annotations

import re
from datetime import UTC, datetime
from io import StringIO

import msgspec
import pytest
from msgspec import structs
from rich.console import Console, RenderableType

from convo.analysis.part import EmotionView, FoundMemoriesView, FoundMemory, PartsView, QuestionsView
from convo.analysis.scoring import score
from convo.commands import drawing, output
from convo.commands.audit_drawing import AuditOverview, draw_audit_log
from convo.commands.drawing import DeadOverview, Newest, RetriedMany
from convo.conversation.score import Weights
from convo.conversation.tenant import Reach, Tenant
from convo.runtime.identity import short_name
from convo.store.keys import ApiKey
from convo.web.description import samples, views
from tests.support.answers import ALL_FOUND, AT, NOTHING_YET, a_row, a_view

EVIL = "[bold red]boo[/] \x1b]0;owned\x07\x1b[2J\r\n\u202eevil :smile:"
SHOWN = r"[bold red]boo[/] \x1b]0;owned\x07\x1b[2J\r\n\u202eevil :smile:"


def drawn(picture: RenderableType, width: int = 160) -> str:
    screen = StringIO()
    Console(file=screen, width=width).print(picture, crop=False)
    return screen.getvalue()


def rows_of(text: str) -> list[list[str]]:
    """Read the cells of every row back from what was drawn."""
    return [
        [cell.strip() for cell in line.strip("│┃").split("│")] for line in text.splitlines() if line.startswith("│")
    ]


def test_a_key_is_shown_with_when_it_expires_and_which_one_it_replaces() -> None:
    key = ApiKey(
        key_id="aaaaaaaaaaaa",
        digest=b"",
        name="robots",
        scopes=("write", "read"),
        requests_per_second=2.5,
        created_at=AT,
        last_used_at=None,
        expires_at=None,
        expires_in=None,
        replaces=None,
    )
    ending = structs.replace(key, key_id="bbbbbbbbbbbb", expires_at=AT, expires_in=5.0, replaces="aaaaaaaaaaaa")
    bound = Reach(tenant=Tenant(number=1, name="acme"), bots=("pika", "tom"))
    expired = structs.replace(ending, key_id="cccccccccccc", expires_in=-1.0, reach=bound)
    made = f"{AT:%Y-%m-%d %H:%M:%S}Z"
    assert rows_of(drawn(drawing.draw_keys([key, ending, expired]), 200)) == [
        ["aaaaaaaaaaaa", "robots", "default", "all", "write, read", "2.5", made, "–", "never", "–"],
        ["bbbbbbbbbbbb", "robots", "default", "all", "write, read", "2.5", made, "–", made, "aaaaaaaaaaaa"],
        [
            "cccccccccccc",
            "robots",
            "acme",
            "pika, tom",
            "write, read",
            "2.5",
            made,
            "–",
            f"expired {made}",
            "aaaaaaaaaaaa",
        ],
    ]


def test_a_conversation_is_shown_with_what_was_sent_found_and_scored() -> None:
    text = drawn(drawing.draw_conversation(a_view()))
    rows = rows_of(text)

    assert "pika-v2 · Pika · bedtime" in text
    assert "last error" not in text
    assert ["questions", "done", "local/2", "Why?", "2026-03-02 08:04:23Z"] in rows
    assert ["", "", "", "How far?", ""] in rows
    assert ["emotion", "done", "local/2", "interesting", "2026-03-02 08:04:23Z"] in rows
    assert ["memories", "done", "mem0/1", "1 new", "2026-03-02 08:04:23Z"] in rows
    assert ["", "", "", "ADD pet: has a dog called Waffles", ""] in rows
    assert rows[-5:-1] == [
        ["exchanges", "2", "× 1", "2"],
        ["questions", "2", "× 3", "6"],
        ["new memories", "1", "× 5", "5"],
        ["emotion", "interesting", "", "15"],
    ]
    assert rows[-1][0] == "final"
    assert rows[-1][3] == "28"


def test_what_is_not_found_yet_is_told_from_nothing_found() -> None:
    unknown = score(2, {}, Weights())
    waiting = rows_of(drawn(drawing.draw_conversation(a_view(parts=NOTHING_YET, score=unknown, state="leased"))))
    empty = PartsView(
        questions=QuestionsView(state="done", by="local/2", questions=()),
        emotion=ALL_FOUND.emotion,
        memories=FoundMemoriesView(state="done", by="local/2", memories=(), new=0),
    )
    done = rows_of(drawn(drawing.draw_conversation(a_view(parts=empty))))

    assert ["questions", "waiting", "–", "–", "–"] in waiting
    assert ["questions", "–", "× 3", "0"] in waiting
    assert waiting[-1][0] == "provisional"
    assert ["questions", "done", "local/2", "none", "–"] in done
    assert ["", "", "", "none", ""] in done


def test_a_memories_part_shows_that_its_count_is_uncertain() -> None:
    unsure = msgspec.structs.replace(ALL_FOUND.memories, uncertain=True)
    parts = msgspec.structs.replace(ALL_FOUND, memories=unsure)
    assert "1 new, uncertain" in drawn(drawing.draw_conversation(a_view(parts=parts)))
    assert "uncertain" not in drawn(drawing.draw_conversation(a_view(parts=ALL_FOUND)))


def test_an_emotion_that_nobody_judged_says_so() -> None:
    unjudged = msgspec.structs.replace(ALL_FOUND.emotion, emotion="neutral", judged=False)
    parts = msgspec.structs.replace(ALL_FOUND, emotion=unjudged)
    assert "neutral (not judged" in drawn(drawing.draw_conversation(a_view(parts=parts)))
    assert "judged" not in drawn(drawing.draw_conversation(a_view(parts=ALL_FOUND)))


def test_a_parked_conversation_shows_what_it_waits_for_and_since_when() -> None:
    text = drawn(drawing.draw_conversation(a_view(state="ready", waits_for="llm", parked_since=AT)))
    assert re.search(r"waits for\s+llm, since ", text)


def test_a_conversation_whose_log_has_expired_shows_it() -> None:
    assert re.search(r"log\s+expired", drawn(drawing.draw_conversation(a_view(log_state="expired"))))
    assert "expired" not in drawn(drawing.draw_conversation(a_view()))


def test_a_part_that_failed_shows_why_and_the_conversation_its_last_error() -> None:
    failed = msgspec.structs.replace(
        NOTHING_YET, emotion=EmotionView(state="failed", by="llama/1", error="llm: no emotion [maybe]")
    )
    text = drawn(drawing.draw_conversation(a_view(parts=failed, state="dead", last_error="gave up")))

    assert ["emotion", "failed", "llama/1", "llm: no emotion [maybe]", "–"] in rows_of(text)
    assert "last error    gave up" in text


def test_declared_parts_are_drawn_below_the_default_ones_with_their_answers_and_points() -> None:
    answer = msgspec.json.decode(msgspec.json.encode(a_view()))
    answer["parts"]["tier"] = {"state": "done", "by": "m/p1:1", "answer": {"tier": EVIL}}
    answer["parts"]["crm"] = {"state": "skipped", "error": "it is of another bot"}
    answer["score"]["breakdown"]["parts"] = {"tier": {"counted": "gold", "points": 20}}
    view = msgspec.json.decode(msgspec.json.encode(answer), type=drawing.ShownConversation)
    text = drawn(drawing.draw_shown_conversation(view))
    assert "it is of another bot" in text
    assert ["tier", "gold", "", "20"] in rows_of(text)
    names = [row[0] for row in rows_of(text)]
    assert names.index("memories") < names.index("tier")
    assert [row[:3] for row in rows_of(text) if row[0] == "crm"] == [["crm", "skipped", "–"]]


def everywhere_evil() -> views.ConversationView:
    parts = PartsView(
        questions=QuestionsView(state="done", by=EVIL, questions=(EVIL,)),
        emotion=EmotionView(state="failed", error=EVIL),
        memories=FoundMemoriesView(
            state="done", by=EVIL, memories=(FoundMemory(text=EVIL, kind=EVIL, operation="ADD"),), new=1
        ),
    )
    names = dict.fromkeys(("conversation_id", "user_id", "bot_id", "bot_name", "bot_type", "agent_tag"), EVIL)
    return a_view(parts=parts, last_error=EVIL, digest=EVIL, **names)


WHY = views.DeadReasonsView(
    total=1,
    complete=True,
    reasons=(
        views.DeadReasonView(
            reason=EVIL,
            count=1,
            oldest_at=datetime(2026, 3, 2, 8, tzinfo=UTC),
            newest_at=datetime(2026, 3, 2, 9, tzinfo=UTC),
        ),
    ),
)


@pytest.mark.parametrize(
    ("picture", "times"),
    [
        (drawing.draw_conversation(everywhere_evil()), 14),
        (drawing.draw_list(Newest(rows=(a_row(EVIL, user_id=EVIL, bot_id=EVIL),), more=False)), 3),
        (
            drawing.draw_dead(
                DeadOverview(rows=(a_row(EVIL, user_id=EVIL, last_error=EVIL),), more=False, reasons=WHY)
            ),
            4,
        ),
        (drawing.draw_retried_many(RetriedMany(retried=1, dry_run=True, reasons=WHY)), 1),
        (
            draw_audit_log(
                AuditOverview(
                    rows=(structs.replace(samples.AUDIT_LOG.entries[0], key_id=EVIL, detail={EVIL: EVIL}),), more=False
                )
            ),
            3,
        ),
    ],
    ids=["show", "list", "dead", "retry", "audit-log"],
)
def test_no_text_of_a_conversation_is_obeyed_by_the_terminal_or_read_as_markup(
    picture: RenderableType, times: int
) -> None:
    screen = StringIO()
    Console(file=screen, width=1000, force_terminal=True, color_system=None).print(picture)
    text = screen.getvalue()

    assert text.count(SHOWN) == times
    assert {letter for letter in text if not letter.isprintable()} <= {"\n"}


def test_letters_of_any_language_and_joined_emoji_stay_as_they_are() -> None:
    assert output.plain("Tớ thích khủng long lắm! 👩‍🚀").plain == "Tớ thích khủng long lắm! 👩‍🚀"


def test_a_narrow_terminal_cuts_no_id() -> None:
    name = "conversation-" + "x" * 60

    text = drawn(drawing.draw_list(Newest(rows=(a_row(name),), more=False)), width=80)

    assert text.splitlines() == [
        f"{name}  done  28  2026-03-02 08:04:23Z",
        "   user mia  bot pika-v2  turns 4",
    ]


def test_two_uuids_do_not_fit_a_line_and_take_two() -> None:
    conversation_id, user_id = "8c1f3d1e-5f1c-4a43-9d0a-2a54f9c0a7c1", "1f0e6f0a-0d9c-4c7e-8f0e-6b1a2c3d4e5f"

    text = drawn(drawing.draw_list(Newest(rows=(a_row(conversation_id, user_id=user_id),), more=False)), width=80)

    first, second = text.splitlines()
    assert first.startswith(conversation_id)
    assert user_id in second
    assert max(len(first), len(second)) <= 80


def test_a_list_shows_a_score_only_where_there_is_one_and_says_when_there_are_more() -> None:
    rows = (a_row("c-1"), a_row("c-2", state="ready", score=None))

    text = drawn(drawing.draw_list(Newest(rows=rows, more=True)))

    assert rows_of(text) == [
        ["c-1", "done", "28", "2026-03-02 08:04:23Z", "mia", "pika-v2", "4"],
        ["c-2", "ready", "–", "2026-03-02 08:04:23Z", "mia", "pika-v2", "4"],
    ]
    assert "There are more" in text
    assert "There are more" not in drawn(drawing.draw_list(Newest(rows=rows, more=False)))
    assert drawn(drawing.draw_list(Newest(rows=(), more=False))) == "none\n"


def test_an_explanation_shows_the_cause_the_place_and_every_run() -> None:
    view = msgspec.structs.replace(samples.EXPLAINED, ahead=7, done_per_second=2.0, seconds_left=4.0)
    # The whole name of the process, 49 characters, is for machines.
    text = drawn(drawing.draw_explained(view))
    assert view.runs[0].by not in text
    assert short_name(view.runs[0].by) == "5f0c9a7e.1c2d3e4f"
    for shown in (
        "parked: it waits for llm",
        "its breaker is open",
        "7 before it, done in about 4 s",
        "llm.questions 0.031 s after 0.012 s, job.part 0.002 s",
        "5f0c9a7e.1c2d3e4f",
    ):
        assert shown in text
