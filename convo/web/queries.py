"""Reads the parameters of a query: filters, limit, cursor and wait; what is not known or not valid is answered 422."""

from __future__ import annotations

import base64
import binascii
import difflib
import math
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, cast, get_args
from urllib.parse import parse_qsl

from convo.audit_actions import AUDIT_ACTIONS, AuditAction
from convo.conversation.model import StateFilter
from convo.conversation.times import instant
from convo.errors import Invalid

_LIMIT_DEFAULT = 50
_STATES = get_args(StateFilter)
# How much of an unknown name is sent back.
_NAME_CHARS_MAX = 64
_BELOW_63_BITS = re.compile(r"[0-9]{1,18}")
# float() alone accepts far more: white space, underscores, the digits of every script, nan.
_NUMBER = re.compile(r"\+?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")


def read_query(text: str, known: Sequence[str]) -> Mapping[str, str]:
    """Return the parameters of a query, as it was sent, by name.

    Raises:
        Invalid: one is not ``known``, is sent twice, or is not UTF-8. A misspelt filter must not answer with all rows,
            and of two values nobody can know which one was meant.
    """
    found: dict[str, str] = {}
    try:
        pairs = parse_qsl(text, keep_blank_values=True, errors="strict")
    except UnicodeDecodeError:
        raise Invalid("a query parameter is not UTF-8", path="query") from None
    for name, value in pairs:
        if name not in known:
            raise _unknown(name[:_NAME_CHARS_MAX], known)
        if name in found:
            raise Invalid(f"the query parameter {name} is sent twice; send it once", path=name)
        found[name] = value
    return found


def _unknown(name: str, known: Sequence[str]) -> Invalid:
    near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.4)
    meant = f" did you mean {near[0]}?" if near else ""
    takes = f"this route takes {', '.join(known)}" if known else "this route takes none"
    return Invalid(f"there is no query parameter {name!r} here;{meant} {takes}", path=name)


def wait_of(query: Mapping[str, str]) -> float:
    """Return the seconds to wait for a final state, 0 if none are given.

    Raises:
        Invalid: ``wait`` is not a number of seconds.
    """
    text = query.get("wait", "0")
    seconds = float(text) if _NUMBER.fullmatch(text) else math.inf
    if seconds == math.inf:
        raise Invalid(f"wait={text!r} is not a number of seconds from 0", path="wait")
    return seconds


def revision_of_query(query: Mapping[str, str]) -> int | None:
    """Return which revision of a conversation is asked for, None for the newest.

    Raises:
        Invalid: ``revision`` is not a whole number from 1.
    """
    text = query.get("revision")
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) > 0):
        raise Invalid(f"revision={text!r} is not a number from 1", path="revision")
    return int(text)


def cost_of(query: Mapping[str, str]) -> bool:
    """Return whether the costs of a conversation are asked for.

    Raises:
        Invalid: ``cost`` is neither 0 nor 1.
    """
    text = query.get("cost", "0")
    if text not in ("0", "1"):
        raise Invalid(f"cost={text!r} is not one of 0, 1", path="cost")
    return text == "1"


def log_form_of(query: Mapping[str, str]) -> str:
    """Return the form in which a log is read: as ``turns``, or as it was ``sent``.

    Raises:
        Invalid: ``as`` is neither, or a page is asked for of a log as it was sent.
    """
    form = query.get("as", "turns")
    if form not in ("turns", "sent"):
        raise Invalid(f"as={form!r} is not one of turns, sent", path="as")
    for name in ("limit", "cursor"):
        if form == "sent" and name in query:
            raise Invalid(f"as=sent is the whole log and has no pages; {name} is for turns", path=name)
    return form


def limit_of(query: Mapping[str, str], rows_max: int, default: int = _LIMIT_DEFAULT) -> int:
    """Return how many rows a page has, at most ``rows_max``.

    Raises:
        Invalid: ``limit`` is not a whole number from 1.
    """
    text = query.get("limit", str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) > 0):
        raise Invalid(f"limit={text!r} is not a number from 1", path="limit")
    return min(int(text), rows_max)


def id_of(query: Mapping[str, str], name: str) -> str | None:
    """Return an id to filter by.

    Raises:
        Invalid: it contains a NUL character, which no stored text can.
    """
    value = query.get(name)
    if value is not None and "\x00" in value:
        raise Invalid(f"{name} contains a NUL character", path=name)
    return value


def since_of(query: Mapping[str, str]) -> datetime | None:
    """Return the time to filter by.

    Raises:
        Invalid: ``since`` is no RFC 3339 time.
    """
    return time_of(query, "since")


def time_of(query: Mapping[str, str], name: str) -> datetime | None:
    """Return a time to filter by.

    Raises:
        Invalid: it is no RFC 3339 time.
    """
    text = query.get(name)
    if text is None:
        return None
    try:
        return instant(text)
    except (ValueError, OverflowError):
        raise Invalid(f"{name}={text!r} is not an RFC 3339 time, e.g. 2026-03-02T08:00:00Z", path=name) from None


def flag_of(query: Mapping[str, str], name: str) -> bool:
    """Return a parameter that is true or false, false where it is not sent.

    Raises:
        Invalid: it is neither.
    """
    text = query.get(name, "false")
    if text not in ("true", "false"):
        raise Invalid(f"{name}={text!r} is not one of true, false", path=name)
    return text == "true"


def action_of(query: Mapping[str, str]) -> AuditAction | None:
    """Return an action of the audit log to filter by.

    Raises:
        Invalid: there is no such action.
    """
    action = query.get("action")
    if action is not None and action not in AUDIT_ACTIONS:
        raise Invalid(f"action={action!r} is not one of {', '.join(AUDIT_ACTIONS)}", path="action")
    return cast("AuditAction | None", action)


def state_of(query: Mapping[str, str]) -> str | None:
    """Return a state to filter by.

    Raises:
        Invalid: there is no such state.
    """
    state = query.get("state")
    if state is not None and state not in _STATES:
        raise Invalid(f"state={state!r} is not one of {', '.join(_STATES)}", path="state")
    return state


def since_seq_of(query: Mapping[str, str]) -> int:
    """Return the number of the last sample that the client has, 0 for none.

    Raises:
        Invalid: ``since`` is no whole number from 0.
    """
    text = query.get("since", "0")
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        raise Invalid(f"since={text!r} is not a number from 0", path="since")
    return int(text)


def as_of_query(query: Mapping[str, str]) -> int | None:
    """Return up to which event an answer has to hold what happened; None for one that is as new as can be.

    Raises:
        Invalid: ``as_of`` is no whole number from 1.
    """
    text = query.get("as_of")
    if text is None:
        return None
    if not (_BELOW_63_BITS.fullmatch(text) and int(text)):
        raise Invalid(f"as_of={text!r} is not the number of an event", path="as_of")
    return int(text)


def cursor_of(query: Mapping[str, str]) -> int | None:
    """Return the number that the page begins after.

    Raises:
        Invalid: ``cursor`` was not made by ``next_cursor``.
    """
    text = query.get("cursor")
    if text is None:
        return None
    try:
        number = int(base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True))
    except (ValueError, binascii.Error):
        number = -1
    if not 0 <= number < 1 << 63:
        raise Invalid(f"cursor={text!r} is not valid; send next_cursor of the page before", path="cursor")
    return number


def history_place_of(query: Mapping[str, str]) -> tuple[int, int] | None:
    """Return below which number the page of a history begins, and with which score.

    Raises:
        Invalid: ``cursor`` was not made by ``history_cursor``.
    """
    text = query.get("cursor")
    if text is None:
        return None
    before, _, score = _decoded(text).partition(".")
    if not all(_BELOW_63_BITS.fullmatch(one) for one in (before, score)):
        raise Invalid(f"cursor={text!r} is not valid; send next_cursor of the page before", path="cursor")
    return int(before), int(score)


def history_cursor(before: int, score: int) -> str:
    """Return the cursor of the page that begins below this number, with this score."""
    return base64.urlsafe_b64encode(f"{before}.{score}".encode()).decode().rstrip("=")


def _decoded(text: str) -> str:
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True).decode("ascii")
    except (ValueError, binascii.Error):
        return ""


def next_cursor(rows: Sequence[Mapping[str, Any]], limit: int, column: str) -> str | None:
    """Return the cursor of the next page; None on the last page, which has no row more than ``limit``."""
    return None if len(rows) <= limit else cursor_after(rows[limit - 1][column])


def cursor_after(number: int) -> str:
    """Return the cursor of the page that begins after this number."""
    return base64.urlsafe_b64encode(str(number).encode()).decode().rstrip("=")
