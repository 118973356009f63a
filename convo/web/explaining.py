"""``GET /v1/conversations/{id}/explain``: why a conversation stands as it does; it knows no framework."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Struct

from convo.conversation.cause import Standing, cause
from convo.resilience.dependency import Dependency
from convo.store.explain import Explained, explain
from convo.store.postgres import Postgres
from convo.store.states import SUSPECT_AT
from convo.web import answers
from convo.web.door import Answer, encode


class Explaining(Struct, frozen=True, kw_only=True):
    """What the route works with; ``dependencies`` are those that this process calls, by name."""

    postgres: Postgres
    dependencies: Mapping[str, Dependency]

    async def explain(self, conversation_id: str) -> Answer:
        """Answer with the cause of a conversation's state, its place in the line and every run so far.

        Raises:
            NotFound: there is none of this id.
        """
        found = await explain(self.postgres, conversation_id)
        row = found.row
        because = cause(Standing(**{name: row[name] for name in _STANDING}, suspect_at=SUSPECT_AT))
        ahead, rate = found.ahead, found.rate
        view = answers.ExplainView(
            conversation_id=conversation_id,
            state=row["state"],
            cause=because,
            here=self._here(row["waits_for"]),
            ahead=ahead,
            done_per_second=round(rate, 3),
            seconds_left=None if ahead is None or not rate else round((ahead + 1) / rate, 1),
            attempts=row["attempts"],
            crashes=row["crashes"],
            runs=_runs(found),
            links=answers.links(conversation_id),
        )
        return Answer(status=200, body=encode(view))

    def _here(self, waits_for: str) -> str | None:
        dependency = self.dependencies.get(waits_for)
        return None if dependency is None else dependency.told()


_STANDING = (
    *("state", "now", "attempts", "crashes", "delayed", "available_at", "waits_for", "parked_since"),
    *("leased_at", "leased_until", "leased_by", "last_error", "ended_at"),
)


def _runs(found: Explained) -> tuple[answers.RunView, ...]:
    return tuple(
        answers.RunView(
            began_at=run["began_at"],
            ended_at=run["ended_at"],
            ending=run["ending"],
            by=run["made_by"],
            reason=run["reason"],
            waits=_waits(run),
        )
        for run in found.runs
    )


def _waits(run: Mapping[str, Any]) -> dict[str, float]:
    return msgspec.json.decode(run["waits"], type=dict[str, float])
