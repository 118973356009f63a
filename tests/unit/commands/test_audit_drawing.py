from __future__ import annotations

from msgspec import structs

from convo.commands.audit_drawing import AuditOverview, draw_audit_log
from convo.web.description import samples
from tests.unit.commands.test_drawing import drawn, rows_of


def test_a_row_of_the_audit_log_takes_two_lines_of_a_narrow_terminal() -> None:
    text = drawn(draw_audit_log(AuditOverview(rows=samples.AUDIT_LOG.entries, more=True)), width=80)

    assert text.splitlines() == [
        "4711  2026-03-02 08:04:24Z  log_read  5f0c9a7e3b1d  192.0.2.7",
        "   target conversation 86a0c7e9f21b3d58647a90cbe1f2348d  detail as sent",
        "There are more: --before 4711 shows the next.",
    ]
    assert max(map(len, text.splitlines())) <= 80


def test_what_a_row_of_the_audit_log_does_not_have_is_a_dash_and_its_detail_is_read_whole() -> None:
    (one,) = samples.AUDIT_LOG.entries
    start = structs.replace(
        one,
        action="start",
        key_id=None,
        address=None,
        target_kind=None,
        target=None,
        detail={"settings": {"jobs.workers": 3}, "not_shown": ["llm.api_key"]},
    )

    text = drawn(draw_audit_log(AuditOverview(rows=(start,), more=False)))

    assert rows_of(text) == [
        [
            "4711",
            "2026-03-02 08:04:24Z",
            "start",
            "–",
            "–",
            "–",
            'settings {"jobs.workers":3}, not_shown ["llm.api_key"]',
        ]
    ]
    assert drawn(draw_audit_log(AuditOverview(rows=(), more=False))) == "none\n"
