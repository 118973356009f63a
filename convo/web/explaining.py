"""The route ``GET /v1/conversations/{id}/explain``: why a conversation is in its state."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import msgspec
from msgspec import UNSET, Struct, UnsetType, structs

from convo.conversation.tenant import Reach
from convo.resilience.dependency import JobDependency
from convo.runtime.identity import short_name
from convo.store.job_sql import SUSPECT_AT
from convo.store.jobs.cause import Standing, cause
from convo.store.jobs.explain import Explained, read_explanation
from convo.store.postgres import Postgres
from convo.web.description import views
from convo.web.description.messages import Answer, encode
from convo.web.reads import Reads


class ExplainRoute(Struct, frozen=True, kw_only=True):
    """The explain route, with what it needs; ``dependencies`` are those that this process calls, by name."""

    postgres: Postgres
    reads: Reads
    dependencies: Mapping[str, JobDependency]

    async def explain(self, conversation_id: str, reach: Reach) -> Answer:
        """Answer with the cause of a conversation's state, how many jobs come before it, and its newest runs.

        Raises:
            NotFound: no conversation has this id.
            Expired: its content is no longer stored.
        """
        with self.reads.begin():
            found = await read_explanation(self.postgres, reach, conversation_id)
        row = found.row
        standing = {name: row[name] for name in _STANDING}
        left = [(one.name, "" if one.served else one.needs) for one in found.left]
        # Of one that has stopped, or that others take for dead, nobody knows the host any more.
        holder = row["holder"] or short_name(row["leased_by"] or "")
        because = cause(Standing(**standing, leased_by=holder, served=found.served, suspect_at=SUSPECT_AT), left)
        because = structs.replace(because, by=row["leased_by"])
        ahead, rate = found.ahead, found.rate
        view = views.ExplainView(
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
            links=views.links(conversation_id),
        )
        return Answer(status=200, body=encode(view))

    def _here(self, waits_for: str) -> str | None:
        dependency = self.dependencies.get(waits_for)
        return None if dependency is None else dependency.described()


_STANDING = (
    *("state", "now", "attempts", "crashes", "delayed", "available_at", "waits_for", "parked_since"),
    *("leased_at", "leased_until", "last_error", "ended_at"),
)


def _runs(found: Explained) -> tuple[views.RunView, ...]:
    return tuple(
        views.RunView(
            began_at=run["began_at"],
            ended_at=run["ended_at"],
            ending=run["ending"],
            by=run["made_by"],
            reason=run["reason"],
            waits=_waits(run),
            timeline=_timeline(run),
        )
        for run in found.runs
    )


def _timeline(run: Mapping[str, Any]) -> tuple[views.WaitView, ...] | UnsetType:
    spans = msgspec.json.decode(run["timeline"] or "[]", type=list[tuple[str, float, float]])
    began = run["began_at"]
    # An older program noted none, and a run without long waits has none.
    return (
        UNSET
        if not spans
        else tuple(
            views.WaitView(
                name=name, began_at=began + timedelta(seconds=from_), ended_at=began + timedelta(seconds=until)
            )
            for name, from_, until in sorted(spans, key=lambda span: span[1])
        )
    )


def _waits(run: Mapping[str, Any]) -> dict[str, float]:
    return msgspec.json.decode(run["waits"], type=dict[str, float])
