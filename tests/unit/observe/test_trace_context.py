from __future__ import annotations

import pytest

from convo.observe.trace_context import TraceContext, read_context, read_stored_context

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
VALID = f"00-{TRACE}-{SPAN}-01"


def test_a_traceparent_is_read() -> None:
    assert read_context(VALID, " vendor=x ") == TraceContext(
        trace_id=TRACE, span_id=SPAN, sampled=True, state="vendor=x"
    )
    assert read_context(f" {VALID} ") == TraceContext(trace_id=TRACE, span_id=SPAN)


@pytest.mark.parametrize(("flags", "sampled"), [("00", False), ("01", True), ("02", False), ("03", True), ("ff", True)])
def test_only_the_last_bit_of_the_flags_decides(flags: str, sampled: bool) -> None:  # noqa: FBT001
    found = read_context(f"00-{TRACE}-{SPAN}-{flags}")
    assert found is not None
    assert found.sampled is sampled


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "x",
        VALID[:-1],
        f"{VALID}0",
        f"{VALID}-more",  # version 00 has no more fields
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        VALID.upper(),
        VALID.replace("-", "_"),
        f"00-{TRACE[:-1]}g-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-0x",
        f"{VALID},{VALID}",
    ],
)
def test_what_is_not_valid_is_in_no_trace(wrong: str) -> None:
    assert read_context(wrong, "vendor=x") is None


def test_a_later_version_may_have_more_fields() -> None:
    assert read_context(f"01-{TRACE}-{SPAN}-01-more") == TraceContext(trace_id=TRACE, span_id=SPAN)
    assert read_context(f"01-{TRACE}-{SPAN}-01more") is None


@pytest.mark.parametrize("wrong", ["a=ü", "a=b\r\nx: y", "a" * 513])
def test_a_tracestate_that_cannot_be_passed_on_is_dropped_alone(wrong: str) -> None:
    assert read_context(VALID, wrong) == TraceContext(trace_id=TRACE, span_id=SPAN)


@pytest.mark.parametrize("state", ["", "vendor=x,other=y"])
def test_what_is_stored_is_read_back(state: str) -> None:
    one = TraceContext(trace_id=TRACE, span_id=SPAN, state=state)
    assert read_stored_context(one.stored) == one
    assert one.headers == {"traceparent": VALID, **({"tracestate": state} if state else {})}


def test_a_stored_text_of_another_form_is_in_no_trace() -> None:
    assert read_stored_context("nonsense") is None
