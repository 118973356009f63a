"""What each case of ``../shared/cases`` should come to, and the verdict on what it came to; pure, without I/O.

Whoever adds a case adds a line to ``EXPECTED``, written from the case's own ``expected`` text. A case without a line is
held to ``Expected()``: accepted, no word lost, not a dead letter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from msgspec import Struct

ANY_STATUS = (202, 400, 409, 413, 415, 422)
_SILENT_ROLES = ("system", "developer")


class Expected(Struct, frozen=True, kw_only=True):
    """What a case should come to; ``None`` or empty: anything will do.

    ``turns``, ``speakers`` and ``questions`` have one entry for each request. ``says`` are texts of which a refusal
    holds at least one; ``told`` stands in what the process logs, explains or shows in ``/readyz``, unless the
    conversation is done.
    """

    status: tuple[int, ...] = (202,)
    turns: tuple[int, ...] = ()
    speakers: tuple[str, ...] = ()
    state: Literal["done", "parked"] | None = None
    questions: tuple[int, ...] = ()
    asked: str = ""
    no_reward: bool = False
    facts_min: int = 0
    says: tuple[str, ...] = ()
    told: str = ""
    attempts_max: int | None = None
    seconds_max: float = 30.0
    posts_max: int | None = None
    warnings_max: int | None = None
    one_by_one: bool = False


_TWO = Expected(turns=(2,), speakers=("user bot",))
_ANSWER = Expected(state="done", questions=(1,), attempts_max=1)
_OUTAGE = Expected(state="parked", attempts_max=0)
_VCON = Expected(status=(415, 422), says=("vcon",))
EXPECTED: dict[str, Expected] = {
    # --- what is sent
    "bedrock": _TWO,
    "bom": _TWO,
    "dialogflow-id": _TWO,
    "livekit": Expected(turns=(3,), speakers=("bot user bot",)),
    "numeric-ids": Expected(turns=(2, 1)),
    "openai-audio-reply": Expected(turns=(1,), speakers=("bot",)),
    "openai-realtime": Expected(turns=(4,), speakers=("bot user bot user",)),
    "openai-responses": _TWO,
    "rasa": _TWO,
    # A longer log under the same id is a conflict, until there are revisions; the answer says what to do.
    "reopened": Expected(status=(202, 409), says=("revision", "id of its own")),
    "responses-refusal": _TWO,
    "same-second": _TWO,
    "twilio-botpress-lex": Expected(status=(202, 422), says=("transcript", "payload", "direction", "media_channel")),
    "vapi-mapped": Expected(status=(202, 422), turns=(3,), speakers=("bot user bot",), says=("message",)),
    "vercel-ai-v5": _TWO,
    "vcon_samples": _VCON,
    # --- what the embedded analyst finds
    "angry-in-other-language": Expected(state="done", no_reward=True),
    "arabic-question-mark": Expected(state="done", questions=(2,)),
    "split-utterance": Expected(state="done", questions=(1,), asked="how late do you deliver on sundays"),
    # --- how a model answers
    "bare-array": _ANSWER,
    "choices-null": _OUTAGE,
    "compressed-answer": _ANSWER,
    "content-filter": Expected(state="done", attempts_max=1),
    "content-list": _ANSWER,
    "error-in-200": _OUTAGE,
    "groq-413-tpm": Expected(told="text_chars_max"),
    "key-refused-with-400": _OUTAGE,
    "no-response-format": _ANSWER,
    "redrive": Expected(state="done"),
    "retry-delay-in-body": Expected(state="done", attempts_max=1, seconds_max=25.0),
    "schema-never-again": Expected(state="done", attempts_max=1, warnings_max=1, one_by_one=True),
    "temperature": _ANSWER,
    "think-unpaired": _ANSWER,
    # --- how a memory service answers
    "mem0-pending-results": Expected(state="done", facts_min=1, posts_max=1, seconds_max=60.0),
    "memory-redirect": Expected(state="parked", attempts_max=0, told="/v1/memories/"),
}


class Posted(Struct, frozen=True, kw_only=True):
    """What became of one request.

    ``said`` are the words in it that somebody spoke. ``log`` is the array that was sent, ``sent`` the one that was read
    back, ``None`` where the server cannot. ``conversation`` is what was shown of it in the end.
    """

    status: int
    code: str = ""
    detail: str = ""
    said: tuple[str, ...] = ()
    log: Any = None
    receipt: Mapping[str, Any] = {}
    sent: Any = None
    turns: Sequence[Mapping[str, Any]] = ()
    conversation: Mapping[str, Any] = {}

    @property
    def state(self) -> str:
        """Return the state of the conversation; "parked" where it waits for a dependency."""
        return "parked" if self.conversation.get("waits_for") else str(self.conversation.get("state", ""))

    def part(self, name: str) -> Mapping[str, Any]:
        """Return what was shown of one part."""
        found: Mapping[str, Any] = self.conversation.get("parts", {}).get(name) or {}
        return found


class Outcome(Struct, frozen=True, kw_only=True):
    """What became of a case: each request, the POSTs that the fake got, and all that the process said."""

    posted: tuple[Posted, ...]
    posts: int = 0
    seconds: float = 0.0
    told: str = ""
    warnings: Counter[str] = Counter()
    notes: tuple[str, ...] = ()


# --- words


def said_in(value: Any) -> Iterator[str]:
    """Yield what somebody spoke in a log: texts of more than one word, but for the system's."""
    if isinstance(value, str):
        if len(value.split()) > 1:
            yield value
    elif isinstance(value, list):
        for below in value:
            yield from said_in(below)
    elif isinstance(value, dict) and value.get("role") not in _SILENT_ROLES:
        for below in value.values():
            yield from said_in(below)


def silent_loss(posted: Posted) -> str:
    """Return which words a request lost behind its 202; empty for none."""
    if posted.status != 202 or not posted.said:
        return ""
    texts = "\n".join(str(turn.get("text", "")) for turn in posted.turns)
    missing = [words for words in posted.said if words not in texts]
    if posted.sent is None:
        return f"202, and {len(missing)} of {len(posted.said)} texts are not to be read" if missing else ""
    if posted.log is not None and posted.sent != posted.log:
        return "202, and the log as sent is not what was sent"
    if not posted.turns and not posted.receipt.get("unread"):
        return "202, turns 0, and the receipt lists nothing as unread"
    return ""


# --- the verdict


def faults(expected: Expected, outcome: Outcome) -> list[str]:
    """Say in what a case came to something else than it should; nothing for as it should."""
    found = list(outcome.notes)
    for index, posted in enumerate(outcome.posted):
        where = f"[{index}] " if len(outcome.posted) > 1 else ""
        found += [where + fault for fault in _request_faults(expected, posted, index)]
    if expected.posts_max is not None and outcome.posts > expected.posts_max:
        found.append(f"{outcome.posts} POSTs to the fake, at most {expected.posts_max} wanted")
    if expected.warnings_max is not None:
        often = {name: count for name, count in outcome.warnings.items() if count > expected.warnings_max}
        found += [f"{name} is logged {count} times" for name, count in often.items()]
    ended = all(posted.state == "done" for posted in outcome.posted)
    if expected.told and not ended and expected.told not in outcome.told:
        found.append(f"nothing tells of {expected.told}")
    return found


def _request_faults(expected: Expected, posted: Posted, index: int) -> Iterator[str]:
    if posted.status not in expected.status:
        yield f"{posted.status}, not {' or '.join(map(str, expected.status))}"
        return
    if posted.status != 202:
        said = f"{posted.code} {posted.detail}".lower()
        if expected.says and not any(text in said for text in expected.says):
            yield f"{posted.status} names none of {', '.join(expected.says)}"
        return
    if expected.turns and len(posted.turns) != expected.turns[index]:
        yield f"{len(posted.turns)} turns, not {expected.turns[index]}"
    speakers = " ".join(str(turn.get("speaker")) for turn in posted.turns)
    if expected.speakers and speakers != expected.speakers[index]:
        yield f"spoken by {speakers or 'nobody'}, not by {expected.speakers[index]}"
    yield from _analysis_faults(expected, posted, index)


def _analysis_faults(expected: Expected, posted: Posted, index: int) -> Iterator[str]:
    if posted.state == "dead":
        yield f"a dead letter: {posted.conversation.get('last_error')}"
        return
    if expected.state and posted.state != expected.state:
        yield f"{posted.state} after {expected.seconds_max:g} s, not {expected.state}"
        return
    attempts = int(posted.conversation.get("attempts") or 0)
    if expected.attempts_max is not None and attempts > expected.attempts_max:
        yield f"{attempts} attempts, at most {expected.attempts_max} wanted"
    questions = posted.part("questions").get("questions") or []
    if expected.questions and len(questions) != expected.questions[index % len(expected.questions)]:
        yield f"{len(questions)} questions, not {expected.questions[index % len(expected.questions)]}"
    if expected.asked and [question.lower().rstrip("?") for question in questions] != [expected.asked]:
        yield f"questions {questions}"
    emotion = posted.part("emotion")
    if expected.no_reward and not (emotion.get("emotion") in ("neutral", "angry") or emotion.get("judged") is False):
        yield f"emotion {emotion.get('emotion')}"
    memories = posted.part("memories")
    if memories.get("state") == "done" and len(memories.get("memories") or []) < expected.facts_min:
        yield "memories are done with no fact"
