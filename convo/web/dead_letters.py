"""The routes for many dead letters at once: by their reasons, and ready again in batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec
from msgspec import Struct

from convo.conversation.tenant import Reach
from convo.observe import log_records
from convo.store.audit_log import Caller
from convo.store.jobs.dead_letters import DeadFilter
from convo.store.jobs.table import Jobs
from convo.web import queries
from convo.web.description import views
from convo.web.description.messages import Answer, encode
from convo.web.shared_answers import SharedAnswers


class DeadLetterRoutes(Struct, frozen=True, kw_only=True):
    """The routes, with what they need; ``revived`` is called when dead letters are ready again."""

    jobs: Jobs
    rows_max: int
    revived: Callable[[], None]
    shared: SharedAnswers

    async def by_reason(self, query: Mapping[str, str], reach: Reach) -> Answer:
        """Answer with how many dead letters there are, by their reason.

        Raises:
            Invalid: a filter or ``as_of`` is not valid.
        """
        wanted, as_of = _filter(query), queries.as_of_query(query)
        return await self.shared.answer(("dead", reach, wanted), as_of, lambda: self._by_reason(reach, wanted))

    async def _by_reason(self, reach: Reach, wanted: DeadFilter) -> Answer:
        found = await self.jobs.dead_reasons(reach, wanted)
        return Answer(status=200, body=encode(msgspec.convert(found, views.DeadReasonsView, from_attributes=True)))

    async def retry(self, query: Mapping[str, str], caller: Caller, reach: Reach) -> Answer:
        """Make a batch of dead letters ready again, or count it.

        Raises:
            Invalid: a filter, the limit, the cursor or ``dry_run`` is not valid.
        """
        dry_run = queries.flag_of(query, "dry_run")
        batch = await self.jobs.retry_many(
            reach,
            _filter(query),
            after=queries.cursor_of(query) or 0,
            limit=queries.limit_of(query, self.rows_max),
            dry_run=dry_run,
            caller=caller,
        )
        if batch.count and not dry_run:
            log_records.jobs_retried(jobs=batch.count)
            self.revived()
        cursor = None if batch.next_after is None else queries.cursor_after(batch.next_after)
        view = views.RetriedView(retried=batch.count, dry_run=dry_run, next_cursor=cursor)
        return Answer(status=202, body=encode(view))


def _filter(query: Mapping[str, str]) -> DeadFilter:
    return DeadFilter(
        reason=queries.id_of(query, "reason"),
        since=queries.since_of(query),
        user_id=queries.id_of(query, "user_id"),
        bot_id=queries.id_of(query, "bot_id"),
    )
